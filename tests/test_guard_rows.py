"""The row reader and the rules: any bytes end in rows or faults, and each fault names line, field and reason."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.checks.jsonl import Fault, Row, read_rows
from guard.checks.rows import iter_examples, iter_rows, validate_pretrain, validate_sft
from guard.errors import DataFault
from guard.fingerprint import example_fingerprint

USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be kind."}


def rows_of(data: bytes, **options: int) -> list[Row]:
    return list(read_rows(io.BytesIO(data), **options))


def fault_of(data: bytes, **options: int) -> str:
    (row,) = rows_of(data, **options)
    assert row.value is None and row.fault is not None
    return row.fault.reason


def faults_of(value: dict[str, Any]) -> list[Fault]:
    faults = validate_sft(value)
    assert isinstance(faults, list)
    return faults


# Reading ------------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    b'{"a":',
                    b"1",
                    b"}",
                    b"{",
                    b"[",
                    b'"',
                    b"\\",
                    b"\n",
                    b"\r\n",
                    b"\0",
                    b"\xff",
                    b" ",
                    b":",
                    b",",
                    b"\\ud800",
                    b"NaN",
                    b'"text"',
                    b"\xe2\x80\xa8",
                ]
            ),
            max_size=30,
        ).map(b"".join),
    )
)
def test_arbitrary_bytes_end_in_rows_or_faults(data: bytes) -> None:
    rows = rows_of(data, max_line_bytes=64)
    assert all((row.value is None) != (row.fault is None) for row in rows)
    numbers = [row.line_number for row in rows]
    assert numbers == sorted(set(numbers)) and all(1 <= number <= data.count(b"\n") + 1 for number in numbers)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(':"\\ a\u2028', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(':"\\ a', max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(':"\\ a', max_size=3), json_values, max_size=3), st.booleans())
def test_every_object_that_json_writes_is_read_back(value: dict[str, Any], wide: bool) -> None:
    text = json.dumps(value, separators=(" , ", " : ") if wide else None, ensure_ascii=False)
    (row,) = rows_of(text.encode())
    assert row.value == value


@settings(max_examples=150, deadline=None)
@given(st.text(':"\\ a', min_size=1, max_size=3), st.text(':"\\ a', max_size=4), st.sampled_from(["", " ", "\t"]))
def test_a_repeated_key_is_never_missed(key: str, filler: str, space: str) -> None:
    name = json.dumps(key)
    raw = f'{{{name}{space}:1,{name}{space}:{json.dumps(filler)},"zz":{json.dumps(filler)}}}'
    assert "duplicate key" in fault_of(raw.encode())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"a": "x\0y"}', "NUL character at column 9"),
        (b'{"a": "\xc3\xa9\xff"}', "invalid UTF-8 (byte 0xff) at column 9"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key 'c'"),
        (b'{"a": 1 "b": 2}', "not valid JSON at column 9"),
        (b'[{"a": 1}]', "an array, not an object"),
        (b'"text"', "text, not an object"),
        (b"17", "a number, not an object"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 2000, "nested too deeply"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-be"), "UTF-16 (big-endian)"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16 (little-endian)"),
        ('{"a": 1}'.encode("utf-32"), "UTF-32"),
        (b"\x1f\x8b\x08\x00abc", "gzip"),
        (b"PK\x03\x04abc", "zip"),
    ],
)
def test_what_other_readers_disagree_on_is_a_fault_that_says_what(data: bytes, words: str) -> None:
    assert words in fault_of(data)


def test_a_byte_order_mark_blank_lines_and_crlf_are_accepted() -> None:
    rows = rows_of(b'\xef\xbb\xbf{"a":1}\r\n\r\n   \n{"a":2}')
    assert [(row.line_number, row.value) for row in rows] == [(1, {"a": 1}), (4, {"a": 2})]


def test_only_a_line_feed_ends_a_line() -> None:
    text = "a\u2028b\u2029c\u0085d"
    (row,) = rows_of(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
    assert row.value == {"text": text}


def test_a_wide_row_is_not_a_deep_one() -> None:
    (row,) = rows_of(b'{"a": [' + b"[]," * 500 + b"[]]}")
    assert row.fault is None


def test_a_line_too_long_is_a_fault_in_bounded_memory_and_the_next_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "giant.jsonl"
    with path.open("wb") as handle:
        handle.write(b'{"a": "')
        for _ in range(40):
            handle.write(b"x" * (1 << 20))
        handle.write(b'"}\n{"a": 1}\n')
    tracemalloc.start()
    long, good = iter_rows(path, max_line_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert long.fault is not None and "line longer than" in long.fault.reason
    assert (good.line_number, good.value) == (2, {"a": 1})
    assert peak < 10 << 20


@pytest.mark.parametrize(
    "tail",
    [
        b"{",
        b'{"text": "half a sen',
        b'{"text": "a\\u00',
        b'{"text": tru',
        b'{"text": "a"',
        b'{"text": "\xc3',
        b'{"text": [1, ',
    ],
)
def test_a_row_cut_off_at_the_end_of_the_file_is_told_from_a_bad_row(tail: bytes) -> None:
    assert [row.truncated for row in rows_of(b'{"text": "a"}\n' + tail)] == [False, True]
    assert [row.truncated for row in rows_of(tail + b'\n{"text": "a"}\n')] == [False, False]


@pytest.mark.parametrize(
    "tail", [b"a,b,c", b"]", b'{"text": NaN, "more": 1234567}', b'{"text": "a"} trailing words', b"[1, 2"]
)
def test_a_bad_last_row_is_not_a_truncated_one(tail: bytes) -> None:
    assert rows_of(b'{"text": "a"}\n' + tail)[-1].truncated is False


def test_a_valid_last_row_needs_no_line_end() -> None:
    assert rows_of(b'{"text": "a"}')[0].value == {"text": "a"}


def test_faults_are_explained_up_to_a_point_and_found_beyond_it() -> None:
    rows = rows_of(b"{oops}\n" * 300)
    assert len(rows) == 300 and all(row.fault for row in rows)


def test_pathological_numbers_do_not_stop_the_reader() -> None:
    row = rows_of(b'{"a\\\\": ' + b"9" * 10_000 + b"}\n")[0]
    assert row.fault is None or row.fault.reason


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
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "unknown role 'tool'"),
        ({"messages": [{"role": "User", "content": "x"}]}, "messages[0].role", "unknown role 'User'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "Missing required field 'content'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content",
            "Field 'content' must be a string",
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
            "messages[1].tool_calls",
            "Field 'tool_calls' cannot be trained on yet",
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
