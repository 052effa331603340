"""The body of the child task "prepare": from job.json to a prepared dataset, a frozen selection and prepared.json.

Reads stored originals and earlier datasets, writes only its staging folder, decides nothing about the plan: "nothing
new" is an answer with zero steps, and whether that is acceptable is judged by preflight. Run again after a death it
starts over and gives the same bytes. Not here: starting children, moving the dataset into place, training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bitmap import pack_bitmap
from guard.checks.columns import Reading
from guard.checks.kinds import stage_of
from guard.checks.made_with import other_tokenizer
from guard.durable import json_bytes, make_dir, publish, remove_tree, write_json
from guard.errors import CheckFailed, HeirloomError, UsageError
from guard.fingerprint import CANONICAL_VERSION
from guard.heldout import held_out_mask
from trainer.barred import key_list, untouchable_rows
from trainer.cap import fit_replay, keep_first, room_for_new
from trainer.choose import Chosen, select_new
from trainer.curriculum import Curriculum, job_curriculum, stage_table, stage_warnings
from trainer.dataset import Dataset, open_dataset, verify_dataset
from trainer.phases import Phases
from trainer.prepare import Progress, SourceFile, planned_id, prepare_dataset
from trainer.recipe import Recipe, parse_sealed
from trainer.replay import add_replay
from trainer.replay_sources import replay_sources, without_ranges
from trainer.selection import training_steps
from trainer.templates.base import Template
from trainer.templates.find import load_template
from trainer.tokenizer import Tokenizer, load_tokenizer, require_same_tokenizer

__all__ = ["run_dataset", "run_prepare"]


@dataclass(frozen=True)
class _Ready:
    """Dataset 0 of the job."""

    dataset: Dataset
    made: bool
    final_path: str
    """Where it lies, or will lie once it was moved out of staging."""
    warnings: tuple[str, ...] = ()
    damaged: bool = False
    """What lay at `final_path` was damaged: it has to make way for the one made now."""
    prepared_sha256: str = ""
    """Set when the job's data is a folder that was prepared elsewhere: the hash it is registered under."""


def _sources(files: Sequence[Mapping[str, Any]]) -> list[SourceFile]:
    return [SourceFile(str(item["sha256"]), str(item["name"]), Path(item["path"]),
                       Path(item["sidecar"]) if item.get("sidecar") else None, Reading(**item.get("reading") or {}),
                       _kind_apart(str(item.get("kind") or "")), says_tokenizer=bool(item.get("tokenizer")))
            for item in files]  # fmt: skip


def _kind_apart(kind: str) -> str:
    """A kind that is not called like its stage; "" for one that is."""
    return "" if stage_of(kind) == kind else kind


def _progress(staging: Path) -> Progress:
    def tell(examples: int, tokens: int) -> None:
        publish(staging / "progress.json", json_bytes({"phase": "preparing", "examples": examples, "tokens": tokens}))

    return tell


def _given_folder(job: Mapping[str, Any], tokenizer: Tokenizer) -> _Ready | None:
    """The dataset of a job whose data was prepared before it was dropped."""
    prepared = [item for item in job["files"] if item.get("prepared")]
    if not prepared:
        return None
    if len(job["files"]) > 1:
        raise UsageError("a prepared dataset is trained by itself, not together with other files",
                         subject=str(prepared[0]["name"]), hint="queue one job for each")  # fmt: skip
    dataset = verify_dataset(prepared[0]["path"])
    require_same_tokenizer(tokenizer.state(), dataset.tokenizer_state, "the base", f"the dataset {prepared[0]['name']}")
    if (dataset.metadata.get("versions") or {}).get("canonical") != CANONICAL_VERSION:
        raise CheckFailed(f"the dataset {prepared[0]['name']} was prepared with other rules of identity",
                          hint="prepare it again with this version of Heirloom")  # fmt: skip
    return _Ready(dataset, False, str(dataset.folder), prepared_sha256=str(prepared[0]["sha256"]))


def _held_out_here(job: Mapping[str, Any], ready: _Ready) -> NDArray[np.bool_] | None:
    """Examples of a folder split elsewhere that this home holds out for ever; None for a dataset of its own."""
    if not ready.prepared_sha256:
        return None
    keys = ready.dataset.train.fingerprints.tobytes()
    return held_out_mask(keys, str(job["salt"]), float(job["validation_fraction"]))


def _how(job: Mapping[str, Any], template: Template) -> dict[str, Any]:
    """What decides the bytes of a dataset beside its files and tokenizer."""
    return {"stage": job["stage"], "shard_size_tokens": int(job["shard_size_tokens"]), "salt": str(job["salt"]),
            "validation_fraction": float(job["validation_fraction"]), "template": template}  # fmt: skip


def _place(job: Mapping[str, Any], tokenizer: Tokenizer, template: Template) -> Path:
    """Where the dataset of a job's files lies, or will lie."""
    return Path(job["datasets_root"]) / planned_id(_sources(job["files"]), tokenizer, **_how(job, template))


def _make(job: Mapping[str, Any], tokenizer: Tokenizer, template: Template, stop: Callable[[], bool]) -> Dataset:
    """The dataset of a job's files, made anew in `<staging>/prepare`."""
    staging = Path(job["staging"])
    remove_tree(staging / "prepare")
    return prepare_dataset(_sources(job["files"]), tokenizer, staging / "prepare", progress=_progress(staging),
                           threads=int(job.get("threads") or 1), stop=stop, **_how(job, template))  # fmt: skip


def _ready_dataset(job: Mapping[str, Any], tokenizer: Tokenizer, template: Template, stop: Callable[[], bool]) -> _Ready:
    """The job's dataset: given, already there and intact, or made now in `<staging>/prepare`."""
    given = _given_folder(job, tokenizer)
    if given:
        return given
    existing = _place(job, tokenizer, template)
    warnings: tuple[str, ...] = ()
    if existing.exists():
        try:
            return _Ready(verify_dataset(existing), False, str(existing))
        except HeirloomError as error:
            # Shards are derived: they can be made again from the originals, which is better than to stop here.
            warnings = (f"the dataset {existing.name} is damaged and was made again: {error.message}",)
    made = _make(job, tokenizer, template, stop)
    return _Ready(made, True, str(existing), warnings, damaged=bool(warnings))


def _learnt(ready: _Ready, chosen: Chosen, fed: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """For each file what the child will have learnt of it: bitmap over ordinals, count, input tokens.

    A folder prepared elsewhere counts as one file whose ordinals are the rows of its train split.
    """
    examples = chosen.selection.examples
    if ready.prepared_sha256:
        return [_learnt_entry(ready.prepared_sha256, chosen.example_rows[fed], ready.dataset.train.count,
                              examples[fed, 2])]  # fmt: skip
    entries = []
    for index, file in enumerate(ready.dataset.files):
        mine = fed & (examples[:, 0] == index)
        entries.append(_learnt_entry(file["sha256"], examples[mine, 1], int(file["examples"]), examples[mine, 2]))
    return entries


def _learnt_entry(sha256: str, ordinals: NDArray[np.int64], count: int, tokens: NDArray[np.int64]) -> dict[str, Any]:
    return {"sha256": sha256, "bitmap": pack_bitmap(ordinals.tolist(), count), "count": len(ordinals),
            "tokens": int(tokens.sum())}  # fmt: skip


def _choose(job: Mapping[str, Any], ready: _Ready, tokenizer: Tokenizer, template: Template, recipe: Recipe,
            curriculum: Curriculum | None) -> tuple[Chosen, list[str]]:  # fmt: skip
    """What is new in the dataset, with replay, and what went wrong with sources of replay."""
    block_size, packing = int(job["block_size"]), recipe.training.packing
    keys = key_list(job)
    sources, warnings = replay_sources(job, tokenizer, template, keys)
    fraction = float((job.get("replay") or {}).get("fraction") or 0.0)
    batch, cap = recipe.training.batch_sequences, int(job.get("max_steps") or 0) if not job.get("iterations") else 0
    room = None
    if cap:
        room = room_for_new(cap, batch, replay=fraction if sources else 0.0, stages=len(curriculum.lengths) if curriculum else 1)
    whole = packing == "bestfit" or curriculum is not None
    chosen = select_new(ready.dataset, stage=str(job["stage"]), known_fps=job.get("known_fps"), block_size=block_size,
                        allow_repeat=bool(job.get("allow_repeat")), held_out=_held_out_here(job, ready),
                        untouchable=untouchable_rows(job, ready.dataset, keys, folder=bool(ready.prepared_sha256)),
                        packing=packing, at_most=room if whole else None, curriculum=curriculum)  # fmt: skip
    if room and not whole:
        chosen = keep_first(chosen, room)
    rules = int((job.get("replay") or {}).get("rules") or 1)
    if rules >= 3:
        sources = [without_ranges(source, ready.dataset, chosen.selection.ranges) for source in sources]
    chosen = add_replay(chosen, sources, fraction=fraction, block_size=block_size, seed=int(job["seed"]), packing=packing,
                        curriculum=curriculum)  # fmt: skip
    return fit_replay(chosen, cap, batch) if cap and rules >= 4 else chosen, warnings


def run_dataset(job: Mapping[str, Any], *, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Make the dataset of files that a job will train later, unless it is there; returns what dataset.json says.

    Which of its examples are trained is decided at that job's start. Raises what `run_prepare` raises.
    """
    tokenizer, template = _load(job)
    place = _place(job, tokenizer, template)
    made = not place.exists()
    if made:
        _make(job, tokenizer, template, stop)
    told = {"schema": 1, "dataset_id": place.name, "dataset_made": made}
    write_json(Path(job["staging"]) / "dataset.json", told)
    return told


def _load(job: Mapping[str, Any]) -> tuple[Tokenizer, Template]:
    """Tokenizer and template of a job's base. Raises CheckFailed for a file that another tokenizer made."""
    tokenizer = load_tokenizer(str(job["tokenization"]), job.get("tokenizer_folder"))
    for item in job["files"]:
        problem = other_tokenizer(item.get("tokenizer") or {}, tokenizer.state())
        if problem:
            raise CheckFailed(f"{item['name']}: {problem}", subject=str(item["name"]),
                              hint="plan it on a base with that tokenizer, or pack the text again with this one's")  # fmt: skip
    return tokenizer, load_template(job.get("tokenizer_folder"))


def run_prepare(job: Mapping[str, Any], *, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Do the task of a job.json and return what prepared.json says; both are durable when this returns.

    Raises HeirloomErrors whose class says whose fault it is: DataFault and Damage the data's, EnvironmentFault the
    machine's; StopRequested when `stop`, asked for every batch of examples, says so. Data without anything new is no
    error: `steps` is 0 and `counts` says why.
    """
    staging, phases = Path(job["staging"]), Phases()
    phases.begin("loading")
    make_dir(staging)
    recipe = parse_sealed(job["recipe"], "the job's recipe")
    tokenizer, template = _load(job)
    phases.begin("making the dataset")
    ready = _ready_dataset(job, tokenizer, template, stop)
    phases.begin("choosing")
    batch, seed = recipe.training.batch_sequences, int(job["seed"])
    curriculum, told = job_curriculum(job, recipe.training.model_dump())
    chosen, warnings = _choose(job, ready, tokenizer, template, recipe, curriculum)
    selection = dataclasses.replace(chosen.selection, datasets=(ready.final_path, *chosen.selection.datasets[1:]))
    steps = training_steps(selection, batch, epochs=recipe.training.epochs, max_steps=job.get("max_steps"),
                           iterations=job.get("iterations") or recipe.training.iterations)  # fmt: skip
    fed = selection.learnt_examples(seed, steps, batch)
    dataset = ready.dataset
    prepared = {
        "schema": 1,
        "dataset_id": dataset.id,
        "dataset_path": str(dataset.folder),
        "dataset_made": ready.made,
        "dataset_damaged": ready.damaged,
        "tokenizer_hash": tokenizer.content_hash,
        # Plain text passes through no template: it is the same for every base with this tokenizer.
        "template_hash": template.hash if dataset.stage == "pretrain" else dataset.metadata.get("template_hash"),
        "counts": {**chosen.counts, **_inexpressible(dataset)},
        "steps": steps,
        "steps_per_epoch": selection.steps_per_epoch(batch),
        "sequences": len(selection.sequences),
        "packing": {"mode": recipe.training.packing, "documents": selection.document_count(),
                    "used": round(selection.used(int(job["block_size"])), 4), **stage_table(selection, batch)},
        "selection_sha256": selection.save(staging),
        "consumed_sha256": selection.consumed_hash(seed, steps, batch),
        "learnt": _learnt(ready, chosen, fed),
        "tokens": int(selection.examples[fed, 2].sum()),
        # of all steps, replay and repeats too: what the job's time is estimated from
        "fed_tokens": int(selection.ranges[:, 2].sum() * steps / max(1, selection.steps_per_epoch(batch))),
        "loss_tokens": int(chosen.example_loss_tokens[fed].sum()),
        "mask_ratio": dataset.mask_ratio,
        "replay_datasets": list(selection.dataset_ids[1:]),
        # what the training child holds its datasets against
        "pins": {found.id: found.pin for found in (dataset, *map(open_dataset, chosen.selection.datasets[1:]))},
        "warnings": [*dataset.metadata["warnings"], *ready.warnings, *told, *warnings,
                     *_count_warnings(chosen, fed, steps), *stage_warnings(selection, batch, steps)],
    }
    prepared |= _on_the_device(job, recipe) if steps else {}
    write_json(staging / "prepared.json", prepared)
    phases.tell(staging)
    return prepared


def _on_the_device(job: Mapping[str, Any], recipe: Recipe) -> dict[str, int]:
    """The micro-batch that fits the GPU's memory, tried here so that the plan can freeze it; {} for the processor."""
    if job.get("device", "cpu") == "cpu":
        return {}
    from trainer.device import fitting_micro  # torch is wanted only here

    micro = fitting_micro(Path(job["tokenizer_folder"]), job["objective"], recipe.training.model_dump(),
                          job["dtype"], job["device"], int(job["micro_sequences"]))  # fmt: skip
    return {"micro_sequences": micro}


def _inexpressible(dataset: Dataset) -> dict[str, int]:
    """Conversations left out because the template has no words for them; nothing when there are none."""
    found = dataset.metadata.get("inexpressible")
    return {"inexpressible": int(found["count"])} if found else {}


def _count_warnings(chosen: Chosen, fed: NDArray[np.bool_], steps: int) -> list[str]:
    """What a person should know about the choice, in sentences."""
    counts, left = chosen.counts, int(chosen.counts["new"] - fed.sum())
    sentences = {
        "too_long": "{} conversations are too long for this base and were left out",
        "too_short": "{} examples are a single token and cannot be trained",
        "untouchable": "{} examples are in a registered evaluation set and were kept out",
        "known_again": "{} examples already learnt are trained again, as was asked",
    }
    warnings = [text.format(counts[key]) for key, text in sentences.items() if counts[key]]
    if steps and left:
        warnings.append(f"{left} new examples are not reached in {steps} steps and stay trainable")
    return warnings

