"""Whole folders of a home that vanished: nothing is taken for empty, and `doctor --rebuild` brings back what it can."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toy import Toy, chat_of

from daemon.mending import rebuild_home
from daemon.report import status
from guard import durable
from guard.durable import unseal_tree
from guard.errors import Damage
from guard.store.restore import restore
from guard.store.vault import run_backup
from guard.store.verify import verify


@pytest.fixture
def toy(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    made = Toy(scratch / "home").make_base()
    made.drop("a.jsonl", chat_of(30))
    made.settle()
    run_backup(made.keeper)
    made.die()
    return made


def lose(folder: Path) -> None:
    if folder.parent.name == "models" or folder.name == "models":
        unseal_tree(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["data/files", "data", "models"])
def test_a_lost_folder_is_named_and_never_taken_for_empty(toy: Toy, name: str) -> None:
    lose(toy.home.root / name)
    with pytest.raises(Damage, match=name) as told:
        toy.home.check()
    assert "doctor --rebuild" in told.value.hint


@pytest.mark.parametrize("name", ["data/files", "data"])
def test_lost_originals_come_back_from_the_vault(toy: Toy, name: str) -> None:
    lose(toy.home.root / name)
    assert rebuild_home(toy.home, dry_run=True, clock=toy.clock)["notes"]
    assert not (toy.home.root / name).exists()
    notes = rebuild_home(toy.home, dry_run=False, clock=toy.clock)["notes"]
    assert any("came back from the vault" in note for note in notes)
    toy.begin()
    originals = [item for item in verify(toy.keeper, everything=True).damage if item.what == "original"]
    assert originals == [] and toy.versions() == {"v001_baseline": "sealed", "v002_a": "sealed"}
    toy.drop("b.jsonl", chat_of(30, seed=5))
    toy.settle()
    assert toy.versions()["v003_b"] == "sealed"
    toy.die()


def test_lost_versions_are_restored_one_by_one(toy: Toy) -> None:
    lose(toy.home.models)
    notes = rebuild_home(toy.home, dry_run=False, clock=toy.clock)["notes"]
    assert "versions that are missing: heirloom restore VERSION" in notes
    toy.begin()
    for name in ("v001_baseline", "v002_a"):
        restore(toy.keeper, name)
    assert verify(toy.keeper, everything=True).ok
    toy.die()


def test_an_original_that_is_damaged_in_the_vault_stays_there(toy: Toy) -> None:
    stored = next((toy.home.root / "backups" / "files").glob("*/a.jsonl"))
    stored.chmod(0o644)
    stored.write_bytes(b"something else")
    lose(toy.home.files)
    notes = rebuild_home(toy.home, dry_run=False, clock=toy.clock)["notes"]
    assert any("is damaged and stayed there" in note for note in notes)
    assert not (toy.home.files / stored.parent.name).exists()


@pytest.mark.parametrize("name", ["models/.staging", "data/shards", "data/index", "data/.incoming", "data/docs"])
def test_a_lost_folder_of_work_is_made_again_by_the_next_start(toy: Toy, name: str) -> None:
    lose(toy.home.root / name)
    toy.begin()
    toy.drop("b.jsonl", chat_of(30, seed=5))
    toy.settle()
    assert toy.versions()["v003_b"] == "sealed"
    toy.die()


def test_the_status_tells_of_an_active_version_that_vanished(toy: Toy) -> None:
    lose(toy.home.models / "v002_a")
    told = [alert["what"] for alert in status(toy.home)["alerts"]]
    assert "v002_a is active on policy and its folder is missing" in told
