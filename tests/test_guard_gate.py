"""The gate: the thresholds of the design to the digit, and whatever is missing or no number refuses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from guard.checks.gate import MANY_LOSS_TOKENS, MIN_EXAMPLES, MIN_LOSS_TOKENS, LossPair, judge, loss_pairs
from guard.checks.verdict import Check, Verdict

NEW = LossPair("new", "new_held_out", 2.0, 3.0, None, 50, 5000)
OLD = LossPair("old", "ancestry", 2.0, 2.0, None, 50, 5000)
TEXT = [{"prompt": "a", "text": "b c", "distinct_ratio": 0.5}]


def judged(*pairs: LossPair, generation: list[dict[str, Any]] | None = None) -> Verdict:
    return judge(pairs, TEXT if generation is None else generation)


def of(pair: LossPair, **changes: Any) -> LossPair:
    return dataclasses.replace(pair, **changes)


def check(verdict: Verdict, name: str) -> Check:
    return next(item for item in verdict.checks if item.name == name)


def test_a_healthy_child_passes() -> None:
    verdict = judged(NEW, OLD)
    assert verdict.ok and not any(item.warning for item in verdict.checks)


@pytest.mark.parametrize("child, ok", [(2.9999, True), (3.0, False), (3.0001, False)])
@pytest.mark.parametrize("role", ["new_held_out", "new_trained"])
def test_the_loss_on_new_data_must_fall(role: str, child: float, ok: bool) -> None:
    assert judged(of(NEW, role=role, child=child)).ok is ok


@pytest.mark.parametrize("best, child, ok", [
    (1.0, 1.29, True), (1.0, 1.31, False),  # 0.3 nat is more than 15 % of a small loss
    (4.0, 4.59, True), (4.0, 4.61, False),  # 15 % is more than 0.3 nat of a large one
])  # fmt: skip
def test_old_data_may_rise_by_three_tenths_of_a_nat_or_fifteen_percent(best: float, child: float, ok: bool) -> None:
    verdict = judged(NEW, of(OLD, parent=best, child=child))
    assert verdict.ok is ok
    assert ok or "earlier knowledge was lost" in verdict.reason


def test_the_line_s_best_counts_and_not_only_the_parent() -> None:
    """Many small rises, each within the limit against its parent, must not add up unseen."""
    assert judged(NEW, of(OLD, parent=2.25, child=2.5, best=None)).ok
    assert not judged(NEW, of(OLD, parent=2.25, child=2.5, best=2.0)).ok
    assert judged(NEW, of(OLD, parent=2.0, child=2.25, best=2.3)).ok, "a parent better than the best on record counts"
    assert not judged(NEW, of(OLD, parent=2.0, child=2.35, best=2.3)).ok


@pytest.mark.parametrize("child, warned", [(2.039, False), (2.041, True), (1.0, False)])
def test_a_rise_of_two_percent_is_a_warning(child: float, warned: bool) -> None:
    verdict = judged(NEW, of(OLD, child=child))
    assert verdict.ok and check(verdict, "old").warning is warned


@pytest.mark.parametrize("figure", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("who", ["child", "parent"])
@pytest.mark.parametrize("pair", [NEW, of(NEW, role="new_trained"), OLD])
def test_a_figure_that_is_missing_or_no_number_refuses(pair: LossPair, who: str, figure: float | None) -> None:
    sound = NEW if pair is OLD else OLD
    verdict = judged(of(pair, **{who: figure}), sound)
    assert [item.name for item in verdict.failures] == [pair.name]


@pytest.mark.parametrize("changes", [{"examples": MIN_EXAMPLES - 1}, {"loss_tokens": MIN_LOSS_TOKENS - 1}])
@pytest.mark.parametrize("pair", [NEW, of(OLD, loss_tokens=1000)])
def test_too_few_held_out_examples_are_not_applicable_and_not_missing(pair: LossPair, changes: dict[str, int]) -> None:
    trained = of(NEW, name="trained", role="new_trained")
    verdict = judged(of(pair, child=99.0, **changes), trained)
    assert verdict.ok and check(verdict, pair.name).ok is None and "too few" in check(verdict, pair.name).detail
    assert judged(of(pair, child=1.0, examples=MIN_EXAMPLES, loss_tokens=MIN_LOSS_TOKENS), trained).ok


@pytest.mark.parametrize("examples", [1, 2])
def test_one_long_text_says_what_became_of_it(examples: int) -> None:
    """A set of one book is one example of thousands of tokens: what doubles its loss is not too few to judge."""
    book = of(OLD, examples=examples, loss_tokens=MANY_LOSS_TOKENS)
    assert [item.name for item in judged(NEW, of(book, child=4.0)).failures] == ["old"]
    assert judged(NEW, of(book, child=2.1)).ok
    short = judged(NEW, of(book, child=4.0, loss_tokens=MANY_LOSS_TOKENS - 1))
    assert short.ok and check(short, "old").ok is None and f"({examples} with 2,047 tokens" in check(short, "old").detail


def test_one_long_text_of_the_new_data_alone_refuses_no_child() -> None:
    """The new data may well be one text that is harder than the rest: that its loss must fall is asked of several."""
    trained = of(NEW, name="trained", role="new_trained")
    assert check(judged(of(NEW, child=3.1, examples=1), trained), "new").ok is None


def test_the_trained_data_is_never_too_little_to_judge() -> None:
    assert not judged(of(NEW, role="new_trained", child=3.5, examples=1, loss_tokens=4)).ok


@pytest.mark.parametrize("pairs", [[], [OLD], [of(NEW, examples=1)], [of(NEW, examples=1), OLD]])
def test_a_child_whose_new_data_was_not_judged_at_all_is_refused(pairs: list[LossPair]) -> None:
    verdict = judged(*pairs)
    assert [item.name for item in verdict.failures] == ["new data judged"]


@pytest.mark.parametrize("generation", [
    [], [{"prompt": "a", "text": "b"}], [{"distinct_ratio": None}], [{"distinct_ratio": math.nan}],
    [*TEXT, {"distinct_ratio": math.nan}], [{"distinct_ratio": math.nan}, *TEXT], [*TEXT, {"distinct_ratio": 0.019}],
    [{"distinct_ratio": math.inf}],
])  # fmt: skip
def test_samples_that_are_missing_unmeasured_or_repeat_themselves_refuse(generation: list[dict[str, Any]]) -> None:
    verdict = judged(NEW, generation=generation)
    assert [item.name for item in verdict.failures] == ["generation"]


def test_a_sample_just_varied_enough_passes() -> None:
    assert judged(NEW, generation=[{"distinct_ratio": 0.02}]).ok


def test_a_set_whose_data_was_pruned_is_told_and_refuses_nothing() -> None:
    verdict = judge([NEW], TEXT, unjudged={"older held out": "its prepared data was pruned"})
    told = check(verdict, "older held out")
    assert verdict.ok and told.ok is None and told.detail == "not judged: its prepared data was pruned"


def test_no_fault_hides_another() -> None:
    verdict = judged(of(NEW, child=9.0), of(OLD, child=9.0), generation=[])
    assert len(verdict.failures) == 3 and all(item.remedy for item in verdict.failures)


def test_pairs_are_made_from_the_child_s_rows_and_the_line_s_best() -> None:
    row = {"name": "old", "role": "ancestry", "child_loss": 2.0, "parent_loss": 2.1, "examples": 5, "loss_tokens": 300}
    assert loss_pairs([row], {"old": 1.9}) == [LossPair("old", "ancestry", 2.0, 2.1, 1.9, 5, 300)]
    assert loss_pairs([row], {"other": 1.9})[0].best is None
    holes = loss_pairs([{key: value for key, value in row.items() if not key.endswith("_loss")}], {})
    assert holes[0].child is None and holes[0].parent is None
