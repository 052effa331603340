"""Sudden death and power cuts at any durable call, on a simulated disk that keeps no more than was synced.

Two scenes are played: the journey of drops, and what a person does to versions. After a death at any call, with or
without the power, and again in the middle of recovery, everything acknowledged is there and `verify --all` is clean.
A real file system is in `test_daemon_powercut_ext4.py`; that this harness sees mistakes is proven by the mutants.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from faults import crash_at
from playing import calls_of, cut_short, killed_then_cut, templates
from scenes import Birth, Journey, Scene
from scenes_care import Care

KINDS: dict[str, type[Scene]] = {"journey": Journey, "care": Care, "birth": Birth}
# In the sweep every so-manieth call; a plain power cut on the journey is played more often than its variations.
STRIDES = {("journey", True): 3, ("journey", False): 6, ("care", True): 2, ("care", False): 2}
QUICK = {"journey": 6, "care": 10}


@pytest.fixture(scope="module")
def homes_to_begin(shared_scratch: Path) -> dict[type[Scene], Path]:
    (shared_scratch / "powercut").mkdir()
    return templates(shared_scratch / "powercut")


@pytest.fixture(scope="module")
def totals(homes_to_begin: dict[type[Scene], Path], shared_scratch: Path) -> dict[str, int]:
    """How many durable calls each undisturbed scene makes."""
    found = {name: len(calls_of(kind, homes_to_begin[kind], shared_scratch / "undisturbed-calls"))
             for name, kind in KINDS.items()}  # fmt: skip
    assert found["journey"] > 500 and found["care"] > 300
    return found


@pytest.mark.parametrize("share", range(QUICK["journey"]))
def test_a_power_cut_on_the_journey_takes_nothing_that_was_acknowledged(
    share: int, homes_to_begin: dict[type[Scene], Path], totals: dict[str, int], scratch: Path
) -> None:
    number = 1 + (totals["journey"] * share + 7) // QUICK["journey"]
    assert cut_short(Journey, homes_to_begin[Journey], scratch / "home", crash_at(number)) == []


@pytest.mark.parametrize("share", range(QUICK["care"]))
def test_a_power_cut_while_versions_are_moved_takes_nothing_that_was_acknowledged(
    share: int, homes_to_begin: dict[type[Scene], Path], totals: dict[str, int], scratch: Path
) -> None:
    number = 1 + (totals["care"] * share + 5) // QUICK["care"]
    dice = random.Random(share) if share % 2 else None
    assert cut_short(Care, homes_to_begin[Care], scratch / "home", crash_at(number), dice=dice) == []


@pytest.mark.parametrize("share", range(3))
def test_a_second_cut_in_the_middle_of_recovery_takes_nothing_either(
    share: int, homes_to_begin: dict[type[Scene], Path], totals: dict[str, int], scratch: Path
) -> None:
    number = totals["journey"] * (share + 1) // 5
    found = cut_short(Journey, homes_to_begin[Journey], scratch / "home", crash_at(number), again=crash_at(4 + 5 * share))
    assert found == []


@pytest.mark.parametrize("share", range(6))
def test_what_a_killed_process_left_is_on_the_disk_before_the_next_one_builds_on_it(
    share: int, homes_to_begin: dict[type[Scene], Path], totals: dict[str, int], scratch: Path
) -> None:
    kind = Birth if share % 2 else Care
    number = 1 + totals["birth" if share % 2 else "care"] * (share + 1) // 8
    assert killed_then_cut(kind, homes_to_begin[kind], scratch / "home", number) == []


@pytest.mark.sweep
@pytest.mark.parametrize("way", ["killed", "cut", "cut with dice", "twice", "killed, then cut"])
@pytest.mark.parametrize("name", ["journey", "care"])
def test_any_durable_call_may_be_the_last(
    name: str, way: str, homes_to_begin: dict[type[Scene], Path], totals: dict[str, int], scratch: Path
) -> None:
    kind = KINDS[name]
    wrong = {}
    for number in range(1, totals[name] + 1, STRIDES[name, way == "cut"]):
        dice = random.Random(number) if way == "cut with dice" else None
        if way == "killed, then cut":
            found = killed_then_cut(kind, homes_to_begin[kind], scratch / "home", number)
            wrong |= {number: found[:3]} if found else {}
            continue
        again = crash_at(1 + number % 40) if way == "twice" else None
        found = cut_short(kind, homes_to_begin[kind], scratch / "home", crash_at(number), power=way != "killed", dice=dice,
                          again=again)  # fmt: skip
        if found:
            wrong[number] = found[:3]
    assert wrong == {}
