"""One step's batch prepared while the step before it is computed, in a thread of its own.

    step 7 is asked for -> it lies ready (or is waited for) -> the thread begins with step 8 -> step 7 goes to the model

A batch is a pure function of its step (`trainer/batches.py`), so who computes it and when changes no bit of it, and a
step that nobody expected (after a resume) is simply computed when it is asked for. What goes wrong while preparing a
step is raised when that step is asked for, and never before. Not here: what a batch is made of.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Protocol

from trainer.batches import StepBatch

__all__ = ["Ahead", "Source"]


class Source(Protocol):
    """Gives the batch of any step: what the loop asks."""

    def step(self, step: int) -> StepBatch:
        """The batch of step `step` (0-based)."""
        ...


class Ahead:
    """A source in front of another, one step ahead. A context manager: its thread ends with it."""

    def __init__(self, source: Source, steps: int) -> None:
        """`steps`: of the whole job; nothing is prepared beyond it."""
        self._source, self._steps = source, steps
        self._waiting: tuple[int, Future[StepBatch]] | None = None
        self._pool: ThreadPoolExecutor | None = None

    def step(self, step: int) -> StepBatch:
        """The batch of step `step`; begins with the next one. Raises what the source raises for this very step."""
        batch = self._ready(step)
        if batch is None:
            batch = self._source.step(step)
        if step + 1 < self._steps:
            if self._pool is None:  # only now: a job of one step needs no thread
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
            self._waiting = step + 1, self._pool.submit(self._source.step, step + 1)
        return batch

    def _ready(self, step: int) -> StepBatch | None:
        """What was prepared, once it is whole; None when nobody has begun with this step: then whoever asks is faster.

        On a busy machine a thread that waits for a core would otherwise keep the step waiting with it.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting[1].cancel():
            return None
        if waiting[0] == step:
            return waiting[1].result()
        wait([waiting[1]])  # two threads must not be in one source; whatever came of it, nobody asked for it
        return None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let what is being prepared come to its end, and forget it."""
        self._waiting = None
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
