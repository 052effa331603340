"""Tasks, mutations and token ids: what their rows must hold, what becomes of them, and which rules a file is read by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.checks.columns import PLAIN, Reading, reading_of
from guard.checks.identify import Identity, Limits, identify
from guard.checks.rows import iter_examples, validate
from guard.checks.task_rows import is_evaluation_task, mutation_conversation
from guard.errors import DataFault
from guard.fingerprint import example_fingerprint
from guard.trained import questions_of, texts_of
from guard.untouchable import asks, evaluation_keys

TASK = {"description": "Merge two sorted vectors.", "starter_code": "fn merge() { todo!() }", "tests": "#[test]\nfn t() {}"}
MUTATION = {"buggy_code": "fn add(a: i32, b: i32) -> i32 { a - b }", "error_message": "test_add failed: 3 != -1",
            "fixed_code": "fn add(a: i32, b: i32) -> i32 { a + b }", "repo": "example/math-utils",
            "file": "src/lib.rs"}  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "field", "reason"), [
    ("task", {**TASK, "description": ""}, "description", "Field 'description' is empty after stripping"),
    ("task", {"description": "a"}, "tests", "Missing required field 'tests'"),
    ("task", {**TASK, "tests": []}, "tests", "Field 'tests' is empty"),
    ("task", {**TASK, "tests": ["a", ""]}, "tests[1].", "a test is empty after stripping"),
    ("task", {**TASK, "tests": 7}, "tests", "Field 'tests' must be a string"),
    ("task", {**TASK, "starter_code": 7}, "starter_code", "Field 'starter_code' must be a string"),
    ("mutation", {**MUTATION, "error_message": None}, "error_message", "Field 'error_message' must be a string"),
    ("mutation", {"buggy_code": "a", "fixed_code": "b"}, "error_message", "Missing required field 'error_message'"),
    ("mutation", {**MUTATION, "fixed_code": MUTATION["buggy_code"] + "\n"}, "fixed_code", "the same as 'buggy_code'"),
    ("pretrain", {"input_ids": None}, "input_ids", "Missing required field 'input_ids'"),
    ("pretrain", {"input_ids": "1 2"}, "input_ids", "Field 'input_ids' must be a list"),
    ("pretrain", {"input_ids": []}, "input_ids", "Field 'input_ids' is empty"),
    ("pretrain", {"input_ids": [1, True]}, "input_ids[1]", "True is no token id"),
    ("pretrain", {"input_ids": [1, 2.0]}, "input_ids[1]", "2.0 is no token id"),
    ("pretrain", {"input_ids": [1, -2]}, "input_ids[1]", "the token id -2 is negative"),
])  # fmt: skip
def test_what_cannot_be_used_says_field_and_reason(kind: str, row: dict[str, Any], field: str, reason: str) -> None:
    faults = validate(kind, row)
    assert isinstance(faults, list) and faults[0].field == field.rstrip(".") and reason in faults[0].reason and faults[0].expected


def test_a_task_without_starter_code_only_judges() -> None:
    assert validate("task", {**TASK, "id": 1}) == TASK and not is_evaluation_task(TASK)
    fields = validate("task", {**TASK, "tests": ["a", "b"], "starter_code": " "})
    assert fields == {"description": TASK["description"], "tests": "a\nb"} and is_evaluation_task(fields)


def test_a_mutation_is_trained_as_a_question_and_its_answer() -> None:
    fields = validate("mutation", {**MUTATION, "tool": "cargo-mutants"})
    assert fields == MUTATION
    turns = mutation_conversation(fields)["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] and "src/lib.rs of example/math-utils" in turns[0]["content"]
    assert turns[1]["content"] == f"```\n{MUTATION['fixed_code']}\n```"
    assert validate("sft", {"messages": turns}) == {"messages": turns}
    assert list(texts_of(fields)) == [turn["content"] for turn in turns]
    fenced = mutation_conversation({**MUTATION, "fixed_code": "```\n````x````\n```"})["messages"][1]["content"]
    assert fenced.startswith("`````\n") and fenced.endswith("\n`````")


def test_token_ids_are_text_of_numbers() -> None:
    assert validate("pretrain", {"input_ids": [1, 4521, 0]}) == {"input_ids": "1 4521 0"}
    assert validate("pretrain", {"input_ids": [1], "text": "a"}) == {"text": "a"}


def test_an_evaluation_set_of_tasks_or_pairs_keeps_its_question_out_of_conversations() -> None:
    question = "Write a function that merges two sorted vectors into one."
    task = {"description": question, "tests": "t"}
    pair = validate("preference", {"prompt": question, "chosen": "a", "rejected": "b"})
    chat = validate("sft", {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "c"}]})
    assert isinstance(pair, dict) and isinstance(chat, dict)
    assert questions_of(task) == questions_of(pair) == questions_of(chat) == [question]
    for fields in (task, pair, chat):
        assert set(asks(chat)) & set(evaluation_keys(fields))
    assert example_fingerprint({"text": question}) in set(evaluation_keys(task))


# --- files ------------------------------------------------------------------------------------------------------------


def drop(folder: Path, rows: list[dict[str, Any]], kind: str | None = None, **more: Any) -> Identity:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return identify(path, "rows.jsonl", kind, more.pop("limits", None), out_folder=folder / "out", **more)


@pytest.mark.parametrize(("row", "kind"), [
    (TASK, "task"), (MUTATION, "mutation"), ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
    ({"input_ids": [1, 2]}, "pretrain"), ({"text": "<|user|>Hi<|assistant|>Ho"}, "sft"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "sft"),
])  # fmt: skip
def test_every_kind_is_identified_with_its_fingerprints(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    found = drop(tmp_path, [row, row])
    assert (found.verdict, found.kind, found.examples, found.duplicates) == ("ok", kind, 2, 1)
    assert found.reading == {"rules": 2} and found.tokens_approx >= 0
    examples = list(iter_examples(tmp_path / "rows.jsonl", kind, Reading(**found.reading)))
    assert (tmp_path / "out" / "examples.fp").read_bytes() == b"".join(example.fingerprint for example in examples)


def test_tasks_that_only_judge_are_counted(tmp_path: Path) -> None:
    assert drop(tmp_path, [TASK, {"description": "a", "tests": "b"}]).evaluation_only == 1


def test_a_token_id_that_the_model_has_not_refuses_the_file_and_names_the_row(tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 2]}, {"input_ids": [50000, 3]}]
    found = drop(tmp_path, rows)
    assert (found.verdict, found.max_token_id, found.examples) == ("ok", 50000, 2)
    refused = drop(tmp_path, rows, limits=Limits(vocab_size=50000))
    assert refused.verdict == "reject" and refused.reason == "line 2: Token ID 50000 out of vocabulary range"
    assert refused.unusable_rows[0][:3] == (2, "input_ids", "Token ID 50000 out of vocabulary range")
    assert "0 to 49999" in refused.hint
    assert drop(tmp_path, rows, limits=Limits(vocab_size=50001)).verdict == "ok"


def test_ids_are_those_of_the_line_that_the_side_file_names(tmp_path: Path) -> None:
    limits = Limits(vocab_size=300, of_lines={"large": {"vocab_size": 60000}})
    (tmp_path / "side.yaml").write_text("line: large\n")
    assert drop(tmp_path, [{"input_ids": [50000]}], limits=limits).verdict == "reject"
    assert drop(tmp_path, [{"input_ids": [50000]}], limits=limits, side=tmp_path / "side.yaml").verdict == "ok"
    refused = drop(tmp_path, [{"input_ids": [60000]}], limits=limits, side=tmp_path / "side.yaml")
    assert refused.verdict == "reject" and "0 to 59999" in refused.hint


# --- the rules of old -------------------------------------------------------------------------------------------------

OLD_AND_NEW = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "t"}]},
    {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
]


def test_a_file_of_the_first_rules_keeps_its_ordinals(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OLD_AND_NEW))
    old = [(example.ordinal, example.line_number) for example in iter_examples(tmp_path / "rows.jsonl", "sft", Reading())]
    new = [(example.ordinal, example.line_number) for example in iter_examples(tmp_path / "rows.jsonl", "sft")]
    assert old == [(0, 1), (1, 3)] and new == [(0, 1), (1, 2), (2, 3)]
    forgiving = Limits(max_unusable_rows=0.5)
    again = drop(tmp_path, OLD_AND_NEW, reading={}, limits=forgiving)
    assert (again.examples, again.unusable_rows_count, again.reading, again.rules_version) == (2, 1, {}, 1)
    assert drop(tmp_path, OLD_AND_NEW).rules_version == 2


@pytest.mark.parametrize("row", [OLD_AND_NEW[0], {"text": "a"}, {"messages": []}, {"text": 1}])
def test_plain_rows_are_judged_alike_by_both_rules(row: dict[str, Any]) -> None:
    for kind in ("sft", "pretrain"):
        if not (kind == "sft" and "text" in row):
            assert validate(kind, row, rules=1) == validate(kind, row, rules=2)


def test_a_record_without_a_version_of_rules_is_one_of_the_first() -> None:
    assert Reading(**{}).rules == 1 and Reading(**PLAIN.as_dict()) == PLAIN and PLAIN.rules == 2
    named = reading_of({"q": "user", "a": "assistant"})
    assert Reading(**named.as_dict()) == named and named.rules == 2 and Reading(named.columns, named.roles).digest == named.digest


# --- columns of every kind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "row", "kind"), [
    ({"q": "prompt", "good": "chosen", "bad": "rejected"}, {"q": "a", "good": "b", "bad": "c"}, "preference"),
    ({"problem": "description", "checks": "tests"}, {"problem": "a", "checks": "b"}, "task"),
    ({"old": "buggy_code", "said": "error_message", "new": "fixed_code"}, {"old": "a", "said": "b", "new": "c"}, "mutation"),
    ({"ids": "input_ids"}, {"ids": [1]}, "pretrain"),
])  # fmt: skip
def test_columns_of_every_kind_can_be_named(tmp_path: Path, columns: dict[str, str], row: dict[str, Any], kind: str) -> None:
    side = tmp_path / "side"
    side.write_text(json.dumps({"columns": columns}))
    found = drop(tmp_path, [row], side=side)
    assert (found.verdict, found.kind, found.examples) == ("ok", kind, 1), found
    assert reading_of(columns).fits(kind) and not reading_of(columns).fits("docs")


def test_rendered_text_under_another_name_is_a_conversation_where_its_kind_is_said(tmp_path: Path) -> None:
    side = tmp_path / "side"
    side.write_text("columns: {body: text}\nkind: sft\n")
    assert drop(tmp_path, [{"body": "<|user|>a<|assistant|>b"}], side=side).kind == "sft"


@pytest.mark.parametrize(("columns", "words"), [
    ({"a": "chosen"}, "chosen and rejected go together"), ({"a": "chosen", "b": "rejected", "c": "tests"}, "do not go together"),
    ({"a": "repo"}, "nothing that can be trained on"), ({"a": "messages", "b": "messages.thinking"}, "does not lie below"),
])  # fmt: skip
def test_columns_that_make_no_example_together_are_refused(columns: dict[str, str], words: str) -> None:
    with pytest.raises(DataFault, match=words):
        reading_of(columns)
