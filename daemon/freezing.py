"""Freezing: what a job's child is to do, in the ledger and in its staging folder before the child is started.

A frozen plan is never made a second time: a restart goes on with it. The number of the version is taken in the same
transaction as the plan that names it. Not here: what stands in a plan (`planning.py`), or when it is made (`runner.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.inputs import objective_of
from daemon.planning import base_request, prepare_request, processes_for, train_request
from daemon.publish import ensure_staging
from daemon.targets import Target
from guard.checks.preflight import Facts
from guard.durable import remove_tree, write_json
from guard.failpoints import point
from guard.names import version_name
from guard.steps import Steps
from guard.store.evaluation import evaluation_sets
from guard.store.jobs import Job, set_job
from guard.store.keeper import Keeper
from guard.store.learnt import write_known_steps
from guard.store.lost import tell_lost
from guard.store.versions import intend_number, number_is_free, reserve_number

__all__ = ["exact_facts", "freeze_base", "freeze_preparation", "freeze_training", "knew_every_set",
           "known_steps", "take_up_plan"]  # fmt: skip

_KNOWN = "known.fp"


def known_steps(keeper: Keeper, job: Job, target: Target) -> Steps[int]:
    """Write down what was learnt of a job's files, in slices, in an empty staging folder; returns how many examples."""
    staging = _clean_staging(keeper, job)
    sidecars = [keeper.home.files / file.sha256 for file in target.files]
    return write_known_steps(keeper, sidecars, target.base.id, objective_of(target), staging / _KNOWN)


def freeze_preparation(keeper: Keeper, job: Job, target: Target) -> Path:
    """What preparation needs, in the staging folder in which `known_steps` left what was learnt; returns the folder."""
    staging = keeper.home.staging_of(job.id)
    tell_lost(keeper, job.id)
    request = prepare_request(keeper, target, staging / _KNOWN)
    write_json(staging / "job.json", request)
    with keeper.ledger.transaction():
        set_job(keeper.ledger, job.id, "preparing", plan={"request": request}, base_id=job.base_id)
    return staging


def freeze_base(keeper: Keeper, job: Job) -> Path:
    """The plan of a base from a recipe: no data, no parent, and so no preflight but the disk's; returns its folder."""
    staging = _clean_staging(keeper, job)
    write_json(staging / "job.json", _with_number(keeper, job, lambda output: base_request(keeper, job, output)))
    return staging


def freeze_training(keeper: Keeper, job: Job, target: Target, prepared: dict[str, Any]) -> Path:
    """The plan of a training whose data is `prepared`, beside that data; returns the folder."""
    request = job.plan["request"]
    train = _with_number(keeper, job, lambda output: train_request(keeper, target, request, prepared, output), request=request)
    staging = keeper.home.staging_of(job.id)
    write_json(staging / "job.json", train)
    return staging


def take_up_plan(keeper: Keeper, job: Job) -> Path:
    """The plan that was frozen, put into the job's staging folder once more; returns the folder.

    Only how many processes do it follows the settings of now: a launcher that cannot be started would be frozen, too.
    """
    staging = ensure_staging(keeper, job.id)
    train = job.plan["train"]
    if train.get("task") == "train":
        train = {**train, **processes_for(keeper, int(train.get("lanes") or 1), str(train.get("device", "cpu")))}
    write_json(staging / "job.json", train)
    return staging


def _with_number(
    keeper: Keeper, job: Job, plan: Callable[[dict[str, Any]], dict[str, Any]], **before: dict[str, Any]
) -> dict[str, Any]:
    """Take a number and record the plan that names it, with what was planned `before`; returns the plan."""
    intend_number(keeper, job.id, job.wanted_id)
    with keeper.ledger.transaction():
        number = reserve_number(keeper, job.wanted_id, job.id)
        point("start.numbered")
        train = plan({"id": number, "name": version_name(number, job.slug), "slug": job.slug})
        set_job(keeper.ledger, job.id, "training", plan={**before, "train": train}, output_id=number)
    point("start.recorded")
    return train


def _clean_staging(keeper: Keeper, job: Job) -> Path:
    """An empty staging folder: what an earlier attempt left belongs to another plan."""
    remove_tree(keeper.home.staging_of(job.id))
    return ensure_staging(keeper, job.id)


# --- what preparation found ----------------------------------------------------------------------------------------


def exact_facts(keeper: Keeper, job: Job, estimate: Facts, prepared: dict[str, Any]) -> Facts:
    """The facts from before preparation with its exact figures in the place of estimates."""
    taken = job.wanted_id is not None and not number_is_free(keeper, job.wanted_id, job.id)
    return dataclasses.replace(
        estimate, examples_new=_trainable(prepared),
        examples_too_long=int(prepared["counts"].get("too_long", 0)),
        examples_untouchable=int(prepared["counts"].get("untouchable", 0)),
        free_bytes=keeper.home.free_bytes(), tokenizer_data=prepared.get("tokenizer_hash"),
        template_data=prepared.get("template_hash"), mask_ratio=prepared.get("mask_ratio"),
        output_problem=f"the number {job.wanted_id} was used meanwhile" if taken else "")  # fmt: skip


def knew_every_set(keeper: Keeper, job: Job) -> bool:
    """Whether the preparation of a job knew all evaluation sets of now.

    Where one was registered meanwhile, its rows may be among what was chosen.
    """
    protected = job.plan["request"].get("protected") or {}
    knew = sorted(item["sha256"] for item in protected.get("sets", ()))
    return knew == sorted(item["sha256"] for item in evaluation_sets(keeper.ledger))


def _trainable(prepared: dict[str, Any]) -> int:
    """Examples a prepared job will train: the new ones, and known ones where repeating was asked for."""
    counts = prepared["counts"]
    return int(counts["new"]) + int(counts.get("known_again", 0)) if prepared["steps"] else 0
