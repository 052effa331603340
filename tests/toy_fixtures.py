"""Fixtures of toy daemons: each starts in a copy of one home that has its base. Imported by name, underscores and all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from homes import copy_home, no_syncing
from toy import Toy

__all__ = ["_begin", "_no_syncing", "_template", "_toy"]


@pytest.fixture(scope="module", name="template")
def _template(shared_scratch: Path) -> Path:
    """A home with its base, from which every test starts."""
    root = Path(tempfile.mkdtemp(dir=shared_scratch)) / "home"  # each file that uses this fixture makes its own
    Toy(root).make_base().die()
    return root


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncing(monkeypatch)


@pytest.fixture(name="begin")
def _begin(template: Path, scratch: Path) -> Iterator[Callable[..., Toy]]:
    """Starts toys with settings, and ends them."""
    lives: list[Toy] = []

    def start(**settings: object) -> Toy:
        root = scratch / f"home{len(lives)}"
        copy_home(template, root)
        lives.append(Toy(root, **{"backup__auto": False, **settings}))
        return lives[-1]

    yield start
    for toy in lives:
        toy.die()


@pytest.fixture(name="toy")
def _toy(begin: Callable[..., Toy]) -> Toy:
    return begin()
