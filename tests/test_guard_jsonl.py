"""The row reader: any bytes end in rows or faults, in bounded memory, and each fault says where and what."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.checks.jsonl import Row, read_rows
from guard.checks.rows import iter_rows


def rows_of(data: bytes, **options: int) -> list[Row]:
    return list(read_rows(io.BytesIO(data), **options))


def fault_of(data: bytes, **options: int) -> str:
    (row,) = rows_of(data, **options)
    assert row.value is None and row.fault is not None
    return row.fault.reason


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(':"\\ a', max_size=3), json_values, max_size=3), st.booleans())
def test_every_object_that_json_writes_is_read_back(value: dict[str, Any], wide: bool) -> None:
    text = json.dumps(value, separators=(" , ", " : ") if wide else None, ensure_ascii=False)
    (row,) = rows_of(text.encode())
    assert row.value == value


@settings(max_examples=100, deadline=None)
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
        (b'{"a\\\\":1,"a\\\\":2,"b":": x"}', "duplicate key 'a"),
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
