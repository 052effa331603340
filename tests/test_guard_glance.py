"""What is plainly gone is told by `status` and `run --once`: one listing of each place, and nothing is ever hashed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import copy_home, make_home, no_syncing, settings_from_outside
from toy import SETTINGS, Toy, chat_of

from daemon.cli.main import main
from daemon.report import compose
from guard import durable
from guard.durable import sha256_bytes
from guard.store import glance
from guard.store.files import open_drops
from guard.store.glance import lost_things
from guard.store.intents import put_intent
from guard.store.vault import run_backup
from guard.store.verify import verify


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncing(monkeypatch)
    settings_from_outside(monkeypatch, SETTINGS)


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    toy = Toy(shared_scratch / "glance").make_base()
    for number in range(2):
        toy.drop(f"a{number}.jsonl", chat_of(40, seed=100 * number))
        toy.drop(f"guide{number}.md", f"# Guide {number}\n\nKeep the home on a disk of its own.\n")
        toy.settle()
    toy.die()
    return toy.home.root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Iterator[Toy]:
    copy_home(template, scratch / "home")
    toy = Toy(scratch / "home")
    run_backup(toy.keeper)  # a vault of this very place
    yield toy
    toy.die()


def told(toy: Toy) -> list[str]:
    return [item.what for item in lost_things(toy.keeper)]


def test_a_whole_home_has_nothing_to_tell(toy: Toy) -> None:
    assert told(toy) == []


def test_everything_that_vanished_is_an_alert_with_a_remedy(toy: Toy) -> None:
    home = toy.home
    gone = {
        home.models / "v002_a0": "1 version is missing in models/: v002_a0",
        home.models / "v003_a1": "v003_a1 is active on policy and its folder is missing",
        home.files / sha256_bytes(chat_of(40, seed=0).encode()): "1 original is missing in data/files/: a0.jsonl",
        home.indexes / "v001": "the index v001 is missing in data/index/",
        home.indexes / "v002": "the index v002 is active and missing in data/index/",
        home.events: "data/events is missing",
        home.root / "backups": "copies and is not there now",
    }
    for place, words in gone.items():
        durable.remove_tree(place)
        assert any(words in text for text in told(toy)), words
    home.high_water_file.unlink()
    assert ".heirloom/high-water is missing" in told(toy)
    alerts = {alert["what"]: alert["remedy"] for alert in compose(toy.keeper, {}, running=False)["alerts"]}
    assert set(told(toy)) <= alerts.keys() and all(alerts[text] for text in told(toy))


def test_many_are_counted_and_the_first_are_named(toy: Toy) -> None:
    for folder in list(toy.home.files.iterdir()):
        durable.remove_tree(folder)
    assert any(text.startswith("4 originals are missing") and text.endswith("and 1 more") for text in told(toy))


def test_what_a_running_operation_moves_is_not_missing(toy: Toy) -> None:
    with toy.keeper.ledger.transaction():
        put_intent(toy.keeper.ledger, "delete", "v002_a0", {"version": "v002_a0"})
    durable.remove_tree(toy.home.models / "v002_a0")
    assert told(toy) == []


def test_places_are_listed_again_only_when_they_changed(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    real = glance._listed
    monkeypatch.setattr(glance, "_listed", lambda place: looked.append(place) or real(place))  # type: ignore[func-returns-value]
    for _second in range(5):
        assert told(toy) == []
    assert len(looked) == 3
    durable.remove_tree(toy.home.files / sha256_bytes(chat_of(40, seed=0).encode()))
    assert len(told(toy)) == 1 and len(looked) == 6


@pytest.mark.parametrize(("place", "code"), [("data/index/v001", 8), ("backups", 3)])
def test_run_once_says_it_and_does_not_end_as_if_all_were_well(
    toy: Toy, place: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.keeper.ledger.close()
    durable.remove_tree(toy.home.root / place)
    assert main(["--home", str(toy.home.root), "run", "--once"]) == code
    said = capsys.readouterr().out
    assert Path(place).name in said and "try: " in said
    toy.begin()
    assert place == "backups" or [item.name for item in verify(toy.keeper).damage] == ["v001"]


def test_a_status_loads_no_numpy_for_it(toy: Toy) -> None:
    code = ("import sys, json; from daemon.report import status; from guard.home import Home; from pathlib import Path; "
            f"status(Home(Path({str(toy.home.root)!r}))); print(json.dumps(sorted(sys.modules)))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "zstandard"} & set(json.loads(done.stdout))


def test_neither_the_status_nor_a_look_for_open_drops_reads_every_drop_or_event(scratch: Path) -> None:
    keeper = make_home(scratch / "many")
    asked: list[str] = []
    keeper.ledger._db.set_trace_callback(asked.append)
    open_drops(keeper.ledger, "claiming")
    compose(keeper, {}, running=True)
    keeper.ledger._db.set_trace_callback(None)
    plans = [(sql, tuple(row)[3]) for sql in asked for row in keeper.ledger.rows(f"EXPLAIN QUERY PLAN {sql}")]
    assert any("drops_open" in plan for _sql, plan in plans)
    assert not [sql for sql, plan in plans if plan in ("SCAN drops", "SCAN events")]
