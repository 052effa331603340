"""`regrow --without FILE`: the data was wrong and versions stand on it; grow the line again without it, as a new line.

    the last ancestor of the tip that has not seen the file -> the jobs of everything after it, less that file
    -> one transaction that queues all of them, each to run on the new line's tip when the one before it is done

Recipes and seeds are those that were sealed; replay is chosen anew, for the old one may hold the file. The old line is
not touched. Who has seen the file is asked of what its ancestors learnt, never of names.
Not here: running the jobs (`runner.py`), or making the new line the one that drops go to (`heirloom rollback`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from daemon.costs import estimate
from daemon.facts import gather_facts
from daemon.targets import Target, fork_recipe
from guard.checks.preflight import preflight
from guard.errors import CheckFailed, Damage, UsageError
from guard.failpoints import point
from guard.names import slugify
from guard.store.files import StoredFile, find_file, get_file
from guard.store.jobs import Job, add_job, find_job
from guard.store.keeper import Keeper
from guard.store.versions import Version, ancestors, line_tip, tips, version_by_id
from trainer.recipe import parse_sealed

__all__ = ["chain_problem", "plan_regrow", "regrow"]

_CHECKS = ("Data verified", "Base model exists", "Disk space", "Registry consistent")
_CARRIED = ("iterations", "allow_repeat")


@dataclass(frozen=True)
class Step:
    """One version that is grown again."""

    old: Version
    files: tuple[StoredFile, ...]
    request: dict[str, Any]


def regrow(keeper: Keeper, text: str, line: str, *, dry_run: bool = False) -> dict[str, Any]:
    """Plan, and unless `dry_run` queue, everything a line learnt since it saw a file, without that file.

    Returns the plan (`plan_regrow`) with jobs (ids in the order they run). When a check fails, `ok` is false and
    nothing is queued. Raises NotFound for a file nobody knows, UsageError for an unknown line, CheckFailed when the
    file was in the line from its base on or is being regrown already.
    """
    plan, steps, base = _plan(keeper, text, line)
    if dry_run or not plan["ok"] or not steps:
        return plan
    assert base is not None, "there are steps only after a base"
    with keeper.ledger.transaction():
        facts = {"of": line, "without": plan["sha256"], "file": plan["file"], "base": base.name}
        keeper.ledger.set_meta(f"regrown:{plan['new_line']}", orjson.dumps(facts, option=orjson.OPT_SORT_KEYS).decode())
        plan["jobs"] = _queue(keeper, steps, base, plan["new_line"])
        keeper.ledger.event("line.regrowing", plan["new_line"], **facts, jobs=plan["jobs"])
        keeper.ledger.event("file.left_out", plan["file"], sha256=plan["sha256"], line=plan["new_line"], of=line)
    point("regrow.queued")
    return plan


def plan_regrow(keeper: Keeper, text: str, line: str) -> dict[str, Any]:
    """file, sha256, line, new_line, base (name or null), affected (names), steps [{replaces, files, stage, recipe, seed,
    estimate}], skipped (names of those that learnt nothing else), estimate (sums), checks, ok, jobs (empty)."""
    return _plan(keeper, text, line)[0]


def _plan(keeper: Keeper, text: str, line: str) -> tuple[dict[str, Any], list[Step], Version | None]:
    file, tip = find_file(keeper.ledger, text), line_tip(keeper.ledger, line)
    if tip is None:
        raise UsageError(f"there is no line {line!r}", subject=line,
                         hint=f"lines are: {', '.join(sorted(tips(keeper.ledger)))}")  # fmt: skip
    chain = [version_by_id(keeper.ledger, number) for number in reversed(ancestors(keeper.ledger, tip.id))]
    first = next((place for place, item in enumerate(chain) if _has_seen(keeper, item, file.sha256)), len(chain))
    if first == 0:
        raise CheckFailed(f"{chain[0].name} itself learnt from {file.name}: no ancestor is without it", subject=file.name,
                          hint="heirloom init makes another base")  # fmt: skip
    affected = chain[first:]
    steps = [_step(keeper, version, file.sha256) for version in affected]
    left = [step for step in steps if step.files]
    base = chain[first - 1] if affected else None
    new_line = _free_line(keeper, line, file)
    plan = {
        "file": file.name, "sha256": file.sha256, "line": line, "new_line": new_line,
        "base": base.name if base else None, "affected": [version.name for version in affected],
        "skipped": [step.old.name for step in steps if not step.files], "jobs": [],
    }  # fmt: skip
    _refuse_twice(keeper, line, file)
    return {**plan, **_judged(keeper, left, base, new_line)}, left, base


def _has_seen(keeper: Keeper, version: Version, sha256: str) -> bool:
    """Whether a version itself learnt examples of these bytes, under whatever objective."""
    return bool(keeper.ledger.row("SELECT 1 FROM learnt WHERE version_id = ? AND sha256 = ? AND count > 0",
                                  (version.id, sha256)))  # fmt: skip


def _free_line(keeper: Keeper, line: str, file: StoredFile) -> str:
    stem = slugify(f"{line}_without_{file.name.split('.')[0]}")
    name, number = stem, 1
    while line_tip(keeper.ledger, name) is not None or keeper.ledger.meta(f"regrown:{name}") is not None:
        number += 1
        name = f"{stem}_{number}"
    return name


def _refuse_twice(keeper: Keeper, line: str, file: StoredFile) -> None:
    """While a regrow of the same line without the same file is unfinished, another one would train it all twice."""
    rows = keeper.ledger.rows("SELECT j.id, m.value FROM jobs j JOIN meta m ON m.key = 'regrown:' || j.line "
                              "WHERE j.state IN ('queued', 'held', 'preparing', 'training', 'committing')")  # fmt: skip
    for row in rows:
        facts = orjson.loads(row["value"])
        if (facts["of"], facts["without"]) == (line, file.sha256):
            raise CheckFailed(f"{line} is being regrown without {file.name} already (job {row['id']})", subject=file.name,
                              hint="heirloom queue")  # fmt: skip


def _step(keeper: Keeper, version: Version, without: str) -> Step:
    """The job that makes a version again: its files less one, its sealed recipe, and what its own job was asked for."""
    files = []
    for item in version.record.get("data", []):
        file = get_file(keeper.ledger, item["sha256"])
        if file is None:
            raise Damage(f"{version.name} learnt from {item['file']}, which the ledger does not know", subject=version.name,
                         hint="heirloom verify --all")  # fmt: skip
        if file.sha256 != without:
            files.append(file)
    request: dict[str, Any] = {"origin": "regrow", "sealed_recipe": version.record["recipe"], "replaces": version.name}
    number = keeper.ledger.value("SELECT job_id FROM versions WHERE id = ?", (version.id,))
    if number is not None and keeper.ledger.row("SELECT 1 FROM jobs WHERE id = ?", (number,)):
        before = find_job(keeper.ledger, number)
        request |= {key: before.request[key] for key in _CARRIED if before.request.get(key)}
        if "request" in before.plan:
            request["max_steps"] = before.plan["request"].get("max_steps")
    return Step(version, tuple(files), request)


def _judged(keeper: Keeper, steps: Sequence[Step], base: Version | None, line: str) -> dict[str, Any]:
    """Steps with their estimates, and the checks that do not depend on what the steps before will have taught."""
    if base is None or not steps:
        return {"steps": [], "estimate": {"tokens": 0, "seconds": 0.0, "bytes": 0}, "checks": [], "ok": True}
    targets = [_target(step, base, line) for step in steps]
    costs = [estimate(keeper, target) for target in targets]
    every = {file.sha256: file for step in steps for file in step.files}
    total = {"tokens": sum(item["tokens"] for item in costs), "seconds": sum(item["seconds"] or 0.0 for item in costs),
             "bytes": sum(item["bytes"] for item in costs)}  # fmt: skip
    facts = gather_facts(keeper, replace(targets[0], files=tuple(every.values())))
    checks = [check for check in preflight(replace(facts, needed_bytes=total["bytes"])).checks if check.name in _CHECKS]
    return {"steps": [_described(step, cost) for step, cost in zip(steps, costs, strict=True)], "estimate": total,
            "checks": [check.as_dict() for check in checks], "ok": all(check.ok is not False for check in checks)}  # fmt: skip


def _target(step: Step, base: Version, line: str) -> Target:
    draft = Job(0, "train", "planned", 0, step.old.record["stage"], line, base.id, "draft", None, None, step.request, {}, "",
                0, 0, "", "", tuple(file.sha256 for file in step.files))  # fmt: skip
    return Target(draft, base, fork_recipe(parse_sealed(step.request["sealed_recipe"])), step.files)


def _described(step: Step, cost: Mapping[str, Any]) -> dict[str, Any]:
    record = step.old.record
    return {"replaces": step.old.name, "files": [{"file": file.name, "sha256": file.sha256} for file in step.files],
            "stage": record["stage"], "recipe": record["recipe"].get("name", ""), "seed": record["seed"],
            "estimate": dict(cost)}  # fmt: skip


def _queue(keeper: Keeper, steps: Sequence[Step], base: Version, line: str) -> list[int]:
    """Queue the jobs inside the current transaction: all of them or none."""
    jobs: list[int] = []
    for step in steps:
        slug = step.old.name.split("_", 1)[1] if "_" in step.old.name else "data"
        request = {**step.request, "grown_from": base.id, **({"after": jobs[-1]} if jobs else {})}
        jobs.append(add_job(keeper.ledger, kind="train", stage=step.old.record["stage"], line=line, slug=slug,
                            files=[file.sha256 for file in step.files], request=request,
                            base_id=None if jobs else base.id))  # fmt: skip
        point("regrow.queueing")
    return jobs


def chain_problem(keeper: Keeper, job: Job) -> str | None:
    """May a job of a regrown line start? None: not yet, the one before it is not over. "": yes. Else why it may not.

    One that had nothing new to learn was passed over; a failed, parked, quarantined or cancelled one stops the rest.
    """
    before = job.request.get("after")
    if before is None:
        return ""
    other = find_job(keeper.ledger, int(before))
    if other.state == "done" or (other.state == "cancelled" and other.reason.startswith("No duplicates")):
        return ""
    if other.state in ("failed", "parked", "quarantined", "cancelled"):
        return (f"job {other.id}, which comes before it on {job.line}, is {other.state}; "
                f"heirloom queue retry {other.id} first, or retry this one to go on without it")  # fmt: skip
    return None
