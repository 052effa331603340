"""Weights in the vault: a chain of differences gives every version back byte for byte, and loses nothing it stands on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import add_version, clone, keeper_of, make_home, small_family

from guard import durable, failpoints
from guard.durable import remove_tree, sha256_file
from guard.errors import CheckFailed, Damage, EnvironmentFault
from guard.frames import read_header
from guard.settings_read import load_settings
from guard.store.copying import seal_quietly
from guard.store.keeper import Keeper
from guard.store.restore import restore
from guard.store.sums import folder_problems
from guard.store.trash import delete
from guard.store.vault import run_backup
from guard.store.vault_frames import chain_of, needed_by, open_stored, stored_problems
from guard.store.vault_state import backup_status
from guard.store.verify import verify
from guard.store.versions import all_versions, find_version

NAMES = ["v001_baseline", "v002_syllo", "v003_reasoning", "v004_full_stack"]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames") / "home"
    small_family(root).ledger.close()
    return root


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


@pytest.fixture
def keeper(template: Path, tmp_path: Path) -> Iterator[Keeper]:
    yield clone(template, tmp_path / "home")
    failpoints.disarm()


def held(keeper: Keeper, name: str) -> Path:
    return keeper.home.root / "backups" / "versions" / name


def depths(keeper: Keeper) -> list[int]:
    return [read_header(held(keeper, version.name) / "model.frame").depth for version in all_versions(keeper.ledger)]


def flip(path: Path, place: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(data)


def lose(keeper: Keeper, name: str) -> None:
    """A person's `rm -rf` of a version's folder."""
    remove_tree(keeper.home.models / name)


def test_children_are_stored_as_differences_and_cost_less(keeper: Keeper) -> None:
    run_backup(keeper)
    assert depths(keeper) == [0, 1, 2, 3]
    assert [path.name for path in chain_of(held(keeper, NAMES[2]), WEIGHTS)] == [NAMES[2], NAMES[1], NAMES[0]]
    sizes = {row["name"]: row for row in backup_status(keeper)["sizes"]}
    weights = [(held(keeper, name) / "model.frame").stat().st_size for name in NAMES]
    raw = [(keeper.home.models / name / WEIGHTS).stat().st_size for name in NAMES]
    assert weights[0] < 0.8 * raw[0] and all(one < 0.5 * other for one, other in zip(weights[1:], raw[1:], strict=True))
    for name in NAMES:
        on_disk = sum(path.stat().st_size for path in (keeper.home.models / name).iterdir())
        assert sizes[name]["raw_bytes"] == on_disk > sizes[name]["stored_bytes"]
        assert sizes[name]["ratio"] == round(sizes[name]["stored_bytes"] / on_disk, 4)
    assert [sizes[name]["form"] for name in NAMES] == ["key", "delta", "delta", "delta"]
    assert sizes[NAMES[2]]["stands_on"] == NAMES[1]
    status = backup_status(keeper)
    assert status["raw_bytes"] == sum(row["raw_bytes"] for row in status["sizes"]) and 0 < status["ratio"] < 1


@pytest.mark.parametrize("name", NAMES)
def test_every_version_comes_back_from_its_chain(keeper: Keeper, name: str) -> None:
    before = {path.name: sha256_file(path) for path in (keeper.home.models / name).iterdir()}
    run_backup(keeper)
    for other in NAMES:
        lose(keeper, other)
    assert restore(keeper, name, source="backup")["source"] == "backup"
    assert {path.name: sha256_file(path) for path in (keeper.home.models / name).iterdir()} == before
    assert folder_problems(keeper.home.models / name, find_version(keeper.ledger, name).sums_sha256) == []


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_key_frame_stands_at_every_so_many(keeper: Keeper, every: int) -> None:
    keeper = keeper_of(keeper.home.root, backup__key_frame_every=every)
    run_backup(keeper)
    assert depths(keeper) == [number % every for number in range(4)]
    assert verify(keeper, backup=True).ok


def test_the_setting_is_checked(tmp_path: Path) -> None:
    assert load_settings(tmp_path, {}).backup.key_frame_every == 8
    with pytest.raises(Exception, match="above zero"):
        load_settings(tmp_path, {"HEIRLOOM_BACKUP__KEY_FRAME_EVERY": "0"})


def test_a_child_without_anything_of_its_parent_stands_by_itself(keeper: Keeper) -> None:
    stranger = keeper.home.models / add_version(keeper, "stranger", "v001_baseline", tip=False)
    assert stranger.is_dir()
    run_backup(keeper)
    other = make_home(keeper.home.root.parent / "other")
    base = add_version(other, "base")
    os.chmod(other.home.models / base, 0o755)
    child = add_version(other, "child", base)
    run_backup(other)
    assert read_header(held(other, child) / "model.frame").parent == base
    # The same child when its parent never came into the vault.
    remove_tree(other.home.root / "backups")
    with other.ledger.transaction():
        other.ledger.run("DELETE FROM backups")
    (other.home.models / base / "config.json").unlink()
    with pytest.raises(Damage):
        run_backup(other)
    assert read_header(held(other, child) / "model.frame").parent == ""
    assert stored_problems(held(other, child), find_version(other.ledger, child).sums_sha256) == []


def test_plain_copies_of_an_older_vault_are_read_and_built_on(keeper: Keeper) -> None:
    run_backup(keeper)
    for name in NAMES[:2]:
        folder = held(keeper, name)
        remove_tree(folder)
        shutil.copytree(keeper.home.models / name, folder)
        seal_quietly(folder)
    remove_tree(held(keeper, NAMES[2]))
    assert [item.name for item in verify(keeper, backup=True).damage] == [NAMES[2], NAMES[3]]
    assert run_backup(keeper)["copied"][0] == NAMES[2]
    assert read_header(held(keeper, NAMES[2]) / "model.frame").depth == 1
    assert verify(keeper, backup=True).ok and backup_status(keeper)["sizes"][0]["form"] == "plain"
    lose(keeper, NAMES[1])
    assert restore(keeper, NAMES[1], source="backup")["version"] == NAMES[1]
    lose(keeper, NAMES[3])
    assert restore(keeper, NAMES[3], source="backup")["version"] == NAMES[3]


def test_damage_to_a_frame_names_the_version_and_all_that_stand_on_it(keeper: Keeper) -> None:
    run_backup(keeper)
    assert needed_by(held(keeper, "x").parent) == {NAMES[0]: NAMES[1:], NAMES[1]: NAMES[2:], NAMES[2]: NAMES[3:]}
    flip(held(keeper, NAMES[1]) / "model.frame", -40)
    found = verify(keeper, backup=True)
    first = next(item for item in found.damage if item.name == NAMES[1])
    assert first.file == "model.frame" and first.descendants == tuple(NAMES[2:])
    assert f"the frames of {NAMES[2]}, {NAMES[3]} stand on it" in first.problem
    assert run_backup(keeper, recheck=True)["copied"][0] == NAMES[1]
    # What was made again gives back the same bytes, so what stands on it is whole again.
    assert verify(keeper, backup=True).ok


def test_restoring_over_a_damaged_link_of_the_chain_names_the_link_and_touches_nothing(keeper: Keeper) -> None:
    run_backup(keeper)
    flip(held(keeper, NAMES[1]) / "model.frame")
    flip(keeper.home.models / NAMES[3] / WEIGHTS)
    before = sha256_file(keeper.home.models / NAMES[3] / WEIGHTS)
    with pytest.raises(Damage, match="needs v002_syllo"):
        restore(keeper, NAMES[3], source="backup")
    assert sha256_file(keeper.home.models / NAMES[3] / WEIGHTS) == before


def test_a_parent_taken_out_of_the_vault_is_missed_by_its_children(keeper: Keeper) -> None:
    run_backup(keeper)
    remove_tree(held(keeper, NAMES[0]))
    damaged = {item.name: item.problem for item in verify(keeper, backup=True).damage}
    assert set(damaged) == set(NAMES) and NAMES[0] in damaged[NAMES[1]]
    with pytest.raises(Damage, match=NAMES[0]):
        open_stored(held(keeper, NAMES[1]), WEIGHTS).read(0, 4000)
    run_backup(keeper)
    assert verify(keeper, backup=True).ok


def test_deleting_a_version_leaves_what_its_children_stand_on(keeper: Keeper) -> None:
    leaf = add_version(keeper, "leaf", "v003_reasoning", tip=False)
    child = add_version(keeper, "child", leaf, tip=False)
    run_backup(keeper)
    delete(keeper, child, force=True)
    delete(keeper, leaf, force=True)
    run_backup(keeper)
    assert read_header(held(keeper, child) / "model.frame").parent == leaf
    remove_tree(keeper.home.trash / child)
    assert restore(keeper, child, source="backup")["version"] == child


def test_a_sample_looks_at_every_frame_and_reads_some(keeper: Keeper) -> None:
    run_backup(keeper)
    (held(keeper, NAMES[1])).chmod(0o755)
    (held(keeper, NAMES[1]) / "model.frame").unlink()
    names = {item.name for item in verify(keeper, backup=True, sample=0.0001).damage}
    assert NAMES[1] in names


def test_a_frame_of_other_weights_is_not_believed(keeper: Keeper) -> None:
    run_backup(keeper)
    here = held(keeper, NAMES[1]) / "model.frame"
    held(keeper, NAMES[1]).chmod(0o755)
    here.unlink()
    shutil.copy(held(keeper, NAMES[0]) / "model.frame", here)
    assert ("model.frame", "is not the frame of the model.safetensors that was sealed") in stored_problems(
        held(keeper, NAMES[1]), find_version(keeper.ledger, NAMES[1]).sums_sha256)  # fmt: skip


@pytest.mark.parametrize("action", ["enospc", "eio", "crash"])
@pytest.mark.parametrize("point", ["backup.framed", "backup.decoded"])
def test_a_full_disk_in_the_middle_of_a_chain_leaves_what_was_safe(keeper: Keeper, point: str, action: str) -> None:
    failpoints.arm(point, action, 3)
    with pytest.raises((OSError, failpoints.Crash)):
        run_backup(keeper)
    assert failpoints.hits(point) == 3
    failpoints.disarm()
    after = keeper_of(keeper.home.root)
    assert {row[0] for row in after.ledger.rows("SELECT name FROM backups WHERE what = 'version'")} == set(NAMES[:2])
    assert [item for item in verify(after, backup=True).damage if item.name != "high-water"] == []
    run_backup(after)
    assert depths(after) == [0, 1, 2, 3] and verify(after, backup=True).ok
    assert not [path for path in held(after, "x").parent.parent.rglob(".*") if ".tmp" in path.name or "incoming" in path.name]


def test_a_full_vault_says_so_and_costs_nothing(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    run_backup(keeper)
    add_version(keeper, "later", "v004_full_stack")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(EnvironmentFault, match="bytes free"):
        run_backup(keeper)
    assert verify(keeper, backup=True).ok and backup_status(keeper)["versions"]["missing"] == ["v005_later"]


def test_a_delta_that_does_not_prove_itself_gives_way_to_a_key_frame(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    from guard import frame_blocks

    real = frame_blocks._apply
    monkeypatch.setattr(frame_blocks, "_apply", lambda *given: real(*given) + 1)
    run_backup(keeper)
    assert depths(keeper) == [0, 0, 0, 0] and verify(keeper, backup=True).ok


def test_a_frame_that_cannot_be_read_back_is_never_recorded(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    from guard import frame_blocks

    real = frame_blocks.BlockCoder._join
    monkeypatch.setattr(frame_blocks.BlockCoder, "_join", lambda self, *given: real(self, *given) + 1)
    with pytest.raises(Damage, match="v001_baseline"):
        run_backup(keeper)
    assert keeper.ledger.rows("SELECT * FROM backups WHERE what = 'version'") == []


def test_an_intact_version_is_not_restored(keeper: Keeper) -> None:
    run_backup(keeper)
    with pytest.raises(CheckFailed, match="nothing to restore"):
        restore(keeper, NAMES[0], source="backup")


def test_the_event_export_can_be_checked_without_the_ledger(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    from guard.store import vault_events

    monkeypatch.setattr(vault_events, "EVENTS_IN_FILE", 5)
    run_backup(keeper)
    folder = keeper.home.root / "backups" / "events"
    names = sorted(path.name for path in folder.iterdir())
    assert names[:2] == ["events-0000000001.jsonl", "events-0000000006.jsonl"] and len(names) > 2
    count = sum(path.read_bytes().count(b"\n") for path in folder.iterdir())
    assert count == keeper.ledger.sequence() and verify(keeper, backup=True).ok
    flip(folder / names[1])
    assert [item.name for item in verify(keeper, backup=True).damage] == [names[1]]


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_damaged_frame_of_the_parent_does_not_keep_a_new_child_out_of_the_vault(keeper: Keeper, harm: str) -> None:
    run_backup(keeper)
    frame = held(keeper, NAMES[3]) / "model.frame"
    if harm == "flipped":
        flip(frame)
    else:  # its header is sound, what it stands on is not there
        frame = held(keeper, NAMES[2]) / "model.frame"
        frame.parent.chmod(0o755)
        frame.unlink()
    child = add_version(keeper, "child", NAMES[3])
    assert child in run_backup(keeper)["copied"]
    assert read_header(held(keeper, child) / "model.frame").parent == ""
    assert stored_problems(held(keeper, child), find_version(keeper.ledger, child).sums_sha256) == []
