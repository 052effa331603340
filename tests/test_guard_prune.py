"""Pruning indexes: what is damaged and not active goes by an explicit command; the active one and every number stay."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import copy_home
from toy import Toy

from daemon.cli.data import prune_lines
from daemon.operations import perform
from guard import failpoints
from guard.errors import NotFound, Protected
from guard.failpoints import Crash
from guard.store.indexes import next_index_number
from guard.store.scrub import scrub_steps
from guard.store.standing import standing_damage
from guard.store.verify import verify

ROUNDS = [name for name in failpoints.POINTS if name.startswith("prune.")]


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    toy = Toy(shared_scratch / "prune").make_base()
    for number in range(3):
        toy.drop(f"guide{number}.md", f"# Guide {number}\n\nKeep the home on a disk of its own.\n")
        toy.settle()
    toy.die()
    return toy.home.root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Iterator[Toy]:
    copy_home(template, scratch / "home")
    toy = Toy(scratch / "home")
    yield toy
    failpoints.disarm()
    toy.die()


def spoil(toy: Toy, name: str) -> None:
    path = toy.home.indexes / name / "meta.jsonl"
    os.chmod(path, 0o644)
    path.write_text("rot")


def test_an_old_damaged_index_is_named_with_a_remedy_that_works(toy: Toy) -> None:
    spoil(toy, "v001")
    found = verify(toy.keeper, everything=True).damage
    assert [item.name for item in found] == ["v001"] and "heirloom index prune v001" in found[0].remedy
    assert perform(toy.engine, "index.prune", {"index": "v001"})["pruned"] == ["v001"]
    assert verify(toy.keeper, everything=True).damage == ()
    assert not (toy.home.indexes / "v001").exists() and (toy.home.indexes / "v002").is_dir()


def test_a_damaged_active_index_is_built_again_and_then_removed(toy: Toy) -> None:
    spoil(toy, "v003")
    with pytest.raises(Protected, match="active"):
        perform(toy.engine, "index.prune", {"index": "v003"})
    perform(toy.engine, "index.rebuild", {})
    toy.settle()
    assert perform(toy.engine, "index.prune", {"index": "v003"})["pruned"] == ["v003"]
    assert verify(toy.keeper, everything=True).damage == ()


def test_one_whose_folder_vanished_goes_too_and_all_but_the_active_without_a_name(toy: Toy) -> None:
    for path in sorted((toy.home.indexes / "v001").iterdir(), reverse=True):
        os.chmod(path.parent, 0o755)
        path.unlink()
    (toy.home.indexes / "v001").rmdir()
    would = perform(toy.engine, "index.prune", {"dry_run": True})
    assert would["pruned"] == ["v001", "v002"] and (toy.home.indexes / "v002").is_dir()
    done = perform(toy.engine, "index.prune", {})
    assert done == would and "2 of the indexes" in prune_lines(done, done=True)[0]
    assert sorted(os.listdir(toy.home.indexes)) == ["latest", "v003"]
    assert verify(toy.keeper, everything=True).damage == () and next_index_number(toy.keeper) == 4
    assert "no index but" in prune_lines(perform(toy.engine, "index.prune", {}), done=False)[0]


def test_the_newest_number_is_not_given_again_after_it_was_pruned(toy: Toy) -> None:
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE indexes SET state = 'kept' WHERE id = 3")
        toy.keeper.ledger.run("UPDATE indexes SET state = 'active' WHERE id = 2")
    perform(toy.engine, "index.prune", {"index": "v003"})
    toy.again()
    assert next_index_number(toy.keeper) == 4


@pytest.mark.parametrize("name", ["v009", "nonsense", "../v001", ""])
def test_an_index_nobody_knows_is_refused(toy: Toy, name: str) -> None:
    with pytest.raises(NotFound):
        perform(toy.engine, "index.prune", {"index": name})
    assert len(os.listdir(toy.home.indexes)) == 4


def test_the_alert_of_a_damage_goes_with_the_index(toy: Toy) -> None:
    spoil(toy, "v001")
    for _size in scrub_steps(toy.keeper):
        pass
    toy.clock.advance(86400)
    while "index v001" not in standing_damage(toy.keeper):
        for _size in scrub_steps(toy.keeper):
            pass
    perform(toy.engine, "index.prune", {"index": "v001"})
    assert standing_damage(toy.keeper) == {}


@pytest.mark.parametrize("point", ROUNDS)
def test_a_death_at_any_step_is_finished_by_the_next_start(toy: Toy, point: str) -> None:
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        perform(toy.engine, "index.prune", {"index": "v001"})
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    toy.again()
    assert verify(toy.keeper, everything=True).damage == ()
    assert sorted(os.listdir(toy.home.indexes)) == ["latest", "v002", "v003"]
