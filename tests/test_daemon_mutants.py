"""Five classic mistakes, made on purpose: each must be caught by the very harness that finds nothing in the real code.

The mistakes are patched in here and exist nowhere in the product. A harness that misses one would prove nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from disk import Disk
from faults import Fault, crash_at, lie_about_fsync
from playing import calls_of, cut_short, faulty, templates
from scenes import Birth, Scene

from daemon import publish, runner
from guard import durable, failpoints
from guard.durable import sha256_file
from guard.store import birth, recovery
from guard.store.jobs import Job, find_job
from guard.store.keeper import Keeper
from guard.store.views import refresh


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    (shared_scratch / "mutants").mkdir()
    return templates(shared_scratch / "mutants")[Birth]


@pytest.fixture(scope="module")
def calls(template: Path, shared_scratch: Path) -> list[str]:
    return calls_of(Birth, template, shared_scratch / "mutants-calls")


@pytest.fixture(scope="module")
def born_at(template: Path, shared_scratch: Path) -> int:
    """The number of the first durable call after a birth was announced."""
    scene = Birth(template, shared_scratch / "mutants-birth")
    failpoints.arm("birth.intended", "crash")
    with Disk(scene.root) as disk:
        assert not scene.life()
    failpoints.disarm()
    return len(disk.calls) + 1


def sync_only(wanted: Callable[[int], bool]) -> Callable[[int], None]:
    def fsync(descriptor: int) -> None:
        if wanted(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)
    return fsync  # fmt: skip


def sync_again_after_failure(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError:
        os.fsync(descriptor)


def recorded_before_it_is_there(real: Callable[[Keeper, int], str]) -> Callable[[Keeper, int], str]:
    """The version is in the ledger, and so acknowledged, before its folder is in models/."""
    def finish(keeper: Keeper, number: int) -> str:
        job = find_job(keeper.ledger, number)
        staged = keeper.home.staging_of(number) / "out"
        if staged.is_dir():
            birth._describe(staged, job.plan["birth"]["record"])
            birth._record(keeper, job, job.plan["birth"], sha256_file(staged / "SHA256SUMS"), 1)
        return real(keeper, number)
    return finish  # fmt: skip


def shown_before_it_is_recorded(real: Callable[..., None]) -> Callable[..., None]:
    """The views are made from a transaction that is not committed yet."""
    def record(keeper: Keeper, job: Job, plan: Mapping[str, Any], sums: str, size: int) -> None:
        with keeper.ledger.transaction():
            real(keeper, job, plan, sums, size)
            refresh(keeper)
    return record  # fmt: skip


def make_the_mistake(mistake: str, patch: pytest.MonkeyPatch) -> None:
    if mistake == "no file fsync":
        patch.setattr(durable, "_fsync", sync_only(stat.S_ISDIR))
    elif mistake == "no folder fsync":
        patch.setattr(durable, "_fsync", sync_only(stat.S_ISREG))
    elif mistake == "fsync retried after failure":
        patch.setattr(durable, "_fsync", sync_again_after_failure)
    elif mistake == "view before ledger":
        patch.setattr(birth, "_record", shown_before_it_is_recorded(birth._record))
    else:
        assert mistake == "early acknowledgement"
        early = recorded_before_it_is_there(birth.finish_birth)
        for module in (publish, runner, recovery):
            patch.setattr(module, "finish_birth", early)


MISTAKES = ("no file fsync", "no folder fsync", "early acknowledgement", "view before ledger", "fsync retried after failure")


def first_catch(template: Path, root: Path, faults: Iterable[Fault], play: Callable[..., list[str]]) -> list[str]:
    for fault in faults:
        found = play(Birth, template, root, fault)
        if found:
            return found
    return []


def hunt(mistake: str, template: Path, root: Path, calls: list[str], born_at: int) -> list[str]:
    """What the harness says, looking at every eighth call from the announced birth on."""
    if mistake == "fsync retried after failure":
        def play(*arguments: Any) -> list[str]:
            return faulty(*arguments, power=True)
        points = [number for number, name in enumerate(calls, 1) if name == "fsync file"]
        return first_catch(template, root, map(lie_about_fsync, points[::8]), play)  # fmt: skip
    numbers = range(born_at, len(calls), 8)
    return first_catch(template, root, map(crash_at, numbers), cut_short)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_harness_catches_the_mistake(
    mistake: str, template: Path, calls: list[str], born_at: int, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        make_the_mistake(mistake, patch)
        found = hunt(mistake, template, scratch / "home", calls, born_at)
    assert found, f"nobody noticed: {mistake}"


@pytest.mark.sweep
@pytest.mark.parametrize("hunted_as", ["no file fsync", "fsync retried after failure"])
def test_the_same_hunt_finds_nothing_in_the_real_code(
    hunted_as: str, template: Path, calls: list[str], born_at: int, scratch: Path
) -> None:
    assert hunt(hunted_as, template, scratch / "home", calls, born_at) == []


def test_a_scene_is_what_it_says(template: Path, scratch: Path) -> None:
    """The witness is not blind: an event that is taken out again is missed."""
    scene: Scene = Birth(template, scratch / "home")
    scene.witness.newest = (3, "0" * 64)
    assert scene.life()
    assert any("acknowledged and is lost" in text for text in scene.complaints())
