"""What stood in the middle when the ledger was lost: a rebuild brings hidden folders back, or ends what was begun.

Index numbers too: they go on above any that was ever given. Not here: the rows of a rebuilt ledger (`test_guard_rebuild.py`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import add_version, clone, keeper_of, make_home
from toy import Toy, chat_of

from guard import durable, failpoints
from guard.clock import ManualClock
from guard.errors import NotFound
from guard.failpoints import Crash
from guard.home import Home
from guard.store import views
from guard.store.archive import archive
from guard.store.indexes import next_index_number
from guard.store.keeper import Keeper
from guard.store.missing import bring_originals_back, make_folders
from guard.store.purge import purge
from guard.store.rebuild import rebuild
from guard.store.recovery import recover
from guard.store.trash import delete
from guard.store.vault import run_backup
from guard.store.vault_home import bring_home_back
from guard.store.verify import verify
from guard.store.versions import find_version

OLD = "v002_step"


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    keeper = make_home(shared_scratch / "hidden")
    parent = add_version(keeper, "baseline")
    for _turn in range(3):
        parent = add_version(keeper, "step", parent)
    views.refresh(keeper)
    keeper.ledger.close()
    return shared_scratch / "hidden"


@pytest.fixture
def keeper(template: Path, scratch: Path, disk: Path) -> Iterator[Keeper]:
    if os.stat(scratch).st_dev == os.stat(disk).st_dev:
        pytest.skip("needs two devices: the scratch folder and the folder for temporary files are on one")
    clone(template, scratch / "home").ledger.close()
    # The settings' file, and not a flag: a rebuild reads it by itself.
    (scratch / "home" / "configs" / "heirloom.yaml").write_text(f"backup: {{path: {disk / 'vault'}}}\n")
    keeper = keeper_of(scratch / "home")
    run_backup(keeper)
    yield keeper
    failpoints.disarm()


def made_again(keeper: Keeper) -> Keeper:
    """The ledger is lost and made again, and the next start recovers."""
    failpoints.disarm()
    root = keeper.home.root
    keeper.ledger.close()
    keeper.home.ledger.unlink()
    rebuild(keeper.home, clock=ManualClock(), actor="tester")
    after = keeper_of(root)
    recover(after)
    return after


def hidden(keeper: Keeper) -> list[str]:
    return [path.name for path in keeper.home.trash.iterdir() if path.name.startswith(".")]


def test_a_version_that_was_on_its_way_out_of_models_comes_back(keeper: Keeper) -> None:
    failpoints.arm("archive.moved", "crash")
    with pytest.raises(Crash):
        archive(keeper, OLD)
    assert hidden(keeper) == [f".archiving-{OLD}"]
    after = made_again(keeper)
    assert find_version(after.ledger, OLD).state == "sealed" and hidden(after) == []
    assert verify(after, everything=True).damage == ()


@pytest.mark.parametrize("partly", [False, True])
def test_an_archiving_that_was_recorded_stays_one_and_is_ended(keeper: Keeper, partly: bool) -> None:
    failpoints.arm("archive.recorded", "crash")
    with pytest.raises(Crash):
        archive(keeper, OLD)
    if partly:
        folder = keeper.home.trash / f".archiving-{OLD}"
        os.chmod(folder, 0o755)
        (folder / "config.json").unlink()
        (folder / "SHA256SUMS").unlink()
    after = made_again(keeper)
    run_backup(after, recheck=True)  # a rebuilt ledger knows of no copy before it was read
    recover(after)
    assert find_version(after.ledger, OLD).state == "archived"
    assert hidden(after) == [] and not (after.home.models / OLD).exists()
    assert verify(after, everything=True, backup=True).damage == ()


@pytest.mark.parametrize("point", ["purge.moved", "purge.recorded"])
def test_a_purge_that_had_begun_to_erase_is_ended(keeper: Keeper, point: str) -> None:
    leaf = add_version(keeper, "leaf", "v003_step", tip=False)
    run_backup(keeper)
    delete(keeper, leaf, force=True)
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        purge(keeper, leaf, yes=True)
    assert hidden(keeper) == [f".purging-{leaf}"]
    after = made_again(keeper)
    assert find_version(after.ledger, leaf).state == "purged" and list(after.home.trash.iterdir()) == []
    assert verify(after, everything=True).damage == ()


def test_purging_an_archived_version_names_a_way_that_exists(keeper: Keeper) -> None:
    archive(keeper, OLD)
    with pytest.raises(NotFound) as refused:
        purge(keeper, OLD, yes=True)
    assert "heirloom restore" in refused.value.hint and "delete" not in refused.value.hint


def test_copies_that_a_restore_left_are_cleared_when_nobody_announced_it(keeper: Keeper) -> None:
    left = keeper.home.staging / f"restore-{OLD}"
    left.mkdir()
    (left / "config.json").write_text("half")
    recover(keeper)
    assert not left.exists()


# --- numbers of indexes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def indexed(shared_scratch: Path) -> Path:
    """Two indexes, backed up."""
    toy = Toy(shared_scratch / "indexed").make_base()
    for number in range(2):
        toy.drop(f"guide{number}.md", f"# Guide {number}\n\nKeep the home on a disk of its own.\n")
        toy.settle()
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    run_backup(toy.keeper)
    toy.die()
    return toy.home.root


def test_after_everything_below_data_was_lost_index_numbers_go_on(indexed: Path, scratch: Path) -> None:
    shutil.copytree(indexed, scratch / "home", symlinks=True)
    home = Home(scratch / "home")
    durable.remove_tree(home.data)
    make_folders(home)
    bring_originals_back(home, home.root / "backups")
    rebuild(home, clock=ManualClock(), actor="tester")
    toy = Toy(home.root)
    assert next_index_number(toy.keeper) == 3
    toy.settle()
    assert [row[0] for row in toy.keeper.ledger.rows("SELECT id FROM indexes")] == [3]
    assert verify(toy.keeper, everything=True).damage == ()
    toy.die()


@pytest.mark.parametrize("place", ["home", "vault"])
def test_either_copy_of_the_mark_is_enough(indexed: Path, scratch: Path, place: str) -> None:
    shutil.copytree(indexed, scratch / "home", symlinks=True)
    home = Home(scratch / "home")
    marks = {"home": home.index_high_water_file, "vault": home.root / "backups" / "index-high-water"}
    for name, path in marks.items():
        path.write_text("7\n") if name == place else path.unlink()
    home.ledger.unlink()
    rebuild(home, clock=ManualClock(), actor="tester")
    toy = Toy(home.root)
    assert next_index_number(toy.keeper) == 8
    toy.die()


def test_a_home_out_of_the_vault_alone_keeps_the_mark(indexed: Path, scratch: Path) -> None:
    durable_steps = bring_home_back(indexed / "backups", scratch / "home", clock=ManualClock())
    for _step in durable_steps:
        pass
    toy = Toy(scratch / "home")
    assert next_index_number(toy.keeper) == 3
    toy.die()


def test_a_lost_or_low_index_mark_is_damage_until_the_next_start(indexed: Path, scratch: Path) -> None:
    shutil.copytree(indexed, scratch / "home", symlinks=True)
    toy = Toy(scratch / "home")
    toy.home.index_high_water_file.write_text("1\n")
    assert [item.name for item in verify(toy.keeper).damage] == ["index-high-water"]
    toy.home.index_high_water_file.unlink()
    assert [item.name for item in verify(toy.keeper).damage] == ["index-high-water"]
    recover(toy.keeper)
    assert verify(toy.keeper).damage == () and toy.home.index_high_water_file.read_text() == "2\n"
    toy.die()
