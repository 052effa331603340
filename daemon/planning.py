"""Plans: from "train this on that" to the exact request a child gets.

Everything the bits of a version depend on is fixed here, before the job starts (law 7): parent, data, replay, recipe,
seed, threads, dtype, micro-batch. Not here: what a job is about (`targets.py`), running it (`runner.py`), any tensor.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from daemon.costs import job_cost, kept_estimate, sharing_of
from daemon.inputs import inputs_of, objective_of
from daemon.targets import Target, numbers_of
from guard.errors import UsageError
from guard.store.evaluation import protected_for
from guard.store.files import StoredFile, get_file, stored_path
from guard.store.jobs import Job
from guard.store.keeper import Keeper
from guard.store.versions import (
    Version,
    ancestors,
    learnt_rows,
    version_by_id,
)
from guard.weights import adapter_base, weights_sha256
from trainer.barred import REPLAY_RULES
from trainer.dealing import own_lanes
from trainer.machine import machine_here
from trainer.model_config import ModelConfig
from trainer.numbers import resolve_numbers
from trainer.objectives import OBJECTIVES, about
from trainer.recipe import Recipe, parse_recipe, parse_sealed, recipe_hash
from trainer.tokenizer_about import about_tokenizer

__all__ = ["base_request", "dataset_request", "evaluation_sets", "prepare_request", "processes_for", "replay_sources",
           "sealed_optimizer", "train_request"]  # fmt: skip

T = TypeVar("T")
GATE_TOKENS = 16_384
"""At most so many held-out tokens per set; DESIGN allows 64k, a small CPU has to do it twice per set."""
SAMPLE_TOKENS = 4_096
"""Tokens of the trained data itself that the gate looks at."""
MAX_ANCESTRY_SETS = 8
"""At most so many earlier sets are measured after a job; the verdict names the ones that were not."""
MAX_ANCESTRY_LOOKS = 64
"""Of so many ancestors the records are read to find those sets: planning a fork costs the same in any home."""
MAX_REPLAY_LOOKS = 256
"""The same for replay. At 10,000 ancestors asking every one took five seconds, and the child opened 10,000 datasets; the
spread moves on with every version, so over time all of them are drawn from."""
SHARD_TOKENS = 1 << 24


def prepare_request(keeper: Keeper, target: Target, known: Path, sets: Sequence[str] | None = None) -> dict[str, Any]:
    """The `job.json` of the prepare child; the list of untouchable rows is written beside `known`.

    `sets`: the evaluation sets a version that is made again knew of; None: all there are. Raises Damage when one of
    them cannot be read: then nothing is prepared (law 5).
    """
    home, job = keeper.home, target.job
    settings = keeper.settings
    return {
        **dataset_request(keeper, target, home.staging_of(job.id)), "task": "prepare", "objective": objective_of(target),
        "known_fps": str(known), "protected": protected_for(keeper, known.with_name("untouchable.fp"), sets),
        "block_size": target.base.record["block_size"], "allow_repeat": bool(job.request.get("allow_repeat")),
        "folder_stages": True,
        "replay": {"fraction": settings.replay.fraction if about(objective_of(target)).replay else 0.0,
                   "datasets": replay_sources(keeper, target.base),
                   "originals": str(home.files), "rules": REPLAY_RULES},
        "recipe": target.recipe.as_dict(), "seed": target.recipe.seed,
        "max_steps": job.request.get("max_steps", settings.training.max_steps) or None,
        "iterations": job.request.get("iterations"),
        "nice": settings.nice, **_device_to_try(keeper, target),
    }  # fmt: skip


def _device_to_try(keeper: Keeper, target: Target) -> dict[str, Any]:
    """What preparation needs to find the micro-batch that fits a GPU; nothing where the processor trains."""
    numbers = numbers_of(keeper, target)
    if numbers.device == "cpu":
        return {}
    return {"device": numbers.device, "dtype": numbers.dtype, "micro_sequences": numbers.micro_sequences}


def dataset_request(keeper: Keeper, target: Target, staging: Path) -> dict[str, Any]:
    """The `job.json` of a child that makes nothing but the dataset of a job's files: what decides its bytes and its id."""
    home, job = keeper.home, target.job
    fraction = keeper.ledger.meta("validation_fraction") or keeper.settings.validation.fraction
    return {
        "schema": 1, "job": job.id, "task": "dataset", "stage": job.stage, "staging": str(staging),
        "tokenization": target.base.record["tokenization"], "tokenizer_folder": str(home.models / target.base.name),
        "files": [_file_entry(keeper, file) for file in target.files], "salt": keeper.salt,
        "validation_fraction": float(fraction), "shard_size_tokens": SHARD_TOKENS, "datasets_root": str(home.shards),
    }  # fmt: skip


def _file_entry(keeper: Keeper, file: StoredFile) -> dict[str, Any]:
    path = stored_path(keeper.home, file)
    return {"sha256": file.sha256, "name": file.name, "path": str(path), "kind": file.kind,
            "sidecar": str(keeper.home.files / file.sha256), "prepared": bool(file.record.get("prepared")),
            "reading": file.record.get("reading") or {}, "tokenizer": file.record.get("tokenizer") or {}}  # fmt: skip


def dataset_folder(keeper: Keeper, version: Version) -> Path | None:
    """Where the shards lie that a version was trained from, or None: shards are derived and may have been pruned."""
    dataset = version.record.get("dataset")
    if not dataset:
        return None
    places = [keeper.home.shards / dataset["id"]]
    files = [get_file(keeper.ledger, item["sha256"]) for item in version.record["data"]]
    places += [stored_path(keeper.home, file) for file in files if file is not None and file.record.get("prepared")]
    return next((place for place in places if (place / "dataset_metadata.json").is_file()), None)


def replay_sources(keeper: Keeper, base: Version, wanted: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The prepared datasets of the base's ancestry that still exist, with what each ancestor learnt of them.

    Of a long ancestry MAX_REPLAY_LOOKS ancestors, evenly spread over all of it, so that what was learnt first is replayed
    as much as what was learnt last; or those that learnt the datasets `wanted` (ids), however many there are.
    """
    sources = []
    family = ancestors(keeper.ledger, base.id)
    for number in spread_evenly(family, MAX_REPLAY_LOOKS) if wanted is None else family:
        version = version_by_id(keeper.ledger, number)
        if wanted is not None and (version.record.get("dataset") or {}).get("id") not in wanted:
            continue
        folder = dataset_folder(keeper, version)
        if folder is None or folder.parent != keeper.home.shards:
            # What a dataset that was split elsewhere calls an ordinal is a row of its own train split: no replay yet.
            continue
        order = [item["sha256"] for item in json.loads((folder / "dataset_metadata.json").read_text("utf-8"))["files"]]
        known = [[order.index(row["sha256"]), row["bitmap"]] for row in learnt_rows(keeper.ledger, number)
                 if row["sha256"] in order]  # fmt: skip
        sources.append({"path": str(folder), "known": known})
    return sources


def evaluation_sets(
    keeper: Keeper, target: Target, dataset: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What child and parent are measured on: the new data, held out and trained, and held-out sets of the ancestry.

    Beside them the ancestry's sets that are not measured, each with the reason, for the verdict to tell.
    """
    names = ", ".join(file.name for file in target.files[:3])
    mark = str(dataset["id"])[:8]
    fresh = [
        {"name": f"{names} held out ({mark})", "role": "new_held_out", "dataset": dataset["path"], "split": "val",
         "stage": target.job.stage},
        {"name": f"{names} as trained ({mark})", "role": "new_trained", "dataset": dataset["path"], "split": "train",
         "stage": target.job.stage, "max_tokens": SAMPLE_TOKENS},
    ]  # fmt: skip
    old: dict[str, dict[str, Any]] = {}
    unjudged = {}
    family, unseen = choose_spread(ancestors(keeper.ledger, target.base.id), MAX_ANCESTRY_LOOKS)
    for number in family:
        version = version_by_id(keeper.ledger, number)
        trained_on = version.record.get("dataset")
        if not trained_on or trained_on["id"] in {dataset["id"], *old}:
            continue
        folder = dataset_folder(keeper, version)
        if folder is None:
            unjudged[_held_out_name(version)] = "its prepared data was pruned"
        else:
            old[trained_on["id"]] = {"name": _held_out_name(version), "role": "ancestry", "dataset": str(folder),
                                     "split": "val", "stage": version.record["stage"]}  # fmt: skip
    chosen, left_out = choose_spread(list(old.values()), MAX_ANCESTRY_SETS)
    unjudged |= {item["name"]: f"only {MAX_ANCESTRY_SETS} earlier sets are measured after each job" for item in left_out}
    if unseen:
        unjudged[f"{len(unseen)} more versions"] = "only some of so long an ancestry are measured after each job"
    return [{"max_tokens": GATE_TOKENS, **item} for item in [*fresh, *chosen]], unjudged


def spread_evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, in their order, at equal distances; the first and the last always among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def choose_spread(items: list[T], most: int) -> tuple[list[T], list[T]]:
    """(chosen, left out) of what is given newest first: the newer half as it is, the rest spread over the older ones.

    What was learnt long ago is what is forgotten first, so the oldest is always among them.
    """
    if len(items) <= most:
        return items, []
    newest, older = items[: most // 2], items[most // 2 :]
    count = most - len(newest)
    places = {round((place + 1) * len(older) / count) - 1 for place in range(count)}
    spread = [item for place, item in enumerate(older) if place in places]
    return newest + spread, [item for place, item in enumerate(older) if place not in places]


def _held_out_name(version: Version) -> str:
    files = ", ".join(item["file"] for item in version.record["data"][:3])
    return f"{files} held out ({version.record['dataset']['id'][:8]})"


def train_request(
    keeper: Keeper, target: Target, request: Mapping[str, Any], prepared: Mapping[str, Any], output: Mapping[str, Any]
) -> dict[str, Any]:
    """The frozen plan: the `job.json` of the training child."""
    settings = keeper.settings.training
    # The recipe is the one that was frozen when the data was prepared, whatever its file says by now.
    recipe = parse_sealed(request["recipe"])
    target = dataclasses.replace(target, recipe=recipe)
    cost = job_cost(keeper, target, int(prepared["tokens"]), prepared)
    numbers = dataclasses.asdict(cost.numbers)
    if numbers["device"] != "cpu" and prepared.get("micro_sequences"):
        numbers["micro_sequences"] = prepared["micro_sequences"]  # tried when the data was prepared
    lanes = sharing_of(keeper, numbers["device"]).lanes
    dataset = {"id": prepared["dataset_id"], "path": prepared["dataset_path"]}
    evaluation, unjudged = evaluation_sets(keeper, target, dataset)
    return {
        **{key: request[key] for key in ("schema", "job", "stage", "objective", "staging", "tokenization", "files",
                                         "block_size", "recipe", "seed", "nice")},
        # A plan frozen by an earlier release names no folder: it needs none.
        "tokenizer_folder": request.get("tokenizer_folder"),
        **numbers, "task": "train", "dataset": dataset, "output": dict(output),
        "inputs": inputs_of(keeper, target), "role": about(request["objective"]).role,
        "lanes": lanes, **processes_for(keeper, lanes, numbers["device"]),
        "base": {"name": target.base.name, "id": target.base.id, "path": str(keeper.home.models / target.base.name),
                 "weights_sha256": weights_sha256(target.base.record),
                 **sealed_optimizer(target.base, recipe, request["objective"])},
        "steps": prepared["steps"], "selection_sha256": prepared["selection_sha256"],
        "consumed_sha256": prepared["consumed_sha256"], "evaluation": evaluation,
        "snapshot": {"every_steps": settings.snapshot_steps or None, "every_seconds": settings.snapshot_seconds},
        "recipe_hash": recipe_hash(recipe), "gate": keeper.settings.gate, "prepared": dict(prepared),
        "unjudged": unjudged, "planned": _planned(request), "estimate": kept_estimate(cost),
    }  # fmt: skip


def sealed_optimizer(base: Version, recipe: Recipe, objective: str) -> dict[str, str]:
    """`optimizer_sha256` of a base that keeps its optimiser's state: what is forked from it starts from that (law 7).

    An adapter's state is of the adapter's numbers and full weights' of all weights, and an objective may have added weights of
    its own: only the like goes on with it.
    """
    sealed = base.record["files"].get("optimizer.safetensors")
    alike = (recipe.lora is not None) == (adapter_base(base.record.get("inputs") or ()) is not None)
    before = str(base.record.get("objective"))
    alike &= objective == before or {objective, before} <= {name for name, one in OBJECTIVES.items() if one.compiles}
    return {"optimizer_sha256": sealed} if sealed and alike else {}


def processes_for(keeper: Keeper, lanes: int, device: str) -> dict[str, Any]:
    """How many processes share so many lanes now, and what starts them: no bit depends on it, so it is not frozen.

    On a GPU it is one: gradients are exchanged in the machine's memory, and two processes on one card gain nothing.
    """
    settings = keeper.settings.training
    if device != "cpu":
        return {"processes": 1, "launch": "", "hang_seconds": settings.hang_seconds}
    try:
        own_lanes(lanes, settings.processes, 0)
    except UsageError:  # the plan was made with other lanes than the settings say by now: one process can do any
        return {"processes": 1, "launch": "", "hang_seconds": settings.hang_seconds}
    return {"processes": settings.processes, "launch": settings.launch, "hang_seconds": settings.hang_seconds}


def _planned(request: Mapping[str, Any]) -> dict[str, Any]:
    """What else decided which examples are trained: with it a version can be made again from its own record."""
    replay = request["replay"]
    return {
        **{key: request.get(key) for key in ("allow_repeat", "max_steps", "iterations", "validation_fraction",
                                             "shard_size_tokens")},
        "untouchable_sets": [item["sha256"] for item in (request.get("protected") or {}).get("sets", ())],
        "replay_fraction": replay["fraction"], "replay_sources": [Path(item["path"]).name for item in replay["datasets"]],
        "replay_rules": replay.get("rules", 1), "folder_stages": bool(request.get("folder_stages")),
    }  # fmt: skip


def base_request(keeper: Keeper, job: Job, output: Mapping[str, Any]) -> dict[str, Any]:
    """The `job.json` of the child that makes a base from the recipe in the job's request."""
    recipe = parse_recipe(job.request["recipe"])
    if recipe.model is None:
        raise UsageError(f"the recipe {recipe.name} describes no model", subject=recipe.name,
                         hint="a base needs a recipe of configs/pretrain/")  # fmt: skip
    folder = job.request.get("tokenizer_folder")
    tokenizer = about_tokenizer(job.request["tokenization"], keeper.home.root / folder if folder else None)
    shape = recipe.model.model_dump() | {"vocab_size": recipe.model.vocab_size or tokenizer.padded_vocab_size}
    numbers = resolve_numbers(recipe.as_dict(), keeper.settings, ModelConfig.from_recipe(shape),
                              machine=machine_here(keeper.home.configs))  # fmt: skip
    return {
        "schema": 1, "job": job.id, "task": "base", "stage": "base", "objective": "none",
        "staging": str(keeper.home.staging_of(job.id)), "tokenization": job.request["tokenization"],
        "recipe": recipe.as_dict(), "recipe_hash": recipe_hash(recipe), "size": Path(recipe.name).name or "small",
        "seed": recipe.seed, "block_size": recipe.model.block_size,
        "template": tokenizer.template, "template_hash": tokenizer.template_hash,
        **({"tokenizer_folder": str(keeper.home.root / folder)} if folder else {}),
        "tokenizer_hash": tokenizer.content_hash, "output": dict(output), "nice": keeper.settings.nice,
        **dataclasses.asdict(numbers),
    }  # fmt: skip
