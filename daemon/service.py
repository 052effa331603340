"""The daemon in the foreground: lock, recovery, then one loop until asked to stop.

Signal handlers set a flag and nothing else; timers (APScheduler) put names into a list and wake the loop; watchdog
wakes it too. SIGTERM: the running child finishes its step and takes a snapshot, then exit 0. systemd's WATCHDOG is
fed by finished rounds of the loop, and by each piece of what cannot be sliced. Not here: what a round does (`engine.py`).
"""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC
from types import FrameType
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler

from daemon.control import ControlServer
from daemon.engine import Engine
from daemon.notify import Notifier
from daemon.operations import begin
from daemon.reactor import Reactor
from daemon.report import live_facts, publish_status
from daemon.watch import Watcher
from guard.clock import SYSTEM_CLOCK
from guard.errors import CheckFailed, HeirloomError, is_environment
from guard.home import Home
from guard.lock import home_lock
from guard.seal import drop_ambient_rights
from guard.steps import Steps, on_breath
from guard.store import views
from guard.store.jobs import RUNNING, counts
from guard.store.keeper import Keeper, default_actor, open_writer
from guard.store.recovery import recover

__all__ = ["Service", "run"]

STATUS_SECONDS = 1.0
STOP_SECONDS = 600.0
HOLD_SECONDS = 5.0
TIMERS = {"sweep": 30, "disk": 60, "views": 300, "heartbeat": 10, "watcher": 5, "scrub": 600, "drill": 3600}
EXIT_TROUBLED = 3


class Service:
    """One life of the daemon over one home."""

    def __init__(self, home: Home, keeper: Keeper, *, once: bool, notifier: Notifier) -> None:
        self.home, self.keeper, self.once, self.notifier = home, keeper, once, notifier
        self.reactor = Reactor()
        self.engine = Engine(keeper, self.reactor)
        self.watcher = Watcher(home.inbox, self.reactor.wake)
        self.control = ControlServer(home.socket, self.reactor, self._handle)
        self.asked_to_stop = False
        self.stop_since: float | None = None
        self._due: deque[str] = deque()
        self._status_due = 0.0
        self._idle_rounds = 0
        self._held_until = 0.0
        self._scheduler = BackgroundScheduler(timezone=UTC)

    # --- asked from outside --------------------------------------------------------------------------------------

    def _handle(self, request: Mapping[str, Any]) -> Steps[dict[str, Any]]:
        """One request of the control socket, in slices; its events carry the name of whoever asked."""
        if self.asked_to_stop:
            raise CheckFailed("the daemon is stopping", hint="try again in a moment")
        ledger = self.keeper.ledger
        asker = str(request.get("actor") or "socket")
        steps = begin(self.engine, str(request["operation"]), request.get("arguments") or {})
        while True:
            daemon, ledger.actor = ledger.actor, asker
            try:
                next(steps)
            except StopIteration as done:
                result: dict[str, Any] = done.value
                return result
            finally:
                ledger.actor = daemon
            yield

    def ask_to_stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """The signal handler: a flag and a wake-up."""
        self.asked_to_stop = True
        self.reactor.wake()

    def _tick(self, name: str) -> None:
        self._due.append(name)
        self.reactor.wake()

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until asked to stop, or with `once` until nothing is left; returns the exit code."""
        self._start()
        try:
            while not self._finished():
                self.round(self.keeper.clock.monotonic())
        finally:
            self._stop()
        troubled = self.engine.troubled or self.engine.intake.held or self.engine.home_problem
        return EXIT_TROUBLED if self.once and troubled and not self.asked_to_stop else 0

    def _start(self) -> None:
        on_breath(lambda: self.notifier.send("WATCHDOG=1"))
        for name, seconds in TIMERS.items():
            self._scheduler.add_job(self._tick, "interval", args=[name], seconds=seconds, misfire_grace_time=None,
                                    coalesce=True)  # fmt: skip
        self._scheduler.start()
        self.watcher.check()
        self.engine.watch_problem = self.watcher.problem
        publish_status(self.keeper, live_facts(self.engine))
        self.notifier.send("READY=1", "STATUS=ready")

    def round(self, now: float) -> None:
        """One finished round of work; the watchdog is fed for it."""
        self._timers(now)
        if self.asked_to_stop and self.stop_since is None:
            self.stop_since = now
            self.notifier.send("STOPPING=1", "STATUS=finishing the step")
            self.engine.runner.begin_stop()
        if not self.asked_to_stop and now >= self._held_until:
            self._unless_held(now, lambda: self.engine.loop(now))
        self.control.tick()
        self._unless_held(now, lambda: self._publish(now))
        self.notifier.send("WATCHDOG=1")
        self._idle_rounds = self._idle_rounds + 1 if self.engine.idle and not self.control.busy else 0
        self.reactor.woken = False
        wait = 0.1 if self.asked_to_stop else self.engine.wait_seconds(self.keeper.clock.monotonic())
        wait = 0.0 if self.control.busy else wait
        self._unless_held(now, lambda: self.reactor.poll(max(wait, 0.1) if now < self._held_until else wait))
        if self.reactor.woken:
            self.engine.hint()

    def _unless_held(self, now: float, act: Callable[[], object]) -> None:
        """Do a part of a round; a full disk, even the ledger's or a view's, holds the daemon and does not end it.

        With `once` somebody waits for the answer: then the fault goes up and is the answer.
        """
        try:
            act()
            if now >= self._held_until:
                self.engine.machine_problem = ""
        except (OSError, HeirloomError) as error:
            if self.once or not is_environment(error):
                raise
            self.engine.machine_problem, self._held_until = f"everything is held: {error}", now + HOLD_SECONDS

    def _timers(self, now: float) -> None:
        while self._due:
            name = self._due.popleft()
            if name in ("sweep", "watcher"):
                self.watcher.check()
                self.engine.watch_problem = self.watcher.problem
            if name == "views" and views.outdated(self.keeper):
                self.engine.intake.views_dirty = True
            if name == "drill" and not self.once:
                self.engine.drill.consider()
            if name == "disk":
                self.engine.check_home()
            if name == "scrub":
                self.engine.begin_scrub()

    def _publish(self, now: float) -> None:
        if now < self._status_due:
            return
        begun = self.keeper.clock.monotonic()
        found = publish_status(self.keeper, live_facts(self.engine))
        # In a home where that takes long it is not what the daemon does most of the time.
        self._status_due = now + max(STATUS_SECONDS, 20 * (self.keeper.clock.monotonic() - begun))
        self.notifier.send(f"STATUS={found['state']}, {found['queue']['queued']} queued")

    def _finished(self) -> bool:
        if self.asked_to_stop and self.stop_since is not None:
            late = self.keeper.clock.monotonic() - self.stop_since > STOP_SECONDS
            return self.engine.runner.current is None or late
        # Two idle rounds with a sweep between them: a file dropped in the last moment is still seen.
        return self.once and self._idle_rounds > 2

    def _stop(self) -> None:
        on_breath(None)
        self._scheduler.shutdown(wait=False)
        self.watcher.stop()
        self.control.close()
        self.engine.close()
        publish_status(self.keeper, live_facts(self.engine))
        self.reactor.close()


def run(home: Home, once: bool = False) -> int:
    """Run the daemon over a home. Raises Busy naming the holder, Damage for a home that is not whole."""
    home.check()
    drop_ambient_rights()
    with home_lock(home, command="heirloom run --once" if once else "heirloom run", since=SYSTEM_CLOCK.utc()):
        keeper = open_writer(home, actor=default_actor("daemon"))
        try:
            for line in recover(keeper):
                print(f"recovered: {line}", file=sys.stderr)
            service = Service(home, keeper, once=once, notifier=Notifier.from_environment())
            # A lease we hold for a moment may be broken by a writer: the kernel's SIGIO would end us.
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, service.ask_to_stop)
            with keeper.ledger.transaction():
                keeper.ledger.event("daemon.started", "daemon", once=once)
            code = service.run()
            with keeper.ledger.transaction():
                keeper.ledger.event("daemon.stopped", "daemon", running=sum(counts(keeper.ledger).get(key, 0) for key in RUNNING))
            return code
        finally:
            keeper.ledger.close()
