"""What the crash harness found in the product, one test for each mistake, so that none comes back.

Each is a moment that a sweep came upon; here it is put together by hand, so that it is met on every run.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from disk import Disk
from playing import last_life, templates
from scenes import Birth
from scenes_care import Care
from toy import Toy, chat_of

from guard import durable, failpoints, identify_child
from guard.durable import clear_temporaries, seal_tree, sha256_file
from guard.errors import EnvironmentFault
from guard.failpoints import Crash
from guard.folders import sync_parents
from guard.store import placing, recovery
from guard.store.sums import read_sums
from guard.store.verify import verify

HALF = ".README.md.4711-0badcafe.tmp"


@pytest.fixture(scope="module")
def begin_from(shared_scratch: Path) -> dict[type, Path]:
    (shared_scratch / "repairs").mkdir()
    return dict(templates(shared_scratch / "repairs"))


@pytest.fixture
def birth(begin_from: dict[type, Path], scratch: Path) -> Birth:
    return Birth(begin_from[Birth], scratch / "home")


def die_at(scene: Birth | Care, point: str) -> None:
    failpoints.arm(point, "crash")
    assert not scene.life() and failpoints.hits(point) == 1
    failpoints.disarm()


def test_a_half_written_file_in_staging_is_never_sealed_with_a_version(birth: Birth) -> None:
    die_at(birth, "birth.intended")
    (birth.home.staging_of(2) / "out" / HALF).write_text("half")
    assert last_life(birth) == []
    assert HALF not in read_sums(birth.home.models / "v002_a")


@pytest.mark.parametrize(("place", "where"), [("identity", "admit.intended"), ("store", "admit.stored")])
def test_a_half_written_sidecar_neither_holds_a_drop_for_ever_nor_is_stored_with_it(
    birth: Birth, place: str, where: str
) -> None:
    die_at(birth, where)
    (birth.home.incoming / "drop-00000001" / place / HALF).write_text("half")
    assert last_life(birth) == []
    assert not list(birth.home.files.rglob(HALF))


def test_recovery_clears_what_a_death_left_half_written_and_nothing_else(birth: Birth) -> None:
    home = birth.home
    halves = [folder / HALF for folder in (home.state, home.models, home.data, home.configs, home.rejected)]
    mine = [home.configs / ".my.tmp", home.configs / "notes.4711-0badcafe.tmp", home.rejected / "x.tmp"]
    for path in halves + mine:
        path.write_text("x")
    birth.begin()
    assert not any(path.exists() for path in halves) and all(path.exists() for path in mine)
    birth.die()


def test_only_our_own_names_are_temporaries(tmp_path: Path) -> None:
    ours = [".a.1-00000000.tmp", ".status.json.77.tmp", ".x.y.12345-deadbeef.tmp"]
    theirs = ["a.1-00000000.tmp", ".a.tmp", ".a.1-xyz.tmp", ".a.1-00000000.tmp.txt"]
    for name in ours + theirs:
        (tmp_path / name).write_text("x")
    assert clear_temporaries(tmp_path) == sorted(ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(theirs)
    assert clear_temporaries(tmp_path / "missing") == []


def test_what_a_birth_promises_is_on_the_disk_before_the_promise(birth: Birth) -> None:
    """The child's weights were only in the page cache when the intent was written: the job failed for the power's fault."""
    disk = Disk(birth.root)
    failpoints.arm("birth.intended", "crash")
    with disk:
        assert not birth.life()
    failpoints.disarm()
    disk.cut()
    assert last_life(birth) == []


@pytest.mark.parametrize("which", ["content", "examples.fp", "store"])
def test_an_original_whose_sync_failed_is_written_anew_and_not_synced_again(
    birth: Birth, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    before: list[int] = []

    def failing_once(real: Callable[[Path], None]) -> Callable[[Path], None]:
        def sync(path: Path) -> None:
            if path.name == which and not before:
                before.extend(item.stat().st_ino for item in (path.iterdir() if path.is_dir() else [path]))
                raise OSError(errno.EIO, "the disk lost it")
            real(path)

        return sync

    monkeypatch.setattr(placing, "fsync_dir", failing_once(durable.fsync_dir))
    monkeypatch.setattr(identify_child, "seal_file", failing_once(durable.seal_file))
    assert birth.patient_life(lambda: None) == []
    stored = {path.stat().st_ino for path in birth.home.files.glob("*/*")}
    assert len(before) == (4 if which == "store" else 1) and not stored & set(before)
    assert birth.complaints() == []


def test_a_move_that_is_found_made_is_synced_before_it_is_recorded(birth: Birth) -> None:
    """The rename was done and the sync of its folder failed: the retry saw it done and recorded it, unsynced."""
    disk = Disk(birth.root)
    struck: list[int] = []

    def fault(count: int, name: str) -> None:
        if name == "fsync folder" and not struck and (birth.home.incoming / "drop-00000001" / "content").exists():
            struck.append(count)
            raise OSError(errno.EIO, "the folder could not be synced")

    disk.fault = fault
    with disk:
        failpoints.arm("claim.recorded", "crash")
        with pytest.raises(Crash):
            birth.patient_life(lambda: None)
    failpoints.disarm()
    assert struck
    disk.cut()
    assert not (birth.home.inbox / "a.jsonl").exists()
    assert (birth.home.incoming / "drop-00000001" / "content").read_text() == Birth.DROPS["a.jsonl"]
    birth.begin()
    birth.die()


def test_sync_parents_syncs_each_folder_once_and_skips_what_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(durable, "_fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    sync_parents(tmp_path / "a", tmp_path / "b", tmp_path / "gone" / "c")
    assert synced == [str(tmp_path)]


def test_sealing_is_synced_from_the_bottom_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v" / "inner").mkdir(parents=True)
    for name in ("v/a", "v/inner/b"):
        (tmp_path / name).write_text("x")
    synced: list[tuple[str, int]] = []

    def note(number: int) -> None:
        synced.append((os.path.relpath(os.readlink(f"/proc/self/fd/{number}"), tmp_path), os.fstat(number).st_mode & 0o777))

    monkeypatch.setattr(durable, "_fsync", note)
    seal_tree(tmp_path / "v")
    assert synced == [("v/inner/b", 0o444), ("v/inner", 0o555), ("v/a", 0o444), ("v", 0o555)]


def test_recovery_syncs_the_home_before_it_looks_and_holds_when_the_disk_refuses(
    begin_from: dict[type, Path], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Care(begin_from[Care], scratch / "home")
    die_at(scene, "delete.moved")

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(recovery.durable, "sync_file_system", refuse)
        with pytest.raises(EnvironmentFault, match="cannot be synced"):
            scene.begin()
        scene.die()
    assert last_life(scene) == []


def test_a_file_system_can_be_synced_and_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    durable.sync_file_system(tmp_path)
    with pytest.raises(FileNotFoundError):
        durable.sync_file_system(tmp_path / "missing")


@pytest.mark.parametrize("point", ["admit.intended", "admit.stored", "admit.sidecars"])
def test_bytes_that_a_disk_lost_between_judgement_and_storing_are_judged_again(point: str, scratch: Path) -> None:
    toy = Toy(scratch / "home").make_base()
    toy.drop("a.jsonl", chat_of(30))
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        toy.settle()
    failpoints.disarm()
    [path] = (path for path in toy.home.incoming.rglob("*") if path.name in ("content", "a.jsonl"))
    path.chmod(0o644)
    path.write_bytes(chat_of(20, seed=9).encode())
    toy.again().settle()
    [row] = toy.keeper.ledger.rows("SELECT sha256, examples FROM files")
    assert row["examples"] == 20 and sha256_file(toy.home.files / row["sha256"] / "a.jsonl") == row["sha256"]
    assert verify(toy.keeper, everything=True).damage == ()
    toy.die()
