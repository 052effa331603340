"""The rules of a row, and the examples of a stored file: each fault names its field, each ordinal stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from guard.checks.jsonl import Fault
from guard.checks.rows import iter_examples, validate_pretrain, validate_sft
from guard.errors import DataFault
from guard.fingerprint import example_fingerprint

USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be kind."}


def faults_of(value: dict[str, Any]) -> list[Fault]:
    faults = validate_sft(value)
    assert isinstance(faults, list)
    return faults


# Rules --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ({}, "messages", "Missing required field 'messages'"),
        ({"messages": "hello"}, "messages", "Field 'messages' must be a list"),
        ({"messages": None}, "messages", "Field 'messages' must be a list"),
        ({"messages": []}, "messages", "Field 'messages' is empty"),
        ({"messages": ["hello"]}, "messages[0]", "a turn must be an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "Missing required field 'role'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role", "Field 'role' must be a string"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "a tool turn and no call before it"),
        ({"messages": [{"role": "User", "content": "x"}]}, "messages[0].role", "unknown role 'User'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "Missing required field 'content'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "Missing required field 'text'",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": " \n"}]},
            "messages[1].content",
            "Field 'content' is empty after stripping",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "a\0"}]},
            "messages[1].content",
            "Field 'content' holds a NUL character",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": [1]}]},
            "messages[1].tool_calls[0]",
            "a tool call must be an object",
        ),
        ({"messages": [ASSISTANT]}, "messages[0].role", "the first turn is from the assistant"),
        ({"messages": [SYSTEM, ASSISTANT]}, "messages[1].role", "the first turn is from the assistant"),
        ({"messages": [USER]}, "messages[0].role", "the last turn is from the user"),
        ({"messages": [USER, ASSISTANT, USER]}, "messages[2].role", "the last turn is from the user"),
        ({"messages": [USER, USER, ASSISTANT]}, "messages[1].role", "two turns from the user in a row"),
        ({"messages": [USER, ASSISTANT, ASSISTANT]}, "messages[2].role", "two turns from the assistant in a row"),
        ({"messages": [SYSTEM]}, "messages", "there is only a system turn"),
        ({"messages": [USER, SYSTEM, ASSISTANT]}, "messages[1].role", "a system turn after the first turn"),
        (
            {"messages": [SYSTEM, USER, ASSISTANT], "system": "x"},
            "messages[0].role",
            "a system turn beside the field 'system'",
        ),
        ({"messages": [USER, ASSISTANT], "system": 5}, "system", "Field 'system' must be a string"),
        ({"messages": [USER, ASSISTANT], "context": ["a"]}, "context", "Field 'context' must be a string"),
    ],
)
def test_an_unusable_conversation_says_field_and_reason(value: dict[str, Any], field: str, reason: str) -> None:
    fault = faults_of(value)[0]
    assert (fault.field, fault.reason) == (field, reason)
    assert fault.expected


def test_every_faulty_turn_is_told() -> None:
    assert [fault.field for fault in faults_of({"context": 1, "messages": [1, {"role": "x"}, USER]})] == [
        "context",
        "messages[0]",
        "messages[1].role",
    ]


def test_a_conversation_keeps_its_trained_fields_and_nothing_else() -> None:
    value = {"id": 7, "system": "Be kind.", "context": "", "messages": [{**USER, "score": 1}, ASSISTANT]}
    assert validate_sft(value) == {"system": "Be kind.", "messages": [USER, ASSISTANT]}


def test_both_spellings_of_a_system_prompt_are_one_example() -> None:
    first = validate_sft({"messages": [SYSTEM, USER, ASSISTANT]})
    second = validate_sft({"messages": [USER, ASSISTANT], "system": "Be kind.", "context": None})
    assert first == second


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "Missing required field 'text'"),
        ({"text": 1}, "Field 'text' must be a string"),
        ({"text": " \n"}, "Field 'text' is empty after stripping"),
        ({"text": "a\0b"}, "Field 'text' holds a NUL character"),
    ],
)
def test_unusable_pretraining_rows_say_why(value: dict[str, Any], reason: str) -> None:
    (fault,) = validate_pretrain(value)
    assert isinstance(fault, Fault) and (fault.field, fault.reason) == ("text", reason)


def test_control_tokens_in_text_stay_text() -> None:
    text = "<myPT_user>ignore</myPT_user><|endoftext|>"
    assert validate_pretrain({"text": text}) == {"text": text}
    fields = validate_sft({"messages": [USER, {"role": "assistant", "content": text}]})
    assert isinstance(fields, dict) and fields["messages"][1]["content"] == text


# Examples -----------------------------------------------------------------------------------------------------------


def test_ordinals_count_the_usable_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "ROWS.JSONL"
    path.write_bytes(b'{"text": "a"}\noops\n\n{"text": ""}\n{"text": "b"}\n{"text": "a"}\n')
    examples = list(iter_examples(path, "pretrain"))
    assert [(example.ordinal, example.line_number, example.fields["text"]) for example in examples] == [
        (0, 1, "a"),
        (1, 5, "b"),
        (2, 6, "a"),
    ]
    assert examples[0].fingerprint == examples[2].fingerprint == example_fingerprint({"text": "a"})


def test_other_spacing_order_metadata_and_line_ends_are_the_same_examples(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    values = [{"messages": [USER, {"role": "assistant", "content": f"Line {number}\nend"}]} for number in range(5)]
    one.write_bytes(b"".join(orjson.dumps(value) + b"\n" for value in values))
    for value in values:
        value["messages"][1]["content"] = value["messages"][1]["content"].replace("\n", "\r\n") + "\n"
    two.write_bytes(
        b"".join(
            json.dumps({"id": 1, **value}, indent=None, separators=(" , ", " : ")).encode() + b"\r\n"
            for value in reversed(values)
        )
    )
    first = {example.fingerprint for example in iter_examples(one, "sft")}
    assert first == {example.fingerprint for example in iter_examples(two, "sft")} and len(first) == 5


def test_a_plain_text_gives_its_segments_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    text = "".join(f"Sentence number {number} of a book.\n" for number in range(2000))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    examples = list(iter_examples(path, "pretrain"))
    assert "".join(example.fields["text"] for example in examples) == text
    lines = text.split("\n")
    assert all(example.fields["text"].startswith(lines[example.line_number - 1]) for example in examples)
    assert [example.ordinal for example in examples] == list(range(len(examples))) and len(examples) > 10


def test_segments_of_white_space_are_no_examples_and_documents_have_none(tmp_path: Path) -> None:
    path = tmp_path / "blank.txt"
    path.write_text("\n" * 5000)
    assert list(iter_examples(path, "pretrain")) == []
    path.write_text("A document.")
    assert list(iter_examples(path, "docs")) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"good\nb\xc3\xa9\xffx", "invalid UTF-8 (byte 0xff) at line 2, column 3"),
        (b"good\n\nab\0c", "a NUL character at line 3, column 3"),
        ("text".encode("utf-16"), "UTF-16"),
        (b"cut \xe2\x82", "invalid UTF-8 (byte 0xe2) at line 1, column 5"),
        (b"x" * ((1 << 20) - 1) + b"\xe2\x82\xac" + b"ab\xff", f"at line 1, column {(1 << 20) + 3}"),
    ],
)
def test_a_plain_text_that_is_not_utf8_says_where(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(data)
    with pytest.raises(DataFault) as caught:
        list(iter_examples(path, "pretrain"))
    assert words in caught.value.message
