"""Questions of a user: what a row asks, what counts as right, and every bad row told by field and expectation."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from guard.checks.answers import is_right, number_in
from guard.checks.jsonl import Fault
from guard.checks.questions import Question, read_question


def asked(row: dict[str, Any], **more: Any) -> Question:
    found = read_question(row, 7, **more)
    assert isinstance(found, Question), found
    return found


def faults(row: dict[str, Any], **more: Any) -> list[Fault]:
    found = read_question(row, 7, **more)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(("text", "number"), [
    ("She has 3 left.\n#### 42", "42"), ("#### $1,234.50 in all", "1234.5"), ("the answer is 7.", "7"), ("-$5", "-5"),
    ("$-5", "-5"), ("\u22127", "-7"), ("of 5-3", "3"), ("9 - 3", "3"), (".5", "0.5"), ("3e2", "300"), ("1,2,3", "3"),
    ("12 or 13", "13"), ("#### none\nso 8", "8"), ("10%", "10"), ("#### 5 #### 6", "5"), ("42.0", "42"), ("- 5", "5"),
    ("It costs 1,234, I think", "1234"), ("1,234,5", "5"), ("1,2345", "2345"), ("111," * 2000, "111"),
])  # fmt: skip
def test_the_number_of_a_text_is_the_one_behind_the_marks_else_the_last(text: str, number: str) -> None:
    assert number_in(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "nothing", "####", "1" * 500])
def test_a_text_without_a_number_means_none(text: str) -> None:
    assert number_in(text) is None and not is_right(text, ["5"], "numeric")


def test_exact_folds_what_an_identity_folds_and_the_case_only_when_asked() -> None:
    assert is_right(" Cafe\u0301\r\nau lait \n", ["Caf\u00e9\nau lait"], "exact")
    assert not is_right("Paris.", ["Paris"], "exact") and not is_right("paris", ["Paris"], "exact")
    assert is_right("paris", ["Rome", "Paris"], "exact", ignore_case=True)


def test_contains_looks_for_a_part_and_numeric_compares_numbers_not_texts() -> None:
    assert is_right("It is Paris, I think.", ["Paris"], "contains") and not is_right("It is paris", ["Paris"], "contains")
    assert is_right("about $1,000.00", ["#### 1000"], "numeric") and not is_right("about 1001", ["1000"], "numeric")


def test_a_row_asks_by_question_prompt_or_messages() -> None:
    for row in ({"question": "2+2?"}, {"prompt": "2+2?"}, {"messages": [{"role": "user", "content": "2+2?"}]}):
        found = asked({**row, "answer": 4, "system": "Count.", "max_tokens": "9", "id": 3})
        assert (found.asked, found.expected, found.match, found.max_tokens, found.name) == ("2+2?", ("4",), "exact", 9, "3")
        assert found.prompt["system"] == "Count." and [turn["role"] for turn in found.prompt["messages"]] == ["user"]


def test_a_chat_row_of_training_data_is_a_question_whose_last_turn_is_the_answer() -> None:
    found = asked({"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4, so\n#### 4"}]})
    assert found.match == "numeric" and found.expected == ("4, so\n#### 4",) and len(found.prompt["messages"]) == 1
    assert asked({"question": "x?", "answer": ["a", "b"]}, match="contains").match == "contains"
    assert asked({"question": "x?", "answer": "a", "match": "exact"}, match="contains").match == "exact"


TURN = {"role": "user", "content": "a?"}


@pytest.mark.parametrize(("row", "field"), [
    ({"answer": "4"}, "question"), ({"question": "a?", "prompt": "b?", "answer": "4"}, "question"),
    ({"question": 5, "answer": "4"}, "question"), ({"question": "  ", "answer": "4"}, "question"),
    ({"question": "a?"}, "answer"), ({"messages": [TURN]}, "answer"),
    *[({"question": "a?", "answer": answer}, "answer") for answer in ("", True, [], float("nan"))],
    ({"question": "a?", "answer": "four", "match": "numeric"}, "answer"),
    ({"question": "a?", "answer": "4", "match": "fuzzy"}, "match"),
    *[({"question": "a?", "answer": "4", "max_tokens": limit}, "max_tokens") for limit in (0, "many", True, 10**12)],
    ({"messages": "hello", "answer": "4"}, "messages"), ({"messages": [], "answer": "4"}, "messages"),
])  # fmt: skip
def test_a_row_that_is_no_question_says_field_and_expectation(row: dict[str, Any], field: str) -> None:
    found = faults(row)
    assert [fault.field for fault in found] == [field] and found[0].reason, found
