"""What a person may do to the queue: pause, resume, cancel, retry and move. Each is one short step of the ledger.

Each takes the engine and plain JSON arguments like every operation (`operations.py`), which calls them.
Not here: what makes a job (`operations.py`, `training.py`), or running one (`runner.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.engine import Engine
from guard.errors import CheckFailed, UsageError
from guard.store.jobs import Job, add_job, find_job, jobs_in, set_job

__all__ = ["cancel", "move", "pause", "resume", "retry"]

Arguments = Mapping[str, Any]


def pause(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Start nothing more; what runs takes a snapshot and stops."""
    if arguments.get("dry_run"):
        return {"state": "paused", "paused": True}
    with engine.keeper.ledger.transaction():
        engine.keeper.ledger.set_meta("paused", "1")
        engine.keeper.ledger.event("queue.paused", "queue")
    engine.runner.stop_current("paused")
    return {"state": "paused", "paused": True}


def resume(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Go on."""
    if arguments.get("dry_run"):
        return {"state": "running", "paused": False}
    with engine.keeper.ledger.transaction():
        engine.keeper.ledger.set_meta("paused", "0")
        engine.keeper.ledger.event("queue.resumed", "queue")
    return {"state": "running", "paused": False}


def cancel(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Take a job off the queue; one that runs is stopped."""
    job = find_job(engine.keeper.ledger, int(arguments["job"]))
    if job.state in ("done", "cancelled", "committing", "quarantined"):
        raise CheckFailed(f"job {job.id} is {job.state}; there is nothing to cancel", subject=f"job {job.id}",
                          hint="heirloom queue")  # fmt: skip
    result = {"job": job.id, "state": "cancelled", "paused": engine.runner.paused}
    if arguments.get("dry_run"):
        return result
    if engine.runner.current == job.id:
        engine.runner.stop_current("cancelled")
    # Recorded at once, also while its child still stops: a cancellation that was acknowledged outlives the daemon.
    with engine.keeper.ledger.transaction():
        set_job(engine.keeper.ledger, job.id, "cancelled", "cancelled by a person")
    return result


def retry(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Queue a job again. A parked or held one with a frozen plan goes on where it stopped; others start afresh."""
    ledger = engine.keeper.ledger
    job = find_job(ledger, int(arguments["job"]))
    if job.state not in ("parked", "failed", "held", "cancelled", "quarantined"):
        raise CheckFailed(f"job {job.id} is {job.state}; there is nothing to try again", subject=f"job {job.id}",
                          hint="heirloom queue")  # fmt: skip
    goes_on = job.state in ("parked", "held") and "train" in job.plan
    if not goes_on:
        _refuse_a_second_try(engine, job)
    state = "training" if goes_on else "queued"
    if arguments.get("dry_run"):
        number = None if job.state == "quarantined" else job.id
        return {"job": number, "state": state, "paused": engine.runner.paused}
    with ledger.transaction():
        if job.state == "quarantined":
            number = add_job(ledger, kind=job.kind, stage=job.stage, line=job.line, slug=job.slug, files=job.files,
                             request={**job.request, "origin": "retry"}, base_id=job.base_id)  # fmt: skip
            return {"job": number, "state": "queued", "paused": engine.runner.paused}
        # Whoever retries a job that waited for one before it wants it trained on the tip as it is.
        request = {key: value for key, value in job.request.items() if key != "after"}
        if goes_on:
            set_job(ledger, job.id, state, "tried again by a person", attempts=0)
        else:
            set_job(ledger, job.id, state, "tried again by a person", attempts=0, plan={}, progress=0, request=request,
                    output_id=None)  # fmt: skip
    return {"job": job.id, "state": state, "paused": engine.runner.paused}


def _refuse_a_second_try(engine: Engine, job: Job) -> None:
    """Asked twice, the same bytes would be trained twice: what the gate refused nobody has learnt, so no check would say so."""
    if not job.files or job.request.get("allow_repeat"):
        return
    ledger = engine.keeper.ledger
    rows = ledger.rows("SELECT j.id FROM jobs j JOIN job_files f ON f.job_id = j.id WHERE f.sha256 = ? AND j.line = ? "
                       "AND j.id != ? AND j.state IN ('queued', 'preparing', 'training', 'committing')",
                       (job.files[0], job.line, job.id))  # fmt: skip
    for other in (find_job(ledger, row["id"]) for row in rows):
        if set(job.files) <= set(other.files):
            raise CheckFailed(f"what job {job.id} was to learn is in job {other.id} ({other.state}) already",
                              subject=f"job {job.id}",
                              hint=f"heirloom queue --follow {other.id} shows what becomes of it")  # fmt: skip


def move(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Put a queued job at place N (1: next)."""
    ledger = engine.keeper.ledger
    queued = jobs_in(ledger, "queued")
    number, place = int(arguments["job"]), int(arguments["to"])
    job = find_job(ledger, number)
    if job.state != "queued":
        raise CheckFailed(f"job {number} is {job.state}; only queued jobs can be moved", subject=f"job {number}",
                          hint="heirloom queue")  # fmt: skip
    if place < 1:
        raise UsageError(f"--to {place}: places are counted from 1", hint=f"heirloom queue move {number} --to 1")
    order = [item for item in queued if item.id != number]
    place = min(place, len(queued))
    order.insert(place - 1, job)
    result = {"job": number, "state": "queued", "place": place, "paused": engine.runner.paused}
    if arguments.get("dry_run"):
        return result
    with ledger.transaction():
        first = min(item.position for item in queued)
        for position, item in enumerate(order, start=first):
            ledger.run("UPDATE jobs SET position = ? WHERE id = ?", (position, item.id))
        ledger.event("queue.moved", f"job {number}", to=place)
    return result
