"""Restoring from trash, vault or folder: any step may be the last, and what is there stays until better bytes are proven."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from homes import add_version, places_of
from trash_help import LEAF, _keeper, _no_syncing, _template, damage, proven, recovered, refuse_renames, reopened  # noqa: F401 - fixtures

from guard import failpoints
from guard.durable import remove_tree
from guard.errors import CheckFailed, Damage, EnvironmentFault, NotFound
from guard.failpoints import Crash
from guard.store.keeper import Keeper
from guard.store.restore import finish_restores, restore
from guard.store.sums import unsealed
from guard.store.trash import delete
from guard.store.verify import verify
from guard.store.versions import find_version

# What is taken back is stopped in test_daemon_points.py.
TAKEN_BACK = ("delete.abandoned", "restore.withdrawn", "restore.abandoned")
RESTORE_POINTS = [name for name in failpoints.POINTS if name.startswith("restore.") and name not in TAKEN_BACK]


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
