"""Planning a fork of a long ancestry: what is looked at does not grow with it, and what is drawn covers all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import itertools

from benchmarks.scale import fill_home
from daemon import planning
from daemon.planning import MAX_REPLAY_LOOKS, replay_sources, spread_evenly
from daemon.publish import _best_losses
from guard import durable
from guard.store.keeper import Keeper
from guard.store.versions import ancestors, line_tip, version_by_id


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    keeper = fill_home(tmp_path / "home", 30, 60)
    for number in range(1, 31):
        folder = keeper.home.shards / f"{number:032x}"
        folder.mkdir(parents=True)
        files = [{"sha256": item["sha256"]} for item in version_by_id(keeper.ledger, number).record["data"]]
        durable.write_json(folder / "dataset_metadata.json", {"files": files})
    yield keeper
    keeper.ledger.close()


def test_a_spread_holds_the_first_and_the_last_and_no_item_twice() -> None:
    assert spread_evenly([1, 2, 3], 5) == [1, 2, 3]
    for count in (256, 257, 300, 511, 512, 10_000):
        chosen = spread_evenly(list(range(count)), 256)
        assert len(set(chosen)) == 256 and chosen == sorted(chosen) and (chosen[0], chosen[-1]) == (0, count - 1)
        gaps = {after - before for before, after in itertools.pairwise(chosen)}
        assert max(gaps) - min(gaps) <= 1


def test_replay_of_a_short_ancestry_is_drawn_from_all_of_it(keeper: Keeper) -> None:
    tip = line_tip(keeper.ledger, "policy")
    assert tip is not None and MAX_REPLAY_LOOKS > 30
    found = replay_sources(keeper, tip)
    assert [int(Path(item["path"]).name, 16) for item in found] == list(range(30, 0, -1))
    assert [len(item["known"]) for item in found] == [2] * 29 + [0]


def test_replay_of_a_long_ancestry_asks_a_bounded_number_of_ancestors(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MAX_REPLAY_LOOKS", 6)
    tip = line_tip(keeper.ledger, "policy")
    assert tip is not None
    statements: list[str] = []
    keeper.ledger._db.set_trace_callback(statements.append)
    found = replay_sources(keeper, tip)
    keeper.ledger._db.set_trace_callback(None)
    assert len(statements) < 1 + 6 * 8
    assert [int(Path(item["path"]).name, 16) for item in found] == [30, 24, 18, 13, 7, 1]
    again = replay_sources(keeper, tip, [f"{3:032x}", f"{29:032x}"])
    assert [int(Path(item["path"]).name, 16) for item in again] == [29, 3], "a plan of an earlier release finds all of its own"


def test_the_best_losses_of_an_ancestry_are_those_of_its_records_and_asked_for_once(keeper: Keeper) -> None:
    tip = line_tip(keeper.ledger, "policy")
    assert tip is not None
    expected: dict[str, float] = {}
    for number in ancestors(keeper.ledger, tip.id):
        for row in version_by_id(keeper.ledger, number).record["metrics"]["evaluation"]:
            expected[row["name"]] = min(row["child_loss"], expected.get(row["name"], row["child_loss"]))
    assert _best_losses(keeper, tip.id) == expected and len(expected) == 10
    statements: list[str] = []
    keeper.ledger._db.set_trace_callback(statements.append)
    assert _best_losses(keeper, tip.id) == expected
    assert len(statements) <= 3
