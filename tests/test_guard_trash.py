"""Deleting to the trash: any step may be the last, nothing is ever lost, and whoever fails at a move leaves a sealed folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from homes import add_job_row, clone, places_of, run_as_ordinary_user
from trash_help import LEAF, _keeper, _no_syncing, _template, damage, proven, recovered, refuse_renames, reopened  # noqa: F401 - fixtures

from guard import failpoints
from guard.durable import remove_tree
from guard.errors import EnvironmentFault, HeirloomError, NotConfirmed, NotFound, Protected
from guard.failpoints import Crash
from guard.seal import open_shelf
from guard.store.birth import set_birth_aside
from guard.store.jobs import set_job
from guard.store.keeper import Keeper
from guard.store.restore import restore
from guard.store.sums import unsealed
from guard.store.trash import delete, finish_deletes, move_sealed
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.store.versions import find_version

# What is taken back is stopped in test_daemon_points.py.
TAKEN_BACK = ("delete.abandoned", "restore.withdrawn", "restore.abandoned")
DELETE_POINTS = [name for name in failpoints.POINTS if name.startswith("delete.") and name not in TAKEN_BACK]


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
