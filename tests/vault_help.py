"""What tests of copying into the vault and mending it share: a family of versions without syncing, and a flipped bit.

Not a test itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import clone, no_syncing, small_family

from guard import failpoints
from guard.store.keeper import Keeper


@pytest.fixture(scope="module", name="template")
def _template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vault") / "home"
    small_family(root).ledger.close()
    return root


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncing(monkeypatch)


@pytest.fixture(name="keeper")
def _keeper(template: Path, tmp_path: Path) -> Iterator[Keeper]:
    yield clone(template, tmp_path / "home")
    failpoints.disarm()


def vault_of(keeper: Keeper) -> Path:
    return keeper.home.root / "backups"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(data)
