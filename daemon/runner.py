"""The runner: takes training jobs off the durable queue, one at a time, and brings each to its end.

    queued -> preparing (child) -> preflight -> training (child) -> committing -> done
                     held: the environment; tried again by itself        parked: waits for a person

What happens next is decided from the ledger and from what a child left in its staging folder, so a restart goes on
where the last life stopped. A death together with the daemon costs a job nothing; a child's own death costs one
attempt only when it made no progress. Not here: plans (`freezing.py`), what a failure means (`endings.py`), publication.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from daemon.ahead import NICE, Ahead
from daemon.children import TorchServer, limits_of
from daemon.endings import CRASH_SECONDS, TRAINING_KINDS, Endings
from daemon.facts import fact_steps
from daemon.freezing import (
    exact_facts,
    freeze_base,
    freeze_preparation,
    freeze_training,
    knew_every_set,
    known_steps,
    take_up_plan,
)
from daemon.publish import adopt_dataset, publish_base, publish_child, read_result
from daemon.reactor import Reactor
from daemon.regrow import chain_problem
from daemon.schedule import next_job
from daemon.targets import Target, target_of
from guard.checks.preflight import Facts, preflight
from guard.checks.verdict import Verdict
from guard.durable import remove_tree
from guard.steps import Steps, advance
from guard.store.birth import finish_birth
from guard.store.jobs import Job, find_job, jobs_in
from guard.store.keeper import Keeper

__all__ = ["Runner"]

STOPPED = 75  # the child was asked to stop, and left a snapshot
LOCKED = 76  # a child of an earlier life still holds the staging folder


@dataclass
class _Judging:
    """A job of which something large is read before it goes on, a slice in every round: `then` gets what came of it."""

    job: int
    state: str
    target: Target
    steps: Steps[Any]
    then: Callable[[Job, Target, Any], None]


class Runner:
    """At most one training job at a time: it holds the device."""

    def __init__(self, keeper: Keeper, reactor: Reactor, born: Callable[[str], None]) -> None:
        self.keeper, self.born = keeper, born
        self.server = TorchServer(reactor, self._exited, limits_of(keeper))
        self.current: int | None = None
        self.stopping = False
        self.ends = Endings(keeper)
        self.ahead = Ahead(keeper, self.ends)
        self.judging: _Judging | None = None
        self._facts: dict[int, Facts] = {}
        self._on_stop: dict[int, str] = {}
        self._full = ""
        """Why a job was last paused for want of room."""

    # --- choosing ------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Something is under way that ends by itself."""
        return self.current is not None or self.ahead.job is not None or (self.judging is not None and not self.paused)

    @property
    def getting_ready(self) -> bool:
        """The next job's facts are being read and nothing trains: the device waits, and what can wait should."""
        return self.judging is not None and not self.paused and not self.stopping

    @property
    def paused(self) -> bool:
        return self.keeper.ledger.meta("paused") == "1"

    def tick(self, now: float) -> None:
        """Look after the running child, or start the next thing when nothing runs."""
        self.server.tick(now)
        if self.current is not None and not self.stopping:
            self._watch_room(self.current)
            self._look_ahead(self.current, now)
        if self.current is not None or self.stopping or self.paused:
            return
        if self.judging is not None:
            self._judge()
            return
        for number in self.ends.to_tidy(now):
            self._guarded(find_job(self.keeper.ledger, number), self._finish)
        for job in jobs_in(self.keeper.ledger, "committing"):
            if self.ends.is_due(job, now):
                self._guarded(job, self._finish)
                return
        for job in jobs_in(self.keeper.ledger, "training", "preparing"):
            if self.ends.is_due(job, now):
                self._guarded(job, self._resume)
                return
        self.ends.release_held(now)
        following = next_job(self.keeper)
        if following is not None and not self.ahead.makes_data_of(following):
            self._guarded(following, self._start)

    def _look_ahead(self, number: int, now: float) -> None:
        """While a job trains, have the data of the next one tokenised in a child numbered with that job's negative id."""
        if not self.ahead.wanted():
            self.server.signal(-int(self.ahead.job or 0))
        if self.paused or self.keeper.ledger.value("SELECT state FROM jobs WHERE id = ?", (number,)) != "training":
            return
        job = self.ahead.due(now)
        staging = self.ahead.begin(job) if job is not None else None
        if job is not None and staging is not None:
            self.server.spawn(-job.id, staging, NICE)

    def _watch_room(self, number: int) -> None:
        """Pause what trains when the disk falls below the reserve: it takes a snapshot and is held."""
        problem = self.ends.short_of_room() if number not in self._on_stop else ""
        if not problem:
            return
        job = find_job(self.keeper.ledger, number)
        if (job.kind, job.state) == ("train", "training"):
            self._full = problem
            self.stop_current("held")

    # --- the steps of one job ------------------------------------------------------------------------------------

    def _guarded(self, job: Job, step: Callable[[Job], None]) -> None:
        """Run a step; what goes wrong in it becomes the job's state with a reason, never the daemon's end."""
        try:
            step(job)
        except Exception as error:  # noqa: BLE001 - reported: it becomes the job's reason, and the daemon lives on
            self.current, self.judging = None, None
            self.ends.went_wrong(job.id, error)

    def _start(self, job: Job) -> None:
        self.server.warm()  # it imports while the facts are read
        if job.kind == "base":
            self._spawn(job.id, freeze_base(self.keeper, job))
            return
        broken = chain_problem(self.keeper, job)
        if broken:
            self.ends.put(job.id, "parked", broken)
            return
        self._gather(job, self._prepare)

    def _gather(self, job: Job, then: Callable[[Job, Target, Facts], None], prepared: dict[str, Any] | None = None) -> None:
        """Begin to read every byte that preflight asks about; `then` goes on with the facts."""
        target = target_of(self.keeper, job)
        steps = fact_steps(self.keeper, target, prepared=prepared, wanted=job.wanted_id)
        self.judging = _Judging(job.id, job.state, target, steps, then)
        self._judge()

    def _judge(self) -> None:
        """A slice of the reading. A job that was cancelled meanwhile, or whose base moved, is begun anew or not at all."""
        judging = self.judging
        assert judging is not None

        def step(job: Job) -> None:
            done, found = advance(judging.steps, self.keeper.clock.monotonic)
            if not done:
                return
            self.judging = None
            if job.state == judging.state and target_of(self.keeper, job) == judging.target:
                judging.then(job, judging.target, found)

        job = find_job(self.keeper.ledger, judging.job)
        if job.state != judging.state:
            judging.steps.close()
            self.judging = None
            if job.state == "cancelled":
                remove_tree(self.keeper.home.staging_of(job.id))
            return
        self._guarded(job, step)

    def _prepare(self, job: Job, target: Target, facts: Facts) -> None:
        """The facts before the data is prepared are good: freeze what preparation needs, and start it."""
        verdict = preflight(facts)
        if not verdict.ok:
            self._refuse(job, verdict)
            return
        self._facts[job.id] = facts
        steps = known_steps(self.keeper, job, target)
        self.judging = _Judging(job.id, job.state, target, steps, self._begin_preparing)

    def _begin_preparing(self, job: Job, target: Target, _count: int) -> None:
        """What was learnt of the files is written down: start the child that prepares them."""
        self._spawn(job.id, freeze_preparation(self.keeper, job, target))

    def _resume(self, job: Job) -> None:
        """Go on with a job of an earlier life or after a death: from its frozen plan, or from its preparation."""
        if "train" in job.plan:
            self._spawn(job.id, take_up_plan(self.keeper, job))
        else:
            self._start(job)

    def _spawn(self, job: int, staging: Path) -> None:
        for name in ("error.json", "progress.json"):
            (staging / name).unlink(missing_ok=True)
        self.current = job
        self.server.spawn(job, staging, self.keeper.settings.nice)

    def _prepared(self, job: Job) -> None:
        """The data is ready: take it over, and judge again with exact figures."""
        staging = self.keeper.home.staging_of(job.id)
        prepared = adopt_dataset(self.keeper, job, read_result(staging, "prepared.json"))
        if not knew_every_set(self.keeper, job):
            self._facts.pop(job.id, None)
            self._start(job)
            return
        estimate = self._facts.pop(job.id, None)
        if estimate is None:  # an earlier life gathered them
            self._gather(job, partial(self._freeze, prepared), prepared)
        else:
            self._freeze(prepared, job, target_of(self.keeper, job), exact_facts(self.keeper, job, estimate, prepared))

    def _freeze(self, prepared: dict[str, Any], job: Job, target: Target, facts: Facts) -> None:
        """Judge with the exact figures, take a number, freeze the plan, train."""
        verdict = preflight(facts)
        if not verdict.ok:
            self._refuse(job, verdict)
            return
        self._spawn(job.id, freeze_training(self.keeper, job, target, prepared))

    def _refuse(self, job: Job, verdict: Verdict) -> None:
        self.current = None
        self.ends.refused(job, verdict)

    # --- the end of a child --------------------------------------------------------------------------------------

    def _exited(self, number: int, status: int) -> None:
        """A job's child has ended; called from the reactor."""
        if number < 0:
            self.ahead.ended(status)
            return
        if self.current == number:
            self.current = None
        job = find_job(self.keeper.ledger, number)
        wish = self._on_stop.pop(number, None)
        if wish is not None:
            self.ends.stopped(job, wish, self._full)
        elif self.stopping and job.state == "preparing":
            return  # nothing is started any more; the preparation is taken up in the next life
        elif status == 0 and job.state in ("preparing", "training"):
            self._guarded(job, self._prepared if job.state == "preparing" else self._publish)
        elif status == STOPPED or self.stopping:
            return  # the job keeps its state and goes on in the next life or after `queue resume`
        elif status == LOCKED:
            self.ends.not_before[number] = self.keeper.clock.monotonic() + CRASH_SECONDS
        elif job.state in ("preparing", "training"):
            self.ends.died(job, status)

    def _publish(self, job: Job) -> None:
        if job.kind == "base":
            self.born(publish_base(self.keeper, job.id))
            return
        name, verdict = publish_child(self.keeper, job.id)
        if verdict != "passed":
            self.ends.troubled.add(job.id)
        self.born(name)

    def _finish(self, job: Job) -> None:
        """An announced birth that the machine interrupted (a full disk): it is rolled forward, never trained again."""
        self.born(finish_birth(self.keeper, job.id))

    def finish_commits(self, line: str) -> None:
        """Roll the announced births of a line forward now, before somebody moves its tip."""
        for job in jobs_in(self.keeper.ledger, "committing"):
            if job.kind in TRAINING_KINDS and job.line == line:
                self._guarded(job, self._finish)

    # --- stopping ------------------------------------------------------------------------------------------------

    def stop_current(self, wish: str) -> int | None:
        """Ask the running job to snapshot and stop; `wish` is its state then (`parked`, `cancelled`, `held`, `paused`)."""
        if self.current is None:
            return None
        # A pause takes no cancellation back; and what was paused for want of room is held, paused or not.
        if wish != "paused" or self.current not in self._on_stop:
            self._on_stop[self.current] = wish
        self.server.signal(self.current)
        return self.current

    def begin_stop(self) -> None:
        """The daemon is asked to end: the running child finishes its step and takes a snapshot."""
        self.stopping = True
        if self.current is not None:
            self.server.signal(self.current)

    def close(self) -> None:
        self.server.close()
