"""Restore drills: the vault alone brings a home back that learns on; how it ended is recorded whatever happens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from drill_help import _template, _toy, hold, settle_toy  # noqa: F401 - fixtures
from toy import Toy

from daemon import drill
from daemon.drill import MARK, clear_scratch, run_drill
from guard import failpoints
from guard.durable import remove_tree
from guard.errors import CheckFailed, Damage, EnvironmentFault
from guard.failpoints import Crash
from guard.home import Home
from guard.store.archive import archive
from guard.store.keeper import Keeper, open_writer
from guard.store.sums import drain
from guard.store.vault import run_backup
from guard.store.vault_home import bring_home_back, newest_ledger
from guard.store.verify import verify

POINTS = ["drill.ledger", "drill.version", "drill.restored", "drill.verified", "drill.trained", "drill.backed_up"]


def test_a_drill_brings_everything_back_trains_on_and_backs_up_again(toy: Toy) -> None:
    before = sorted(str(path) for path in (toy.home.root / "backups").rglob("*"))
    found = hold(toy)
    assert found["ok"], found
    assert (found["versions"], found["originals"], found["parent"]) == (3, 3, list(toy.versions())[-1])
    assert found["steps"] > 0 and found["bytes"] > 10_000 and found["seconds"] >= 0
    assert not (toy.home.root / "scratch").exists()
    assert sorted(str(path) for path in (toy.home.root / "backups").rglob("*")) == before


def test_a_home_brought_back_is_whole_and_has_lost_nothing(toy: Toy, tmp_path: Path) -> None:
    told = drain(bring_home_back(toy.home.root / "backups", tmp_path / "back"))
    back = open_writer(Home(tmp_path / "back"), actor="tester", flags={"backup.path": str(toy.home.root / "backups")})
    assert told["versions"] == list(toy.versions()) and len(told["originals"]) == 3
    assert {row[0]: row[1] for row in back.ledger.rows("SELECT name, state FROM versions")} == toy.versions()
    from guard.store.recovery import recover

    recover(back)
    assert verify(back, everything=True, backup=True).damage == ()
    assert back.home.store_id() == toy.home.store_id() and back.salt == toy.keeper.salt
    back.ledger.close()


def test_what_was_under_way_begins_anew(toy: Toy, tmp_path: Path) -> None:
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE jobs SET state = 'training', plan = '{\"train\": {}}' WHERE id = 2")
        toy.keeper.ledger.run("UPDATE drops SET state = 'claimed' WHERE id = 1")
        toy.keeper.ledger.set_meta("intent:delete:x", "{}")
        toy.keeper.ledger.event("test.turn", "x")
    run_backup(toy.keeper)
    drain(bring_home_back(toy.home.root / "backups", tmp_path / "back"))
    back = open_writer(Home(tmp_path / "back"), actor="tester")
    assert tuple(back.ledger.row("SELECT state, plan FROM jobs WHERE id = 2") or ()) == ("queued", "{}")
    assert back.ledger.value("SELECT state FROM drops WHERE id = 1") == "gone"
    assert back.ledger.rows("SELECT * FROM meta WHERE key LIKE 'intent:%'") == []
    assert back.ledger.value("SELECT count(*) FROM indexes WHERE state = 'active'") == 0
    back.ledger.close()


def test_a_drill_reads_archived_versions_in_the_vault_and_leaves_them_archived(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.store.archive.other_device", lambda *_: True)
    middle = list(toy.versions())[1]
    run_backup(toy.keeper)
    archive(toy.keeper, middle)
    run_backup(toy.keeper)
    found = hold(toy)
    assert found["ok"] and found["versions"] == 2, found
    held = toy.home.root / "backups" / "versions" / middle / "config.json"
    held.chmod(0o644)
    held.write_text("nobody's child needs this to be read")
    found = hold(toy)
    assert found["ok"] is False and middle in found["reason"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("action", ["enospc", pytest.param("eio", marks=pytest.mark.sweep)])
def test_a_fault_of_the_disk_is_told_and_the_scratch_goes(toy: Toy, point: str, action: str) -> None:
    failpoints.arm(point, action)
    found = hold(toy)
    assert failpoints.hits(point) == 1
    assert found["ok"] is False and point in found["reason"] and not (toy.home.root / "scratch").exists()


@pytest.mark.parametrize("point", POINTS)
def test_a_drill_that_died_is_cleared_by_the_next(toy: Toy, point: str) -> None:
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        hold(toy)
    assert failpoints.hits(point) == 1 and (toy.home.root / "scratch" / MARK).is_file()
    failpoints.disarm()
    assert verify(toy.keeper, everything=True, backup=True).ok
    assert hold(toy)["ok"] and not (toy.home.root / "scratch").exists()


@pytest.mark.parametrize("place", ["versions/v001_baseline/model.frame", "files", "ledger", "versions/v002_a", "high-water"])
def test_a_drill_over_a_damaged_vault_fails_and_says_what(toy: Toy, place: str) -> None:
    path = toy.home.root / "backups" / place
    if place == "files":
        path = next(path for path in path.rglob("b.txt"))
    if place == "versions/v002_a":
        path = next(path.parent.glob("v002_*"))
    if path.is_dir():
        remove_tree(path)
    else:
        path.parent.chmod(0o755)
        path.unlink()
        if place == "files":
            path.write_text("other")
    found = hold(toy)
    assert found["ok"] is False and found["reason"] and not (toy.home.root / "scratch").exists()


def test_an_older_ledger_serves_when_the_newest_cannot_be_read(toy: Toy) -> None:
    folder = toy.home.root / "backups" / "ledger"
    newest = newest_ledger(folder.parent)
    (folder / "ledger-0000099999.db").write_bytes(b"torn")
    assert newest_ledger(folder.parent) == newest
    assert hold(toy)["ok"]


def test_a_folder_of_somebody_elses_is_never_cleared(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("ten years")
    with pytest.raises(CheckFailed, match="no drill made it"):
        run_drill(toy.home.root / "backups", tmp_path / "theirs", settle_toy)
    assert (tmp_path / "theirs" / "thesis.txt").read_text() == "ten years"
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(CheckFailed):
        clear_scratch(tmp_path / "link")


def test_a_drill_without_training_fails(toy: Toy) -> None:
    found = run_drill(toy.home.root / "backups", toy.home.root / "scratch", lambda _keeper: None)
    assert found["ok"] is False and "did not go on" in found["reason"]


def test_what_waits_in_the_queue_is_not_trained_by_a_drill(toy: Toy) -> None:
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE jobs SET state = 'queued', plan = '{}' WHERE id = 2")
        toy.keeper.ledger.set_meta("paused", "1")
        toy.keeper.ledger.event("test.turn", "x")
    run_backup(toy.keeper)
    assert hold(toy)["ok"]


def test_no_room_is_told_before_anything_is_copied(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(EnvironmentFault, match="are free"):
        drain(bring_home_back(toy.home.root / "backups", tmp_path / "back"))
    monkeypatch.undo()
    with pytest.raises(CheckFailed, match="not empty"):
        drain(bring_home_back(toy.home.root / "backups", tmp_path / "back"))


def test_a_ledger_is_never_taken_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(Damage, match="no ledger"):
        newest_ledger(tmp_path)


def test_a_home_sealed_as_immutable_is_drilled_with_seals_that_can_be_removed_again(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where this process may not set the flag: a drill asks for none."""
    monkeypatch.setenv("HEIRLOOM_STORAGE__SEAL", "immutable")
    asked: list[str] = []
    monkeypatch.setattr("guard.store.keeper.require_seal", lambda seal, _folder: asked.append(seal))
    monkeypatch.setattr("guard.seal._flag", lambda _path, _wanted: asked.append("flag"))
    found = hold(toy)
    assert found["ok"], found
    assert asked and set(asked) == {"mode"} and not (toy.home.root / "scratch").exists()


def test_a_scratch_with_immutable_folders_is_loosened_before_it_is_removed(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = toy.home.root / "scratch"
    (scratch / "home").mkdir(parents=True)
    (scratch / MARK).write_text("ours")
    loosened: list[Path] = []
    monkeypatch.setattr(drill, "loosen", loosened.append)
    clear_scratch(scratch)
    assert loosened == [scratch] and not scratch.exists()


def test_a_scratch_that_cannot_be_removed_is_a_drill_that_failed_and_says_so(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    def settle(keeper: Keeper) -> None:
        settle_toy(keeper)
        monkeypatch.setattr(drill, "remove_tree", refuse)

    found = run_drill(toy.home.root / "backups", toy.home.root / "scratch", settle)
    assert found["ok"] is False and "could not be removed: Operation not permitted" in found["reason"]
    assert found["steps"] > 0 and found["seconds"] >= 0


def test_room_for_the_second_vault_of_a_drill_is_asked_for_before_the_copy(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    vault, root = toy.home.root / "backups", toy.home.root
    size = drain(bring_home_back(vault, root / "back"))["bytes"]
    held = sum(path.stat().st_size for path in vault.rglob("*") if path.is_file())
    monkeypatch.setattr("shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, size + held))
    copied: list[Path] = []
    monkeypatch.setattr("guard.store.vault_home._bring_version", lambda _keeper, folder, _version: copied.append(folder))
    found = hold(toy)
    assert found["ok"] is False and "are free" in found["reason"] and copied == []
    drain(bring_home_back(vault, root / "once more"))
    assert copied, "a home alone finds room"
