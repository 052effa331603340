"""While a job trains, the data of the job that comes next is tokenised, so that the device never waits for it.

What is new to the next job depends on what the running one learns, so which examples are trained is decided when it starts
(DESIGN 5). What does not depend on that is the tokenised dataset of its files: that is made here, in a child of its own at
the lowest priority, one at a time, and takes its place in `data/shards/`. The job's own preparation finds it there, or makes
it when it is not: nothing relies on this. Of a job that never starts nothing is left but shards, which are derived.
Not here: what a job prepares at its start (`runner.py`), choosing examples (`trainer/choose.py`).
"""

from __future__ import annotations

from pathlib import Path

from daemon.costs import tokens_approx
from daemon.endings import Endings
from daemon.planning import dataset_request
from daemon.publish import adopt_staged, read_result
from daemon.schedule import coming_next
from daemon.targets import target_of
from guard.durable import make_dir, remove_tree, write_json
from guard.errors import HeirloomError
from guard.store.jobs import Job, find_job
from guard.store.keeper import Keeper

__all__ = ["LEAST_TOKENS", "LOOK_SECONDS", "NICE", "Ahead"]

LOOK_SECONDS = 2.0
"""The queue is looked at this often for what comes next: after a burst one look costs some milliseconds."""
LEAST_TOKENS = 50_000
"""Less is tokenised in a tenth of a second: a child for it would cost more than it saves."""
NICE = 19
_BYTES_PER_TOKEN = 5


class Ahead:
    """The dataset of the next job, in the making or made. `server` is told by the runner, whose children it forks too."""

    def __init__(self, keeper: Keeper, ends: Endings) -> None:
        self.keeper, self.ends = keeper, ends
        self.job: int | None = None
        """The job whose data is being made now."""
        self._files: tuple[str, ...] = ()
        self._asked: set[int] = set()
        """Jobs for which that was done or found not to be worth it, in this life."""
        self._next_look = 0.0
        self._stopping = False

    def due(self, now: float) -> Job | None:
        """The job whose dataset should be begun now; None when nothing should. To be asked while another job trains."""
        if self.job is not None or now < self._next_look or self.ends.short_of_room():
            return None
        self._next_look = now + LOOK_SECONDS
        job = coming_next(self.keeper)
        if job is None or job.kind != "train" or job.id in self._asked:
            return None
        self._asked.add(job.id)
        return job

    def begin(self, job: Job) -> Path | None:
        """The staging folder of the child that shall be forked, with its `job.json`; None when it is not worth one.

        A job that cannot be planned now, or a disk that takes nothing, is left to the job's own start, where the reason is told.
        """
        try:
            target = target_of(self.keeper, job)
        except HeirloomError:
            return None
        tokens = tokens_approx(target)
        room = self.keeper.home.free_bytes() - self.keeper.settings.disk.reserve_gb * 1e9
        if tokens < LEAST_TOKENS or room < _BYTES_PER_TOKEN * tokens or any(file.record.get("prepared") for file in target.files):
            return None
        staging = self.staging(job.id)
        try:
            remove_tree(staging)
            make_dir(staging)
            write_json(staging / "job.json", dataset_request(self.keeper, target, staging))
        except (OSError, HeirloomError):  # what trains must not stop for it; what is left is cleared at the next start
            return None
        self.job, self._files, self._stopping = job.id, job.files, False
        return staging

    def wanted(self) -> bool:
        """Whether the dataset in the making is still for a queued job, and there is room for it."""
        if self.job is None or self._stopping:
            return True
        wanted = find_job(self.keeper.ledger, self.job).state == "queued" and not self.ends.short_of_room()
        self._stopping = not wanted
        return wanted

    def makes_data_of(self, job: Job) -> bool:
        """Whether the dataset in the making is the one that this job needs: then its start waits for what is half done."""
        return self.job == job.id and self._files == job.files

    def ended(self, status: int) -> None:
        """The child has ended. What it made takes its place; what it could not make, the job's start will meet and tell."""
        assert self.job is not None
        number, self.job = self.job, None
        staging = self.staging(number)
        try:
            if status == 0:
                adopt_staged(self.keeper, staging, str(read_result(staging, "dataset.json")["dataset_id"]))
            remove_tree(staging)
        except (OSError, HeirloomError) as error:
            with self.keeper.ledger.transaction():
                self.keeper.ledger.event("dataset.not_ahead", f"job {number}", reason=str(error))

    def staging(self, job: int) -> Path:
        """Where the child works; cleared at the next start when this life ends before it does."""
        return self.keeper.home.staging / f"ahead-{job:06d}"
