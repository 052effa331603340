"""A ledger without room and a disk that refuses a move: archiving, purging and restoring leave each version in one place."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from homes import add_version, clone, keeper_of, make_home, places_of

from guard import durable, failpoints
from guard.errors import CheckFailed, EnvironmentFault
from guard.failpoints import Crash
from guard.store import views
from guard.store.archive import archive
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger
from guard.store.ledger_file import translate
from guard.store.purge import purge
from guard.store.rebuild import rebuild
from guard.store.recovery import recover
from guard.store.restore import restore
from guard.store.sums import folder_problems, unsealed
from guard.store.trash import delete, trash_notes
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.store.versions import find_version

OLD, LEAF = "v002_step", "v004_leaf"


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults") / "home"
    keeper = make_home(root)
    old = add_version(keeper, "step", add_version(keeper, "baseline"))
    add_version(keeper, "step", old)
    add_version(keeper, "leaf", old, tip=False)
    views.refresh(keeper)
    keeper.ledger.close()
    return root


@pytest.fixture
def keeper(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """A base, two children in a row and a leaf; the vault holds all and counts as another device."""
    monkeypatch.setattr("guard.store.archive.other_device", lambda *_: True)
    keeper = clone(template, tmp_path / "home")
    run_backup(keeper)
    yield keeper
    failpoints.disarm()


Full = Callable[[int, int], contextlib.AbstractContextManager[None]]


@pytest.fixture
def full_ledger(monkeypatch: pytest.MonkeyPatch) -> Full:
    """`with full_ledger(first, last)`: these commits of the block, counted from 1, find no room, as SQLite says it."""
    run = Ledger.run

    @contextlib.contextmanager
    def full(first: int, last: int) -> Iterator[None]:
        count = 0

        def refusing(self: Ledger, sql: str, values: tuple[object, ...] = ()) -> int:
            nonlocal count
            count += sql == "COMMIT"
            if sql == "COMMIT" and first <= count <= last:
                raise translate(sqlite3.OperationalError("database or disk is full"), self.path)
            return run(self, sql, values)

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "run", refusing)
            yield
        assert count >= first, "the ledger was never full"

    return full


def sound(keeper: Keeper, name: str, place: Path) -> bool:
    """Is the version whole and sealed at that place?"""
    return not folder_problems(place, find_version(keeper.ledger, name).sums_sha256) and unsealed(place) == []


def settled(keeper: Keeper) -> Keeper:
    """The next process, recovered twice: nothing is open, nothing is hidden, and everything verifies."""
    after = keeper_of(keeper.home.root)
    recover(after)
    assert recover(after) == []
    assert after.ledger.rows("SELECT * FROM meta WHERE key LIKE 'intent:%'") == []
    assert [path for path in after.home.trash.iterdir() if path.name.startswith(".")] == []
    assert verify(after, everything=True, backup=True).ok
    return after


ONCE, FOR_LONG = (2, 2), (2, 99)  # the first commit writes the intent, the second records the outcome


@pytest.mark.parametrize("span", [ONCE, FOR_LONG])
def test_a_ledger_without_room_leaves_what_was_to_be_archived_in_models(
    keeper: Keeper, full_ledger: Full, span: tuple[int, int]
) -> None:
    with full_ledger(*span), pytest.raises(EnvironmentFault, match="disk is full"):
        archive(keeper, OLD)
    assert places_of(keeper, OLD) == ["models"] and sound(keeper, OLD, keeper.home.models / OLD)
    assert list(keeper.home.trash.iterdir()) == []
    if span == ONCE:
        assert verify(keeper, everything=True).ok  # and not only after a restart
    after = settled(keeper)
    archive(after, OLD)
    assert find_version(after.ledger, OLD).state == "archived" and places_of(after, OLD) == []


@pytest.mark.parametrize("span", [ONCE, FOR_LONG])
def test_a_ledger_without_room_leaves_what_was_to_be_purged_in_the_trash(
    keeper: Keeper, full_ledger: Full, span: tuple[int, int]
) -> None:
    delete(keeper, LEAF, force=True)
    with full_ledger(*span), pytest.raises(EnvironmentFault, match="disk is full"):
        purge(keeper, LEAF, yes=True)
    assert places_of(keeper, LEAF) == [f"trash/{LEAF}"] and sound(keeper, LEAF, keeper.home.trash / LEAF)
    if span == ONCE:
        assert verify(keeper, everything=True).ok
    after = settled(keeper)
    assert restore(after, LEAF)["source"] == "trash" and verify(after, everything=True).ok


@pytest.mark.parametrize("gone", ["archived", "purged", "trashed"])
@pytest.mark.parametrize("span", [(1, 99), ONCE, FOR_LONG])
def test_a_ledger_without_room_leaves_a_restore_in_one_place(
    keeper: Keeper, full_ledger: Full, span: tuple[int, int], gone: str
) -> None:
    name = OLD if gone == "archived" else LEAF
    if gone == "archived":
        archive(keeper, name)
    else:
        delete(keeper, name, force=True)
    if gone == "purged":
        purge(keeper, name, yes=True)
    before = places_of(keeper, name)
    with full_ledger(*span), pytest.raises(EnvironmentFault, match="disk is full"):
        restore(keeper, name)
    assert len(places_of(keeper, name)) <= 1
    after = keeper_of(keeper.home.root)
    recover(after)
    assert recover(after) == []
    assert find_version(after.ledger, name).state in (gone, "sealed") and len(places_of(after, name)) <= 1
    assert verify(after, everything=True, backup=True).ok
    assert {path.name for path in after.home.trash.iterdir()} == set(trash_notes(after))  # nothing that nobody knows of
    assert list(after.home.staging.iterdir()) == []
    if find_version(after.ledger, name).state == gone:
        assert places_of(after, name) == before
        restore(after, name)
    assert places_of(after, name) == ["models"] and sound(after, name, after.home.models / name)


def test_a_disk_that_refuses_the_move_leaves_what_was_to_be_archived_sealed(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_source: Path, _target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "_rename_noreplace", refuse)
        with pytest.raises(EnvironmentFault, match="could not be archived"):
            archive(keeper, OLD)
        assert sound(keeper, OLD, keeper.home.models / OLD)
    assert verify(keeper, everything=True).ok and settled(keeper)


# --- an archiving that died, and a version that came back by another way ------------------------------------------------


def left_over(keeper: Keeper) -> tuple[Keeper, Path]:
    """Dead after it was recorded, the vault unplugged, and the version restored from a folder: the next process."""
    failpoints.arm("archive.recorded", "crash")
    with pytest.raises(Crash):
        archive(keeper, OLD)
    failpoints.disarm()
    vault = keeper.home.vault(keeper.settings.backup.path)
    vault.rename(vault.with_name("elsewhere"))
    after = keeper_of(keeper.home.root)
    told = recover(after)
    assert any("left for later: the vault" in line for line in told), told
    assert restore(after, OLD, source=str(vault.with_name("elsewhere")))["path"] == str(after.home.models / OLD)
    vault.with_name("elsewhere").rename(vault)
    return keeper_of(keeper.home.root), keeper.home.trash / f".archiving-{OLD}"


def test_what_an_archiving_left_behind_is_kept_with_a_note_when_its_version_came_back(keeper: Keeper) -> None:
    after, leaving = left_over(keeper)
    assert "moving it is unfinished" in verify(after, versions=[OLD]).damage[0].problem
    with pytest.raises(CheckFailed, match="earlier archiving"):
        archive(after, OLD)
    assert any(f"{OLD}~leftover" in line for line in recover(after)) and recover(after) == []
    assert find_version(after.ledger, OLD).state == "sealed" and sound(after, OLD, after.home.models / OLD)
    assert not leaving.exists() and sound(after, OLD, after.home.trash / f"{OLD}~leftover")
    assert trash_notes(after)[f"{OLD}~leftover"]["why"] == "leftover"
    after = settled(after)
    archive(after, OLD)
    restore(after, OLD)
    assert [item["folder"] for item in purge(after, OLD, yes=True)["purged"]] == [f"{OLD}~leftover"]
    assert places_of(after, OLD) == ["models"] and settled(after)


def test_a_leftover_stays_hidden_and_whole_while_its_version_in_models_is_damaged(keeper: Keeper) -> None:
    after, leaving = left_over(keeper)
    weights = after.home.models / OLD / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"rot")
    for _start in range(2):
        assert any("left for later" in line and "damaged" in line for line in recover(after))
        assert sound(after, OLD, leaving)
    assert any("moving it is unfinished" in item.problem for item in verify(after).damage)
    restore(after, OLD, source="backup")
    recover(after)
    assert settled(after) and set(trash_notes(after)) == {f"{OLD}~damaged", f"{OLD}~leftover"}


@pytest.mark.parametrize("then", ["trashed", "purged"])
def test_a_leftover_of_a_version_that_was_deleted_meanwhile_never_enters_models(
    keeper: Keeper, then: str
) -> None:
    after, leaving = left_over(keeper)
    delete(after, OLD, force=True, confirm_lineage=True, confirm=OLD)
    if then == "purged":
        purge(after, OLD, yes=True)
    recover(after)
    assert not leaving.exists() and not (after.home.models / OLD).exists()
    assert find_version(after.ledger, OLD).state == then and f"{OLD}~leftover" in trash_notes(after)
    after = settled(after)
    assert restore(after, OLD)["source"] == ("trash" if then == "trashed" else "backup") and settled(after)


@pytest.mark.parametrize("taken", [False, True])
def test_a_death_while_the_leftover_is_moved_is_finished_with_one_folder_and_one_note(
    keeper: Keeper, taken: bool
) -> None:
    after, _leaving = left_over(keeper)
    if taken:
        (after.home.trash / f"{OLD}~leftover").mkdir()
    name = f"{OLD}~leftover~2" if taken else f"{OLD}~leftover"
    failpoints.arm("archive.aside", "crash")
    with pytest.raises(Crash):
        recover(after)
    assert failpoints.hits("archive.aside") == 1
    failpoints.disarm()
    after = settled(after)
    assert list(trash_notes(after)) == [name] and sound(after, OLD, after.home.trash / name)


def test_a_rebuilt_ledger_knows_a_leftover_for_what_it_is(keeper: Keeper) -> None:
    after, _leaving = left_over(keeper)
    recover(after)
    after.ledger.close()
    root = keeper.home.root
    keeper.home.ledger.rename(keeper.home.ledger.with_name("lost.db"))
    for path in keeper.home.ledger.parent.glob("ledger.db-*"):
        path.unlink()
    rebuild(keeper.home, clock=keeper.clock, actor="tester")
    again = keeper_of(root)
    assert trash_notes(again)[f"{OLD}~leftover"]["why"] == "leftover"
    assert find_version(again.ledger, OLD).state == "sealed" and verify(again, everything=True).ok


def test_one_archiving_that_cannot_go_on_keeps_neither_a_home_from_starting_nor_another_from_its_end(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    failpoints.arm("archive.moved", "crash")
    for name in (OLD, LEAF):
        with pytest.raises(Crash):
            archive(keeper, name)
        failpoints.arm("archive.moved", "crash")
    failpoints.disarm()
    move = durable._rename_noreplace

    def refuse(source: Path, target: Path) -> None:
        if source.name.endswith(OLD):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        move(source, target)

    after = keeper_of(keeper.home.root)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "_rename_noreplace", refuse)
        told = recover(after)
    assert any(f"archiving {OLD} is left for later" in line for line in told) and f"archiving {LEAF} was taken back" in told
    assert any("moving it is unfinished" in item.problem for item in verify(after).damage if item.name == OLD)
    recover(after)
    after = settled(after)
    assert places_of(after, OLD) == places_of(after, LEAF) == ["models"]


def test_a_start_erases_nothing_while_the_vault_is_on_the_disk_of_the_models(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    failpoints.arm("archive.recorded", "crash")
    with pytest.raises(Crash):
        archive(keeper, OLD)
    failpoints.disarm()
    leaving = keeper.home.trash / f".archiving-{OLD}"
    with monkeypatch.context() as patch:
        patch.setattr("guard.store.archive.other_device", lambda *_: False)
        for _start in range(2):
            assert any("left for later" in line and "same device" in line for line in recover(keeper_of(keeper.home.root)))
            assert sound(keeper, OLD, leaving)
    assert f"{OLD} was archived" in recover(keeper_of(keeper.home.root)) and not leaving.exists()
    assert settled(keeper)
