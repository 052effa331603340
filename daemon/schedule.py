"""Which training job comes next, and which queued ones are trained together. Decided from the ledger alone.

Not here: running a job (`runner.py`).
"""

from __future__ import annotations

from daemon.endings import TRAINING_KINDS
from daemon.regrow import chain_problem
from guard.store.jobs import Job, find_job, jobs_in, set_job
from guard.store.keeper import Keeper

__all__ = ["next_job"]


def next_job(keeper: Keeper) -> Job | None:
    """The first queued job whose line is not waiting for a held or running one."""
    blocked = {job.line for job in jobs_in(keeper.ledger, "held", "preparing", "training", "committing")
               if job.kind in TRAINING_KINDS}  # fmt: skip
    for job in jobs_in(keeper.ledger, "queued"):
        if job.kind in TRAINING_KINDS and job.line not in blocked and chain_problem(keeper, job) is not None:
            return _coalesce(keeper, job)
    return None


def _coalesce(keeper: Keeper, first: Job) -> Job:
    """When many drops of one kind wait on one line, train what is queued as one version."""
    alike = [job for job in jobs_in(keeper.ledger, "queued") if _batchable(job, first)]
    if not _batchable(first, first) or len(alike) < keeper.settings.coalesce.after:
        return first
    ledger = keeper.ledger
    with ledger.transaction():
        place = len(first.files)
        for job in alike:
            if job.id == first.id:
                continue
            ledger.run_many("INSERT INTO job_files VALUES (?, ?, ?)",
                            [(first.id, place + shift, sha256) for shift, sha256 in enumerate(job.files)])  # fmt: skip
            place += len(job.files)
            set_job(ledger, job.id, "cancelled", f"trained together with others as job {first.id}")
        ledger.run("UPDATE jobs SET slug = ? WHERE id = ?", (f"{first.slug}_and_{place - 1}_more", first.id))
        ledger.event("job.coalesced", f"job {first.id}", files=place)
    return find_job(ledger, first.id)


def _batchable(job: Job, first: Job) -> bool:
    """Plain drops of one stage on one line, nobody having asked for anything special about them."""
    plain = job.kind == "train" and job.request.get("origin") == "drop" and job.base_id is None
    return plain and _asked(job) == _asked(first)


def _asked(job: Job) -> tuple[object, ...]:
    return (job.stage, job.line, *(job.request.get(key) for key in ("recipe", "overrides", "max_steps")))
