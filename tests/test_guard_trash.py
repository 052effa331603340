"""Deleting to the trash and restoring from trash, vault or folder: any step may be the last, nothing is ever lost."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import add_job_row, add_version, clone, keeper_of, places_of, run_as_ordinary_user, small_family

from guard import durable, failpoints
from guard.durable import remove_tree
from guard.errors import (
    CheckFailed,
    Damage,
    EnvironmentFault,
    HeirloomError,
    NotConfirmed,
    NotFound,
    Protected,
)
from guard.failpoints import Crash
from guard.seal import open_shelf
from guard.store import views
from guard.store.birth import set_birth_aside
from guard.store.jobs import set_job
from guard.store.keeper import Keeper
from guard.store.restore import finish_restores, restore
from guard.store.sums import folder_problems, unsealed
from guard.store.trash import delete, finish_deletes, move_sealed
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.store.versions import find_version

LEAF = "v005_leaf"
# What is taken back is stopped in test_daemon_points.py.
TAKEN_BACK = ("delete.abandoned", "restore.withdrawn", "restore.abandoned")
DELETE_POINTS = [name for name in failpoints.POINTS if name.startswith("delete.") and name not in TAKEN_BACK]
RESTORE_POINTS = [name for name in failpoints.POINTS if name.startswith("restore.") and name not in TAKEN_BACK]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family of seed 002 with one more leaf that is not active, and a vault that holds it all."""
    root = tmp_path_factory.mktemp("trash") / "home"
    keeper = small_family(root)
    add_version(keeper, "leaf", "v003_reasoning", tip=False)
    views.refresh(keeper)
    run_backup(keeper)
    keeper.ledger.close()
    return root


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A death inside one process leaves the page cache; what syncing is for is tested with a real power cut."""
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


@pytest.fixture
def keeper(template: Path, tmp_path: Path) -> Iterator[Keeper]:
    yield clone(template, tmp_path / "home")
    failpoints.disarm()


def reopened(keeper: Keeper) -> Keeper:
    """What the next process sees after a sudden death."""
    failpoints.disarm()
    return keeper_of(keeper.home.root)


def recovered(keeper: Keeper) -> Keeper:
    """The next process after its recovery, run twice: the second finds nothing to do."""
    after = reopened(keeper)
    finish_deletes(after)
    finish_restores(after)
    views.refresh(after)
    assert finish_deletes(after) == [] and finish_restores(after) == []
    return after


def proven(keeper: Keeper, name: str, folder: Path) -> bool:
    return not folder_problems(folder, find_version(keeper.ledger, name).sums_sha256)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(data)
    os.chmod(path, 0o444)


def test_a_deleted_leaf_lies_whole_and_sealed_in_the_trash(keeper: Keeper) -> None:
    told = delete(keeper, "v005", force=True)
    folder = keeper.home.trash / LEAF
    assert told == {"version": LEAF, "trash": str(folder), "dependants": []}
    assert proven(keeper, LEAF, folder) and unsealed(folder) == []
    assert find_version(keeper.ledger, LEAF).state == "trashed"
    assert verify(keeper, everything=True).ok


REFUSALS: list[tuple[str, dict[str, Any], type[HeirloomError]]] = [
    ("v001", {"force": True, "confirm_lineage": True, "confirm": "v001_baseline"}, Protected),
    ("v004", {"force": True, "confirm_lineage": True, "confirm": "v004_full_stack"}, Protected),
    ("v005", {}, Protected),
    ("v003", {"force": True}, Protected),
    ("v003", {"force": True, "confirm_lineage": True}, NotConfirmed),
    ("v003", {"force": True, "confirm_lineage": True, "confirm": "v003"}, NotConfirmed),
    ("v006", {"force": True}, NotFound),
    ("v00", {"force": True}, NotFound),
]


def test_a_refusal_moves_nothing(keeper: Keeper) -> None:
    before = keeper.ledger.sequence()
    for name, words, error in REFUSALS:
        with pytest.raises(error):
            delete(keeper, name, **words)
    assert keeper.ledger.sequence() == before
    assert list(keeper.home.trash.iterdir()) == [] and verify(keeper).ok


def test_a_parent_goes_when_its_full_name_was_typed_and_the_orphans_are_named(keeper: Keeper) -> None:
    told = delete(keeper, "v003", force=True, confirm_lineage=True, confirm="v003_reasoning")
    assert told["dependants"] == ["v004_full_stack", "v005_leaf"]
    event = keeper.ledger.row("SELECT * FROM events WHERE verb = 'version.trashed'")
    assert event is not None and "v004_full_stack" in event["payload"] and event["actor"] == "tester"


def test_a_version_that_a_queued_job_waits_for_stays(keeper: Keeper) -> None:
    add_job_row(keeper, "queued", base=LEAF)
    with pytest.raises(Protected, match="job 1"):
        delete(keeper, LEAF, force=True)


def test_a_dry_run_only_tells(keeper: Keeper) -> None:
    before = keeper.ledger.sequence()
    assert delete(keeper, LEAF, force=True, dry_run=True)["trash"].endswith(LEAF)
    assert keeper.ledger.sequence() == before and places_of(keeper, LEAF) == ["models"]


def test_the_trash_replaces_nothing_of_the_same_name(keeper: Keeper) -> None:
    squatter = keeper.home.trash / LEAF
    squatter.mkdir()
    (squatter / "precious").write_text("mine")
    told = delete(keeper, LEAF, force=True)
    assert told["trash"].endswith(f"{LEAF}~2")
    assert (squatter / "precious").read_text() == "mine"
    assert restore(keeper, LEAF)["source"] == "trash"
    assert proven(keeper, LEAF, keeper.home.models / LEAF)


@pytest.mark.parametrize("point", DELETE_POINTS)
def test_a_deletion_that_dies_at_any_step_is_finished_by_recovery(keeper: Keeper, point: str) -> None:
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        delete(keeper, LEAF, force=True)
    assert failpoints.hits(point) == 1
    after = recovered(keeper)
    assert places_of(after, LEAF) == [f"trash/{LEAF}"]
    assert find_version(after.ledger, LEAF).state == "trashed"
    assert verify(after, everything=True).ok


@pytest.mark.parametrize("point", DELETE_POINTS)
def test_a_deletion_that_the_disk_refuses_leaves_a_sound_home(keeper: Keeper, point: str) -> None:
    failpoints.arm(point, "enospc")
    with pytest.raises((EnvironmentFault, OSError)):
        delete(keeper, LEAF, force=True)
    after = recovered(keeper)
    state = find_version(after.ledger, LEAF).state
    assert places_of(after, LEAF) == ([f"trash/{LEAF}"] if state == "trashed" else ["models"])
    assert verify(after, everything=True).ok


def test_a_deletion_that_died_before_sealing_again_is_sealed_by_recovery(keeper: Keeper) -> None:
    failpoints.arm("delete.moved", "crash")
    with pytest.raises(Crash):
        delete(keeper, LEAF, force=True)
    os.chmod(keeper.home.trash / LEAF, 0o755)
    recovered(keeper)
    assert unsealed(keeper.home.trash / LEAF) == []


def test_a_deletion_whose_folder_vanished_is_taken_back_and_told(keeper: Keeper) -> None:
    failpoints.arm("delete.intended", "crash")
    with pytest.raises(Crash):
        delete(keeper, LEAF, force=True)
    shutil.rmtree(keeper.home.models / LEAF)
    after = reopened(keeper)
    assert "taken back" in finish_deletes(after)[0]
    assert [item.name for item in verify(after).damage] == [LEAF]


def test_restore_from_the_trash_brings_back_the_same_bytes_and_state(keeper: Keeper) -> None:
    poison = add_version(keeper, "poison", "v004_full_stack", state="quarantined")
    delete(keeper, poison, force=True)
    assert restore(keeper, poison) == {"version": poison, "source": "trash", "path": str(keeper.home.models / poison)}
    assert find_version(keeper.ledger, poison).state == "quarantined"
    assert places_of(keeper, poison) == ["models"] and verify(keeper, everything=True).ok


@pytest.mark.parametrize("point", [name for name in RESTORE_POINTS if name not in ("restore.copied", "restore.aside")])
def test_a_restore_from_the_trash_that_dies_at_any_step_is_finished(keeper: Keeper, point: str) -> None:
    delete(keeper, LEAF, force=True)
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        restore(keeper, LEAF)
    after = recovered(keeper)
    assert places_of(after, LEAF) == ["models"]
    assert find_version(after.ledger, LEAF).state == "sealed" and verify(after, everything=True).ok


@pytest.mark.parametrize("point", RESTORE_POINTS)
def test_a_restore_over_a_damaged_version_that_dies_at_any_step_is_finished(keeper: Keeper, point: str) -> None:
    damage(keeper.home.models / LEAF / "model.safetensors")
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        restore(keeper, LEAF, source="backup")
    assert failpoints.hits(point) >= 1
    after = recovered(keeper)
    assert places_of(after, LEAF) == ["models", f"trash/{LEAF}~damaged"]
    assert unsealed(after.home.trash / f"{LEAF}~damaged") == []
    assert verify(after, everything=True).ok


@pytest.mark.parametrize("point", RESTORE_POINTS)
def test_a_restore_that_the_disk_refuses_leaves_what_was_there(keeper: Keeper, point: str) -> None:
    damage(keeper.home.models / LEAF / "model.safetensors")
    failpoints.arm(point, "enospc")
    with pytest.raises((EnvironmentFault, OSError)):
        restore(keeper, LEAF, source="backup")
    after = recovered(keeper)
    assert os.path.isdir(after.home.models / LEAF) and list(after.home.staging.iterdir()) == []
    if not verify(after, versions=[LEAF]).ok:
        assert restore(after, LEAF, source="backup")["source"] == "backup"
    assert verify(after, everything=True).ok


@pytest.mark.parametrize("at_visit", [3])
def test_a_copy_that_died_half_way_is_taken_up_again(keeper: Keeper, at_visit: int) -> None:
    shutil.rmtree(keeper.home.models / LEAF)
    failpoints.arm("restore.copied", "crash", at_visit)
    with pytest.raises(Crash):
        restore(keeper, LEAF)
    assert places_of(keeper, LEAF) == ["staging"]
    after = recovered(keeper)
    assert places_of(after, LEAF) == ["models"] and verify(after, everything=True).ok


def test_a_restore_whose_source_vanished_is_taken_back(keeper: Keeper) -> None:
    damage(keeper.home.models / LEAF / "model.safetensors")
    failpoints.arm("restore.intended", "crash")
    with pytest.raises(Crash):
        restore(keeper, LEAF, source="backup")
    shutil.rmtree(keeper.home.root / "backups" / "versions" / LEAF)
    after = reopened(keeper)
    assert "taken back" in finish_restores(after)[0]
    assert places_of(after, LEAF) == ["models"]


@pytest.mark.parametrize("name", ["model.safetensors", "SHA256SUMS"])
def test_a_damaged_source_is_refused_and_what_is_there_stays(keeper: Keeper, name: str) -> None:
    delete(keeper, LEAF, force=True)
    damage(keeper.home.trash / LEAF / name)
    damage(keeper.home.root / "backups" / "versions" / LEAF / name.replace(".safetensors", ".frame"))
    before = keeper.ledger.sequence()
    for source in ("trash", "backup"):
        with pytest.raises(Damage, match=name if source == "trash" else name.split(".")[0]):
            restore(keeper, LEAF, source=source)
    assert keeper.ledger.sequence() == before and places_of(keeper, LEAF) == [f"trash/{LEAF}"]


def test_restore_takes_a_folder_or_a_whole_vault_elsewhere(keeper: Keeper, tmp_path: Path) -> None:
    shutil.move(keeper.home.root / "backups", tmp_path / "usb")
    shutil.rmtree(keeper.home.models / LEAF)
    assert restore(keeper, LEAF, source=str(tmp_path / "usb"))["path"].endswith(LEAF)
    shutil.rmtree(keeper.home.models / LEAF)
    restore(keeper, LEAF, source=str(tmp_path / "usb" / "versions" / LEAF))
    assert verify(keeper, everything=True).ok and (tmp_path / "usb" / "versions" / LEAF).is_dir()
    with pytest.raises(Damage):
        restore(keeper, _broken(keeper, "v003_reasoning"), source=str(tmp_path / "usb" / "versions" / LEAF))


def _broken(keeper: Keeper, name: str) -> str:
    damage(keeper.home.models / name / "model.safetensors")
    return name


def test_what_is_intact_is_not_restored_and_what_is_nowhere_is_told(keeper: Keeper, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="nothing to restore"):
        restore(keeper, LEAF)
    delete(keeper, LEAF, force=True)
    remove_tree(keeper.home.root / "backups" / "versions" / LEAF)
    for source in ("backup", str(tmp_path)):
        with pytest.raises(NotFound):
            restore(keeper, LEAF, source=source)
    with pytest.raises(NotFound, match="trash"):
        restore(keeper, _broken(keeper, "v003_reasoning"), source="trash")
    with pytest.raises(NotFound, match="trashed"):
        delete(keeper, LEAF, force=True)


def test_a_restore_without_room_is_refused_before_anything_moves(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(keeper.home.models / LEAF)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(EnvironmentFault, match="free"):
        restore(keeper, LEAF)
    assert places_of(keeper, LEAF) == []


def _delete_and_restore(keeper: Keeper) -> None:
    assert os.geteuid() != 0
    with pytest.raises(PermissionError):
        os.rename(keeper.home.models / LEAF, keeper.home.trash / "by_hand")
    with pytest.raises(PermissionError):
        (keeper.home.models / LEAF / "model.safetensors").unlink()
    run_backup(keeper)
    delete(keeper, LEAF, force=True)
    restore(keeper, LEAF)
    delete(keeper, LEAF, force=True)
    restore(keeper, LEAF, source="backup")
    assert verify(keeper, everything=True, backup=True).damage == ()


def test_an_ordinary_user_deletes_and_restores_what_nobody_can_move_by_hand(template: Path) -> None:
    # Not tmp_path: its parents are closed to other users, and as root the mode bits would bind nobody.
    folder = Path(tempfile.mkdtemp())
    try:
        os.chmod(folder, 0o755)
        clone(template, folder / "home").ledger.close()
        assert run_as_ordinary_user(folder / "home", _delete_and_restore) == ""
    finally:
        remove_tree(folder)


def refuse_renames(patch: pytest.MonkeyPatch, after: bool) -> None:
    """The disk fails at the next move of a folder: before its rename, or at the sync right behind it."""
    rename = durable._rename_noreplace

    def refuse(source: Path, target: Path) -> None:
        if after:
            rename(source, target)
        raise OSError(errno.EIO, "input/output error", str(target))

    patch.setattr(durable, "_rename_noreplace", refuse)


@pytest.mark.parametrize("after", [False, True])
def test_a_move_that_fails_leaves_the_folder_sealed_under_the_name_it_has(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    source, target = keeper.home.models / LEAF, keeper.home.trash / LEAF
    refuse_renames(monkeypatch, after)
    with pytest.raises(OSError, match="input/output"):
        move_sealed(keeper, source, target)
    here, away = (target, source) if after else (source, target)
    assert proven(keeper, LEAF, here) and unsealed(here) == [] and not away.exists()


def test_a_move_onto_a_taken_name_touches_neither_seal(keeper: Keeper) -> None:
    stranger = keeper.home.trash / LEAF
    stranger.mkdir(mode=0o755)
    with pytest.raises(FileExistsError):
        move_sealed(keeper, keeper.home.models / LEAF, stranger)
    assert unsealed(keeper.home.models / LEAF) == [] and stranger.stat().st_mode & 0o777 == 0o755
    with pytest.raises(OSError):
        move_sealed(keeper, keeper.home.models / "v009_nobody", stranger)
    assert stranger.stat().st_mode & 0o777 == 0o755


def test_a_restore_that_cannot_move_the_damaged_folder_aside_leaves_it_sealed(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = keeper.home.models / LEAF
    damage(folder / "model.safetensors")
    with monkeypatch.context() as patch:
        refuse_renames(patch, after=False)
        with pytest.raises(EnvironmentFault):
            restore(keeper, LEAF, source="backup")
    assert unsealed(folder) == [] and places_of(keeper, LEAF) == ["models"]
    assert restore(keeper, LEAF, source="backup")["source"] == "backup" and proven(keeper, LEAF, folder)


def test_a_birth_that_cannot_be_moved_aside_is_left_shut(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = keeper.home.models / "v099_x"
    with open_shelf(keeper.home.models):
        folder.mkdir()
    number = add_job_row(keeper, "committing", base=LEAF)
    with keeper.ledger.transaction():
        set_job(keeper.ledger, number, "committing", plan={"birth": {"record": {"name": folder.name, "id": 99}}})
    with monkeypatch.context() as patch:
        refuse_renames(patch, after=False)
        with pytest.raises(OSError, match="input/output"):
            set_birth_aside(keeper, number)
    assert unsealed(folder) == []
    set_birth_aside(keeper, number)
    assert unsealed(keeper.home.trash / "v099_x~unfinished") == [] and not folder.exists()
