"""Fixtures for every test: no settings from outside, no fail point left armed, and a fast scratch place for homes."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard import failpoints

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _clean_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("HEIRLOOM_")]:
        monkeypatch.delenv(name)
    failpoints.disarm()
    yield
    failpoints.disarm()


def remove_sealed(path: Path) -> None:
    """Remove a scratch tree whose folders may be sealed."""
    for folder, _names, _files in os.walk(path):
        os.chmod(folder, stat.S_IRWXU)
    shutil.rmtree(path)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: tests of crashes sync thousands of times."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="heirloom-test-", dir=place))
    yield folder
    remove_sealed(folder)


@pytest.fixture(scope="session")
def shared_scratch() -> Iterator[Path]:
    """Like `scratch`, for what is made once in a session."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="heirloom-session-", dir=place))
    yield folder
    remove_sealed(folder)
