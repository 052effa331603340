"""Errors and intervals: equal to the textbook's where it has an answer, paired where two versions are compared."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from trainer.comparing import Z95, Ratio, difference_of_ratios, ratio, sign_test, student95, verdict_of, wilson


def test_over_equal_parts_the_error_is_that_of_a_mean() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    found = ratio(values * 10, np.full(4, 10.0))
    assert found is not None and found.value == pytest.approx(3.5)
    assert found.error == pytest.approx(statistics.stdev(values) / 2)
    assert found.interval == pytest.approx((3.5 - 3.182 * found.error, 3.5 + 3.182 * found.error), rel=1e-2)


@pytest.mark.parametrize(("freedom", "point"), [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (30, 2.042), (10**6, Z95)])
def test_few_examples_widen_the_interval_as_students_table_says(freedom: int, point: float) -> None:
    assert student95(freedom) == pytest.approx(point, rel=0.01)


def test_long_examples_weigh_more_and_the_interval_covers_what_it_should() -> None:
    assert ratio(np.array([10.0, 0.0]), np.array([1.0, 9.0])).value == 1.0  # type: ignore[union-attr]
    dice, covered = random.Random(1), 0
    for _ in range(400):
        tokens = np.array([dice.randrange(5, 60) for _ in range(80)], dtype=float)
        nats = tokens * np.array([dice.gauss(2.0, 0.5) for _ in range(80)])
        low, high = ratio(nats, tokens).interval  # type: ignore[union-attr, misc]
        covered += low <= 2.0 <= high
    assert 0.91 < covered / 400 < 0.98


def test_one_example_has_no_error_and_nothing_has_no_figure() -> None:
    assert ratio(np.array([3.0]), np.array([2.0])) == Ratio(1.5, None, 1) and Ratio(1.5, None, 1).interval is None
    assert ratio(np.zeros(0), np.zeros(0)) is None and ratio(np.array([math.nan]), np.array([1.0])) is None


def test_a_paired_difference_sees_what_two_intervals_hide() -> None:
    dice = random.Random(2)
    tokens = np.array([dice.randrange(5, 60) for _ in range(60)], dtype=float)
    hard = tokens * np.array([dice.gauss(3.0, 1.0) for _ in range(60)])
    better = hard - 0.05 * tokens + np.array([dice.gauss(0, 0.1) for _ in range(60)])
    found = difference_of_ratios((better, tokens), (hard, tokens))
    assert found is not None and found.value == pytest.approx(-0.05, abs=0.01) and verdict_of(found) == "better"
    alone = ratio(better, tokens)
    assert found.error < alone.error / 20  # type: ignore[union-attr, operator]
    assert verdict_of(difference_of_ratios((hard, tokens), (better, tokens))) == "worse"
    assert verdict_of(difference_of_ratios((hard, tokens), (hard[::-1].copy(), tokens[::-1].copy()))) == "no difference seen"
    assert verdict_of(None) == "not judged" == verdict_of(Ratio(1.0, None, 1))


def test_shares_have_an_interval_at_both_ends() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_the_sign_test_counts_only_where_two_differ() -> None:
    yes, no = [True] * 5, [False] * 5
    assert sign_test(yes + [True] * 90, no + [True] * 90) == (5, 0, pytest.approx(2 / 32))
    assert sign_test([True, False], [False, True]) == (1, 1, 1.0) and sign_test(yes, yes) == (0, 0, 1.0)
    first, second, chance = sign_test([True] * 600, [False] * 600)
    assert (first, second) == (600, 0) and 0 <= chance < 1e-100
