"""Fixtures for every test: no settings from outside, no fail point armed or file open afterwards, and a fast scratch place."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import homes
import pytest

from guard import failpoints

_SCRATCH = ("/heirloom-test-", "/heirloom-session-", "/pytest-of-")
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 4 << 30 else None
if _MEMORY:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", _MEMORY)  # four thousand tests sync ten thousand times: 1.3 times as fast
_modules_seen: set[str] = set()
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What lives when a file of tests begins lives on: looking through all of torch for cycles takes half a second."""
    if item.nodeid.partition("::")[0] not in _modules_seen:
        _modules_seen.add(item.nodeid.partition("::")[0])
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _clean_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("HEIRLOOM_")]:
        monkeypatch.delenv(name)
    failpoints.disarm()
    yield
    failpoints.disarm()


def open_files() -> set[tuple[int, str]]:
    """What this process has open and the scratch folders of tests hold: (descriptor, path)."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add((int(number), os.readlink(f"/proc/self/fd/{number}")))
    return {item for item in found if any(place in item[1] for place in _SCRATCH)}


@pytest.fixture(autouse=True)
def _nothing_stays_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """A session of two thousand tests has 1,024 descriptors: each test gives back what it opened, or fails."""
    before, kept = open_files(), len(homes.at_the_end)
    yield
    for close in homes.at_the_end[kept:]:
        close()
    del homes.at_the_end[kept:]
    request.node.funcargs.clear()  # pytest keeps what the fixtures gave a moment longer than they live
    if open_files() - before:
        gc.collect()  # what only a cycle of references held does not pile up
    left = sorted(path for _number, path in open_files() - before)
    assert left == [], "the test left these open"


def remove_sealed(path: Path) -> None:
    """Remove a scratch tree whose folders may be sealed."""
    for folder, _names, _files in os.walk(path):
        os.chmod(folder, stat.S_IRWXU)
    shutil.rmtree(path)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: tests of crashes sync thousands of times."""
    folder = Path(tempfile.mkdtemp(prefix="heirloom-test-", dir=_MEMORY))
    yield folder
    remove_sealed(folder)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a disk, which `scratch` and pytest's own are not on: a second device, where there is one."""
    folder = Path(tempfile.mkdtemp(prefix="heirloom-test-"))
    yield folder
    remove_sealed(folder)


@pytest.fixture(scope="session")
def shared_scratch() -> Iterator[Path]:
    """Like `scratch`, for what is made once in a session."""
    folder = Path(tempfile.mkdtemp(prefix="heirloom-session-", dir=_MEMORY))
    yield folder
    remove_sealed(folder)
