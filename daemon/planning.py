"""Plans: from "train this on that" to the exact request a child gets, and the facts preflight judges.

Everything the bits of a version depend on is fixed here, before the job starts (law 7): parent, data, replay, recipe,
seed, threads, dtype, micro-batch. Not here: running the job (`runner.py`), or any tensor.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.checks.preflight import DataFact, Facts
from guard.durable import sha256_bytes, sha256_file
from guard.errors import HeirloomError, NotFound, UsageError
from guard.names import parse_version_number
from guard.store import views
from guard.store.birth import hash_folder, sums_text
from guard.store.files import StoredFile, get_file, stored_path
from guard.store.jobs import Job, jobs_in
from guard.store.keeper import Keeper
from guard.store.learnt import judge_novelty, read_sidecar
from guard.store.versions import (
    Version,
    ancestors,
    find_version,
    learnt_rows,
    line_tip,
    number_is_free,
    version_by_id,
)
from trainer.estimate import Estimate, estimate_job
from trainer.hardware import Numbers, hardware_facts, resolve_numbers
from trainer.model_config import ModelConfig
from trainer.recipe import Recipe, find_recipe, load_recipe, parse_recipe, recipe_hash, resolve
from trainer.template import TEMPLATE_HASH
from trainer.tokenizer import load_tokenizer

__all__ = [
    "Target", "base_of", "base_request", "cost_of", "evaluation_sets", "gather_facts", "prepare_request", "recipe_for",
    "replay_sources", "train_request",
]  # fmt: skip

GATE_TOKENS = 16_384
"""At most so many held-out tokens per set; DESIGN allows 64k, a small CPU has to do it twice per set."""
SAMPLE_TOKENS = 4_096
"""Tokens of the trained data itself that the gate looks at."""
MAX_ANCESTRY_SETS = 8
SHARD_TOKENS = 1 << 24


@dataclass(frozen=True)
class Target:
    """What a job is about to train on what."""

    job: Job
    base: Version
    recipe: Recipe
    files: tuple[StoredFile, ...]


def base_of(keeper: Keeper, job: Job) -> Version:
    """The version a job forks: the one that was named, or the tip of its line now. Raises NotFound."""
    if job.base_id is not None:
        return version_by_id(keeper.ledger, job.base_id)
    tip = line_tip(keeper.ledger, job.line)
    if tip is None:
        raise NotFound(f"the line {job.line} has no version yet", subject=job.line,
                       hint="heirloom plan --base VERSION --line NAME starts one")  # fmt: skip
    return tip


def recipe_for(keeper: Keeper, stage: str, named: str, base: Version, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe a person named, else the one of the base's size in the home's configs; with overrides applied."""
    roots = [keeper.home.configs]
    if named:
        recipe = load_recipe(find_recipe(named, roots, stage))
    else:
        size = str(base.record.get("size") or "small")
        try:
            recipe = load_recipe(find_recipe(size, roots, stage))
        except NotFound:
            recipe = load_recipe(find_recipe("small", roots, stage))
    if recipe.stage != stage:
        raise HeirloomError(f"the recipe {named} is for {recipe.stage}, the data is {stage}", subject=named,
                            hint=f"name one of configs/{stage}/")  # fmt: skip
    return resolve(recipe, overrides) if overrides else recipe


def fork_recipe(recipe: Recipe) -> Recipe:
    """A recipe without its model section: a fork has the shape of its parent, whatever the file describes."""
    return recipe.model_copy(update={"model": None})


def prepare_request(keeper: Keeper, target: Target, known: Path) -> dict[str, Any]:
    """The `job.json` of the prepare child."""
    home, job = keeper.home, target.job
    settings = keeper.settings
    return {
        "schema": 1, "job": job.id, "task": "prepare", "stage": job.stage, "objective": job.stage,
        "staging": str(home.staging_of(job.id)), "tokenization": target.base.record["tokenization"],
        "files": [_file_entry(keeper, file) for file in target.files], "known_fps": str(known), "salt": keeper.salt,
        "validation_fraction": float(keeper.ledger.meta("validation_fraction") or settings.validation.fraction),
        "shard_size_tokens": SHARD_TOKENS, "block_size": target.base.record["block_size"],
        "datasets_root": str(home.shards), "allow_repeat": bool(job.request.get("allow_repeat")),
        "replay": {"fraction": settings.replay.fraction, "datasets": replay_sources(keeper, target.base)},
        "recipe": target.recipe.as_dict(), "seed": target.recipe.seed,
        "max_steps": settings.training.max_steps or None, "iterations": job.request.get("iterations"),
        "nice": settings.nice,
    }  # fmt: skip


def _file_entry(keeper: Keeper, file: StoredFile) -> dict[str, Any]:
    path = stored_path(keeper.home, file)
    return {"sha256": file.sha256, "name": file.name, "path": str(path), "kind": file.kind,
            "sidecar": str(keeper.home.files / file.sha256), "prepared": bool(file.record.get("prepared"))}  # fmt: skip


def dataset_folder(keeper: Keeper, version: Version) -> Path | None:
    """Where the shards lie that a version was trained from, or None: shards are derived and may have been pruned."""
    dataset = version.record.get("dataset")
    if not dataset:
        return None
    places = [keeper.home.shards / dataset["id"]]
    files = [get_file(keeper.ledger, item["sha256"]) for item in version.record["data"]]
    places += [stored_path(keeper.home, file) for file in files if file is not None and file.record.get("prepared")]
    return next((place for place in places if (place / "dataset_metadata.json").is_file()), None)


def replay_sources(keeper: Keeper, base: Version) -> list[dict[str, Any]]:
    """The prepared datasets of the base's ancestry that still exist, with what each ancestor learnt of them."""
    sources = []
    for number in ancestors(keeper.ledger, base.id):
        folder = dataset_folder(keeper, version_by_id(keeper.ledger, number))
        if folder is None or folder.parent != keeper.home.shards:
            # What a dataset that was split elsewhere calls an ordinal is a row of its own train split: no replay yet.
            continue
        order = [item["sha256"] for item in json.loads((folder / "dataset_metadata.json").read_text("utf-8"))["files"]]
        known = [[order.index(row["sha256"]), row["bitmap"]] for row in learnt_rows(keeper.ledger, number)
                 if row["sha256"] in order]  # fmt: skip
        sources.append({"path": str(folder), "known": known})
    return sources


def evaluation_sets(keeper: Keeper, target: Target, dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What child and parent are measured on: the new data, held out and trained, and the ancestry's held-out sets."""
    names = ", ".join(file.name for file in target.files[:3])
    mark = str(dataset["id"])[:8]
    sets: list[dict[str, Any]] = [
        {"name": f"{names} held out ({mark})", "role": "new_held_out", "dataset": dataset["path"], "split": "val",
         "stage": target.job.stage},
        {"name": f"{names} as trained ({mark})", "role": "new_trained", "dataset": dataset["path"], "split": "train",
         "stage": target.job.stage, "max_tokens": SAMPLE_TOKENS},
    ]  # fmt: skip
    seen = {str(dataset["id"])}
    for number in ancestors(keeper.ledger, target.base.id):
        version = version_by_id(keeper.ledger, number)
        old = version.record.get("dataset")
        if len(seen) > MAX_ANCESTRY_SETS:
            break
        if not old or old["id"] in seen:
            continue
        folder = dataset_folder(keeper, version)
        if folder is not None:
            seen.add(old["id"])
            sets.append({"name": _held_out_name(version), "role": "ancestry", "dataset": str(folder),
                         "split": "val", "stage": version.record["stage"]})  # fmt: skip
    return [{"max_tokens": GATE_TOKENS, **item} for item in sets]


def _held_out_name(version: Version) -> str:
    files = ", ".join(item["file"] for item in version.record["data"][:3])
    return f"{files} held out ({version.record['dataset']['id'][:8]})"


def pruned_sets(keeper: Keeper, target: Target) -> list[str]:
    """Names of the ancestry's held-out sets that nobody can be measured on: their prepared data was pruned."""
    family = [version_by_id(keeper.ledger, number) for number in ancestors(keeper.ledger, target.base.id)]
    lost = [item for item in family if item.record.get("dataset") and dataset_folder(keeper, item) is None]
    return list(dict.fromkeys(_held_out_name(item) for item in lost))


def train_request(
    keeper: Keeper, target: Target, request: Mapping[str, Any], prepared: Mapping[str, Any], output: Mapping[str, Any]
) -> dict[str, Any]:
    """The frozen plan: the `job.json` of the training child."""
    settings = keeper.settings.training
    # The recipe is the one that was frozen when the data was prepared, whatever its file says by now.
    recipe = parse_recipe(request["recipe"])
    numbers = numbers_of(keeper, dataclasses.replace(target, recipe=recipe))
    dataset = {"id": prepared["dataset_id"], "path": prepared["dataset_path"]}
    return {
        **{key: request[key] for key in ("schema", "job", "stage", "objective", "staging", "tokenization", "files",
                                         "block_size", "recipe", "seed", "nice")},
        **dataclasses.asdict(numbers), "task": "train", "dataset": dataset, "output": dict(output),
        "base": {"name": target.base.name, "id": target.base.id, "path": str(keeper.home.models / target.base.name),
                 "weights_sha256": target.base.record["files"]["model.safetensors"]},
        "steps": prepared["steps"], "selection_sha256": prepared["selection_sha256"],
        "consumed_sha256": prepared["consumed_sha256"], "evaluation": evaluation_sets(keeper, target, dataset),
        "snapshot": {"every_steps": settings.snapshot_steps or None, "every_seconds": settings.snapshot_seconds},
        "recipe_hash": recipe_hash(recipe), "gate": keeper.settings.gate, "prepared": dict(prepared),
        "planned": _planned(request),
        "pruned": pruned_sets(keeper, target),
    }  # fmt: skip


def _planned(request: Mapping[str, Any]) -> dict[str, Any]:
    """What else decided which examples are trained: with it a version can be made again from its own record."""
    replay = request["replay"]
    return {
        **{key: request.get(key) for key in ("allow_repeat", "max_steps", "iterations", "validation_fraction",
                                             "shard_size_tokens")},
        "replay_fraction": replay["fraction"], "replay_sources": [Path(item["path"]).name for item in replay["datasets"]],
    }  # fmt: skip


def base_request(keeper: Keeper, job: Job, output: Mapping[str, Any]) -> dict[str, Any]:
    """The `job.json` of the child that makes a base from the recipe in the job's request."""
    recipe = parse_recipe(job.request["recipe"])
    if recipe.model is None:
        raise UsageError(f"the recipe {recipe.name} describes no model", subject=recipe.name,
                         hint="a base needs a recipe of configs/pretrain/")  # fmt: skip
    tokenizer = load_tokenizer(job.request["tokenization"])
    shape = recipe.model.model_dump() | {"vocab_size": recipe.model.vocab_size or tokenizer.padded_vocab_size}
    numbers = resolve_numbers(recipe.as_dict(), keeper.settings, ModelConfig.from_recipe(shape))
    return {
        "schema": 1, "job": job.id, "task": "base", "stage": "base", "objective": "none",
        "staging": str(keeper.home.staging_of(job.id)), "tokenization": job.request["tokenization"],
        "recipe": recipe.as_dict(), "recipe_hash": recipe_hash(recipe), "size": Path(recipe.name).name or "small",
        "seed": recipe.seed, "block_size": recipe.model.block_size, "template_hash": TEMPLATE_HASH,
        "tokenizer_hash": tokenizer.content_hash, "output": dict(output), "nice": keeper.settings.nice,
        **dataclasses.asdict(numbers),
    }  # fmt: skip


# --- facts for preflight -----------------------------------------------------------------------------------------


def check_base(keeper: Keeper, base: Version) -> tuple[bool, bool, str]:
    """(present, intact, problem) of a base by reading every byte of it."""
    folder = keeper.home.models / base.name
    if not folder.is_dir() or base.state not in ("sealed", "quarantined"):
        return False, False, f"it is {base.state}" if base.state == "trashed" else "its folder is missing"
    try:
        sums = (folder / "SHA256SUMS").read_text("utf-8")
        if sha256_file(folder / "SHA256SUMS") != base.sums_sha256:
            return True, False, "SHA256SUMS is not the one that was recorded"
        found = sums_text(hash_folder(folder))
    except (OSError, HeirloomError, UnicodeDecodeError) as error:
        return True, False, str(error)
    if found != sums:
        wrong = sorted({line.split("  ", 1)[-1] for line in set(found.splitlines()) ^ set(sums.splitlines())})
        return True, False, f"changed or missing: {', '.join(wrong[:5])}"
    return True, True, ""


def _data_facts(keeper: Keeper, files: Sequence[StoredFile]) -> list[DataFact]:
    facts = []
    for file in files:
        path = stored_path(keeper.home, file)
        found = None
        if path.is_file():
            found = sha256_file(path)
        elif path.is_dir() and file.record.get("prepared"):
            found = parts_sha256(hash_folder(path, skip=()))
        facts.append(DataFact(file.name, file.sha256, found))
    return facts


def parts_sha256(parts: Mapping[str, str]) -> str:
    """The identity of a prepared dataset folder: the hash over the sorted hashes of its files."""
    return sha256_bytes(sums_text(parts).encode())


def shape_of(keeper: Keeper, base: Version) -> ModelConfig:
    """The shape of a sealed version, from its config.json."""
    return ModelConfig.from_hf(json.loads((keeper.home.models / base.name / "config.json").read_text("utf-8")))


def numbers_of(keeper: Keeper, target: Target) -> Numbers:
    """Threads, dtype and micro-batch of a job, from the table."""
    return resolve_numbers(target.recipe.as_dict(), keeper.settings, shape_of(keeper, target.base))


def _cost(keeper: Keeper, target: Target, tokens: int) -> tuple[int, Estimate]:
    """(steps, estimate) of training so many first-pass tokens with the target's recipe."""
    return cost_of(target.recipe, shape_of(keeper, target.base), numbers_of(keeper, target), tokens,
                   iterations=target.job.request.get("iterations"),
                   measured=target.base.record.get("metrics", {}).get("tokens_per_second"))  # fmt: skip


def cost_of(
    recipe: Recipe, shape: ModelConfig, numbers: Numbers, tokens: int, *, iterations: int | None, measured: float | None
) -> tuple[int, Estimate]:
    """(steps, estimate) of so many first-pass tokens on a model of that shape; `iterations`: exactly so many steps."""
    per_step = recipe.training.batch_sequences * shape.block_size
    steps = int(iterations or max(1, -(-tokens * recipe.training.epochs // per_step)))
    work = steps * per_step if iterations else tokens * recipe.training.epochs
    return steps, estimate_job(shape, tokens=work, steps=steps, micro_sequences=numbers.micro_sequences,
                               flags=hardware_facts()["cpu_flags"], cores=numbers.threads, measured=measured)  # fmt: skip


def needed_bytes(keeper: Keeper, target: Target, tokens: int) -> int:
    """Room for shards (3 bytes a token at most), snapshots, the new version and its backup."""
    _steps, cost = _cost(keeper, target, tokens)
    return cost.staging_bytes + cost.version_bytes + 3 * tokens


def gather_facts(
    keeper: Keeper, target: Target, *, prepared: Mapping[str, Any] | None = None, wanted: int | None = None
) -> Facts:
    """Everything preflight judges from. `prepared` is None for an estimate before the data is prepared."""
    base, job = target.base, target.job
    present, intact, problem = check_base(keeper, base)
    intended = job.base_id is not None or line_tip(keeper.ledger, job.line) == base
    tokens = int(prepared["tokens"]) if prepared else _tokens_approx(target)
    others = [f"job {item.id} ({item.state})" for item in jobs_in(keeper.ledger, "preparing", "training", "committing")
              if item.line == job.line and item.id != job.id and item.kind == "train"]  # fmt: skip
    return Facts(
        data=_data_facts(keeper, target.files), base=base.name, base_present=present, base_intact=intact,
        base_is_intended=intended, base_problem=problem or "the line's tip has moved",
        examples_new=_examples_new(keeper, target, prepared),
        examples_too_long=int(prepared["counts"].get("too_long", 0)) if prepared else 0,
        repeat_allowed=bool(job.request.get("allow_repeat")),
        free_bytes=keeper.home.free_bytes(), needed_bytes=_needed(keeper, target, tokens, present),
        reserve_bytes=int(keeper.settings.disk.reserve_gb * 1e9), device="CPU", device_free=True,
        unfinished_jobs=others, inconsistencies=_inconsistencies(keeper),
        tokenizer_base=base.record.get("tokenizer_hash"),
        tokenizer_data=prepared.get("tokenizer_hash") if prepared else None,
        template_base=base.record.get("template_hash"),
        template_data=prepared.get("template_hash") if prepared else None,
        mask_ratio=prepared.get("mask_ratio") if prepared else None, mask_needed=job.stage == "sft",
        output_problem=_output_problem(keeper, wanted, job.id),
    )  # fmt: skip


def _tokens_approx(target: Target) -> int:
    """Intake counts four bytes a token, as GPT-2 does on English; `char` has one for every byte."""
    factor = 4 if target.base.record["tokenization"] == "char" else 1
    return factor * sum(file.tokens_approx for file in target.files if not file.record.get("prepared")) + sum(
        file.tokens_approx for file in target.files if file.record.get("prepared"))  # fmt: skip


def _needed(keeper: Keeper, target: Target, tokens: int, present: bool) -> int | None:
    return needed_bytes(keeper, target, tokens) if present else None


def _output_problem(keeper: Keeper, wanted: int | None, job: int) -> str:
    if wanted is None or number_is_free(keeper, wanted, job):
        return ""
    return f"the number {wanted} was used before or lies below one that was"


def _inconsistencies(keeper: Keeper) -> list[str]:
    """Where ledger and disk disagree. A stale view is made again first and never believed (law 8)."""
    problems = []
    if views.outdated(keeper):
        views.refresh(keeper)
        problems = views.stale(keeper)
    known = {row[0] for row in keeper.ledger.rows("SELECT name FROM versions WHERE state IN ('sealed', 'quarantined')")}
    on_disk = {entry.name for entry in os.scandir(keeper.home.models)
               if entry.is_dir() and parse_version_number(entry.name) is not None}  # fmt: skip
    problems += [f"{name} is in the ledger and not in models/" for name in sorted(known - on_disk)]
    problems += [f"models/{name} is not in the ledger" for name in sorted(on_disk - known)]
    return problems


def _examples_new(keeper: Keeper, target: Target, prepared: Mapping[str, Any] | None) -> int:
    repeat = bool(target.job.request.get("allow_repeat"))
    if prepared is not None:
        counts = prepared["counts"]
        return int(counts["new"]) + int(counts.get("known_again", 0)) if prepared["steps"] else 0
    fingerprints: list[bytes] = []
    for file in target.files:
        fingerprints += read_sidecar(keeper.home.files / file.sha256)
    novelty = judge_novelty(keeper, fingerprints, target.base.id, target.job.stage)
    return novelty.new + (novelty.known if repeat else 0)


def estimate(keeper: Keeper, target: Target) -> dict[str, Any]:
    """Tokens, steps, seconds and bytes a job will take, from sizes and the last measured speed."""
    tokens = _tokens_approx(target)
    steps, cost = _cost(keeper, target, tokens)
    return {"tokens": tokens, "steps": steps, "seconds": cost.seconds, "bytes": needed_bytes(keeper, target, tokens)}


def target_of(keeper: Keeper, job: Job) -> Target:
    """Everything a job is about. Raises NotFound when a file or the base is not known any more."""
    files = []
    for sha256 in job.files:
        file = get_file(keeper.ledger, sha256)
        if file is None:
            raise NotFound(f"the file {sha256[:12]} of job {job.id} is not known any more", subject=sha256,
                           hint="drop it again")  # fmt: skip
        files.append(file)
    base = base_of(keeper, job)
    recipe = recipe_for(keeper, job.stage, str(job.request.get("recipe") or ""), base, job.request.get("overrides") or {})
    return Target(job, base, fork_recipe(recipe), tuple(files))


def resolve_base(keeper: Keeper, text: str) -> Version:
    """The version a person named as base: `v003`, its full name, or `latest` for the active one."""
    if text == "latest":
        tip = line_tip(keeper.ledger, "policy")
        if tip is not None:
            return tip
    return find_version(keeper.ledger, text)
