"""What moves versions is served in slices: between them the home is whole, others act, and nothing acts on stale facts."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import add_job_row, add_version, clone, make_home, places_of, small_family

from daemon.operations import begin, perform
from guard import durable
from guard.errors import Busy
from guard.steps import Steps
from guard.store import archive as archiving
from guard.store import vault_state, views
from guard.store.keeper import Keeper
from guard.store.recovery import recover
from guard.store.trash import delete
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.store.versions import find_version, line_tip

OLD, TIP = "v002_syllo", "v004_full_stack"


class Runner:
    """Nothing is training."""

    current = None

    def finish_commits(self, line: str) -> None:
        assert line


class Engine:
    """What the operations need of the daemon's engine."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper, self.runner, self.moving, self.hints = keeper, Runner(), "", 0

    def hint(self) -> None:
        self.hints += 1


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slices") / "family"
    keeper = small_family(root)
    run_backup(keeper)
    delete(keeper, "v002", force=True, confirm_lineage=True, confirm=OLD)
    keeper.ledger.close()
    return root


@pytest.fixture
def engine(family: Path, tmp_path: Path) -> Iterator[Any]:
    keeper = clone(family, tmp_path / "home")
    yield Engine(keeper)
    keeper.ledger.close()


def is_between_steps(keeper: Keeper) -> bool:
    """No transaction is open, models/ is shut, and every version is somewhere."""
    shut = not stat.S_IMODE(os.stat(keeper.home.models).st_mode) & 0o222
    return shut and not keeper.ledger._db.in_transaction and bool(places_of(keeper, OLD))


def finished(steps: Steps[dict[str, Any]], keeper: Keeper) -> tuple[int, dict[str, Any]]:
    """Slices that were yielded, each with the home as it must be, and the result."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return count, done.value
        count += 1
        assert is_between_steps(keeper)


@pytest.mark.parametrize(("operation", "arguments", "least"), [
    ("restore", {"version": "v002"}, 9),
    ("restore", {"version": "v002", "source": "backup"}, 20),
    ("purge", {"version": "v002", "yes": True, "dry_run": True}, 5),
    ("rollback", {"version": "v003"}, 4),
])  # fmt: skip
def test_reading_and_copying_come_in_slices_with_a_whole_home_between_them(
    engine: Any, operation: str, arguments: dict[str, Any], least: int
) -> None:
    count, _result = finished(begin(engine, operation, arguments), engine.keeper)
    assert count >= least and engine.moving == "" and engine.hints == 1


def test_purge_reads_the_copy_in_slices_and_erases_in_one(engine: Any) -> None:
    steps = begin(engine, "purge", {"version": "v002", "yes": True})
    for _ in range(5):
        next(steps)
        assert places_of(engine.keeper, OLD) == [f"trash/{OLD}"]
    with pytest.raises(StopIteration):
        while True:
            next(steps)
    assert places_of(engine.keeper, OLD) == [] and find_version(engine.keeper.ledger, "v002").state == "purged"


@pytest.mark.parametrize("second", [("delete", {"version": "v003", "force": True}), ("purge", {"version": "v002", "yes": True}),
                                    ("retention.apply", {"confirm": "x"}), ("restore", {"version": "v002"})])  # fmt: skip
def test_a_second_act_that_moves_versions_waits_for_the_first_and_takes_nothing_of_it_back(
    engine: Any, second: tuple[str, dict[str, Any]]
) -> None:
    first = begin(engine, "restore", {"version": "v002", "source": "backup"})
    while not (engine.keeper.home.staging / f"restore-{OLD}").is_dir():
        next(first)
    with pytest.raises(Busy, match="restore is under way"):
        perform(engine, *second)
    assert (engine.keeper.home.staging / f"restore-{OLD}").is_dir() and engine.moving == "restore"
    _count, result = finished(first, engine.keeper)
    assert result["source"] == "backup" and engine.moving == ""
    assert verify(engine.keeper, everything=True).ok


def test_looking_is_never_made_to_wait(engine: Any) -> None:
    first = begin(engine, "restore", {"version": "v002"})
    next(first)
    assert perform(engine, "purge", {"version": "v002", "dry_run": True})["purged"]
    assert perform(engine, "rollback", {"version": "v003", "dry_run": True})["changed"]
    finished(first, engine.keeper)


def test_one_that_the_daemon_s_end_cuts_off_is_finished_by_the_next_start(engine: Any) -> None:
    steps = begin(engine, "restore", {"version": "v002", "source": "backup"})
    while not list((engine.keeper.home.staging / f"restore-{OLD}").glob("*.json")):
        next(steps)
    steps.close()
    assert engine.moving == ""
    recover(engine.keeper)
    assert find_version(engine.keeper.ledger, "v002").state == "sealed" and verify(engine.keeper, everything=True).ok


def test_a_rollback_judges_again_after_it_read_its_target(engine: Any) -> None:
    keeper = engine.keeper
    steps = begin(engine, "rollback", {"version": "v003", "reason": "x"})
    next(steps)
    born = add_version(keeper, "late", TIP)
    views.refresh(keeper)
    _count, result = finished(steps, keeper)
    tip = line_tip(keeper.ledger, "policy")
    assert result["from"] == born and tip is not None and tip.name == "v003_reasoning"


def test_a_rollback_whose_line_was_moved_there_meanwhile_changes_nothing(engine: Any) -> None:
    first = begin(engine, "rollback", {"version": "v003"})
    next(first)
    assert perform(engine, "rollback", {"version": "v003"})["changed"]
    _count, result = finished(first, engine.keeper)
    assert not result["changed"]


@pytest.fixture
def long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Twelve versions, one an hour, all in a vault that counts as another device."""
    keeper = make_home(tmp_path / "home")
    parent = None
    for _ in range(12):
        parent = add_version(keeper, "step", parent)
        keeper.clock.advance(3600.0)  # type: ignore[attr-defined]
    views.refresh(keeper)
    run_backup(keeper)
    for place in (archiving, vault_state):
        monkeypatch.setattr(place, "other_device", lambda *_words: True)
    yield Engine(keeper)
    keeper.ledger.close()


def _apply(engine: Any) -> tuple[list[str], Steps[dict[str, Any]]]:
    plan = perform(engine, "retention.apply", {"newest": 2, "dry_run": True})
    assert len(plan["archive"]) >= 3
    return plan["archive"], begin(engine, "retention.apply", {"newest": 2, "confirm": plan["confirm"], "shown": plan["archive"]})


def test_what_a_person_or_a_job_wants_while_archiving_goes_on_stays(long_line: Any) -> None:
    keeper = long_line.keeper
    leaving, steps = _apply(long_line)
    next(steps)
    assert perform(long_line, "rollback", {"version": leaving[-1]})["changed"]
    number = add_job_row(keeper, "queued", base=leaving[1])
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result = done.value
            break
    assert result["archived"] == [leaving[0], *leaving[2:-1]]
    reasons = {item["name"]: item["reason"] for item in result["kept"]}
    assert "active on policy" in reasons[leaving[-1]] and f"job {number} forks" in reasons[leaving[1]]
    assert os.path.isdir(keeper.home.models / leaving[-1]) and os.path.isdir(keeper.home.models / leaving[1])


def test_archiving_comes_in_slices(long_line: Any) -> None:
    leaving, steps = _apply(long_line)
    states = []
    for _ in itertools.count():
        try:
            next(steps)
        except StopIteration as done:
            assert done.value["archived"] == leaving
            break
        states.append(sum(find_version(long_line.keeper.ledger, name).state == "archived" for name in leaving))
    assert len(states) >= 5 * len(leaving) and sorted(states) == states and set(states) == set(range(len(leaving)))


def test_a_vault_that_comes_to_lie_on_the_same_device_meanwhile_is_noticed(
    long_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving, steps = _apply(long_line)
    next(steps)
    monkeypatch.setattr(archiving, "other_device", lambda *_words: False)
    with pytest.raises(StopIteration) as done:
        while True:
            next(steps)
    assert [item["name"] for item in done.value.value["kept"]] == leaving and not done.value.value["archived"]
    assert all((long_line.keeper.home.models / name).is_dir() for name in leaving)
