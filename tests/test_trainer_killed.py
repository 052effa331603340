"""Killed anywhere, also inside a snapshot, a run ends in the bits of one that was left alone."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from pathlib import Path

import pytest
from kill_help import IN_PROCESS, RECIPES, Job, compiled_job, kill_at_random, make_home, outcome, run_here

torch = pytest.importorskip("torch")

from trainer_help import shared_server  # noqa: E402

from guard import failpoints  # noqa: E402
from guard.failpoints import POINTS  # noqa: E402

INSIDE = [name for name in POINTS if name.startswith("snapshot.") and name not in ("snapshot.aside", "snapshot.marked")]


@pytest.fixture(scope="module")
def home(shared_scratch: Path) -> Path:
    return make_home(shared_scratch / "killed")


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> dict[str, Path]:
    """A finished run of every recipe, and how long it took."""
    for name in IN_PROCESS:
        assert run_here(RECIPES[name](home, home / "undisturbed" / name))
    return {name: home / "undisturbed" / name for name in IN_PROCESS}


def _went_on(job: Job, staging: Path) -> None:
    assert run_here(job)
    result = json.loads((staging / "result.json").read_text("utf-8"))
    assert (result["exactness"] == "RESUMED-EXACT") == (result["resumes"] > 0)


@pytest.mark.parametrize("point, recipe, at_visit", list(zip(INSIDE, itertools.cycle(IN_PROCESS), itertools.cycle((1, 2)))))
def test_a_death_inside_a_snapshot_changes_no_bit(
    point: str, recipe: str, at_visit: int, home: Path, undisturbed: dict[str, Path]
) -> None:
    staging = home / f"{point}-{recipe}"
    job = RECIPES[recipe](home, staging)
    failpoints.arm(point, "crash", at_visit)
    assert not run_here(job)
    assert failpoints.hits(point) == at_visit
    failpoints.disarm()
    _went_on(job, staging)
    assert outcome(staging) == outcome(undisturbed[recipe])


def test_a_death_right_after_the_first_snapshot_was_noted_changes_no_bit(home: Path, undisturbed: dict[str, Path]) -> None:
    staging = home / "marked"
    job = RECIPES["lanes"](home, staging)
    failpoints.arm("snapshot.marked", "crash")
    assert not run_here(job)
    failpoints.disarm()
    _went_on(job, staging)
    assert outcome(staging) == outcome(undisturbed["lanes"])


def test_a_process_killed_at_random_moments_ends_in_the_same_bits(home: Path, undisturbed: dict[str, Path]) -> None:
    staging = home / "few"
    RECIPES["pretrain"](home, staging)
    deaths = kill_at_random(staging, random.Random(5), seconds=0.4, kills=4)
    assert deaths >= 1
    assert outcome(staging) == outcome(undisturbed["pretrain"])


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_at_fifty_random_moments_the_weights_are_the_same(
    recipe: str, part: int, home: Path, undisturbed: dict[str, Path]
) -> None:
    """Whole runs, one after the other, each killed a few times: ten kills in each of five parts."""
    dice, deaths, runs = random.Random(f"{recipe} {part}"), 0, 0
    wanted = outcome(undisturbed["lanes" if recipe == "processes" else recipe])
    RECIPES[recipe](home, home / f"timed-{recipe}-{part}")
    begun = time.monotonic()
    assert shared_server().run(home / f"timed-{recipe}-{part}") == 0
    whole = time.monotonic() - begun
    while deaths < 10:
        staging = home / f"fifty-{recipe}-{part}-{runs}"
        RECIPES[recipe](home, staging)
        deaths += kill_at_random(staging, dice, seconds=whole, kills=min(5, 10 - deaths))
        assert outcome(staging) == wanted, f"after {deaths} kills, in run {runs}"
        runs += 1


@pytest.mark.sweep
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_a_compiled_run_killed_at_random_moments_is_the_same_in_every_process(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that compile each for itself, then ones that are killed, ten times in all."""
    begun = time.monotonic()
    for number in range(2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(number)))
        compiled_job(home, home / f"compiled-{number}")
        assert shared_server().run(home / f"compiled-{number}") == 0
    whole = (time.monotonic() - begun) / 2
    wanted = outcome(home / "compiled-0")
    assert outcome(home / "compiled-1") == wanted
    dice, deaths, runs = random.Random("compiled"), 0, 0
    while deaths < 10:
        staging = home / f"compiled-killed-{runs}"
        compiled_job(home, staging)
        deaths += kill_at_random(staging, dice, seconds=whole, kills=min(5, 10 - deaths))
        assert outcome(staging) == wanted, f"after {deaths} kills, in run {runs}"
        runs += 1
