"""The engine: intake, training, index and backup, driven by one `loop(now)` that never waits.

The same engine serves the daemon (`service.py`), `run --once`, and a single command that must work something off
while no daemon runs. It owns no truth: everything it knows is in the ledger, and it may be killed between any two
instructions. Not here: signals, sockets and systemd.
"""

from __future__ import annotations

from collections.abc import Iterator

from daemon.drill_runner import DrillRunner
from daemon.index_runner import IndexRunner
from daemon.intake import Intake
from daemon.near_runner import NearRunner
from daemon.reactor import Reactor
from daemon.readers import ReaderPool
from daemon.runner import Runner
from daemon.upkeep import Upkeep
from guard.errors import HeirloomError, is_environment
from guard.failpoints import point
from guard.store import views
from guard.store.jobs import jobs_in
from guard.store.keeper import Keeper
from guard.store.scrub import scrub_due, scrub_steps
from guard.store.vault import backup_steps

__all__ = ["Engine"]

BACKUP_SLICE_SECONDS = 0.05
# While a job trains, a backup rests three times as long as it works, so that no step takes much longer than its neighbours.
BACKUP_RESTS = 3.0
# For so long after it began; then it gets on: small forks born one after the other must not stay without a copy.
BACKUP_PATIENCE_SECONDS = 60.0
RETRY_BACKUP_SECONDS = 60.0
SCRUB_PAUSE_SECONDS = 0.05
# Waiting for these reasons is still work; an empty or unreadable file may wait for ever.
_PASSING_REASONS = ("it changed a moment ago", "its side file changed a moment ago", "its last line is cut off",
                    "it ends in zeroes")  # fmt: skip


class Engine:
    """Everything a home does by itself."""

    def __init__(self, keeper: Keeper, reactor: Reactor, *, watch_inbox: bool = True) -> None:
        self.keeper, self.reactor, self.watch_inbox = keeper, reactor, watch_inbox
        self.pool = ReaderPool(reactor, keeper.settings.intake.memory_mb)
        self.intake = Intake(keeper, self.pool)
        self.runner = Runner(keeper, reactor, self._born)
        self.index = IndexRunner(keeper, reactor)
        self.drill = DrillRunner(keeper, reactor)
        self.upkeep = Upkeep(keeper)
        self.near = NearRunner(keeper, reactor)
        self.backup_problem = ""
        self.watch_problem = ""
        self.home_problem = ""
        self.machine_problem = ""
        self.backup_by_hand = False
        self.moving = ""
        """The operation that moves versions at this moment, served in slices; "" when none is (`operations.py`)."""
        self.scrub_problem = ""
        self._backup: Iterator[str] | None = None
        self._scrub: Iterator[int] | None = None
        self._backup_due: float | None = 0.0
        self._backup_begun = 0.0
        self._backup_rests_until = 0.0
        self._next_sweep = 0.0
        self._sweep_again = 0.0
        self._views_sequence = -1
        self._views_cost = 0.0
        self._views_at = 0.0

    def loop(self, now: float) -> None:
        """One round: take in, train, index, back up; a little of each."""
        if self.home_problem:
            self.check_home()
            return
        self.intake.take_up(now)
        if self.watch_inbox and now >= self._next_sweep:
            self.sweep(now)
        elif self.intake.backlog:
            self.intake.work_off(now)
        self.pool.tick(now)
        self.refresh_views(now)
        self.drill.tick(now, calm=not self.runner.busy and self._backup is None and not self.backup_by_hand)
        if not self.drill.running:
            self.runner.tick(now)
        self.index.tick(now, calm=not self.intake.stirring)
        self.near.tick(now, calm=not self.intake.stirring and not self.pool.busy)
        if not self.runner.getting_ready:
            self._back_up(now)
        self.upkeep.tick(now, calm=not self.intake.stirring)
        self._go_on_scrubbing()

    def sweep(self, now: float) -> None:
        """Look through the inbox now; in a burst at most a twentieth of the time is spent on looking."""
        begun = self.keeper.clock.monotonic()
        self.intake.sweep(now)
        self._sweep_again = now + 20 * (self.keeper.clock.monotonic() - begun)
        due = self.intake.settler.next_due(now)
        busy = 0.2 if self.intake.busy or self.pool.busy else None
        waits = [item for item in (due, busy, self.keeper.settings.inbox.sweep_seconds) if item is not None]
        self._next_sweep = max(now + max(0.05, min(waits)), self._sweep_again)

    def check_home(self) -> None:
        """Is the home still whole? A vanished mount or store id halts the work with a clear word (law 9)."""
        try:
            self.keeper.home.check()
            self.home_problem = ""
        except HeirloomError as error:
            self.home_problem = f"{error}; {error.hint}"

    def hint(self) -> None:
        """Something stirred in the inbox: look soon, but not for every event of a burst."""
        self._next_sweep = min(self._next_sweep, max(self.keeper.clock.monotonic() + 0.1, self._sweep_again))

    def wait_seconds(self, now: float) -> float:
        """How long the loop may sleep before something is due."""
        rest = self._backup_rest(now) if self._backup is not None else 0.0
        if (self._backup is not None and rest <= 0) or (self.runner.judging is not None and not self.runner.paused):
            return 0.0
        if self.upkeep.busy or self.intake.verdicts.examining.busy or (self.intake.backlog and not self.pool.full):
            return 0.0
        if self.near.in_slices and not self.intake.stirring and not self.pool.busy:
            return 0.0
        if self.intake.views_dirty:
            return max(0.0, min(0.25, self._views_due() - now))
        if self._scrub is not None:
            return SCRUB_PAUSE_SECONDS
        busy = self.pool.busy or self.runner.current is not None or self.index.current is not None
        return max(0.0, min(self._next_sweep - now if self.watch_inbox else 1.0, 0.25 if busy else 1.0, rest or 1.0))

    # --- views and backups ---------------------------------------------------------------------------------------

    def refresh_views(self, now: float) -> None:
        """Make the views follow the ledger; in a burst at most a twentieth of the time is spent on them."""
        sequence = self.keeper.ledger.sequence()
        if self._views_sequence < 0 and not views.outdated(self.keeper):
            self._views_sequence = sequence  # an earlier life left them current
        self.intake.views_dirty = self.intake.views_dirty or sequence != self._views_sequence
        if not self.intake.views_dirty or now < self._views_due():
            return
        begun = self.keeper.clock.monotonic()
        views.refresh(self.keeper)
        self._views_sequence = sequence
        point("admit.viewed")
        self._views_cost, self._views_at = self.keeper.clock.monotonic() - begun, now
        self.intake.views_dirty = False

    def _views_due(self) -> float:
        """When the views may be made again: after twenty times what the last making took."""
        return self._views_at + 20 * self._views_cost

    def _born(self, name: str) -> None:
        self._backup_due = self.keeper.clock.monotonic()

    def begin_backup_by_hand(self) -> None:
        """Leave the backup that is under way to the one a person asked for; what is born meanwhile is copied after it."""
        if self._backup is not None:
            self._backup, self._backup_due = None, 0.0
        self.backup_by_hand = True

    def end_backup_by_hand(self) -> None:
        """It is done or failed. The automatic one looks once more, a little later: what it finds done costs nothing."""
        self.backup_by_hand = False
        self._backup_due = self.keeper.clock.monotonic() + RETRY_BACKUP_SECONDS

    def _back_up(self, now: float) -> None:
        if self.backup_by_hand:
            return
        if self._backup is None:
            if self._backup_due is None or now < self._backup_due or not self.keeper.settings.backup.auto:
                return
            self._backup, self._backup_due, self._backup_begun = backup_steps(self.keeper), None, now
        if self._backup_rest(now) > 0:
            return
        begun = self.keeper.clock.monotonic()
        stop = begun + BACKUP_SLICE_SECONDS
        try:
            while self.keeper.clock.monotonic() < stop:
                if next(self._backup, None) is None:
                    self._backup, self.backup_problem = None, ""
                    return
        except (OSError, HeirloomError) as error:
            # A failed backup never stops learning; it stands in the alerts until it succeeds.
            self._backup, self._backup_due = None, now + RETRY_BACKUP_SECONDS
            kind = "held" if is_environment(error) else "failed"
            self.backup_problem = f"backup {kind}: {error}"
        if now - self._backup_begun < BACKUP_PATIENCE_SECONDS:
            ended = self.keeper.clock.monotonic()
            self._backup_rests_until = ended + BACKUP_RESTS * (ended - begun)

    def _backup_rest(self, now: float) -> float:
        """How long a backup still rests, in seconds: only while a job is at work."""
        return max(0.0, self._backup_rests_until - now) if self.runner.current is not None else 0.0

    def begin_scrub(self) -> None:
        """Begin to read today's share, unless it was read or a person switched it off. Asked for by a timer."""
        if self._scrub is None and scrub_due(self.keeper):
            self._scrub = scrub_steps(self.keeper)

    def _go_on_scrubbing(self) -> None:
        """One step of at most 8 MiB a round, beside whatever trains: a line that never rests is scrubbed too."""
        if self._scrub is None:
            return
        try:
            if next(self._scrub, None) is None:
                self._scrub, self.scrub_problem = None, ""
        except (OSError, HeirloomError) as error:
            # A disk that does not answer never stops learning; the next timer begins where this one ended.
            self._scrub, self.scrub_problem = None, f"the scrub was interrupted: {error}"

    # --- is there anything left? ---------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing to do now that would be done by waiting a little: what `run --once` works towards."""
        if self.intake.busy or self.pool.busy or self.intake.views_dirty or self._backup is not None or self.upkeep.busy:
            return False
        if self.runner.busy or self.index.current is not None or self.drill.running or self.drill.asked:
            return False
        if self._backup_due is not None and self.keeper.settings.backup.auto and not self.backup_problem:
            return False
        if self.near.busy and not self.home_problem:
            return False
        if self.home_problem:
            return True  # nothing can be done in a home that is not whole
        unfinished = any(item.reason in ("", *_PASSING_REASONS) for item in self.intake.settler.seen.values())
        if unfinished and self.watch_inbox and not self.intake.inbox_problem:
            return False
        if self.runner.paused:
            return True
        return not any(True for job in jobs_in(self.keeper.ledger, "queued", "preparing", "training", "committing")
                       if not (self._blocked(job.line) or self.runner.ends.waits(job)))  # fmt: skip

    def _blocked(self, line: str) -> bool:
        waiting = jobs_in(self.keeper.ledger, "held", "committing")
        return any(job.line == line and (job.state == "held" or self.runner.ends.waits(job)) for job in waiting)

    @property
    def troubled(self) -> set[int]:
        """Jobs that were held or failed while this engine ran."""
        return self.runner.ends.troubled | self.index.troubled

    def close(self) -> None:
        """End every child; what they were at goes on in the next life."""
        self.runner.close()
        self.index.close()
        self.drill.close()
        self.near.close()
        self.pool.close()
        try:
            if views.outdated(self.keeper):
                views.refresh(self.keeper)
        except (OSError, HeirloomError) as error:
            if not is_environment(error):  # a full disk makes no fault of a stop: the next start makes them again
                raise
