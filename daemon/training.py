"""`heirloom train`: the seeds' hand command - a prepared dataset folder, a recipe file, a model name.

The folder is admitted as an original of its own (its bytes are kept, its examples count as learnt), so that a version
trained from it has the same lineage as any other. The work itself is an ordinary job. A model name is a line here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from daemon.costs import alike, correction_for, cost_kind, cost_of, sharing_of
from daemon.facts import parts_sha256
from daemon.setup import base_recipe, base_shape, queue_base
from daemon.targets import asked_packing, shape_of
from guard.copies import copy_verified
from guard.durable import fsync_tree, json_bytes, make_dir, remove_tree, rename_new, seal_tree, write_bytes
from guard.errors import Busy, CheckFailed, Damage, NotFound, UsageError
from guard.failpoints import point
from guard.folders import sync_parents
from guard.names import parse_version_number, safe_name, slugify
from guard.steps import Steps, drain
from guard.store.birth import hash_folder_steps
from guard.store.copying import copy_file_steps
from guard.store.files import StoredFile, get_file, with_sidecars
from guard.store.jobs import add_job
from guard.store.keeper import Keeper
from guard.store.originals import examine_steps
from guard.store.placing import set_aside
from guard.store.versions import GONE, Version, all_versions, line_tip, named_version
from guard.store.views import refresh
from trainer.dataset import Dataset, open_dataset
from trainer.machine import machine_here
from trainer.numbers import resolve_numbers
from trainer.recipe import Recipe, resolve
from trainer.recipe_files import load_recipe
from trainer.tokenizer import require_same_tokenizer

if TYPE_CHECKING:
    from daemon.engine import Engine

__all__ = ["admit_dataset", "admit_steps", "train"]

_SPEECHLESS = "fine-tuning starts from a random base: it will not speak. Name one: --init-from-model"


def admit_dataset(keeper: Keeper, folder: Path, dataset: Dataset) -> str:
    """`admit_steps` run to its end."""
    return drain(admit_steps(keeper, folder, dataset))


def admit_steps(keeper: Keeper, folder: Path, dataset: Dataset) -> Steps[str]:
    """Keep a prepared dataset as an original, read and copied in slices; returns its hash. Idempotent: bytes that are known
    are not copied again. Raises Damage when the folder changes meanwhile, Busy while the same bytes are being taken in."""
    sha256 = parts_sha256((yield from hash_folder_steps(folder, skip=())))
    name = safe_name(folder.name)
    final = keeper.home.files / sha256
    known = get_file(keeper.ledger, sha256)
    mended = known is not None and bool((yield from examine_steps(keeper.home, known)))
    if mended or not final.exists():
        # It goes on under the name it was first stored by: that is where the ledger looks for its parts.
        yield from _store_folder(keeper, folder, final, str(known.record["stored_as"]) if known else name, sha256)
    else:
        sync_parents(final)
        seal_tree(final)  # a death may have come between its move and its seal
    if known is not None and mended:
        _note_mended(keeper, known)
    if known is None:
        record = with_sidecars(keeper.home, orjson.loads((final / "record.json").read_bytes()))
        with keeper.ledger.transaction():
            keeper.ledger.run(
                "INSERT INTO files (sha256, name, kind, size_bytes, examples, tokens_approx, description, first_seen, record) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (sha256, name, dataset.stage, record["size_bytes"], record["examples"], record["tokens_approx"],
                 "prepared dataset", keeper.clock.utc(), orjson.dumps(record).decode()))  # fmt: skip
            keeper.ledger.event("dataset.admitted", name, sha256=sha256, examples=record["examples"],
                                sidecars=record["sidecars"])  # fmt: skip
        point("dataset.recorded")
        refresh(keeper)
    return sha256


def _note_mended(keeper: Keeper, known: StoredFile) -> None:
    """Its record.json was written anew and may tell another name; a lost ledger has the hashes from the event."""
    record = with_sidecars(keeper.home, known.record)
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE files SET record = ? WHERE sha256 = ?", (orjson.dumps(record).decode(), known.sha256))
        keeper.ledger.event("file.mended", known.name, sha256=known.sha256, parts=["dataset"], sidecars=record["sidecars"],
                            reason="mended: the stored dataset was damaged and is whole again")  # fmt: skip


_under_way: set[str] = set()
"""What is being copied at this moment: two requests for the same bytes would take each other's copies away."""


def _store_folder(keeper: Keeper, folder: Path, final: Path, name: str, sha256: str) -> Steps[None]:
    if sha256 in _under_way:
        raise Busy(f"{folder} is being taken in already", subject=str(folder), hint="try again in a moment")
    _under_way.add(sha256)
    try:
        yield from _copy_in(keeper, folder, final, name, sha256)
    finally:
        _under_way.discard(sha256)


def _copy_in(keeper: Keeper, folder: Path, final: Path, name: str, sha256: str) -> Steps[None]:
    ready = keeper.home.incoming / f"dataset-{sha256[:16]}"
    remove_tree(ready)
    for part, digest in (yield from hash_folder_steps(folder, skip=())).items():
        make_dir((ready / name / part).parent)
        yield from copy_file_steps(folder / part, ready / name / part, digest)
    parts = yield from hash_folder_steps(ready / name, skip=())
    if parts_sha256(parts) != sha256:
        raise Damage(f"{folder} changed while it was copied", subject=str(folder), hint="try again when it is finished")
    dataset = open_dataset(ready / name)
    # The examples of such a folder are the rows of its train split, in their order.
    copy_verified(ready / name / "train" / "examples.fp", ready / "examples.fp")
    record = {
        "schema": 1, "sha256": sha256, "name": name, "stored_as": name, "kind": dataset.stage, "prepared": True,
        "size_bytes": sum((ready / name / part).stat().st_size for part in parts), "examples": dataset.train.count,
        "tokens_approx": dataset.train.total_tokens,
        "parts": parts, "dataset_id": dataset.id, "sources": dataset.files, "bad_rows": [],
    }  # fmt: skip
    write_bytes(ready / "record.json", json_bytes(record))
    for path in ready.rglob("*"):
        if path.is_file():
            os.chmod(path, 0o444)
    fsync_tree(ready)
    point("dataset.copied")
    if final.exists():
        set_aside(final)
        point("dataset.aside")
    rename_new(ready, final)
    point("dataset.renamed")
    seal_tree(final)  # after the move: a read-only folder cannot be moved by an ordinary user


def _find_base(keeper: Keeper, text: str) -> Version:
    """The version a person calls the initial model: a version, or a model name used with `train` before."""
    if parse_version_number(text) is None and text != "latest":
        tip = line_tip(keeper.ledger, slugify(text))
        if tip is not None:
            return tip
    return named_version(keeper.ledger, text)


@dataclass(frozen=True)
class _Asked:
    """What a person asks for, judged: the dataset, its line with its tip, the base (None: to be made) and the answer."""

    folder: Path
    dataset: Dataset
    line: str
    tip: Version | None
    base: Version | None
    pretraining: str
    result: dict[str, Any]


def train(engine: Engine, arguments: Mapping[str, Any]) -> Steps[dict[str, Any]]:
    """Queue the training of a prepared dataset; returns {job, output, line, base, recipe, examples, estimate, warnings}.

    With `dry_run` everything is checked, and `job` is None: nothing is admitted or queued. The dataset is read and copied
    in slices, and what was asked for is judged again after that.
    Raises CheckFailed naming both sides when tokenizers differ, NotFound for a missing folder, recipe or base.
    """
    keeper = engine.keeper
    asked = _judge(keeper, arguments)
    if arguments.get("dry_run"):
        return asked.result
    sha256 = yield from admit_steps(keeper, asked.folder, asked.dataset)
    asked = _judge(keeper, arguments)
    base, tip, line, steps = asked.base, asked.tip, asked.line, arguments.get("max_iters")
    request: dict[str, Any] = {"recipe": str(Path(arguments["config_file"]).absolute()), "origin": "train",
                               **asked_packing(arguments)}  # fmt: skip
    if steps:
        request["iterations"] = int(steps)
    # Asking for more iterations on what a model knows is asking for the repetition (law 4).
    request["allow_repeat"] = bool(arguments.get("allow_repeat") or (steps and tip is not None))
    with keeper.ledger.transaction():
        if base is None:
            tokenization = str(asked.dataset.tokenizer_state["tokenization"])
            queue_base(keeper, asked.pretraining, tokenization, line=line, slug=f"{line}_base",
                       tokenizer_folder=_kept_folder(keeper, asked.dataset))  # fmt: skip
        asked.result["job"] = add_job(keeper.ledger, kind="train", stage=asked.dataset.stage, line=line, slug=line,
                                      files=[sha256], request=request,
                                      base_id=base.id if base and base is not tip else None)  # fmt: skip
    return asked.result


def _judge(keeper: Keeper, arguments: Mapping[str, Any]) -> _Asked:
    """Everything that `train` checks before it admits anything."""
    folder = Path(arguments["dataset_dir"])
    if not folder.is_dir():
        raise NotFound(f"{folder} is not a folder", subject=str(folder), hint="heirloom prepare text|chat makes one")
    dataset = open_dataset(folder)
    recipe = load_recipe(Path(arguments["config_file"]), dataset.stage)
    overrides = asked_packing(arguments).get("overrides")
    recipe = resolve(recipe, overrides) if overrides else recipe
    if recipe.stage != dataset.stage:
        raise UsageError(f"{arguments['config_file']} is for {recipe.stage}, the dataset is {dataset.stage}",
                         hint=f"name a recipe of configs/{dataset.stage}/")  # fmt: skip
    line = slugify(str(arguments["model_name"]))
    named = arguments.get("init_from_model")
    tip = line_tip(keeper.ledger, line)
    base = _find_base(keeper, str(named)) if named else tip
    _refuse_mismatch(dataset, folder, base)
    if named and tip is not None and base is not None and base.id != tip.id:
        raise CheckFailed(f"the model {line} exists already and stands on {tip.name}", subject=line,
                          hint=f"--model-name for a new one, or leave --init-from-model away to go on with {line}")  # fmt: skip
    # A random base takes its shape from the recipe, or from the pretraining one of the same size.
    pretraining = str(arguments["config_file"]) if recipe.model else f"pretrain/{Path(recipe.name).name}"
    result = {
        "job": None, "output": line, "line": line, "base": base.name if base else None, "recipe": recipe.name,
        "examples": dataset.train.count,
        "estimate": _estimate(keeper, recipe, base, pretraining, dataset, arguments.get("max_iters")),
        "warnings": [_SPEECHLESS] if base is None and dataset.stage == "sft" else [],
    }  # fmt: skip
    return _Asked(folder, dataset, line, tip, base, pretraining, result)


def _estimate(
    keeper: Keeper, recipe: Recipe, base: Version | None, pretraining: str, dataset: Dataset, iterations: int | None
) -> dict[str, Any]:
    """First-pass tokens, steps, seconds and bytes; `pretraining` names the recipe of a base that is yet to be made."""
    shape = (shape_of(keeper, base) if base else
             base_shape(base_recipe(keeper.home, pretraining), str(dataset.tokenizer_state["tokenization"]),
                        _kept_folder(keeper, dataset)))  # fmt: skip
    measured = base.record.get("metrics", {}).get("tokens_per_second") if base else None
    tokens = dataset.train.total_tokens
    numbers = resolve_numbers(recipe.as_dict(), keeper.settings, shape, tokens=tokens * recipe.training.epochs,
                              machine=machine_here(keeper.home.configs))  # fmt: skip
    sharing = sharing_of(keeper, numbers.device)
    numbers = sharing.dealt(numbers, keeper.settings.training.threads)
    key = alike(shape, numbers, sharing, cost_kind(recipe, dataset.stage))
    steps, cost = cost_of(recipe, shape, numbers, tokens, examples=dataset.train.count, iterations=iterations, measured=measured,
                          correction=correction_for(keeper, key), sharing=sharing)  # fmt: skip
    return {"tokens": tokens, "steps": steps, "seconds": cost.seconds, "bytes": cost.staging_bytes + cost.version_bytes,
            "memory_bytes": cost.memory_bytes}  # fmt: skip


def _kept_folder(keeper: Keeper, dataset: Dataset) -> Path | None:
    """Where this home has the dataset's own Hugging Face tokenizer; None for one that needs no folder.

    Raises CheckFailed when it is nowhere here.
    """
    state = dataset.tokenizer_state
    if state.get("tokenization") != "hf":
        return None
    wanted = str(state["content_hash"])
    kept = sorted((keeper.home.configs / "tokenizers").glob(f"{wanted[:16]}-*"))
    found = [keeper.home.models / version.name for version in all_versions(keeper.ledger)
             if version.record.get("tokenizer_hash") == wanted and version.state not in GONE]  # fmt: skip
    for folder in (*kept, *found):
        if (folder / "tokenizer_state.json").is_file():
            return folder
    raise CheckFailed(f"the tokenizer of {dataset.folder} ({wanted[:16]}) is in no version here", subject=str(dataset.folder),
                      hint="--init-from-model V, a version with that tokenizer")  # fmt: skip


def _refuse_mismatch(dataset: Dataset, folder: Path, base: Version | None) -> None:
    if base is None:
        return
    state = {"tokenization": base.record["tokenization"], "content_hash": base.record["tokenizer_hash"]}
    require_same_tokenizer(state, dataset.tokenizer_state, base.name, str(folder))
