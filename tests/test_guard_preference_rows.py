"""Preference pairs: one pair in any spelling is one example, and what is none says why in the guide's words."""

from __future__ import annotations

from typing import Any

import pytest

from guard.checks.jsonl import Fault
from guard.checks.preference_rows import validate_preference
from guard.checks.rows import read_fields
from guard.fingerprint import example_fingerprint

Q, A, MORE = {"role": "user", "content": "What is AI?"}, {"role": "assistant", "content": "AI is..."}, \
    {"role": "user", "content": "More details?"}  # fmt: skip
GOOD, BAD = "Machine learning is a part of it.", "I don't know."
TURNS = [Q, A, MORE]
WANTED = {"prefix": {"messages": TURNS}, "chosen": GOOD, "rejected": BAD}
HUMAN = "\n\nHuman: What is AI?\n\nAssistant: AI is...\n\nHuman: More details?\n\nAssistant:"


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def tagged(text: str) -> str:
    return "".join(f"<|{turn['role']}|>\n{turn['content']}\n" for turn in TURNS) + f"<|assistant|>\n{text}\n<|endoftext|>"


@pytest.mark.parametrize("row", [
    {"id": "x", "prefix": {"messages": TURNS}, "chosen": GOOD, "rejected": BAD, "src": "hh-rlhf"},
    {"prefix": TURNS, "chosen": f" {GOOD}\n", "rejected": BAD, "prompt": None},
    {"prompt": HUMAN, "chosen": f" {GOOD}", "rejected": f" {BAD}"},
    {"prompt": HUMAN.lstrip(), "chosen": GOOD, "rejected": BAD},
    {"prompt": TURNS, "chosen": answer(GOOD), "rejected": answer(BAD), "score_chosen": 4.5},
    {"chosen": [*TURNS, *answer(GOOD)], "rejected": [*TURNS, *answer(BAD)]},
    {"prompt": "What is AI?", "chosen": [*TURNS, *answer(GOOD)], "rejected": [*TURNS, *answer(BAD)], "messages": TURNS},
    {"chosen": f"{HUMAN} {GOOD}", "rejected": f"{HUMAN} {BAD}"},
    {"prompt": "More details?", "chosen": tagged(GOOD), "rejected": tagged(BAD)},
    {"prefix": {"messages": TURNS}, "chosen": [*TURNS, *answer(GOOD)], "rejected": f"{HUMAN} {BAD}"},
])  # fmt: skip
def test_a_pair_is_the_same_however_it_is_written(row: dict[str, Any]) -> None:
    fields = validate_preference(row)
    assert isinstance(fields, dict), fields
    assert example_fingerprint(fields) == example_fingerprint(WANTED)
    assert read_fields("preference", row) == fields


def test_a_plain_prompt_is_one_question_and_keeps_its_frame() -> None:
    fields = validate_preference({"prompt": "Why?", "chosen": "a", "rejected": "b", "system": "S"})
    prefix = {"system": "S", "messages": [{"role": "user", "content": "Why?"}]}
    assert fields == {"prefix": prefix, "chosen": "a", "rejected": "b"}
    told = "<|developer|>D<|user|>Fix this Rust code...<|assistant|>{}<|endoftext|>"
    pair = validate_preference({"prompt": "Fix this Rust code...", "chosen": told.format("x"), "rejected": told.format("y")})
    assert isinstance(pair, dict) and pair["prefix"]["developer"] == "D" and (pair["chosen"], pair["rejected"]) == ("x", "y")


@pytest.mark.parametrize(("row", "field", "reason"), [
    ({}, "chosen", "Missing required field 'chosen'"),
    ({"prompt": "a", "chosen": "b"}, "rejected", "Missing required field 'rejected'"),
    ({"prompt": "a", "chosen": " \n", "rejected": "b"}, "chosen", "Field 'chosen' is empty after stripping"),
    ({"prompt": "a", "chosen": 5, "rejected": "b"}, "chosen", "Field 'chosen' must be a string"),
    ({"prompt": "a", "chosen": [], "rejected": "b"}, "chosen", "Field 'chosen' is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": " b\r\n"}, "rejected", "Responses are identical"),
    ({"chosen": "a", "rejected": "b"}, "prefix", "Missing required field 'prefix'"),
    ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt", "Field 'prompt' is empty after stripping"),
    ({"prompt": 7, "chosen": "a", "rejected": "b"}, "prompt", "Field 'prompt' must be a string"),
    ({"prompt": "a", "prefix": [Q], "chosen": "a", "rejected": "b"}, "prompt", "Field 'prompt' beside 'prefix'"),
    ({"prefix": {}, "chosen": "a", "rejected": "b"}, "prefix.messages", "Missing required field 'messages'"),
    ({"prefix": {"messages": "a"}, "chosen": "a", "rejected": "b"}, "prefix.messages", "Field 'messages' must be a list"),
    ({"prefix": [Q, A], "chosen": "a", "rejected": "b"}, "prefix.messages[1].role", "the last turn is from the assistant"),
    ({"prompt": "Human: a", "chosen": "a", "rejected": "b"}, "prompt", "the transcript does not end with an open 'Assistant:'"),
    ({"prompt": "<|user|>a", "chosen": "a", "rejected": "b"}, "prompt", "a prompt of rendered text beside plain answers"),
    ({"prompt": "a", "chosen": tagged("x"), "rejected": "b"}, "chosen", "a whole conversation, and 'rejected' is a single"),
    ({"prompt": "a", "chosen": [*answer("x"), Q], "rejected": "b"}, "chosen", "a whole conversation"),
    ({"prompt": "a", "chosen": answer("x") * 2, "rejected": "b"}, "chosen", "2 turns without a question"),
    ({"prompt": "a", "chosen": [{**answer("x")[0], "thinking": "t"}], "rejected": "b"}, "chosen", "an answer with thinking"),
    ({"chosen": f"{HUMAN} x", "rejected": f"{HUMAN.replace('More', 'No')} y"}, "rejected", "the conversations differ before"),
    ({"chosen": f"{HUMAN} x\n\nHuman: y", "rejected": f"{HUMAN} x"}, "chosen.messages[4].role", "the last turn is from the user"),
    ({"chosen": f"{HUMAN}", "rejected": f"{HUMAN} x"}, "chosen.messages[3].content", "Field 'content' is empty after stripping"),
    ({"prompt": "Other?", "chosen": [*TURNS, *answer("x")], "rejected": [*TURNS, *answer("y")]}, "prompt", "is not what"),
    ({"prefix": [Q], "chosen": [*TURNS, *answer("x")], "rejected": [*TURNS, *answer("y")]}, "prefix", "is not what"),
    ({"chosen": "<|user|>a<|foo|>", "rejected": "<|user|>a<|assistant|>b"}, "chosen", "the unknown tag <|foo|> at column 10"),
    ({"prefix": {"messages": [Q], "system": "a"}, "system": "b", "chosen": "a", "rejected": "b"}, "system", "beside 'prefix"),
])  # fmt: skip
def test_what_is_no_pair_says_why(row: dict[str, Any], field: str, reason: str) -> None:
    faults = validate_preference(row)
    assert isinstance(faults, list) and isinstance(faults[0], Fault)
    assert faults[0].field == field and reason in faults[0].reason and faults[0].expected


def test_both_answers_are_told() -> None:
    faults = validate_preference({"chosen": "", "rejected": None})
    assert isinstance(faults, list) and [fault.field for fault in faults] == ["chosen", "rejected"]


def test_an_answer_may_be_a_single_turn_without_a_list() -> None:
    row = {"prompt": "q", "chosen": {"role": "assistant", "content": "a"}, "rejected": {"role": "assistant", "content": "b"}}
    assert validate_preference(row) == validate_preference({"prompt": "q", "chosen": "a", "rejected": "b"})
    faults = validate_preference(row | {"chosen": {"role": "assistant", "content": " "}})
    assert isinstance(faults, list) and faults[0].field.startswith("chosen")


def test_the_weight_of_a_turn_before_the_answers_of_a_pair_says_nothing() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    weighted = [turns[0], {**turns[1], "weight": 0}, turns[2]]
    row = {"prompt": weighted, "chosen": "d", "rejected": "e"}
    assert validate_preference(row) == validate_preference({**row, "prompt": turns})
