"""The training loop: batch, step, log, snapshot, stop. One narrative, exact to the bit.

Every step is a pure function of (weights, optimizer state, step number): the batch comes from the frozen list, the
rate from the schedule. Nothing else is carried over, so a run killed anywhere and resumed from its newest snapshot
ends with the same weights as one that was left alone (law 7). The loop knows no objective by name, no daemon, no
ledger. It never trains on after a loss or gradient that is not finite, or after a spike: it goes back to its newest
snapshot and passes over the steps that `trainer/rewind.py` noted, or halts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from guard.errors import Damage
from trainer.ahead import Source
from trainer.anomaly import WINDOW, AnomalyFound, find_anomaly, rules_of
from trainer.batches import StepBatch
from trainer.lanes import Alone, LaneSum, Team
from trainer.model import Decoder
from trainer.rewind import found_in, go_back, noted_anomalies, settle_snapshots, skipped_steps
from trainer.schedule import learning_rate
from trainer.scribe import Scribe, Silent
from trainer.snapshot import newest_snapshot
from trainer.stepper import Stepper
from trainer.stopping import StopRequested
from trainer.surroundings import changes
from trainer.weights import save_weights

__all__ = ["LoopPlan", "Outcome", "StopRequested", "train"]


@dataclass(frozen=True)
class LoopPlan:
    """The numbers of one run, frozen when it was planned."""

    steps: int
    training: dict[str, Any]
    """The recipe's `training` section."""
    dtype: str
    """`float32`, or `bfloat16` for a working copy in it."""
    staging: Path
    """Where metrics.jsonl, progress.json and snapshots/ are written."""
    identity: str
    """Hash over all that the bits depend on: a snapshot of another run is never resumed."""
    snapshot_steps: int = 0
    """Snapshot every so many steps; 0: not by steps."""
    snapshot_seconds: float = 300.0
    """Snapshot when so many seconds of work would be lost; 0: not by time."""
    compile_tokens: int = 0
    """The layers are compiled for micro-batches of so many tokens; 0: not at all."""
    moments: Callable[[], Mapping[str, Tensor]] | None = None
    """Gives the parent's sealed optimiser state, which the run starts from; None: it starts from none."""
    seal_to: Path | None = None
    """Where the optimiser's state is written when the run is complete; None: it is not kept."""
    start: Callable[[], Mapping[str, Tensor]] | None = None
    """Gives the parent's weights by name: where a run goes back to that meets an anomaly before its first snapshot."""
    surroundings: dict[str, Any] = field(default_factory=dict)
    """What else the bits depend on (`trainer/surroundings.py`): another one after a resume, and exactness is declared."""
    lanes: int = 1
    """Gradients are added up in so many lanes (`trainer/lanes.py`)."""


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
    changes: list[str] = field(default_factory=list)
    """What of the surroundings was another one after a resume."""
    seconds_per_step: float = 0.0
    tokens_per_second: float = 0.0
    """The pace at the end, smoothed (`trainer/pace.py`)."""
    notes: list[str] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    """The newest losses learnt from: what the next one is judged by."""
    skipped: list[int] = field(default_factory=list)
    """Steps (from 0) that were passed over. `step` counts them; learnt from were `step - len(skipped)`."""


def train(
    model: Decoder, feed: Source, objective: Any, plan: LoopPlan, *,
    stop: Callable[[], bool], clock: Callable[[], float], team: Team | None = None,
) -> Outcome:  # fmt: skip
    """Run `plan.steps` steps, from the newest snapshot in staging if there is one. Changes `model` in place.

    All processes of a `team` call this with the same plan; rank 0 alone writes. Raises StopRequested after the snapshot
    that a stop asked for, DataFault when a loss or gradient is not finite, Damage when snapshots or metrics are damaged,
    OSError when the disk says no (of a snapshot's writing: at the end of a later step), EnvironmentFault for a lost process.
    """
    assert plan.steps >= 1, "a plan without steps trains nothing and must not be accepted"
    team, resumes = team or Alone(), None
    while True:
        try:
            return _run(model, feed, objective, plan, team, stop=stop, clock=clock, resumes=resumes)
        except AnomalyFound as found:  # in every process of the team: they all see the same figures
            if team.rank == 0:
                go_back(plan.staging, found.anomaly, rules_of(plan.training, plan.steps), plan.surroundings)
            team.agree(False, found.anomaly.step, 0.0)
            resumes = found.resumes


def _run(
    model: Decoder, feed: Source, objective: Any, plan: LoopPlan, team: Team, *,
    stop: Callable[[], bool], clock: Callable[[], float], resumes: int | None,
) -> Outcome:  # fmt: skip
    """The run from its newest snapshot on. Raises AnomalyFound.

    `resumes`: how often this process had resumed it when it met an anomaly; None for a model that was just loaded.
    """
    skips = skipped_steps(noted_anomalies(plan.staging))
    if team.rank == 0:
        settle_snapshots(plan.staging, skips)
    team.agree(False, len(skips), 0.0)
    stepper = Stepper(model, objective, plan.training, plan.dtype, compile_tokens=plan.compile_tokens,
                      lanes=LaneSum(plan.lanes, team))  # fmt: skip
    try:
        return _stepped(stepper, feed, plan, team, skips, stop=stop, clock=clock, resumes=resumes)
    finally:
        stepper.finish()


def _stepped(
    stepper: Stepper, feed: Source, plan: LoopPlan, team: Team, skips: frozenset[int], *,
    stop: Callable[[], bool], clock: Callable[[], float], resumes: int | None,
) -> Outcome:  # fmt: skip
    run, kept = _resume(stepper, plan, resumes)
    factor = rules_of(plan.training, plan.steps).spike_factor

    def check(what: str, value: float, step: int) -> None:
        anomaly = find_anomaly(what, value, step, run.recent, factor)
        if anomaly is not None:
            raise AnomalyFound(anomaly, run.resumes)

    with Scribe(plan, run, kept, clock) if team.rank == 0 else Silent() as scribe:
        team.agree(False, run.step, 0.0)
        while run.step < plan.steps:
            began = clock()
            rate = learning_rate(run.step, plan.steps, plan.training)
            batch = feed.step(run.step)
            gradient_norm = 0.0
            if run.step in skips:
                run.skipped.append(run.step)
                run.step += 1
                scribe.skip(batch)
            else:
                loss, gradient_norm = stepper.step(batch, rate, run.step, check)
                _advance(run, batch, loss)
                scribe.step(batch, rate, gradient_norm, clock() - began, stepper.metrics)
            stopping = team.agree(stop(), run.step, gradient_norm)
            scribe.save_if_due(stepper, stopping)
            if stopping and run.step < plan.steps:
                scribe.wait()
                raise StopRequested(f"stopped after step {run.step} of {plan.steps}")
    if plan.seal_to is not None and team.rank == 0:
        save_weights(stepper.tensors()[1], plan.seal_to)
    return run


def _advance(run: Outcome, batch: StepBatch, loss: float) -> None:
    run.step += 1
    run.loss = loss
    run.recent = [*run.recent[1 - WINDOW :], loss]
    run.tokens += batch.tokens
    run.loss_tokens += batch.loss_tokens
    run.replay_tokens += batch.replay_tokens


def _resume(stepper: Stepper, plan: LoopPlan, resumes: int | None) -> tuple[Outcome, dict[str, Any]]:
    """Put the stepper where the newest snapshot left it; returns the run so far and what its logs held."""
    snapshot = newest_snapshot(plan.staging / "snapshots")
    if snapshot is None:
        _begin(stepper, plan, again=resumes is not None)
        return _declared(Outcome(resumes=resumes or 0), plan, found_in(plan.staging)), {}
    state = snapshot.state
    if state["identity"] != plan.identity:
        raise Damage(f"the snapshot of step {snapshot.step} belongs to another plan", subject=str(plan.staging),
                     hint="a job's plan never changes; `heirloom queue retry ID` trains from the beginning")  # fmt: skip
    stepper.load(snapshot.model, snapshot.optimizer)
    run = Outcome(**state["run"])
    run.resumes = run.resumes + 1 if resumes is None else resumes
    run.notes += [f"snapshot passed over: {text}" for text in snapshot.damaged]
    return _declared(run, plan, [state["surroundings"], *found_in(plan.staging)]), state["logs"]


def _declared(run: Outcome, plan: LoopPlan, before: list[dict[str, Any]]) -> Outcome:
    """The run, with what is another now than in the surroundings of its earlier parts and of what steps were skipped for."""
    for surroundings in before:
        changed = changes(surroundings, plan.surroundings)
        run.changed_surroundings |= bool(changed)
        run.changes += [text for text in changed if text not in run.changes]
    return run


def _begin(stepper: Stepper, plan: LoopPlan, *, again: bool) -> None:
    """The beginning of a run, for the model as it was just loaded; `again`: for one that an anomaly was met in."""
    if not again and plan.moments is None:
        return
    assert plan.start is not None or not again, "a plan whose recipe skips steps says where its weights come from"
    weights = plan.start() if again and plan.start else None  # as they were loaded
    stepper.load(weights, plan.moments() if plan.moments else None)
