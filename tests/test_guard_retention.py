"""Retention's proposal: the thinning is pure, keeps a logarithm of a line, and gives its reason for every choice."""

from __future__ import annotations

import itertools

from guard.checks.retention import Candidate, age_class, plan_retention

HOUR = 3600.0


def a_line(count: int, **facts: object) -> list[Candidate]:
    """A base and a line of children, one an hour, the newest at hour `count`."""
    return [Candidate(f"v{number:03d}", number, "policy", number * HOUR, 10, is_base=number == 1,
                      tip_of=("policy",) if number == count else (), children=int(number < count), **facts)  # type: ignore[arg-type]
            for number in range(1, count + 1)]  # fmt: skip


def kept(candidates: list[Candidate], now: float, newest: int = 3) -> list[int]:
    return [item.id for item, choice in zip(candidates, plan_retention(candidates, now=now, newest=newest), strict=True)
            if choice.keep]  # fmt: skip


def test_a_long_line_keeps_a_logarithm_of_itself() -> None:
    line = a_line(1000)
    left = kept(line, now=1000 * HOUR)
    assert left[0] == 1 and left[-3:] == [998, 999, 1000] and len(left) <= 3 + 1 + 11
    ages = [1000 - number for number in left if number not in (1, 998, 999, 1000)]
    # Between two neighbours the age grows by a bounded factor: no stretch of the past is without a witness.
    assert all(older <= 4 * younger + 4 for older, younger in itertools.pairwise(ages))


def test_every_choice_has_its_reason_and_all_are_told() -> None:
    choices = plan_retention(a_line(50), now=50 * HOUR, newest=4)
    assert [choice.name for choice in choices] == [f"v{number:03d}" for number in range(1, 51)]
    assert all(choice.reason for choice in choices)
    assert choices[0].reason.startswith("it is a base") and choices[-1].reason == "it is active on policy"
    assert "newest 4 of policy" in choices[-2].reason


def test_what_a_rule_protects_stays_however_old_it_is() -> None:
    line = a_line(40)
    special = {5: {"children": 2}, 7: {"needed_by": ("v030",)}, 9: {"jobs": (4,)}, 11: {"annotation": "a person named it"},
               13: {"tip_of": ("other",)}}  # fmt: skip
    changed = [Candidate(**{**vars(item), **special.get(item.id, {})}) for item in line]  # type: ignore[arg-type]
    assert set(special) <= set(kept(changed, now=40 * HOUR))
    words = {choice.name: choice.reason for choice in plan_retention(changed, now=40 * HOUR, newest=3)}
    assert "2 versions branch" in words["v005"] and "v030 needs it" in words["v007"] and "job 4" in words["v009"]


def test_thinning_again_and_again_never_empties_the_past() -> None:
    """What is kept today is thinned tomorrow: each day's plan sees only what the plans before left."""
    left: list[Candidate] = []
    for hour in range(1, 400):
        left.append(Candidate(f"v{hour:03d}", hour, "policy", hour * HOUR, is_base=hour == 1))
        names = {choice.name for choice in plan_retention(left, now=hour * HOUR, newest=4) if choice.keep}
        left = [item for item in left if item.name in names]
    classes = {age_class((399 - item.id) * HOUR) for item in left}
    assert classes == set(range(9)) and len(left) < 20


def test_each_line_keeps_its_own_newest_and_quarantined_ones_go_first() -> None:
    two = [Candidate(f"v{number:03d}", number, "a" if number % 2 else "b", number * HOUR) for number in range(1, 9)]
    two.append(Candidate("v009", 9, "c", 1 * HOUR, quarantined=True))
    choices = {choice.name: choice for choice in plan_retention(two, now=1000 * HOUR, newest=0)}
    assert not choices["v009"].keep and "failed its gate" in choices["v009"].reason
    assert {name for name, choice in choices.items() if choice.keep} == {"v001", "v002"}
    assert plan_retention([], now=0.0, newest=3) == ()


def test_a_clock_in_the_past_archives_nothing_young() -> None:
    assert age_class(-5.0) == 0 and [age_class(hours * HOUR) for hours in (1, 2, 3, 4, 1024)] == [0, 1, 1, 2, 10]
