"""A disk that refuses: full, failing, falling short, or losing what it failed to sync. Nothing is lost or half visible,
no file or job is blamed for it (law 10), and when the fault is gone the very same life works on.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Fault, fail_at, full_from, lie_about_fsync, short_at
from playing import calls_of, faulty, templates
from scenes import Journey, Scene
from scenes_care import Care

FAULTS: dict[str, Callable[[int], Fault]] = {
    "no space, once": lambda number: fail_at(number, errno.ENOSPC),
    "no space, for good": full_from,
    "an I/O error": lambda number: fail_at(number, errno.EIO),
    "a failed fsync, then a power cut": lie_about_fsync,
    "a failed sync of a folder, then a power cut": lambda number: fail_at(number, errno.EIO),
    "a short write": short_at,
}
KINDS: dict[str, type[Scene]] = {"journey": Journey, "care": Care}
QUICK = [(name, fault, share) for fault in FAULTS for name, shares in (("journey", 1), ("care", 2)) for share in range(shares)]


@pytest.fixture(scope="module")
def homes_to_begin(shared_scratch: Path) -> dict[type[Scene], Path]:
    (shared_scratch / "faults").mkdir()
    return templates(shared_scratch / "faults")


@pytest.fixture(scope="module")
def calls(homes_to_begin: dict[type[Scene], Path], shared_scratch: Path) -> dict[str, list[str]]:
    return {name: calls_of(kind, homes_to_begin[kind], shared_scratch / "faults-calls") for name, kind in KINDS.items()}


def points_for(fault: str, calls: list[str]) -> list[int]:
    """The calls at which a fault can strike at all."""
    only = {"a short write": "write", "a failed fsync, then a power cut": "fsync file",
            "a failed sync of a folder, then a power cut": "fsync folder"}.get(fault)
    return [number for number, name in enumerate(calls, 1) if only is None or name == only]


def struck(name: str, fault: str, number: int, template: Path, root: Path) -> list[str]:
    return faulty(KINDS[name], template, root, FAULTS[fault](number), power="power cut" in fault)


@pytest.mark.parametrize("name, fault, share", QUICK)
def test_what_the_disk_refuses_is_done_when_it_no_longer_does(
    name: str, fault: str, share: int, homes_to_begin: dict[type[Scene], Path], calls: dict[str, list[str]], scratch: Path
) -> None:
    points = points_for(fault, calls[name])
    number = points[len(points) * (2 * list(FAULTS).index(fault) + 5 * share + 1) // 18]
    assert struck(name, fault, number, homes_to_begin[KINDS[name]], scratch / "home") == []


@pytest.mark.sweep
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", KINDS)
def test_any_durable_call_may_be_refused(
    name: str, fault: str, homes_to_begin: dict[type[Scene], Path], calls: dict[str, list[str]], scratch: Path
) -> None:
    points = points_for(fault, calls[name])
    every = (8 if name == "journey" else 3) if len(points) > 300 else 3
    wrong = {}
    for number in points[::every]:
        found = struck(name, fault, number, homes_to_begin[KINDS[name]], scratch / "home")
        if found:
            wrong[number] = found[:3]
    assert wrong == {}
