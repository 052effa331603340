"""Purge: the one eraser. What it refuses, what it erases, and that a death in the middle leaves whole or gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import add_version, clone, keeper_of, places_of, small_family

from guard import durable, failpoints
from guard.durable import remove_tree
from guard.errors import CheckFailed, EnvironmentFault, HeirloomError, NotConfirmed, NotFound, Protected
from guard.failpoints import Crash
from guard.store import views
from guard.store.keeper import Keeper
from guard.store.lineage import lineage
from guard.store.purge import finish_purges, purge
from guard.store.recovery import recover
from guard.store.restore import restore
from guard.store.trash import delete, trash_notes
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.store.versions import find_version, high_water, reserve_number

LEAF = "v005_leaf"
POINTS = [name for name in failpoints.POINTS if name.startswith("purge.")]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family of seed 002 and a leaf that lies in the trash."""
    root = tmp_path_factory.mktemp("purge") / "home"
    keeper = small_family(root)
    add_version(keeper, "leaf", "v003_reasoning", tip=False)
    views.refresh(keeper)
    keeper.ledger.close()
    return root


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


@pytest.fixture
def bare(template: Path, tmp_path: Path) -> Iterator[Keeper]:
    """No copy of anything anywhere."""
    keeper = clone(template, tmp_path / "home")
    delete(keeper, LEAF, force=True)
    yield keeper
    failpoints.disarm()


@pytest.fixture
def keeper(template: Path, tmp_path: Path) -> Iterator[Keeper]:
    """The leaf in the trash, a sound copy of it in the vault."""
    keeper = clone(template, tmp_path / "home")
    run_backup(keeper)
    delete(keeper, LEAF, force=True)
    yield keeper
    failpoints.disarm()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(data)


def state(keeper: Keeper, name: str = LEAF) -> str:
    return find_version(keeper.ledger, name).state


def test_what_has_a_sound_copy_is_erased_and_stays_in_the_lineage(keeper: Keeper) -> None:
    told = purge(keeper, LEAF, yes=True)
    assert [item["version"] for item in told["purged"]] == [LEAF] and told["bytes"] > 5000 and told["kept"] == []
    assert places_of(keeper, LEAF) == [] and trash_notes(keeper) == {}
    record = next(item for item in lineage(keeper) if item["name"] == LEAF)
    assert record["state"] == "purged" and record["locked"] == ""
    event = keeper.ledger.row("SELECT * FROM events WHERE verb = 'version.purged'")
    assert event is not None and event["actor"] == "tester" and '"backed_up":true' in event["payload"]
    assert verify(keeper, everything=True, backup=True).ok


def test_its_number_is_never_given_again(keeper: Keeper) -> None:
    purge(keeper, LEAF, yes=True)
    keeper.home.high_water_file.unlink()
    with keeper.ledger.transaction():
        assert high_water(keeper) == 5 and reserve_number(keeper) == 6


def test_a_purged_version_still_comes_back_from_the_vault_in_its_old_state(keeper: Keeper) -> None:
    poison = add_version(keeper, "poison", "v004_full_stack", state="quarantined")
    run_backup(keeper)
    delete(keeper, poison, force=True)
    purge(keeper, poison, yes=True)
    assert restore(keeper, poison)["source"] == "backup"
    assert state(keeper, poison) == "quarantined" and verify(keeper, everything=True).ok


REFUSALS: list[tuple[dict[str, Any], type[HeirloomError]]] = [
    ({"text": LEAF}, NotConfirmed),
    ({"text": LEAF, "confirm": "v005"}, NotConfirmed),
    ({"text": LEAF, "confirm": "v004_full_stack", "yes": True}, NotConfirmed),
    ({"text": LEAF, "no_backup": True, "yes": True}, NotConfirmed),
    ({"text": LEAF, "no_backup": True, "confirm": "v005"}, NotConfirmed),
    ({"no_backup": True, "yes": True}, NotConfirmed),
    ({"older_than_days": 0, "confirm": LEAF}, NotConfirmed),
    ({"text": "v004", "yes": True, "confirm": "v004_full_stack"}, NotFound),
    ({"text": "v001", "no_backup": True, "confirm": "v001_baseline"}, NotFound),
    ({"text": "v099", "yes": True}, NotFound),
    ({"text": LEAF, "older_than_days": 30, "yes": True}, CheckFailed),
]


@pytest.mark.parametrize(("words", "error"), REFUSALS)
def test_a_refusal_erases_nothing(keeper: Keeper, words: dict[str, Any], error: type[HeirloomError]) -> None:
    before = keeper.ledger.sequence()
    with pytest.raises(error) as told:
        purge(keeper, **words)
    assert type(told.value) is error and told.value.hint
    assert keeper.ledger.sequence() == before and places_of(keeper, LEAF) == [f"trash/{LEAF}"]


def test_without_a_copy_that_reads_back_now_nothing_is_erased(bare: Keeper) -> None:
    with pytest.raises(CheckFailed, match="no vault"):
        purge(bare, LEAF, yes=True)
    run_backup(bare)  # the leaf was in the trash before: the vault holds everything but it
    with pytest.raises(CheckFailed, match="no copy"):
        purge(bare, LEAF, yes=True)
    told = purge(bare, older_than_days=0, yes=True)
    assert told["purged"] == [] and [item["version"] for item in told["kept"]] == [LEAF]
    assert places_of(bare, LEAF) == [f"trash/{LEAF}"]


@pytest.mark.parametrize("name", ["model.frame", "SHA256SUMS"])
def test_a_copy_that_has_gone_bad_since_counts_for_nothing(keeper: Keeper, name: str) -> None:
    flip(keeper.home.root / "backups" / "versions" / LEAF / name)
    with pytest.raises(CheckFailed, match=name):
        purge(keeper, LEAF, yes=True)
    assert restore(keeper, LEAF)["source"] == "trash" and verify(keeper, everything=True).ok


def test_the_full_name_typed_erases_without_any_copy(bare: Keeper) -> None:
    purge(bare, "v005", no_backup=True, confirm=LEAF)
    assert places_of(bare, LEAF) == [] and state(bare) == "purged" and verify(bare, everything=True).ok


def test_a_dry_run_tells_and_changes_nothing(keeper: Keeper) -> None:
    before = keeper.ledger.sequence()
    assert [item["folder"] for item in purge(keeper, older_than_days=0, dry_run=True)["purged"]] == [LEAF]
    assert keeper.ledger.sequence() == before and places_of(keeper, LEAF) == [f"trash/{LEAF}"]


def test_only_what_has_lain_there_long_enough_is_taken(keeper: Keeper) -> None:
    keeper.clock.advance(29 * 86400)  # type: ignore[attr-defined]
    assert purge(keeper, yes=True)["purged"] == []
    keeper.clock.advance(86400)  # type: ignore[attr-defined]
    assert [item["version"] for item in purge(keeper, yes=True)["purged"]] == [LEAF]


def test_an_adapters_base_stays_while_an_adapter_needs_it(keeper: Keeper) -> None:
    restore(keeper, LEAF)
    adapter = add_version(keeper, "adapter", "v004_full_stack", tip=False)
    with keeper.ledger.transaction():
        keeper.ledger.run("INSERT INTO version_inputs VALUES (?, 5, 'adapter_base')", (find_version(keeper.ledger, adapter).id,))
    with pytest.raises(Protected, match=adapter):
        delete(keeper, LEAF, force=True)
    delete(keeper, LEAF, force=True, confirm_lineage=True, confirm=LEAF)
    with pytest.raises(Protected, match=adapter):
        purge(keeper, LEAF, yes=True)
    delete(keeper, adapter, force=True)
    assert purge(keeper, LEAF, yes=True)["purged"]


def test_what_a_restore_moved_aside_is_erased_and_the_version_stays(keeper: Keeper) -> None:
    flip(keeper.home.models / "v002_syllo" / "model.safetensors")
    restore(keeper, "v002", source="backup")
    assert places_of(keeper, "v002_syllo") == ["models", "trash/v002_syllo~damaged"]
    told = purge(keeper, "v002", yes=True)
    assert told["purged"][0]["copy"] == "models" and not told["same_device"]  # no vault is relied on
    assert places_of(keeper, "v002_syllo") == ["models"] and state(keeper, "v002_syllo") == "sealed"
    assert verify(keeper, everything=True).ok


def test_what_no_note_speaks_of_is_left_alone(keeper: Keeper) -> None:
    stranger = keeper.home.trash / "mine"
    stranger.mkdir()
    purge(keeper, older_than_days=0, yes=True)
    assert stranger.is_dir() and places_of(keeper, LEAF) == []


@pytest.mark.parametrize("point", POINTS)
def test_a_purge_that_dies_at_any_step_is_finished_or_leaves_it_whole(keeper: Keeper, point: str) -> None:
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        purge(keeper, LEAF, yes=True)
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    after = keeper_of(keeper.home.root)
    recover(after)
    recover(after)
    if point == "purge.intended":
        assert places_of(after, LEAF) == [f"trash/{LEAF}"] and restore(after, LEAF)["source"] == "trash"
    else:
        assert state(after) == "purged" and list(after.home.trash.iterdir()) == []
    assert after.ledger.rows("SELECT * FROM meta WHERE key LIKE 'intent:%'") == []
    assert verify(after, everything=True, backup=True).ok


@pytest.mark.parametrize("again", ["purge.moved", "purge.recorded", "purge.erased", "view.written"])
def test_a_second_death_in_the_recovery_of_the_first_changes_nothing(keeper: Keeper, again: str) -> None:
    failpoints.arm("purge.moved", "crash")
    with pytest.raises(Crash):
        purge(keeper, LEAF, yes=True)
    failpoints.disarm()
    failpoints.arm(again, "crash")
    with pytest.raises(Crash):
        recover(keeper_of(keeper.home.root))
    failpoints.disarm()
    after = keeper_of(keeper.home.root)
    recover(after)
    assert state(after) == "purged" and list(after.home.trash.iterdir()) == []
    assert verify(after, everything=True, backup=True).ok


@pytest.mark.parametrize("action", ["enospc", pytest.param("eio", marks=pytest.mark.sweep)])
@pytest.mark.parametrize("point", POINTS)
def test_a_purge_that_the_disk_refuses_leaves_a_sound_home(keeper: Keeper, point: str, action: str) -> None:
    failpoints.arm(point, action)
    with pytest.raises((EnvironmentFault, OSError)):
        purge(keeper, LEAF, yes=True)
    failpoints.disarm()
    after = keeper_of(keeper.home.root)
    recover(after)
    assert (state(after) == "purged") == (places_of(after, LEAF) == [])
    assert verify(after, everything=True, backup=True).ok


def test_a_death_in_the_middle_of_erasing_is_finished_by_the_next_start(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(folder: Path) -> None:
        os.chmod(folder, 0o755)
        (folder / "model.safetensors").unlink()
        raise Crash("in the middle")

    monkeypatch.setattr("guard.store.purge.erase_sealed", half)
    with pytest.raises(Crash):
        purge(keeper, LEAF, yes=True)
    monkeypatch.undo()
    after = keeper_of(keeper.home.root)
    assert "moving it is unfinished" in verify(after, versions=[LEAF]).damage[0].problem
    with pytest.raises(NotFound):
        restore(after, LEAF, source="trash")  # half a folder is not offered to anybody; it is erased to its end
    assert list(after.home.trash.iterdir()) == [] and finish_purges(after) == []
    assert restore(after, LEAF)["source"] == "backup" and verify(after, everything=True).ok


def test_a_purge_does_not_free_what_it_stood_on(keeper: Keeper) -> None:
    """A purged version goes on to link its children to its ancestors: what they stand on is still locked."""
    delete(keeper, "v003", force=True, confirm_lineage=True, confirm="v003_reasoning")
    purge(keeper, "v003", yes=True)
    with pytest.raises(Protected, match="v004_full_stack"):
        delete(keeper, "v002", force=True)
    remove_tree(keeper.home.root / "backups" / "versions" / "v003_reasoning")
    with pytest.raises(NotFound):
        restore(keeper, "v003")


def test_only_what_was_shown_is_erased_and_the_rest_is_told(keeper: Keeper) -> None:
    late = add_version(keeper, "late", "v004_full_stack", tip=False)
    run_backup(keeper)
    delete(keeper, late, force=True)
    told = purge(keeper, older_than_days=0, yes=True, shown=[LEAF])
    assert [item["folder"] for item in told["purged"]] == [LEAF] and [item["folder"] for item in told["unseen"]] == [late]
    assert state(keeper) == "purged" and state(keeper, late) == "trashed" and places_of(keeper, late) == [f"trash/{late}"]
    assert purge(keeper, older_than_days=0, yes=True, shown=[])["purged"] == []
    assert verify(keeper, everything=True, backup=True).ok
