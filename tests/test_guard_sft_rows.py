"""Conversations in every usual spelling: the same fields and the same fingerprint, or a fault with its place."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from harmony_help import MESSAGES

from guard.checks.columns import reading_of
from guard.checks.forms import columns_hint
from guard.checks.jsonl import Fault
from guard.checks.rows import iter_examples, read_fields, validate, validate_sft
from guard.fingerprint import example_fingerprint

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}
CALL = {"name": "look", "arguments": '{"at":"a","n":1}', "id": "1"}
NESTED = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "a", "n": 1}'}}
TOOLS = [{"name": "look", "description": "Looks.", "parameters": {"type": "object"}}]


def fields_of(row: dict[str, Any]) -> dict[str, Any]:
    fields = validate_sft(row)
    assert isinstance(fields, dict), fields
    example_fingerprint(fields)  # texts, lists and objects only
    return fields


def faults_of(row: dict[str, Any]) -> list[Fault]:
    faults = validate_sft(row)
    assert isinstance(faults, list), faults
    return faults


def with_call(**turn: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", **turn}, {"role": "tool", "tool_call_id": "1", "content": "b"}, ANSWER]}


WANTED = {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                       {"role": "tool", "content": "b", "tool_call_id": "1"}, ANSWER]}  # fmt: skip


@pytest.mark.parametrize("row", [
    with_call(content="", tool_calls=[{"id": "1", "name": "look", "arguments": {"at": "a", "n": 1}}]),
    with_call(content=None, tool_calls=[{"name": "look", "arguments": '{ "at":"a", "n" : 1 }', "id": "1"}]),
    with_call(content=None, tool_calls=[NESTED]),
    with_call(tool_calls=[NESTED], thinking=None, reasoning_content=""),
    with_call(content=" \n", tool_calls=[{**NESTED, "function": {"name": "look", "arguments": {"at": "a", "n": 1}}}]),
    {"messages": [USER, {"role": "assistant", "tool_calls": [NESTED]}, {"role": "tool", "tool_call_id": "1", "name": "look",
     "content": [{"type": "text", "text": "b"}]}, ANSWER]},
])  # fmt: skip
def test_a_tool_call_is_the_same_however_it_is_written(row: dict[str, Any]) -> None:
    assert fields_of(row) == WANTED


def test_the_older_form_of_a_call_is_a_call_without_an_id() -> None:
    row = {"messages": [USER, {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": ""}},
                        {"role": "function", "name": "look", "content": ""}, ANSWER]}  # fmt: skip
    assert fields_of(row)["messages"][1:3] == [
        {"role": "assistant", "content": "", "tool_calls": [{"name": "look", "arguments": "{}"}]},
        {"role": "tool", "content": "", "name": "look"}]  # fmt: skip


def test_the_example_of_the_data_format_guide_is_a_conversation() -> None:
    fields = fields_of({"messages": MESSAGES, "developer": "You are a Rust coding agent."})
    assert fields["developer"] == "You are a Rust coding agent." and fields["messages"][1] == {
        "role": "assistant", "content": "", "thinking": "Let me check the test output...",
        "tool_calls": [{"name": "run_tests", "arguments": '{"cmd":"cargo test"}', "id": "1"}]}  # fmt: skip


@pytest.mark.parametrize("key", ["thinking", "reasoning_content", "reasoning"])
def test_thinking_has_three_names(key: str) -> None:
    turn = fields_of({"messages": [USER, {**ANSWER, key: "Hm."}]})["messages"][1]
    assert turn == {"role": "assistant", "content": "So.", "thinking": "Hm."}
    assert fields_of({"messages": [USER, {**ANSWER, key: " "}]})["messages"][1] == ANSWER


def test_what_stands_before_a_conversation_may_be_a_field_or_a_turn() -> None:
    wanted = {"system": "S", "developer": "D", "messages": [USER, ANSWER]}
    system, developer = {"role": "system", "content": "S"}, {"role": "developer", "content": "D"}
    for row in ({"messages": [system, developer, USER, ANSWER]}, {"messages": [developer, system, USER, ANSWER]},
                {"system": "S", "messages": [developer, USER, ANSWER]}, {"developer": "D", "messages": [system, USER, ANSWER]},
                {"system": "S", "developer": "D", "context": " ", "tools": [], "messages": [USER, ANSWER]}):  # fmt: skip
        assert fields_of(row) == wanted


def test_definitions_of_tools_have_one_form() -> None:
    wanted = '[{"type":"function","function":{"name":"look","description":"Looks.","parameters":{"type":"object"}}}]'
    nested = [{"type": "function", "function": TOOLS[0]}]
    for tools in (TOOLS, nested, json.dumps(nested), json.dumps(TOOLS, indent=2),
                  [{**TOOLS[0], "parameters": '{"type": "object"}', "strict": None}]):  # fmt: skip
        assert fields_of({"messages": [USER, ANSWER], "tools": tools})["tools"] == wanted
    assert fields_of({"messages": [USER, ANSWER], "functions": TOOLS})["tools"] == wanted


@pytest.mark.parametrize(("row", "field", "words"), [
    (with_call(content=""), "messages[1].content", "empty after stripping"),
    (with_call(content="x"), "messages[2].role", "no call before it"),
    (with_call(content="", tool_calls={"name": "x"}), "messages[1].tool_calls", "must be a list"),
    (with_call(content="", tool_calls=[{"arguments": {}}]), "messages[1].tool_calls[0].name", "Missing required field 'name'"),
    (with_call(content="", tool_calls=[{"function": {"name": ""}}]), "messages[1].tool_calls[0].function.name", "empty after"),
    (with_call(content="", tool_calls=[{"name": "x", "arguments": [1]}]), "messages[1].tool_calls[0].arguments", "an object"),
    (with_call(content="", tool_calls=[{"name": "x", "arguments": "{oops"}]), "messages[1].tool_calls[0].arguments", "not valid"),
    (with_call(content="", tool_calls=[{"name": "x", "arguments": '{"a":1,"a":2}'}]), "messages[1].tool_calls[0].arguments",
     "duplicate key"),
    (with_call(content="", tool_calls=[{"name": "x", "type": "code"}]), "messages[1].tool_calls[0].type", "not known"),
    (with_call(content="", tool_calls=[NESTED, NESTED]), "messages[1].tool_calls[1].id", "two calls"),
    (with_call(content="", tool_calls=[{**NESTED, "id": "2"}]), "messages[2].tool_call_id", "no open call before it has"),
    (with_call(content="", tool_calls=[{**NESTED, "id": 1}]), "messages[1].tool_calls[0].id", "must be a string"),
    (with_call(content="", tool_calls=[NESTED], function_call={"name": "x"}), "messages[1].function_call", "beside"),
    (with_call(content="x", thinking="a", reasoning="b"), "messages[1].reasoning", "says something else"),
    (with_call(content="x", thinking=7), "messages[1].thinking", "must be a string"),
    ({"messages": [{**USER, "thinking": "x"}, ANSWER]}, "messages[0].thinking", "in a turn of the user"),
    ({"messages": [USER, {"role": "tool", "content": "x"}, ANSWER]}, "messages[1].role", "no call before it"),
    ({"messages": [*WANTED["messages"][:3], {"role": "tool", "content": "c"}, ANSWER]}, "messages[3].role", "more tool turns"),
    ({"messages": [*WANTED["messages"][:3], USER, ANSWER]}, "messages[3].role", "a user turn after a tool turn"),
    ({"messages": WANTED["messages"][:3]}, "messages[2].role", "the last turn is from the tool"),
    ({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                   {"role": "tool", "tool_call_id": "1", "name": "other", "content": ""}, ANSWER]}, "messages[2].name", "'look'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "messages[0].content[0].type", "'image_url'"),
    ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "tools[0].name", "Missing required field 'name'"),
    ({"messages": [USER, ANSWER], "tools": "oops"}, "tools", "must be a list"),
    ({"messages": [{"role": "developer", "content": "a"}, USER, ANSWER], "developer": "b"}, "messages[0].role", "beside"),
])  # fmt: skip
def test_what_cannot_be_trained_on_says_where_and_why(row: dict[str, Any], field: str, words: str) -> None:
    fault = faults_of(row)[0]
    assert fault.field == field and words in fault.reason and fault.expected


def test_a_conversation_may_end_with_a_call() -> None:
    assert fields_of({"messages": WANTED["messages"][:2]})["messages"][-1]["tool_calls"] == [CALL]


def test_several_results_answer_several_calls() -> None:
    calls = [{"id": name, "name": name, "arguments": {}} for name in "ab"]
    results = [{"role": "tool", "tool_call_id": name, "content": name} for name in "ba"]
    assert len(fields_of({"messages": [USER, {"role": "assistant", "tool_calls": calls}, *results, ANSWER]})["messages"]) == 5
    twice = [USER, {"role": "assistant", "tool_calls": calls}, results[0], results[0], ANSWER]
    assert "no open call" in faults_of({"messages": twice})[0].reason


# --- other shapes -----------------------------------------------------------------------------------------------------

PLAIN = {"messages": [USER, ANSWER]}


@pytest.mark.parametrize("row", [
    {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    {"conversations": [USER, ANSWER], "messages": None},
    {"instruction": "Why?", "input": "", "output": "So."},
    {"prompt": [USER], "completion": [ANSWER]},
    {"text": "<|user|>Why?<|assistant|>So."},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]}, ANSWER]},
])  # fmt: skip
def test_every_shape_of_one_conversation_is_one_example(row: dict[str, Any]) -> None:
    assert fields_of(row) == PLAIN
    assert read_fields("sft", {**row, "id": 7}) == PLAIN


def test_shared_conversations_with_tools() -> None:
    row = {"system": "S", "tools": json.dumps(TOOLS), "conversations": [
        {"from": "human", "value": "Why?"}, {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "a"}}'},
        {"from": "observation", "value": "b"}, {"from": "gpt", "value": "So."}]}  # fmt: skip
    fields = fields_of(row)
    assert [turn["role"] for turn in fields["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert fields["messages"][1]["tool_calls"] == [{"name": "look", "arguments": '{"at":"a"}'}] and fields["system"] == "S"


def test_an_instruction_with_input_and_history() -> None:
    row = {"instruction": "Sum up.", "input": "A text.", "output": "Short.", "history": [["Hi", "Ho"]], "system": "S"}
    assert fields_of(row) == {"system": "S", "messages": [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "Sum up.\n\nA text."}, {"role": "assistant", "content": "Short."}]}  # fmt: skip


@pytest.mark.parametrize(("row", "field", "words"), [
    ({"conversations": "x"}, "conversations", "must be a list"),
    ({"conversations": [{"from": "narrator", "value": "x"}]}, "conversations[0].from", "unknown speaker 'narrator'"),
    ({"conversations": [{"from": "function_call", "value": "x"}]}, "conversations[0].value", "must be JSON"),
    ({"conversations": [{"from": "human"}]}, "messages[0].content", "Missing required field 'content'"),
    ({"instruction": "x"}, "output", "Missing required field 'output'"),
    ({"instruction": "x", "output": "y", "history": ["a"]}, "history", "list of pairs"),
    ({"text": "plain"}, "text", "does not open with the tag"),
    ({"text": "<|user|>a<|assistant|>b", "system": "S"}, "system", "beside rendered text"),
])  # fmt: skip
def test_other_shapes_are_judged_too(row: dict[str, Any], field: str, words: str) -> None:
    fault = faults_of(row)[0]
    assert fault.field == field and words in fault.reason and fault.expected


def test_questions_and_answers_under_other_names_say_what_to_type() -> None:
    fault = faults_of({"prompt": "Why?", "completion": "So."})[0]
    assert "columns: {prompt: user, completion: assistant}" in fault.expected
    assert columns_hint(["id", "answer", "question"]).endswith("columns: {question: user, answer: assistant}")
    assert columns_hint(["a"]) == ""
    assert read_fields("sft", {"q": "Why?", "a": "So."}, reading_of({"q": "user", "a": "assistant"})) == PLAIN


def test_parts_of_turns_may_have_other_names() -> None:
    reading = reading_of({"log": "messages", "log.who": "messages.role", "log.said": "messages.content",
                          "log.mind": "messages.thinking", "log.acts": "messages.tool_calls"}, {"me": "user", "bot": "assistant"})
    row = {"log": [{"who": "me", "said": "Why?"}, {"who": "bot", "said": None, "mind": "Hm.", "acts": [NESTED]}]}
    assert read_fields("sft", row, reading) == {
        "messages": [USER, {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [CALL]}]}


@pytest.mark.parametrize(("weight", "kept"), [
    (0, "0"), (0.0, "0"), ("0", "0"), (1, None), (1.0, None), ("1", None), (None, None),
])  # fmt: skip
def test_a_weight_of_zero_is_part_of_an_answer_and_of_its_identity(weight: Any, kept: str | None) -> None:
    row = {"messages": [USER, {**ANSWER, "weight": weight}, {**USER, "weight": 0}, ANSWER]}
    fields = fields_of(row)
    assert fields["messages"][1].get("weight") == kept and "weight" not in fields["messages"][2]
    plain = example_fingerprint(fields_of({"messages": [USER, ANSWER] * 2}))
    assert (example_fingerprint(fields) == plain) is (kept is None)
    assert fields_of(fields) == fields  # what was read is read again as the same


def test_a_weight_that_says_nothing_known_or_leaves_no_answer_is_a_fault() -> None:
    for weight in (2, 0.5, True, False, "", "no", [0], -1):
        fault = faults_of({"messages": [USER, {**ANSWER, "weight": weight}]})[0]
        assert fault.field == "messages[1].weight" and "0 (not learnt) or 1" in fault.expected
    fault = faults_of({"messages": [USER, {**ANSWER, "weight": 0}] * 2})[0]
    assert (fault.field, fault.reason) == ("messages", "no answer is trained: every weight is 0")


def test_under_the_first_rules_a_weight_is_not_looked_at() -> None:
    row = {"messages": [USER, {**ANSWER, "weight": 0}]}
    assert validate("sft", row, 1) == {"messages": [USER, ANSWER]}


def test_arguments_given_as_text_keep_their_numbers() -> None:
    written = ' {"a" : 1.10,\n"b":[1e5, 100000000000000000000000 ,-0.0],"\\u00e9 \\/ \\" ,":"x  y\\\\", "d":{ },"e":true}\t'
    wanted = '{"a":1.10,"b":[1e5,100000000000000000000000,-0.0],"é / \\" ,":"x  y\\\\","d":{},"e":true}'
    for text in (written, wanted):
        fields = fields_of(with_call(tool_calls=[{"id": "1", "name": "look", "arguments": text}]))
        assert fields["messages"][1]["tool_calls"][0]["arguments"] == wanted
    for text in ('{"a":1,"a":1}', '{"a":NaN}', '{"a":1}{', "[1.10]", '{"a":"\\ud800"}'):
        fault = faults_of(with_call(tool_calls=[{"id": "1", "name": "look", "arguments": text}]))[0]
        assert fault.field == "messages[1].tool_calls[0].arguments"


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, True, {"é\n\"\\": "\u2028\x7f"}]}, {"": "", " ": " { } "}])
def test_arguments_are_the_same_as_an_object_and_as_text(value: dict[str, Any]) -> None:
    spelt = [value, json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2)]
    rows = [fields_of(with_call(tool_calls=[{"id": "1", "name": "look", "arguments": item}])) for item in spelt]
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.parametrize("name", ["two words", "a<|call|>", "a\n", " a", "é", "a" * 129, "f(x)"])
def test_a_name_that_no_tool_can_have_is_a_fault(name: str) -> None:
    call = {"id": "1", "name": name, "arguments": {}}
    rows = [(with_call(tool_calls=[call]), "messages[1].tool_calls[0].name"),
            (with_call(tool_calls=[{"id": "1", "function": call}]), "messages[1].tool_calls[0].function.name"),
            (with_call(function_call=call), "messages[1].function_call.name"),
            ({"messages": [USER, ANSWER], "tools": [{"name": name}]}, "tools[0].name")]  # fmt: skip
    rows.append(({"messages": [USER, {"role": "assistant", "tool_calls": [CALL]},
                               {"role": "tool", "content": "", "name": name}, ANSWER]}, "messages[2].name"))  # fmt: skip
    for row, field in rows:
        fault = faults_of(row)[0]
        assert fault.field == field and "no name of a tool" in fault.reason and "128" in fault.expected


@pytest.mark.parametrize("name", ["functions.run", "mcp__git-hub:a/b.c", "a" * 128])
def test_usual_names_of_tools_stay_as_they_are(name: str) -> None:
    fields = fields_of(with_call(tool_calls=[{"id": "1", "name": name, "arguments": {}}]))
    assert fields["messages"][1]["tool_calls"][0]["name"] == name


def test_a_cell_of_a_table_holds_its_turns_as_json_text(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["messages", "system"], [json.dumps([USER, ANSWER], indent=1), "Be brief."],
                          [json.dumps([{**USER, "content": "é\n\"x\","}, ANSWER]), ""]])  # fmt: skip
    found = [example.fields for example in iter_examples(tmp_path / "a.csv", "sft")]
    assert found[0] == {"messages": [USER, ANSWER], "system": "Be brief."} and found[1]["messages"][0]["content"] == "é\n\"x\","


@pytest.mark.parametrize("text", [
    "[", ' [],"system":"x"', '[],"messages":[]', "[{'role': 'user'}]", "[1, NaN]", "[]]",
])  # fmt: skip
def test_text_that_is_no_list_of_turns_is_a_fault_that_says_so(text: str) -> None:
    fault = faults_of({"messages": text})[0]
    assert fault.field == "messages" and "or the JSON text of one" in fault.reason and "JSON text" in fault.expected
    assert all(faults_of({"messages": other})[0].reason == "Field 'messages' must be a list" for other in ("", "hi", "{}", "7"))
    assert faults_of({"messages": json.dumps([USER, {"role": "assistant"}])})[0].field == "messages[1].content"
