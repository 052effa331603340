"""Restore drills: the vault alone brings a home back that learns on; how it ended is recorded whatever happens."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import InlineReaders, Toy, ToyServer, chat_of, text_of

from daemon import drill, drill_runner
from daemon.children import ChildLimits, JobChild
from daemon.cli.care import drill_line
from daemon.client import call_drill
from daemon.drill import MARK, Progress, clear_scratch, run_drill, scratch_beside
from daemon.drill_runner import DrillRunner
from daemon.engine import Engine
from daemon.reactor import Reactor
from daemon.report import compose
from daemon.vigil import STALL_SECONDS
from guard import failpoints
from guard.clock import ManualClock
from guard.durable import remove_tree, write_json
from guard.errors import Busy, CheckFailed, Damage, EnvironmentFault
from guard.failpoints import Crash
from guard.home import Home
from guard.steps import on_breath
from guard.store.archive import archive
from guard.store.drills import drill_due, drill_state, record_drill
from guard.store.keeper import Keeper, open_writer
from guard.store.sums import drain
from guard.store.vault import run_backup
from guard.store.vault_home import bring_home_back, newest_ledger
from guard.store.vault_state import backup_status
from guard.store.verify import verify

POINTS = ["drill.ledger", "drill.version", "drill.restored", "drill.verified", "drill.trained", "drill.backed_up"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a base and two versions, an index, and a vault that holds it all."""
    root = tmp_path_factory.mktemp("drill") / "home"
    toy = Toy(root).make_base()
    toy.drop("a.jsonl", chat_of(60))
    toy.drop("pretrain/b.txt", text_of(2000))
    toy.drop("guide.md", "# Guide\n\nKeep it.\n")
    toy.settle()
    toy.die()
    return root


@pytest.fixture
def toy(template: Path, tmp_path: Path) -> Iterator[Toy]:
    shutil.copytree(template, tmp_path / "home", symlinks=True)
    life = Toy(tmp_path / "home")
    yield life
    life.die()
    failpoints.disarm()


def settle_toy(keeper: Keeper) -> None:
    """What `settle_for_real` does, with the toy's stand-ins for processes."""
    clock = ManualClock(elapsed=1000.0)
    keeper = Keeper(keeper.home, keeper.ledger, keeper.settings, clock)
    reactor = Reactor()
    engine = Engine(keeper, reactor)
    engine.pool = engine.intake.pool = InlineReaders()  # type: ignore[assignment]
    server = ToyServer(engine.runner._exited)
    engine.runner.server = server  # type: ignore[assignment]
    quiet = 0
    for _ in range(200):
        clock.advance(0.5)
        engine.loop(clock.monotonic())
        server.deliver()
        quiet = quiet + 1 if engine.idle else 0
        if quiet > 4:
            break
    reactor.close()


def hold(toy: Toy, **changes: Any) -> dict[str, Any]:
    return run_drill(toy.home.root / "backups", toy.home.root / "scratch", settle_toy, changes)


def test_a_drill_brings_everything_back_trains_on_and_backs_up_again(toy: Toy) -> None:
    before = sorted(str(path) for path in (toy.home.root / "backups").rglob("*"))
    found = hold(toy)
    assert found["ok"], found
    assert (found["versions"], found["originals"], found["parent"]) == (3, 3, list(toy.versions())[-1])
    assert found["steps"] > 0 and found["bytes"] > 10_000 and found["seconds"] >= 0
    assert not (toy.home.root / "scratch").exists()
    assert sorted(str(path) for path in (toy.home.root / "backups").rglob("*")) == before


def test_a_home_brought_back_is_whole_and_has_lost_nothing(toy: Toy, tmp_path: Path) -> None:
    told = drain(bring_home_back(toy.home.root / "backups", tmp_path / "back"))
    back = open_writer(Home(tmp_path / "back"), actor="tester", flags={"backup.path": str(toy.home.root / "backups")})
    assert told["versions"] == list(toy.versions()) and len(told["originals"]) == 3
    assert {row[0]: row[1] for row in back.ledger.rows("SELECT name, state FROM versions")} == toy.versions()
    from guard.store.recovery import recover

    recover(back)
    assert verify(back, everything=True, backup=True).damage == ()
    assert back.home.store_id() == toy.home.store_id() and back.salt == toy.keeper.salt
    back.ledger.close()


def test_what_was_under_way_begins_anew(toy: Toy, tmp_path: Path) -> None:
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE jobs SET state = 'training', plan = '{\"train\": {}}' WHERE id = 2")
        toy.keeper.ledger.run("UPDATE drops SET state = 'claimed' WHERE id = 1")
        toy.keeper.ledger.set_meta("intent:delete:x", "{}")
        toy.keeper.ledger.event("test.turn", "x")
    run_backup(toy.keeper)
    drain(bring_home_back(toy.home.root / "backups", tmp_path / "back"))
    back = open_writer(Home(tmp_path / "back"), actor="tester")
    assert tuple(back.ledger.row("SELECT state, plan FROM jobs WHERE id = 2") or ()) == ("queued", "{}")
    assert back.ledger.value("SELECT state FROM drops WHERE id = 1") == "gone"
    assert back.ledger.rows("SELECT * FROM meta WHERE key LIKE 'intent:%'") == []
    assert back.ledger.value("SELECT count(*) FROM indexes WHERE state = 'active'") == 0
    back.ledger.close()


def test_a_drill_reads_archived_versions_in_the_vault_and_leaves_them_archived(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.store.archive.other_device", lambda *_: True)
    middle = list(toy.versions())[1]
    run_backup(toy.keeper)
    archive(toy.keeper, middle)
    run_backup(toy.keeper)
    found = hold(toy)
    assert found["ok"] and found["versions"] == 2, found
    held = toy.home.root / "backups" / "versions" / middle / "config.json"
    held.chmod(0o644)
    held.write_text("nobody's child needs this to be read")
    found = hold(toy)
    assert found["ok"] is False and middle in found["reason"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_a_fault_of_the_disk_is_told_and_the_scratch_goes(toy: Toy, point: str, action: str) -> None:
    failpoints.arm(point, action)
    found = hold(toy)
    assert failpoints.hits(point) == 1
    assert found["ok"] is False and point in found["reason"] and not (toy.home.root / "scratch").exists()


@pytest.mark.parametrize("point", POINTS)
def test_a_drill_that_died_is_cleared_by_the_next(toy: Toy, point: str) -> None:
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        hold(toy)
    assert failpoints.hits(point) == 1 and (toy.home.root / "scratch" / MARK).is_file()
    failpoints.disarm()
    assert verify(toy.keeper, everything=True, backup=True).ok
    assert hold(toy)["ok"] and not (toy.home.root / "scratch").exists()


@pytest.mark.parametrize("place", ["versions/v001_baseline/model.frame", "files", "ledger", "versions/v002_a", "high-water"])
def test_a_drill_over_a_damaged_vault_fails_and_says_what(toy: Toy, place: str) -> None:
    path = toy.home.root / "backups" / place
    if place == "files":
        path = next(path for path in path.rglob("b.txt"))
    if place == "versions/v002_a":
        path = next(path.parent.glob("v002_*"))
    if path.is_dir():
        remove_tree(path)
    else:
        path.parent.chmod(0o755)
        path.unlink()
        if place == "files":
            path.write_text("other")
    found = hold(toy)
    assert found["ok"] is False and found["reason"] and not (toy.home.root / "scratch").exists()


def test_an_older_ledger_serves_when_the_newest_cannot_be_read(toy: Toy) -> None:
    folder = toy.home.root / "backups" / "ledger"
    newest = newest_ledger(folder.parent)
    (folder / "ledger-0000099999.db").write_bytes(b"torn")
    assert newest_ledger(folder.parent) == newest
    assert hold(toy)["ok"]


def test_a_folder_of_somebody_elses_is_never_cleared(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("ten years")
    with pytest.raises(CheckFailed, match="no drill made it"):
        run_drill(toy.home.root / "backups", tmp_path / "theirs", settle_toy)
    assert (tmp_path / "theirs" / "thesis.txt").read_text() == "ten years"
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(CheckFailed):
        clear_scratch(tmp_path / "link")


def test_a_drill_without_training_fails(toy: Toy) -> None:
    found = run_drill(toy.home.root / "backups", toy.home.root / "scratch", lambda _keeper: None)
    assert found["ok"] is False and "did not go on" in found["reason"]


def test_what_waits_in_the_queue_is_not_trained_by_a_drill(toy: Toy) -> None:
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE jobs SET state = 'queued', plan = '{}' WHERE id = 2")
        toy.keeper.ledger.set_meta("paused", "1")
        toy.keeper.ledger.event("test.turn", "x")
    run_backup(toy.keeper)
    assert hold(toy)["ok"]


def test_no_room_is_told_before_anything_is_copied(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(EnvironmentFault, match="are free"):
        drain(bring_home_back(toy.home.root / "backups", tmp_path / "back"))
    monkeypatch.undo()
    with pytest.raises(CheckFailed, match="not empty"):
        drain(bring_home_back(toy.home.root / "backups", tmp_path / "back"))


# --- as the daemon holds them ----------------------------------------------------------------------------------------


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


def test_a_ledger_is_never_taken_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(Damage, match="no ledger"):
        newest_ledger(tmp_path)


def test_the_command_waits_for_the_end_and_tells_it(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEIRLOOM_DISK__RESERVE_GB", "0")
    monkeypatch.setattr(DrillRunner, "launch", play_child)
    found = call_drill(toy.home, None)
    assert found["ok"] and drill_line(found).startswith("✅ The vault gave everything back: 3 versions, 3 originals")
    remove_tree(next((toy.home.root / "backups" / "files").iterdir()))
    failed = call_drill(toy.home, str(toy.home.root.parent / "into"))
    assert not failed["ok"] and drill_line(failed).startswith("❌ The drill failed: ")
    assert not (toy.home.root.parent / "into").exists()


def test_a_home_sealed_as_immutable_is_drilled_with_seals_that_can_be_removed_again(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where this process may not set the flag: a drill asks for none."""
    monkeypatch.setenv("HEIRLOOM_STORAGE__SEAL", "immutable")
    asked: list[str] = []
    monkeypatch.setattr("guard.store.keeper.require_seal", lambda seal, _folder: asked.append(seal))
    monkeypatch.setattr("guard.seal._flag", lambda _path, _wanted: asked.append("flag"))
    found = hold(toy)
    assert found["ok"], found
    assert asked and set(asked) == {"mode"} and not (toy.home.root / "scratch").exists()


def test_a_scratch_with_immutable_folders_is_loosened_before_it_is_removed(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = toy.home.root / "scratch"
    (scratch / "home").mkdir(parents=True)
    (scratch / MARK).write_text("ours")
    loosened: list[Path] = []
    monkeypatch.setattr(drill, "loosen", loosened.append)
    clear_scratch(scratch)
    assert loosened == [scratch] and not scratch.exists()


def test_a_scratch_that_cannot_be_removed_is_a_drill_that_failed_and_says_so(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    def settle(keeper: Keeper) -> None:
        settle_toy(keeper)
        monkeypatch.setattr(drill, "remove_tree", refuse)

    found = run_drill(toy.home.root / "backups", toy.home.root / "scratch", settle)
    assert found["ok"] is False and "could not be removed: Operation not permitted" in found["reason"]
    assert found["steps"] > 0 and found["seconds"] >= 0


def test_room_for_the_second_vault_of_a_drill_is_asked_for_before_the_copy(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    vault, root = toy.home.root / "backups", toy.home.root
    size = drain(bring_home_back(vault, root / "back"))["bytes"]
    held = sum(path.stat().st_size for path in vault.rglob("*") if path.is_file())
    monkeypatch.setattr("shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, size + held))
    copied: list[Path] = []
    monkeypatch.setattr("guard.store.vault_home._bring_version", lambda _keeper, folder, _version: copied.append(folder))
    found = hold(toy)
    assert found["ok"] is False and "are free" in found["reason"] and copied == []
    drain(bring_home_back(vault, root / "once more"))
    assert copied, "a home alone finds room"


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
