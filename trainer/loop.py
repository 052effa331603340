"""The training loop: forward, backward, clip, step, log, snapshot, stop. One narrative, exact to the bit.

Every step is a pure function of (weights, optimizer state, step number): the batch comes from the frozen list, the
rate from the schedule. Nothing else is carried over, so a run killed anywhere and resumed from its newest snapshot
ends with the same weights as one that was left alone (law 7). The loop knows no objective by name, no daemon, no
ledger. It never trains on after a loss or gradient that is not finite.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from guard.durable import publish
from guard.errors import Damage
from trainer.ahead import Source
from trainer.batches import StepBatch
from trainer.model import Decoder
from trainer.run_logs import RunLogs
from trainer.schedule import learning_rate
from trainer.snapshot import newest_snapshot, save_snapshot
from trainer.stepper import Stepper
from trainer.stopping import StopRequested

__all__ = ["LoopPlan", "Outcome", "StopRequested", "train"]

PROGRESS_SECONDS = 0.5
# A run that took less since its last snapshot is cheaper to repeat than to save at its end.
WORTH_SAVING_SECONDS = 10.0


@dataclass(frozen=True)
class LoopPlan:
    """The numbers of one run, frozen when it was planned."""

    steps: int
    training: dict[str, Any]
    """The recipe's `training` section."""
    dtype: str
    """`float32`, or `bfloat16` for autocast."""
    staging: Path
    """Where metrics.jsonl, progress.json and snapshots/ are written."""
    identity: str
    """Hash over all that the bits depend on: a snapshot of another run is never resumed."""
    snapshot_steps: int = 0
    """Snapshot every so many steps; 0: not by steps."""
    snapshot_seconds: float = 300.0
    """Snapshot when so many seconds of work would be lost; 0: not by time."""
    compile: bool = False
    """With kernels made by torch.compile."""
    surroundings: dict[str, Any] = field(default_factory=dict)
    """Library versions and hardware: when they change across a resume, exactness is only declared."""


@dataclass
class Outcome:
    """Where a run stands, and in the end what it did. Saved whole in every snapshot."""

    step: int = 0
    consumed: str = ""
    """SHA-256 over the sequences really fed; known when the run is complete."""
    loss: float = math.nan
    tokens: int = 0
    loss_tokens: int = 0
    replay_tokens: int = 0
    wall_seconds: float = 0.0
    resumes: int = 0
    changed_surroundings: bool = False
    notes: list[str] = field(default_factory=list)


def train(
    model: Decoder, feed: Source, objective: Any, plan: LoopPlan, *,
    stop: Callable[[], bool], clock: Callable[[], float],
) -> Outcome:  # fmt: skip
    """Run `plan.steps` steps, from the newest snapshot in staging if there is one. Changes `model` in place.

    Raises StopRequested after the snapshot that a stop asked for, DataFault when a loss or gradient is not finite,
    Damage when snapshots or metrics are damaged, OSError when the disk says no.
    """
    assert plan.steps >= 1, "a plan without steps trains nothing and must not be accepted"
    stepper = Stepper(model, objective, plan.training, plan.dtype, plan.compile)
    run, kept = _resume(stepper, plan)
    with RunLogs(plan.staging, kept) as logs:
        saved_at, told_at, started, before = clock(), -math.inf, clock(), run.wall_seconds
        while run.step < plan.steps:
            began = clock()
            rate = learning_rate(run.step, plan.steps, plan.training)
            batch = feed.step(run.step)
            loss, gradient_norm = stepper.step(batch, rate, run.step)
            now = clock()
            _advance(run, batch, loss, before + now - started)
            logs.append({**_row(run, batch, rate, gradient_norm, now - began), **stepper.metrics}, batch.sequences)
            if now - told_at >= PROGRESS_SECONDS or run.step == plan.steps:
                _tell(plan, run, batch, now - began)
                told_at = now
            stopping = stop()
            if _snapshot_due(plan, run.step, now - saved_at, stopping):
                _save(stepper, plan, run, logs)
                saved_at = now
            if stopping and run.step < plan.steps:
                raise StopRequested(f"stopped after step {run.step} of {plan.steps}")
        run.consumed = logs.consumed_sha256
    stepper.finish()
    return run


def _advance(run: Outcome, batch: StepBatch, loss: float, wall_seconds: float) -> None:
    run.step += 1
    run.loss, run.wall_seconds = loss, wall_seconds
    run.tokens += batch.tokens
    run.loss_tokens += batch.loss_tokens
    run.replay_tokens += batch.replay_tokens


def _row(run: Outcome, batch: StepBatch, rate: float, gradient_norm: float, seconds: float) -> dict[str, Any]:
    """One line of metrics.jsonl; `tokens` and `loss_tokens` are this step's, `seconds` the run's so far."""
    return {
        "step": run.step, "loss": run.loss, "learning_rate": rate, "grad_norm": gradient_norm,
        "tokens": batch.tokens, "loss_tokens": batch.loss_tokens,
        "tokens_per_second": batch.tokens / seconds if seconds > 0 else 0.0, "seconds": run.wall_seconds,
    }  # fmt: skip


def _tell(plan: LoopPlan, run: Outcome, batch: StepBatch, seconds: float) -> None:
    """progress.json: a hint for people, replaced in one step and not synced."""
    average = run.wall_seconds / run.step
    progress = {
        "phase": "training", "step": run.step, "steps": plan.steps, "loss": run.loss, "tokens": run.tokens,
        "tokens_per_second": batch.tokens / seconds if seconds > 0 else 0.0,
        "eta_seconds": average * (plan.steps - run.step), "pid": os.getpid(),
    }  # fmt: skip
    publish(plan.staging / "progress.json", orjson.dumps(progress))


def _snapshot_due(plan: LoopPlan, step: int, unsaved_seconds: float, stopping: bool) -> bool:
    by_steps = plan.snapshot_steps > 0 and step % plan.snapshot_steps == 0
    by_time = plan.snapshot_seconds > 0 and unsaved_seconds >= plan.snapshot_seconds
    at_the_end = step == plan.steps and unsaved_seconds >= WORTH_SAVING_SECONDS
    return stopping or by_steps or by_time or at_the_end


def _save(stepper: Stepper, plan: LoopPlan, run: Outcome, logs: RunLogs) -> None:
    state = {
        "identity": plan.identity,
        "run": vars(run),
        "surroundings": plan.surroundings,
        # Synced first: a snapshot must never speak of rows that the disk does not have.
        "logs": logs.sync(),
    }
    weights, moments = stepper.tensors()
    save_snapshot(plan.staging / "snapshots", run.step, state, weights, moments)


def _resume(stepper: Stepper, plan: LoopPlan) -> tuple[Outcome, dict[str, Any]]:
    """Put the stepper where the newest snapshot left it; returns the run so far and what its logs held."""
    snapshot = newest_snapshot(plan.staging / "snapshots")
    if snapshot is None:
        return Outcome(), {}
    state = snapshot.state
    if state["identity"] != plan.identity:
        raise Damage(f"the snapshot of step {snapshot.step} belongs to another plan", subject=str(plan.staging),
                     hint="a job's plan never changes; `heirloom queue retry ID` trains from the beginning")  # fmt: skip
    stepper.load(snapshot.model, snapshot.optimizer)
    run = Outcome(**state["run"])
    run.resumes += 1
    run.changed_surroundings |= state["surroundings"] != plan.surroundings
    run.notes += [f"snapshot passed over: {text}" for text in snapshot.damaged]
    return run, state["logs"]
