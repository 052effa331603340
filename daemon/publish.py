"""From a child that says it has finished to a version: prove, gate, announce, bring to birth. The order of DESIGN 6."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.records import base_record, forked_record, learnt_of
from guard.checks.gate import judge, loss_pairs
from guard.checks.proof import prove
from guard.durable import fsync_dir, fsync_tree, make_dir, remove_tree, rename_new
from guard.errors import CheckFailed, Damage
from guard.failpoints import point
from guard.folders import sync_parents
from guard.names import slugify
from guard.store.birth import announce, finish_birth, hash_folder
from guard.store.datasets import record_dataset
from guard.store.files import get_file
from guard.store.jobs import Job, find_job
from guard.store.keeper import Keeper
from guard.store.versions import ancestors, line_tip, version_by_id

if TYPE_CHECKING:
    from trainer.skipped import Left

__all__ = ["adopt_dataset", "adopt_staged", "publish_base", "publish_child", "read_result"]


def read_result(staging: Path, name: str) -> dict[str, Any]:
    """A child's answer. Raises Damage when it is missing or torn."""
    try:
        return json.loads((staging / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Damage(f"the child left no readable {name}", subject=str(staging), cause=error,
                     hint="the job is tried again") from error  # fmt: skip


def adopt_dataset(keeper: Keeper, job: Job, prepared: dict[str, Any]) -> dict[str, Any]:
    """Move a freshly prepared dataset from staging to `data/shards/<id>/`; one that is there already serves as it is."""
    target = adopt_staged(keeper, keeper.home.staging_of(job.id), prepared["dataset_id"],
                          damaged=bool(prepared.get("dataset_damaged")))  # fmt: skip
    path = target if prepared["dataset_made"] or target.exists() else Path(prepared["dataset_path"])
    if not (path / "dataset_metadata.json").is_file():
        raise Damage(f"the prepared dataset {prepared['dataset_id'][:12]} is not at {path}", subject=str(path),
                     hint="the job prepares it again: heirloom queue retry ID")  # fmt: skip
    return {**prepared, "dataset_path": str(path)}


def adopt_staged(keeper: Keeper, staging: Path, dataset: str, *, damaged: bool = False) -> Path:
    """Move `<staging>/prepare`, when it is there, to the place of that dataset and note it; returns the place.

    `damaged`: what lies there makes way. May be repeated after a death anywhere. Raises OSError.
    """
    target, staged = keeper.home.shards / dataset, staging / "prepare"
    point("prepare.intended")
    if damaged and staged.is_dir():
        remove_tree(target)  # shards are derived; the good ones made from the originals lie in staging
        point("prepare.cleared")
    if not target.exists() and staged.is_dir():
        fsync_tree(staged)
        rename_new(staged, target)
    elif target.exists():
        sync_parents(target, staged)
    point("prepare.renamed")
    if target.is_dir():
        record_dataset(keeper, target)
    return target


def _best_losses(keeper: Keeper, base_id: int) -> dict[str, float]:
    """The lowest loss each evaluation set ever had among a version and its ancestors."""
    best: dict[str, float] = {}
    sealed = keeper.views.sealed(keeper.ledger)  # read once: ten thousand records at every birth took more than a second
    for number in ancestors(keeper.ledger, base_id):
        for name, loss in sealed[number]["losses"].items():
            best[name] = min(loss, best.get(name, loss))
    return best


def _line_for(keeper: Keeper, job: Job, base_id: int) -> str:
    """The job's line while its parent is still the tip; otherwise a line of its own, never a jump over a sibling."""
    tip = line_tip(keeper.ledger, job.line)
    if tip is None or tip.id == base_id:
        return job.line
    name, number = job.slug, 1
    while line_tip(keeper.ledger, name) is not None:
        number += 1
        name = f"{slugify(job.slug)}_{number}"
    return name


def _sync_promised(staging: Path) -> None:
    """The intent of a birth promises these bytes for ever, so they are on the disk before it is written.

    Otherwise a power cut would leave a promise that nobody can keep, and the job would fail for the machine's fault.
    """
    fsync_tree(staging / "out")
    fsync_dir(staging)


def publish_child(keeper: Keeper, number: int) -> tuple[str, str]:
    """Prove, gate and seal a finished training job; returns (version name, "passed" or "quarantined").

    Raises CheckFailed when the proof of training fails: nothing is published.
    """
    job = find_job(keeper.ledger, number)
    staging = keeper.home.staging_of(job.id)
    plan, result = job.plan["train"], read_result(staging, "result.json")
    _sync_promised(staging)
    left = _left(plan, result, staging)
    proof = prove(plan, result, hash_folder(staging / "out"), left.consumed_sha256 if left else None)
    if not proof.ok:
        raise CheckFailed(f"no proof of training: {proof.reason}", subject=f"job {job.id}",
                          hint="the data keeps its chances: heirloom queue retry ID")  # fmt: skip
    point("birth.proven")
    mode = str(plan.get("gate") or keeper.settings.gate)
    missing = {row["name"] for row in plan["evaluation"]} - {row["name"] for row in result["evaluation"]}
    if missing:
        raise CheckFailed(f"the child was not measured on {', '.join(sorted(missing))}", subject=f"job {job.id}",
                          hint="the data keeps its chances: heirloom queue retry ID")  # fmt: skip
    gate = judge(loss_pairs(result["evaluation"], _best_losses(keeper, plan["base"]["id"])), result["generation"],
                 unjudged=plan.get("unjudged"))  # fmt: skip
    if left is not None:
        # What was skipped is not learnt: the record and the ledger say what was really fed.
        plan = {**plan, "prepared": {**plan["prepared"], "learnt": left.learnt, "tokens": left.tokens,
                                     "loss_tokens": left.loss_tokens}}  # fmt: skip
    base = version_by_id(keeper.ledger, plan["base"]["id"])
    files = []
    for sha256 in job.files:
        file = get_file(keeper.ledger, sha256)
        assert file is not None, "a job's files are never removed from the ledger"
        files.append({"name": file.name, "sha256": sha256, "kind": file.kind})
    record = forked_record(plan, result, base.record, gate, mode=mode, line=_line_for(keeper, job, base.id),
                           created=keeper.clock.utc(), files=files)  # fmt: skip
    passed = gate.ok or mode != "enforce"
    announce(keeper, job, record, becomes_tip=passed, learnt=learnt_of(plan["prepared"]))
    return finish_birth(keeper, job.id), "passed" if passed else "quarantined"


def _left(plan: Mapping[str, Any], result: Mapping[str, Any], staging: Path) -> Left | None:
    """What the plan comes to without the steps that the child says it skipped; None when it says it skipped none.

    Read from the frozen list, whose hash is the plan's: the child's word about itself proves nothing. Raises Damage.
    """
    skipped = [int(step) - 1 for step in result.get("steps_skipped") or ()]
    if not skipped:
        return None
    from trainer.selection import load_selection
    from trainer.skipped import what_is_left

    selection = load_selection(staging)
    if selection.content_hash() != plan["selection_sha256"]:
        raise Damage("the frozen list in staging is not the one that was planned", subject=str(staging),
                     hint="check the disk; the job can be retried from its start")  # fmt: skip
    return what_is_left(selection, plan, skipped)


def publish_base(keeper: Keeper, number: int) -> str:
    """Prove and seal a base made from a recipe; returns the version's name. Raises CheckFailed."""
    job = find_job(keeper.ledger, number)
    staging = keeper.home.staging_of(job.id)
    request, result = job.plan["train"], read_result(staging, "result.json")
    _sync_promised(staging)
    proof = prove(request, result, hash_folder(staging / "out"))
    if not proof.ok:
        raise CheckFailed(f"the base was not made as planned: {proof.reason}", subject=f"job {job.id}",
                          hint="try again: heirloom init")  # fmt: skip
    record = base_record(request, result, line=job.line, created=keeper.clock.utc())
    announce(keeper, job, record, becomes_tip=True, learnt=[])
    return finish_birth(keeper, job.id)


def ensure_staging(keeper: Keeper, job: int) -> Path:
    """The staging folder of a job, the only place its child writes."""
    folder = keeper.home.staging_of(job)
    make_dir(folder)
    return folder
