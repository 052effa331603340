"""Endings: what becomes of a training job that was refused, stopped, failed or must wait, each time with the reason.

    held: the machine was at fault, tried again by itself     failed: a batch is split before any file is blamed
    parked: waits for a person                                cancelled: nobody wants it any more

Not here: starting anything (`runner.py`) and publication (`publish.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guard.checks.verdict import Verdict
from guard.durable import remove_tree
from guard.errors import HeirloomError, NotFound, UsageError, is_environment
from guard.names import slugify
from guard.store.birth import set_birth_aside
from guard.store.jobs import Job, add_job, find_job, jobs_in, set_job
from guard.store.keeper import Keeper
from guard.store.known import LostSidecar

__all__ = ["CRASH_SECONDS", "HOLD_SECONDS", "TRAINING_KINDS", "Endings", "read_progress"]

TRAINING_KINDS = ("train", "base")
HOLD_SECONDS = 30.0
CRASH_SECONDS = 1.0
GB = 1e9


def read_progress(staging: Path) -> dict[str, Any]:
    """What a child last told of itself; empty when it told nothing yet. Only ever a hint."""
    try:
        return json.loads((staging / "progress.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


class Endings:
    """The resting states of jobs, and when each may be tried again."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.troubled: set[int] = set()
        """Jobs that were held or failed in this life: `run --once` exits 3 over them."""
        self.not_before: dict[int, float] = {}
        self._untidy: dict[int, float] = {}
        """Jobs whose version is recorded and whose views, seal or staging are not finished: when to try again."""

    def is_due(self, job: Job, now: float) -> bool:
        """Whether a training job may be worked on now."""
        return job.kind in TRAINING_KINDS and self.not_before.get(job.id, 0.0) <= now

    def short_of_room(self) -> str:
        """Why nothing may be trained on this disk now; "" while more than the reserve is free."""
        free, reserve = self.keeper.home.free_bytes(), self.keeper.settings.disk.reserve_gb * GB
        if free >= reserve:
            return ""
        return (f"Disk space: {free / GB:,.1f} GB are free and {reserve / GB:,.1f} GB stay reserved; "
                "it goes on by itself when there is room")  # fmt: skip

    def release_held(self, now: float) -> None:
        """Take the held jobs up again whose time has come."""
        for job in jobs_in(self.keeper.ledger, "held"):
            if job.kind == "train" and "train" in job.plan and self.short_of_room():
                continue  # its plan was judged before; what it waits for is room
            if job.kind in TRAINING_KINDS and self.not_before.get(job.id, 0.0) <= now:
                with self.keeper.ledger.transaction():
                    set_job(self.keeper.ledger, job.id, "training" if "train" in job.plan else "queued", "tried again")

    def died(self, job: Job, status: int) -> None:
        """A child ended by itself or was ended: whose fault it was decides what becomes of the job."""
        staging = self.keeper.home.staging_of(job.id)
        fault = _read_fault(staging)
        if fault.get("fault") == "environment":
            self.hold(job.id, str(fault.get("message")))
            return
        if fault.get("fault") == "data":
            self.fail(job.id, str(fault.get("message")))
            return
        step = int(read_progress(staging).get("step") or 0)
        attempts = 1 if step > job.progress else job.attempts + 1
        reason = str(fault.get("message") or f"the training process ended with status {status}")
        with self.keeper.ledger.transaction():
            set_job(self.keeper.ledger, job.id, job.state, reason, attempts=attempts, progress=max(step, job.progress))
        if attempts >= self.keeper.settings.training.max_attempts and status == -9 and not fault:
            # Killed without a word: the kernel out of memory, or a person. The machine's doing, not the data's (law 10).
            self.hold(job.id, reason, HOLD_SECONDS * 2 ** min(attempts - 1, 7))
        elif attempts >= self.keeper.settings.training.max_attempts:
            self.fail(job.id, f"{reason} ({attempts} times without progress)")
        else:
            self.not_before[job.id] = self.keeper.clock.monotonic() + CRASH_SECONDS

    def went_wrong(self, number: int, error: Exception) -> None:
        """A step of a job raised: whose fault it was decides its state, and the error is its reason."""
        job = find_job(self.keeper.ledger, number)
        told = str(error) if isinstance(error, OSError | HeirloomError) else f"{type(error).__name__}: {error}"
        if job.state in ("done", "quarantined"):
            # The version is recorded; only tidying up is left, and that is tried again.
            self._untidy[job.id] = self.keeper.clock.monotonic() + HOLD_SECONDS
        elif is_environment(error):
            self.hold(job.id, told)
        elif isinstance(error, NotFound | UsageError):
            # What a person took away or wrote wrongly, mostly a recipe, is no file's fault: nothing is split or failed for it.
            self.put(job.id, "parked", f"{told}; {error.hint}" if error.hint else told)
        elif isinstance(error, LostSidecar) and len(job.files) == 1:
            # A person has to bring the file's fingerprints back; what waits behind it does not wait for that.
            self.put(job.id, "parked", f"{told}; {error.hint.replace('JOB', str(job.id))}")
        else:
            self.fail(job.id, told)

    def to_tidy(self, now: float) -> list[int]:
        """The recorded jobs whose tidying up is due again; each is given out once."""
        due = [number for number, moment in self._untidy.items() if moment <= now]
        for number in due:
            del self._untidy[number]
        return due

    def refused(self, job: Job, verdict: Verdict) -> None:
        """Preflight said no: the machine waits, a rotten file stands alone, nothing new ends the job, all else asks a person."""
        if verdict.environment_only:
            self.hold(job.id, verdict.reason)
            return
        if len(job.files) > 1 and any(check.name == "Data verified" for check in verdict.failures):
            self.fail(job.id, verdict.reason)  # one rotten file must not hold up the others of its batch
            return
        nothing_new = [check.name for check in verdict.failures] == ["No duplicates"]
        self.put(job.id, "cancelled" if nothing_new else "parked", verdict.reason)
        if nothing_new:
            remove_tree(self.keeper.home.staging_of(job.id))

    def stopped(self, job: Job, wish: str, full: str) -> None:
        """A child ended as it was asked to; `wish` is the state it was asked for, `full` why there was no room."""
        if wish == "cancelled" and job.state == "cancelled":
            remove_tree(self.keeper.home.staging_of(job.id))
        elif wish == "held" and job.state == "training":
            self.hold(job.id, full)
        elif wish == "parked" and job.state in ("preparing", "training"):
            self.put(job.id, "parked", "the line was rolled back under it")

    def waits(self, job: Job) -> bool:
        """Whether a job is only waiting for a better moment: what `run --once` does not wait for."""
        return job.state == "committing" and self.not_before.get(job.id, 0.0) > self.keeper.clock.monotonic()

    def hold(self, number: int, reason: str, seconds: float = HOLD_SECONDS) -> None:
        """The machine is at fault: the job waits and is tried again by itself (law 10)."""
        announced = find_job(self.keeper.ledger, number).state == "committing"
        self.put(number, "committing" if announced else "held", reason)
        self.troubled.add(number)
        self.not_before[number] = self.keeper.clock.monotonic() + seconds

    def fail(self, number: int, reason: str) -> None:
        """A batch that failed is split before any file is blamed; a single file's job is failed with its reason."""
        set_birth_aside(self.keeper, number)
        job = find_job(self.keeper.ledger, number)
        if len(job.files) > 1 and job.request.get("origin") == "drop":
            ledger = self.keeper.ledger
            with ledger.transaction():
                for sha256 in job.files:
                    name = ledger.value("SELECT name FROM files WHERE sha256 = ?", (sha256,))
                    add_job(ledger, kind="train", stage=job.stage, line=job.line, slug=slugify(Path(name).stem),
                            files=[sha256], request={**job.request, "origin": "split"})  # fmt: skip
                set_job(ledger, number, "cancelled", f"split into single files after: {reason}")
            return
        self.put(number, "failed", reason)

    def put(self, number: int, state: str, reason: str) -> None:
        """Record a state with its reason."""
        with self.keeper.ledger.transaction():
            set_job(self.keeper.ledger, number, state, reason)
        if state in ("held", "failed", "parked"):
            self.troubled.add(number)


def _read_fault(staging: Path) -> dict[str, Any]:
    try:
        return json.loads((staging / "error.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
