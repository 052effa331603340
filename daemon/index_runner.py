"""Rebuilding the retrieval index: one child at a time, beside training, from the current documents.

An index is derived: a failed build leaves the old one active and says why. Not here: the switch itself
(`guard/store/indexes.py`) and how documents become vectors (`trainer/retrieval/`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from daemon.children import JobChild, limits_of
from daemon.publish import ensure_staging, read_result
from daemon.reactor import Reactor
from guard.durable import fsync_dir, fsync_tree, remove_tree, write_json
from guard.errors import Damage, HeirloomError, is_environment
from guard.store.birth import hash_folder
from guard.store.indexes import active_index, announce_index, current_documents, finish_index, next_index_number
from guard.store.jobs import find_job, jobs_in, set_job
from guard.store.keeper import Keeper

__all__ = ["IndexRunner"]

HOLD_SECONDS = 30.0
MAX_ATTEMPTS = 3
GATHER_SECONDS = 20.0


class IndexRunner:
    """Takes index jobs off the queue."""

    def __init__(self, keeper: Keeper, reactor: Reactor) -> None:
        self.keeper, self.reactor = keeper, reactor
        self.current: int | None = None
        self.child: JobChild | None = None
        self.troubled: set[int] = set()
        self._not_before: dict[int, float] = {}
        self._first_seen: dict[int, float] = {}
        self._documents: list[str] = []

    def tick(self, now: float, *, calm: bool = True) -> None:
        """Look after the running build, or start the next one. While documents are still arriving (not `calm`) it waits a little,
        so that a folder of documents becomes one index and not one for each of them."""
        if self.child is not None:
            self.child.tick(now)
        if self.current is not None or self.keeper.ledger.meta("paused") == "1":
            return
        for job in jobs_in(self.keeper.ledger, "committing", "preparing", "queued", "held"):
            if job.kind == "index" and self._not_before.get(job.id, 0.0) <= now:
                if not calm and now < self._first_seen.setdefault(job.id, now) + GATHER_SECONDS:
                    return
                # An announced switch is rolled forward; anything less is built anew.
                step = partial(finish_index, self.keeper) if job.state == "committing" else self._start
                self._guarded(job.id, partial(step, job.id))
                return

    def _guarded(self, number: int, step: Any) -> None:
        try:
            step()
        except (OSError, HeirloomError) as error:
            self.current = None
            announced = find_job(self.keeper.ledger, number).state == "committing"
            state = ("committing" if announced else "held") if is_environment(error) else "failed"
            self._set(number, state, str(error))

    def _set(self, number: int, state: str, reason: str) -> None:
        with self.keeper.ledger.transaction():
            set_job(self.keeper.ledger, number, state, reason)
        self._not_before[number] = self.keeper.clock.monotonic() + HOLD_SECONDS
        self.troubled.add(number)

    def _start(self, number: int) -> None:
        keeper = self.keeper
        remove_tree(keeper.home.staging_of(number))
        staging = ensure_staging(keeper, number)
        documents = current_documents(keeper)
        active = active_index(keeper)
        previous = keeper.home.indexes / active["name"] if active else None
        settings = keeper.settings.index
        write_json(staging / "job.json", {
            "documents": documents, "previous": str(previous) if previous and previous.is_dir() else None,
            "out": str(staging / "out"), "chunk_size": settings.chunk_size, "overlap": settings.overlap,
            "dimensions": 256,
        })  # fmt: skip
        with keeper.ledger.transaction():
            set_job(keeper.ledger, number, "preparing")
        self._documents = [item["sha256"] for item in documents]
        self.current = number
        self.child = self.launch(staging, partial(self._exited, number))

    def launch(self, staging: Path, exited: Callable[[int], None]) -> JobChild:
        """Start the builder on a staging folder; `exited` is called with its status."""
        child = JobChild(self.reactor, ["-m", "trainer.retrieval.child", str(staging)], staging, exited,
                         limits_of(self.keeper))  # fmt: skip
        child.start()
        return child

    def _exited(self, number: int, status: int) -> None:
        self.current, self.child = None, None
        self._guarded(number, lambda: self._finish(number, status))

    def _finish(self, number: int, status: int) -> None:
        staging = self.keeper.home.staging_of(number)
        if status != 0:
            self._failed(number, status)
            return
        result = read_result(staging, "result.json")
        fsync_tree(staging / "out")  # what is announced must be there after a power cut
        fsync_dir(staging)
        record = {key: result[key] for key in ("chunks", "embedded_new", "reused", "skipped", "seconds")}
        record |= {"documents": self._documents, "files": hash_folder(staging / "out")}
        announce_index(self.keeper, number, next_index_number(self.keeper), record)
        finish_index(self.keeper, number)

    def _failed(self, number: int, status: int) -> None:
        staging = self.keeper.home.staging_of(number)
        try:
            fault = read_result(staging, "error.json")
        except Damage:
            fault = {"fault": "bug", "message": f"the index builder ended with status {status}"}
        attempts = find_job(self.keeper.ledger, number).attempts + 1
        state = "held" if fault["fault"] == "environment" or attempts < MAX_ATTEMPTS else "failed"
        with self.keeper.ledger.transaction():
            set_job(self.keeper.ledger, number, state, str(fault["message"]), attempts=attempts)
        self._not_before[number] = self.keeper.clock.monotonic() + min(HOLD_SECONDS, 2.0**attempts)
        self.troubled.add(number)

    def close(self) -> None:
        """End a running build; it is made again at the next start."""
        if self.child is not None:
            self.child.kill()
            self.child, self.current = None, None
