"""Making an earlier version active again. Nothing is deleted, nothing is queued; what was abandoned stays where it is.

    target proven -> intent in the ledger -> a running job of the line parked -> one transaction (tip, event) -> views

A target is a sealed version that reads back intact and lies on the line: an ancestor of its tip, born on it (so that a
rollback can itself be taken back), or born on a line that was grown again from it (so that it can take its place).
What became trainable again is computed, not stored: learnt by the abandoned versions and not by the new tip's
ancestry (law 4).
Not here: stopping a training child - the caller's `park` does that - or training anything again: only a person does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import orjson

from guard.bitmap import unpack_bitmap
from guard.errors import Busy, CheckFailed, Damage, HeirloomError, UsageError
from guard.failpoints import point
from guard.steps import Steps, drain
from guard.store.intents import clear_intent, open_intents, put_intent
from guard.store.jobs import Job, jobs_in, set_job
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger
from guard.store.sums import problem_steps
from guard.store.versions import GONE, Version, ancestors, find_version, learnt_rows, line_tip, tips
from guard.store.views import refresh

__all__ = ["finish_rollbacks", "rollback", "rollback_steps", "trainable_again"]

Learnt = Mapping[tuple[str, str], set[int]]
"""(sha256, objective) -> ordinals learnt."""


def rollback(keeper: Keeper, text: str, line: str | None = None, reason: str = "", *, dry_run: bool = False,
             park: Callable[[], int | None] | None = None) -> dict[str, Any]:  # fmt: skip
    """`rollback_steps` run to its end."""
    return drain(rollback_steps(keeper, text, line, reason, dry_run=dry_run, park=park))


def rollback_steps(keeper: Keeper, text: str, line: str | None = None, reason: str = "", *, dry_run: bool = False,
                   park: Callable[[], int | None] | None = None) -> Steps[dict[str, Any]]:  # fmt: skip
    """Make a version the tip of a line, proving it in slices; returns line, from, to, parked_job, trainable_again, changed.

    `park` stops and parks what runs on the line and returns its job; jobs that had started and are still not over are
    parked here in any case, for they were built on the abandoned tip. Without `line` it is the version's line of birth.
    Raises NotFound, UsageError (no such line), CheckFailed (not a version to go back to), Damage (not intact).
    """
    if not dry_run:
        finish_rollbacks(keeper)
    version, tip, result = _judge(keeper, text, line)
    if result["changed"]:
        yield from _prove(keeper, version)
    if dry_run or not result["changed"]:
        return result
    version, tip, result = _judge(keeper, text, line)  # again: a version may have been born while this one was read
    if not result["changed"]:
        return result
    name = result["line"]
    with keeper.ledger.transaction():
        put_intent(keeper.ledger, "rollback", name, {"line": name, "to": version.name, "reason": reason})
        keeper.ledger.event("line.rolling_back", name, before=tip.name, after=version.name, why=reason)
    point("rollback.intended")
    parked = park() if park else None
    point("rollback.parked")
    also_parked = _finish(keeper, name, version, reason)
    refresh(keeper)
    point("rollback.viewed")
    result["parked_job"] = parked if parked is not None else also_parked
    return result


def _judge(keeper: Keeper, text: str, line: str | None) -> tuple[Version, Version, dict[str, Any]]:
    """The version to go back to, the tip of this moment, and what the rollback will answer. Raises why it may not be."""
    version = find_version(keeper.ledger, text)
    name = line or version.line
    tip = line_tip(keeper.ledger, name)
    if tip is None:
        raise UsageError(f"there is no line {name!r}", subject=name,
                         hint=f"lines are: {', '.join(sorted(tips(keeper.ledger)))}; name one with --line")  # fmt: skip
    result = {"line": name, "from": tip.name, "to": version.name, "parked_job": None,
              "trainable_again": trainable_again(keeper.ledger, tip.id, version.id), "changed": tip.id != version.id}  # fmt: skip
    if tip.id == version.id:
        return version, tip, result
    committing = [job.id for job in jobs_in(keeper.ledger, "committing") if job.line == name and job.kind != "index"]
    if committing:
        raise Busy(f"job {committing[0]} on {name} is just becoming a version", subject=name,
                   hint="wait until it is done (heirloom queue), then roll back")  # fmt: skip
    _refuse_strange(keeper.ledger, version, tip, name)
    return version, tip, result


def _refuse_strange(ledger: Ledger, version: Version, tip: Version, line: str) -> None:
    """Why a version may not become the tip of a line."""
    if version.state in GONE:
        raise CheckFailed(f"{version.name} is {version.state}, not in models/", subject=version.name,
                          hint=f"heirloom restore {version.name}, then roll back")  # fmt: skip
    if version.state != "sealed":
        gate = version.record.get("gate", {})
        why = f": {gate['reason']}" if isinstance(gate, dict) and gate.get("reason") else ""
        raise CheckFailed(f"{version.name} is {version.state} and never becomes active{why}", subject=version.name,
                          hint="heirloom lineage shows the sealed versions")  # fmt: skip
    if version.id not in ancestors(ledger, tip.id) and line not in (version.line, _regrown_from(ledger, version.line)):
        raise CheckFailed(f"{version.name} is no ancestor of {tip.name} and was born on {version.line}, not on {line}",
                          subject=version.name,
                          hint=f"heirloom rollback {version.name} --line {version.line}")  # fmt: skip


def _regrown_from(ledger: Ledger, line: str) -> str | None:
    """The line that this one was grown again from (`heirloom regrow`); None for any other line."""
    noted = ledger.meta(f"regrown:{line}")
    return str(orjson.loads(noted)["of"]) if noted else None


def _prove(keeper: Keeper, version: Version) -> Steps[None]:
    problems = yield from problem_steps(keeper.home.models / version.name, version.sums_sha256)
    if problems:
        raise Damage(f"{version.name} is damaged: {problems[0][0]} {problems[0][1]}".replace("  ", " "),
                     subject=version.name, hint=f"heirloom restore {version.name} --from backup")  # fmt: skip


def _started(job: Job, line: str) -> bool:
    """A job that has its frozen plan and is not over was built on the tip of that moment: it is never rebased."""
    running = job.state in ("preparing", "training")
    return job.line == line and (running or (job.state in ("queued", "held") and job.output_id is not None))


def _finish(keeper: Keeper, line: str, version: Version, reason: str) -> int | None:
    """The one transaction: tip, parked jobs and event; returns the first job parked here."""
    ledger = keeper.ledger
    parked = None
    with ledger.transaction():
        before = line_tip(ledger, line)
        for job in jobs_in(ledger, "preparing", "training", "queued", "held"):
            if _started(job, line):
                set_job(ledger, job.id, "parked", f"{line} was rolled back to {version.name} while it was under way")
                parked = job.id if parked is None else parked
        ledger.run("UPDATE lines SET tip_id = ? WHERE name = ?", (version.id, line))
        clear_intent(ledger, "rollback", line)
        ledger.event("line.rolled_back", line, before=before.name if before else None, after=version.name, why=reason,
                     parked_job=parked)  # fmt: skip
    point("rollback.recorded")
    return parked


def finish_rollbacks(keeper: Keeper) -> list[str]:
    """Finish every interrupted rollback whose target is still intact, take the others back; returns what was done.

    To be called after interrupted births were finished, so that the tip they moved is rolled back too.
    """
    told = []
    for intent in open_intents(keeper.ledger, "rollback"):
        try:
            version = find_version(keeper.ledger, intent["to"])
            drain(_prove(keeper, version))
        except HeirloomError as error:
            with keeper.ledger.transaction():
                clear_intent(keeper.ledger, "rollback", intent["line"])
                keeper.ledger.event("rollback.abandoned", intent["line"], after=intent["to"], why=error.message)
            told.append(f"rolling {intent['line']} back was taken back: {error}")
            continue
        _finish(keeper, intent["line"], version, intent["reason"])
        told.append(f"{intent['line']} was rolled back to {version.name}")
    if told:
        refresh(keeper)
    return told


# --- what became trainable again -----------------------------------------------------------------------------------


def _learnt(ledger: Ledger, versions: Sequence[int]) -> dict[tuple[str, str], set[int]]:
    """What these versions themselves learnt, together."""
    found: dict[tuple[str, str], set[int]] = {}
    for number in versions:
        for row in learnt_rows(ledger, number):
            found.setdefault((row["sha256"], row["objective"]), set()).update(unpack_bitmap(row["bitmap"]))
    return found


def _learnt_of(ledger: Ledger, versions: Set[int], keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], set[int]]:
    """The same for a few files only: a long ancestry need not be unpacked as a whole."""
    found: dict[tuple[str, str], set[int]] = {}
    for key in keys:
        rows = ledger.rows("SELECT version_id, bitmap FROM learnt WHERE sha256 = ? AND objective = ?", key)
        ordinals = (unpack_bitmap(row["bitmap"]) for row in rows if row["version_id"] in versions)
        found[key] = {ordinal for group in ordinals for ordinal in group}
    return found


def forgotten(abandoned: Learnt, kept: Learnt) -> dict[tuple[str, str], set[int]]:
    """What only the abandoned versions learnt, for each file and objective; empty ones are left out."""
    left = {key: ordinals - kept.get(key, set()) for key, ordinals in abandoned.items()}
    return {key: ordinals for key, ordinals in left.items() if ordinals}


def trainable_again(ledger: Ledger, old_tip: int, new_tip: int) -> list[dict[str, Any]]:
    """What the line no longer knows once its tip has moved: file, sha256, objective, examples (a count); by file name.

    Pure in the ledger: rolling forward again gives an empty list.
    """
    kept = ancestors(ledger, new_tip)
    abandoned = sorted(set(ancestors(ledger, old_tip)) - set(kept))
    lost = _learnt(ledger, abandoned)
    again = forgotten(lost, _learnt_of(ledger, set(kept), lost))
    rows = [{"file": ledger.value("SELECT name FROM files WHERE sha256 = ?", (sha256,)), "sha256": sha256,
             "objective": objective, "examples": len(ordinals)}
            for (sha256, objective), ordinals in again.items()]  # fmt: skip
    return sorted(rows, key=lambda row: (row["file"], row["sha256"], row["objective"]))
