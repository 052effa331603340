"""Drills as the daemon holds them: one at a time, never beside training, ended when they hang, recorded however they end."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest
from drill_help import _template, _toy, settle_toy  # noqa: F401 - fixtures
from toy import Toy, chat_of

from daemon import drill, drill_runner
from daemon.children import ChildLimits, JobChild
from daemon.cli.backup import drill_line
from daemon.client import call_drill
from daemon.drill import Progress, run_drill, scratch_beside
from daemon.drill_runner import DrillRunner
from daemon.engine import Engine
from daemon.report import compose
from daemon.vigil import STALL_SECONDS
from guard import failpoints
from guard.durable import remove_tree, write_json
from guard.errors import Busy, EnvironmentFault
from guard.failpoints import Crash
from guard.steps import on_breath
from guard.store.drills import drill_due, drill_state, record_drill
from guard.store.keeper import Keeper
from guard.store.sums import drain
from guard.store.vault_state import backup_status


def play_child(runner: DrillRunner) -> None:
    """The child's work in this process."""
    request = json.loads((runner.folder / "request.json").read_text())
    write_json(runner.folder / "result.json", run_drill(Path(request["vault"]), Path(request["scratch"]), settle_toy))
    runner._exited(0)


def test_the_daemon_records_how_a_drill_ended(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DrillRunner, "launch", play_child)
    asked = toy.engine.drill.ask()
    assert asked["scratch"] == str(scratch_beside(toy.home.root / "backups"))
    with pytest.raises(Busy):
        toy.engine.drill.ask()
    assert not toy.engine.idle
    toy.settle()
    state = backup_status(toy.keeper)["drill"]
    assert state["last"]["ok"] and state["passed"] and state["problem"] == ""
    event = toy.keeper.ledger.row("SELECT * FROM events WHERE verb = 'backup.drilled'")
    assert event is not None and event["seq"] > asked["after"] and json.loads(event["payload"])["ok"] is True


def test_no_drill_begins_while_a_model_trains_and_no_training_while_a_drill_runs(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int | None] = []

    def launch(runner: DrillRunner) -> None:
        started.append(toy.engine.runner.current)
        runner.child = JobChild(toy.reactor, [], runner.folder, runner._exited)

    monkeypatch.setattr(DrillRunner, "launch", launch)
    toy.engine.runner.current = 7
    toy.engine.drill.ask()
    toy.step()
    assert started == []
    toy.engine.runner.current = None
    toy.drop("c.jsonl", chat_of(30, seed=5))
    toy.until(lambda: started)
    for _ in range(20):
        toy.step()
    assert started == [None] and toy.engine.runner.current is None and len(toy.versions()) == 3
    toy.engine.drill.child = None
    toy.settle()
    assert len(toy.versions()) == 4


def test_a_child_that_dies_is_a_drill_that_failed(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DrillRunner, "launch", lambda runner: runner._exited(-9))
    toy.engine.drill.ask()
    toy.settle()
    assert "status -9" in drill_state(toy.keeper)["problem"]
    alerts = compose(toy.keeper, {}, running=False)["alerts"]
    assert any("drill failed" in alert["what"] and alert["remedy"] == "heirloom backup drill" for alert in alerts)


@pytest.mark.parametrize("action", ["crash", "enospc"])
def test_recording_is_one_transaction(toy: Toy, action: str) -> None:
    failpoints.arm("drill.recorded", action)
    with pytest.raises((Crash, OSError)):
        record_drill(toy.keeper, {"ok": True, "reason": "", "seconds": 1.0})
    assert failpoints.hits("drill.recorded") == 1
    assert drill_state(toy.again().keeper)["last"]["ok"]


def test_a_drill_is_due_weekly_and_missed_after_two_weeks(toy: Toy) -> None:
    day = 86400.0
    assert not drill_due(toy.keeper) and drill_state(toy.keeper)["problem"] == ""
    toy.clock.advance(7.1 * day)
    assert drill_due(toy.keeper)
    toy.engine.drill.consider()
    assert toy.engine.drill.asked
    record_drill(toy.keeper, {"ok": True, "reason": "", "seconds": 1.0})
    assert not drill_due(toy.keeper)
    toy.clock.advance(14.1 * day)
    assert "14 days ago" in drill_state(toy.keeper)["problem"]
    record_drill(toy.keeper, {"ok": False, "reason": "a frame is torn", "seconds": 1.0})
    state = drill_state(toy.keeper)
    assert "a frame is torn" in state["problem"] and state["passed"] < state["last"]["utc"]


def test_without_days_no_drill_is_ever_due(toy: Toy) -> None:
    toy.flags["backup.drill_days"] = 0
    again = toy.again()
    again.clock.advance(1e7)
    assert not drill_due(again.keeper)
    again.engine.drill.consider()
    assert not again.engine.drill.asked


def test_a_drill_without_a_vault_is_refused(toy: Toy) -> None:
    remove_tree(toy.home.root / "backups")
    with pytest.raises(EnvironmentFault, match="no vault"):
        toy.engine.drill.ask()
    assert not toy.engine.drill.asked


def test_the_process_leaves_a_result_for_whatever_happens(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "settle_for_real", settle_toy)
    write_json(tmp_path / "request.json", {"vault": str(toy.home.root / "backups"), "scratch": str(tmp_path / "scratch")})
    assert drill.answer(tmp_path) == 0 and json.loads((tmp_path / "result.json").read_text())["ok"]
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "x").write_text("theirs")
    assert drill.answer(tmp_path) == 0
    assert "no drill made it" in json.loads((tmp_path / "result.json").read_text())["reason"]
    assert drill_runner.DrillRunner(toy.keeper, toy.reactor).folder == toy.home.state / "drill"


def test_the_command_waits_for_the_end_and_tells_it(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEIRLOOM_DISK__RESERVE_GB", "0")
    monkeypatch.setattr(DrillRunner, "launch", play_child)
    found = call_drill(toy.home, None)
    assert found["ok"] and drill_line(found).startswith("✅ The vault gave everything back: 3 versions, 3 originals")
    remove_tree(next((toy.home.root / "backups" / "files").iterdir()))
    failed = call_drill(toy.home, str(toy.home.root.parent / "into"))
    assert not failed["ok"] and drill_line(failed).startswith("❌ The drill failed: ")
    assert not (toy.home.root.parent / "into").exists()


class StoppedDrill:
    """Stands in for `launch`: a child that stops itself, so that it gets no further however long anybody waits."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, runner: DrillRunner) -> None:
        runner.child = JobChild(runner.reactor, ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"],
                                runner.folder, runner._exited, ChildLimits(hang_seconds=3600.0))  # fmt: skip
        runner.child.start()
        self.process = runner.child.process
        assert self.process is not None
        # From here on it uses no processor at all; while it still started, a look would have seen it at work.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)


def test_a_drill_that_hangs_is_ended_recorded_as_failed_and_training_goes_on(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = StoppedDrill()
    monkeypatch.setattr(DrillRunner, "launch", lambda runner: stopped(runner))
    toy.engine.drill.ask()
    toy.drop("c.jsonl", chat_of(30, seed=5))
    toy.until(lambda: toy.engine.drill.running)
    process = stopped.process
    assert process is not None
    for _ in range(20):
        toy.step()
    assert toy.engine.drill.running and process.poll() is None and len(toy.versions()) == 3
    now = toy.clock.monotonic()
    for _ in range(2 * int(STALL_SECONDS) // 5):
        now += 5
        toy.engine.drill.tick(now, calm=False)
    assert process.wait() == -9, "it was told to end, and a stopped process can be killed"
    while toy.engine.drill.running:
        assert toy.reactor.poll(60.0), "the end of the child is heard of"
    last = drill_state(toy.keeper)["last"]
    assert last["ok"] is False and "it did nothing for" in last["reason"]
    toy.settle()
    assert len(toy.versions()) == 4


def test_a_drill_that_cannot_be_begun_has_failed_and_training_goes_on(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(runner: DrillRunner) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(DrillRunner, "launch", launch)
    toy.engine.drill.ask()
    toy.drop("c.jsonl", chat_of(30, seed=5))
    toy.settle()
    assert "could not be begun" in drill_state(toy.keeper)["problem"] and len(toy.versions()) == 4


def test_a_drill_publishes_that_it_gets_on_with_every_piece(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def publish(path: Path, data: bytes) -> None:
        assert path == tmp_path / "progress.json"
        seen.append(json.loads(data)["pieces"])

    at = {"restored": 0, "trained": 0}

    def settle(keeper: Keeper) -> None:
        at["restored"] = len(seen)
        settle_toy(keeper)
        at["trained"] = len(seen)

    monkeypatch.setattr(drill, "publish", publish)
    monkeypatch.setattr(drill, "Progress", lambda path: Progress(path, itertools.count(0.0, 2.0).__next__))
    monkeypatch.setattr(drill, "settle_for_real", settle)
    write_json(tmp_path / "request.json", {"vault": str(toy.home.root / "backups"), "scratch": str(tmp_path / "scratch")})
    assert drill.answer(tmp_path) == 0 and json.loads((tmp_path / "result.json").read_text())["ok"]
    assert seen == sorted(seen) and at["restored"] > 10 and len(seen) > at["trained"] + 10
    drain(iter([1, 2, 3]))  # type: ignore[arg-type]
    assert seen[-1] == len(seen), "after its end nothing is published any more"


def test_progress_is_published_at_most_once_a_second(tmp_path: Path) -> None:
    times = iter([0.0, 0.0, 0.4, 0.9, 1.1, 1.2])
    progress = Progress(tmp_path / "progress.json", times.__next__)
    found = []
    for _ in range(5):
        progress()
        found.append(json.loads((tmp_path / "progress.json").read_text())["pieces"])
    assert found == [1, 1, 1, 4, 4]


def test_a_drill_that_waits_for_its_training_child_gets_on(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own engine watches over that child; to wait for it is not to do nothing."""
    rounds: list[float] = []

    class WaitingEngine(Engine):
        def loop(self, now: float) -> None:
            rounds.append(now)

        @property
        def idle(self) -> bool:
            return len(rounds) > 5

        def wait_seconds(self, now: float) -> float:
            return 0.0

    breaths: list[int] = []
    monkeypatch.setattr("daemon.engine.Engine", WaitingEngine)
    on_breath(lambda: breaths.append(len(rounds)))
    try:
        drill.settle_for_real(toy.keeper)
    finally:
        on_breath(None)
    assert set(breaths) >= set(range(1, 6))
