"""What a run leaves behind while it trains: its logs, progress.json, snapshots. Only rank 0 has one; no bit depends on it.

A snapshot is begun at a step's end and written beside the next steps (`trainer/background.py`). One that falls due while
another is written is taken at the first step's end after that; only a stop and the last step wait. Not here: what is
computed (`stepper.py`), and in which order things happen (`loop.py`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from guard.durable import publish
from trainer.background import SnapshotWriter
from trainer.pace import Pace
from trainer.run_logs import RunLogs

if TYPE_CHECKING:
    from trainer.batches import StepBatch
    from trainer.loop import LoopPlan, Outcome
    from trainer.stepper import Stepper

__all__ = ["Scribe", "Silent", "tell_progress"]

PROGRESS_SECONDS = 0.5
# A run that took less since its last snapshot is cheaper to repeat than to save at its end.
WORTH_SAVING_SECONDS = 10.0


def tell_progress(staging: Path, run: Outcome, steps: int | None, phase: str) -> None:
    """progress.json: a hint for people and for the daemon's vigil, replaced in one step and not synced."""
    known = run.seconds_per_step > 0 and steps is not None
    publish(staging / "progress.json", orjson.dumps({
        "phase": phase, "step": run.step, "steps": steps, "loss": run.loss if run.step else None, "tokens": run.tokens,
        "tokens_per_second": run.tokens_per_second, "pid": os.getpid(),
        "eta_seconds": run.seconds_per_step * ((steps or 0) - run.step) if known else None,
        "resumes": run.resumes,
    }))  # fmt: skip


class Silent:
    """Of a rank that leaves nothing behind."""

    def step(
        self, batch: StepBatch, rate: float, gradient_norm: float, seconds: float, metrics: Mapping[str, float]
    ) -> None:
        """Rank 0 logs it."""

    def skip(self, batch: StepBatch) -> None:
        """Rank 0 logs it."""

    def save_if_due(self, stepper: Stepper, stopping: bool) -> None:
        """Rank 0 saves it, and the others may go on meanwhile."""

    def wait(self) -> None:
        """There is nothing to wait for."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was opened."""


class Scribe:
    """Use as a context manager: logs are open inside, and leaving waits for a snapshot that is being written."""

    def __init__(self, plan: LoopPlan, run: Outcome, kept: dict[str, Any], clock: Callable[[], float]) -> None:
        """`kept`: what the logs held when the snapshot that is resumed was taken, or {}. `clock`: monotonic seconds."""
        self._plan, self._run, self._kept, self._clock = plan, run, kept, clock
        self._pace = Pace(run.seconds_per_step, run.tokens_per_second)
        self._owed = False
        self._started = self._saved_at = self._told_at = clock()
        self._before = run.wall_seconds

    def step(
        self, batch: StepBatch, rate: float, gradient_norm: float, seconds: float, metrics: Mapping[str, float]
    ) -> None:
        """A step is done, in so many seconds: a line for each log and, now and then, the progress."""
        run, now = self._run, self._clock()
        run.wall_seconds = self._before + now - self._started
        self._pace.step(seconds, batch.tokens)
        run.seconds_per_step, run.tokens_per_second = self._pace.seconds_per_step, self._pace.tokens_per_second
        self._logs.append({**metrics, **self._row(batch, rate, gradient_norm, seconds)}, batch.sequences)
        if now - self._told_at >= PROGRESS_SECONDS or run.step == self._plan.steps:
            tell_progress(self._plan.staging, run, self._plan.steps, "training")
            self._told_at = now

    def skip(self, batch: StepBatch) -> None:
        """A step is passed over: nothing was computed, nothing counts as fed, and the log says so."""
        self._logs.append({"step": self._run.step, "skipped": True, "loss": None, "tokens": 0, "skipped_tokens": batch.tokens,
                           "seconds": self._run.wall_seconds}, np.empty(0, dtype=np.int64))  # fmt: skip

    def _row(self, batch: StepBatch, rate: float, gradient_norm: float, seconds: float) -> dict[str, Any]:
        """One line of metrics.jsonl; `tokens` and `loss_tokens` are this step's, `seconds` the run's so far."""
        return {
            "step": self._run.step, "loss": self._run.loss, "learning_rate": rate, "grad_norm": gradient_norm,
            "tokens": batch.tokens, "loss_tokens": batch.loss_tokens,
            "tokens_per_second": batch.tokens / seconds if seconds > 0 else 0.0, "seconds": self._run.wall_seconds,
        }  # fmt: skip

    def save_if_due(self, stepper: Stepper, stopping: bool) -> None:
        """Begin a snapshot when one is due. Raises what the writing of an earlier one has failed with."""
        self._writer.check()
        now = self._clock()
        self._owed |= self._due(now - self._saved_at, stopping)
        if not self._owed or (self._writer.busy and not stopping and self._run.step < self._plan.steps):
            return
        # Its lists too: the run goes on, and skips steps, while this is being written.
        run = copy.deepcopy(vars(self._run))
        state = {"identity": self._plan.identity, "run": run, "surroundings": self._plan.surroundings, "logs": self._logs.mark()}
        weights, moments = stepper.tensors()
        # Synced first: a snapshot must never speak of rows that the disk does not have.
        self._writer.begin(self._run.step, state, weights, moments, before=self._logs.sync)
        self._saved_at, self._owed = now, False

    def _due(self, unsaved_seconds: float, stopping: bool) -> bool:
        plan, step = self._plan, self._run.step
        by_steps = plan.snapshot_steps > 0 and step % plan.snapshot_steps == 0
        by_time = plan.snapshot_seconds > 0 and unsaved_seconds >= plan.snapshot_seconds
        at_the_end = step == plan.steps and unsaved_seconds >= WORTH_SAVING_SECONDS
        return stopping or by_steps or by_time or at_the_end

    def wait(self) -> None:
        """Return when everything that was begun is on the disk. Raises what the writing failed with."""
        self._writer.wait()

    def __enter__(self) -> Scribe:
        self._stack = ExitStack()
        self._logs = self._stack.enter_context(RunLogs(self._plan.staging, self._kept))
        self._writer = self._stack.enter_context(SnapshotWriter(self._plan.staging / "snapshots"))
        tell_progress(self._plan.staging, self._run, self._plan.steps, "training")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._run.consumed = self._logs.consumed_sha256
        self._stack.__exit__(kind, error, trace)
