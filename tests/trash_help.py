"""What tests of deleting and restoring share: a family with one leaf to spare and its vault, and ways to spoil a home."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import add_version, clone, keeper_of, no_syncing, small_family

from guard import durable, failpoints
from guard.store import views
from guard.store.keeper import Keeper
from guard.store.restore import finish_restores
from guard.store.sums import folder_problems
from guard.store.trash import finish_deletes
from guard.store.vault import run_backup
from guard.store.versions import find_version

LEAF = "v005_leaf"


@pytest.fixture(scope="module", name="template")
def _template(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    no_syncing(monkeypatch)


@pytest.fixture(name="keeper")
def _keeper(template: Path, tmp_path: Path) -> Iterator[Keeper]:
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


def refuse_renames(patch: pytest.MonkeyPatch, after: bool) -> None:
    """The disk fails at the next move of a folder: before its rename, or at the sync right behind it."""
    rename = durable._rename_noreplace

    def refuse(source: Path, target: Path) -> None:
        if after:
            rename(source, target)
        raise OSError(errno.EIO, "input/output error", str(target))

    patch.setattr(durable, "_rename_noreplace", refuse)
