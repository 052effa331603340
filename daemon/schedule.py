"""Which training job comes next, and which queued ones are trained together. Decided from the ledger alone.

Not here: running a job (`runner.py`).
"""

from __future__ import annotations

from daemon.endings import TRAINING_KINDS
from daemon.regrow import chain_problem
from guard.store.jobs import Job, each_queued, find_job, jobs_in, set_job
from guard.store.keeper import Keeper

__all__ = ["coming_next", "next_job"]

MOST_FILES = 1024
MOST_EXAMPLES = 1 << 22
"""One batch holds no more files and examples than these (a larger file is a batch of its own): putting it together is one
step, and what is known of it is held in memory. What is left waits for the next batch."""


def next_job(keeper: Keeper) -> Job | None:
    """The first queued job whose line is not waiting for a held or running one."""
    blocked = {job.line for job in jobs_in(keeper.ledger, "held", "preparing", "training", "committing")
               if job.kind in TRAINING_KINDS}  # fmt: skip
    for job in each_queued(keeper.ledger):
        if job.kind in TRAINING_KINDS and job.line not in blocked and chain_problem(keeper, job) is not None:
            return _coalesce(keeper, job)
    return None


def coming_next(keeper: Keeper) -> Job | None:
    """The queued job that will most likely start when the running one has ended; None when nobody can say.

    A batch is put together when it starts, so what will stand in it cannot be told before. Changes nothing.
    """
    held = {job.line for job in jobs_in(keeper.ledger, "held") if job.kind in TRAINING_KINDS}
    for job in each_queued(keeper.ledger):
        if job.kind in TRAINING_KINDS and job.line not in held and chain_problem(keeper, job) == "":
            after = keeper.settings.coalesce.after
            return None if _batchable(job, job) and len(_alike(keeper, job, most=after)) >= after else job
    return None


def _coalesce(keeper: Keeper, first: Job) -> Job:
    """When many drops of one kind wait on one line, train what is queued as one version."""
    if not _batchable(first, first):
        return first
    alike = _alike(keeper, first)
    if len(alike) < keeper.settings.coalesce.after:
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


def _alike(keeper: Keeper, first: Job, most: int = MOST_FILES) -> list[Job]:
    """The queued jobs that go together with the first, itself among them: no more than one batch may hold, or than `most`."""
    alike, files, examples = list[Job](), 0, 0
    for job in each_queued(keeper.ledger):
        if not _batchable(job, first):
            continue
        if len(alike) >= most:
            break
        more = sum(keeper.ledger.value("SELECT examples FROM files WHERE sha256 = ?", (sha256,)) or 0 for sha256 in job.files)
        if alike and (files + len(job.files) > MOST_FILES or examples + more > MOST_EXAMPLES):
            break
        alike.append(job)
        files, examples = files + len(job.files), examples + more
    return alike


def _batchable(job: Job, first: Job) -> bool:
    """Plain drops of one stage on one line, nobody having asked for anything special about them."""
    plain = job.kind == "train" and job.request.get("origin") == "drop" and job.base_id is None
    return plain and _asked(job) == _asked(first)


def _asked(job: Job) -> tuple[object, ...]:
    return (job.stage, job.line, *(job.request.get(key) for key in ("recipe", "overrides", "max_steps")))
