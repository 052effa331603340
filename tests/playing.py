"""Scenes played under a fault: a death, with or without the power, a second one in recovery, or a disk that refuses.

Each way ends in an undisturbed life and returns every broken promise in words. Not here: the scenes (`scenes.py`,
`scenes_care.py`), the faults (`faults.py`), and which of them a test plays.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from disk import Disk
from faults import Fault, crash_at
from scenes import Birth, Journey, Scene, reader_s_complaints
from scenes_care import Care

from guard.errors import HeirloomError

__all__ = ["calls_of", "cut_short", "faulty", "fresh", "killed_then_cut", "last_life", "templates"]


def fresh(path: Path) -> Path:
    """A place with nothing in it."""
    if path.exists():
        for place, _names, _files in os.walk(path):
            os.chmod(place, 0o755)
        shutil.rmtree(path)
    return path


def templates(root: Path) -> dict[type[Scene], Path]:
    """The home from which each scene starts, made once."""
    journey, care = Journey.template(root / "journey"), Care.template(root / "care")
    return {Journey: journey, Birth: journey, Care: care}


def _watched(scene: Scene, fault: Fault | None) -> Disk:
    disk = Disk(scene.root)
    scene.synced = disk.settle  # type: ignore[misc]
    disk.committed, disk.fault = scene.witness.committed, fault
    return disk


def calls_of(kind: type[Scene], template: Path, root: Path) -> list[str]:
    """The durable calls of an undisturbed scene; it must end without a complaint."""
    scene = kind(template, fresh(root))
    disk = _watched(scene, None)
    with disk:
        assert scene.life()
    assert scene.complaints() == []
    return disk.calls


def cut_short(kind: type[Scene], template: Path, root: Path, fault: Fault, *, power: bool = True,
              dice: random.Random | None = None, again: Fault | None = None) -> list[str]:  # fmt: skip
    """Play until death, lose the power (or only the process), live again; returns every broken promise.

    `again`: the fault of the second life, which then dies in its recovery or later and is followed by a third.
    """
    scene = kind(template, fresh(root))
    found = []
    for now in (fault, again) if again else (fault,):
        disk = _watched(scene, now)
        with disk:
            scene.life()
        if power:
            disk.cut(dice)
        found += reader_s_complaints(scene.root)
    return found + last_life(scene)


def killed_then_cut(kind: type[Scene], template: Path, root: Path, number: int) -> list[str]:
    """The process dies, the next life builds on what it finds, and then the power goes: was what it found on the disk?"""
    scene = kind(template, fresh(root))
    disk = _watched(scene, crash_at(number))
    with disk:
        scene.life()
    disk.dead, disk.fault = False, None
    with disk:
        found = [] if scene.life() else ["the second life died"]
    disk.cut()
    return found + reader_s_complaints(scene.root) + last_life(scene)


def last_life(scene: Scene) -> list[str]:
    """One undisturbed life to the end, and what is wrong then."""
    try:
        return ([] if scene.life() else ["the last life died"]) + scene.complaints()
    except (HeirloomError, OSError) as error:
        return [f"the home cannot go on: {type(error).__name__}: {error}"]


def faulty(kind: type[Scene], template: Path, root: Path, fault: Fault, *, power: bool = False) -> list[str]:
    """Play while the disk refuses, go on when it no longer does, in one life; then perhaps lose the power."""
    scene = kind(template, fresh(root))
    disk = _watched(scene, fault)

    def mend() -> None:
        disk.fault = None

    with disk:
        found = scene.patient_life(mend)
    if power:
        disk.cut()
        found += reader_s_complaints(scene.root)
    return found + last_life(scene)
