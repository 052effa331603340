"""The scrub: everything is read once in `scrub.days`, a share a day, and what rots stands as an alert until it is mended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import clone, keeper_of, small_family
from toy import Toy, chat_of

from daemon.report import compose
from guard import durable
from guard.durable import remove_tree
from guard.store.keeper import Keeper
from guard.store.scrub import _from, _units, scrub_due, scrub_steps, standing_damage
from guard.store.sums import drain

DAY = 86_400


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scrub") / "home"
    small_family(root).ledger.close()
    return root


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


@pytest.fixture
def keeper(template: Path, tmp_path: Path) -> Iterator[Keeper]:
    yield clone(template, tmp_path / "home")


def spoil(path: Path) -> bytes:
    sound = path.read_bytes()
    os.chmod(path, 0o644)
    path.write_bytes(sound[:-1] + b"?")
    return sound


def test_everything_is_read_once_in_so_many_days_and_a_share_each_day(keeper: Keeper, tmp_path: Path) -> None:
    keeper.ledger.close()
    keeper = keeper_of(tmp_path / "home", scrub__days=4)
    total = sum(unit.size for unit in _units(keeper))
    shares = []
    for _day in range(4):
        assert scrub_due(keeper)
        shares.append(drain(scrub_steps(keeper)))
        assert not scrub_due(keeper)
        keeper.clock.advance(DAY)  # type: ignore[attr-defined]
    assert sum(share["units"] for share in shares) >= len(_units(keeper)) == 4 + 3
    assert all(0 < share["bytes"] < total for share in shares)


def test_days_zero_switches_it_off(keeper: Keeper, tmp_path: Path) -> None:
    keeper.ledger.close()
    assert not scrub_due(keeper_of(tmp_path / "home", scrub__days=0))


@pytest.mark.parametrize("which", ["version", "original", "sidecar"])
def test_what_rots_stands_as_an_alert_and_an_event_until_it_is_mended(keeper: Keeper, tmp_path: Path, which: str) -> None:
    keeper.ledger.close()
    keeper = keeper_of(tmp_path / "home", scrub__days=1)
    paths = {"version": keeper.home.models / "v003_reasoning" / "model.safetensors",
             "original": next(keeper.home.files.glob("*/math.jsonl")),
             "sidecar": next(keeper.home.files.glob("*/math.jsonl")).with_name("examples.fp")}  # fmt: skip
    sound = spoil(paths[which])
    (thing,) = drain(scrub_steps(keeper))["damage"]
    assert paths[which].parent.name in thing and list(standing_damage(keeper)) == [thing]
    assert any(thing in alert["what"] for alert in compose(keeper, {}, running=False)["alerts"])
    keeper.clock.advance(DAY)  # type: ignore[attr-defined]
    drain(scrub_steps(keeper))
    assert len(keeper.ledger.rows("SELECT 1 FROM events WHERE verb = 'scrub.damage'")) == 1
    paths[which].write_bytes(sound)
    keeper.clock.advance(DAY)  # type: ignore[attr-defined]
    assert drain(scrub_steps(keeper))["damage"] == {} == standing_damage(keeper)
    assert keeper.ledger.row("SELECT 1 FROM events WHERE verb = 'scrub.mended'")


def test_a_share_that_was_cut_short_goes_on_where_it_stopped(keeper: Keeper, tmp_path: Path) -> None:
    keeper.ledger.close()
    keeper = keeper_of(tmp_path / "home", scrub__days=1)
    steps = scrub_steps(keeper)
    while keeper.ledger.meta("scrub:cursor") is None:
        next(steps)
    steps.close()
    assert scrub_due(keeper)
    cursor = keeper.ledger.meta("scrub:cursor")
    assert cursor == "version v001_baseline"
    assert next(_from(_units(keeper), cursor)).name == "v002_syllo"
    assert drain(scrub_steps(keeper))["units"] == 7 and not scrub_due(keeper)


def test_the_engine_scrubs_in_steps_beside_its_work_when_a_timer_says_so(scratch: Path) -> None:
    toy = Toy(scratch / "home", scrub__days=1).make_base()
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    remove_tree(next(toy.home.shards.iterdir()) / "val")
    toy.engine.begin_scrub()
    for _round in range(60):
        toy.step()
    assert [thing.split()[0] for thing in standing_damage(toy.keeper)] == ["dataset"]
    toy.engine.begin_scrub()
    assert toy.engine._scrub is None, "once a day is enough"
    toy.die()
