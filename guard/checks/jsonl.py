"""Reading JSONL: bytes in, one row or one fault per line out, in bounded memory and without ever raising on content.

A line ends at LF and nowhere else (U+2028 inside a string is text). Accepted is what every JSON reader agrees on:
UTF-8 with or without a mark, objects only, each key once, no NaN, no lone surrogates, no raw control characters,
at most 100 levels deep, at most `max_line_bytes` long. A fault names the column and what was expected.
This file does not know what a row is for: `guard/checks/rows.py` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import orjson

__all__ = ["EXPLAINED_FAULTS", "FOREIGN", "MAX_LINE_BYTES", "Fault", "Row", "foreign_bytes", "line_blocks", "lines_of",
           "read_row", "read_rows"]  # fmt: skip

FOREIGN = "the file is "
MAX_LINE_BYTES = 16 << 20
MAX_DEPTH = 100
EXPLAINED_FAULTS = 100  # explaining costs more than finding; a file with more faults than this is refused anyway
_MAX_SHOWN_BYTES = 4096
_BLOCK_BYTES = 1 << 20

_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32 (little-endian)"),
    (b"\x00\x00\xfe\xff", "UTF-32 (big-endian)"),
    (b"\xff\xfe", "UTF-16 (little-endian)"),
    (b"\xfe\xff", "UTF-16 (big-endian)"),
)
_MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (b"PK\x03\x04", "zip"),
    (b"PAR1", "parquet"),
    (b"%PDF-", "PDF"),
    (b"SQLite format 3\x00", "SQLite"),
    (b"ARROW1", "Arrow"),
    (b"\xff\xff\xff\xff", "Arrow"),
    (b"\x93NUMPY", "NumPy"),
)
_UNMARKED = (  # RFC 4627, section 3: the NULs among the first four bytes tell the encoding
    (re.compile(rb"\0\0\0[^\0]", re.DOTALL), "UTF-32 (big-endian)"),
    (re.compile(rb"[^\0]\0\0\0", re.DOTALL), "UTF-32 (little-endian)"),
    (re.compile(rb"\0[^\0]\0[^\0]", re.DOTALL), "UTF-16 (big-endian)"),
    (re.compile(rb"[^\0]\0[^\0]\0", re.DOTALL), "UTF-16 (little-endian)"),
)
_KEY_END = re.compile(rb'"(?<!\\")\s*:')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Fault(NamedTuple):
    """What is wrong with a row, or with one field of it."""

    field: str
    reason: str
    expected: str = ""


class Row(NamedTuple):
    """One line that is not blank: `value` is an object, or `fault` says why there is none."""

    line_number: int
    raw: bytes  # the line without its end; only its first 4 KB where it could not be read
    value: dict[str, Any] | None
    fault: Fault | None
    truncated: bool = False  # the file stops in the middle of this row: perhaps it is still being written


_TOO_DEEP = Fault("", "nested too deeply", f"at most {MAX_DEPTH} levels")


class _Refused(ValueError):
    """JSON that Python's parser would accept and we do not."""


def foreign_bytes(head: bytes) -> Fault | None:
    """A fault when a file's first bytes say that it is not UTF-8 text at all: another encoding, or a known format."""
    for marks, what in ((_MARKS, "text in {}"), (_MAGICS, "a {} file, not text")):
        for mark, name in marks:
            if head.startswith(mark):
                return Fault("", FOREIGN + what.format(name), "text in UTF-8")
    for pattern, name in _UNMARKED:
        if pattern.match(head):
            return Fault("", f"{FOREIGN}text in {name}", "text in UTF-8")
    return None


def line_blocks(stream: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Whole lines, many at a time: (number of the first, the lines as they stand with their ends).

    `stream` is at the file's first byte; the first line comes alone, and only the last of the file may have no end. Of a
    line longer than `max_line_bytes` only a beginning that is longer is given. Memory: a megabyte and one line.
    """
    number, size = 1, 0
    while block := stream.read(size) + stream.readline(max_line_bytes + 1):
        if not block.endswith(b"\n") and len(block) - block.rfind(b"\n") - 1 > max_line_bytes:
            _skip_line(stream)
            block += b"\n"
        yield number, block
        number, size = number + block.count(b"\n"), _BLOCK_BYTES


def lines_of(block: bytes) -> list[bytes]:
    """The lines of a block without their ends."""
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def read_rows(stream: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Row]:
    """Every line that is not blank, as a row or a fault; `stream` is at the file's first byte.

    A file that is not UTF-8 text gives one row with a fault and ends there. Memory: a megabyte, one line and what it
    parses to.
    """
    faults = 0
    for first, block in line_blocks(stream, max_line_bytes):
        ended = block.endswith(b"\n")
        lines = lines_of(block)
        for number, line in enumerate(lines, first):
            last = not ended and number == first + len(lines) - 1
            row = read_row(number, line, last, max_line_bytes, faults < EXPLAINED_FAULTS)
            if row is None:
                continue
            yield row
            if row.fault:
                faults += 1
                if number == 1 and foreign_bytes(line[:16]):
                    return


def read_row(number: int, line: bytes, last: bool, max_line_bytes: int, explain: bool) -> Row | None:
    """One line without its end as a row or a fault; None for a blank one. `last`: the file ends inside this line."""
    if number == 1:
        foreign = foreign_bytes(line[:16])
        if foreign:
            return Row(1, line[:_MAX_SHOWN_BYTES], None, foreign)
        line = line.removeprefix(b"\xef\xbb\xbf")
    if len(line) > max_line_bytes:
        fault = Fault("", f"line longer than {max_line_bytes} bytes", f"at most {max_line_bytes} bytes a row")
        return Row(number, line[:_MAX_SHOWN_BYTES], None, fault)
    try:
        value = orjson.loads(line)
        if type(value) is dict and _is_plain(line, value):
            return Row(number, line, value, None)
        raw, fault = line.rstrip(), _object_fault(line.rstrip(), value)
    except orjson.JSONDecodeError:
        raw = line.rstrip()
        if not raw:
            return None
        fault = _explain(raw) if explain or last else Fault("", "not valid JSON", "one JSON object")
    return Row(number, raw[:_MAX_SHOWN_BYTES], None, fault, last and _is_cut_off(raw))


def _skip_line(stream: BinaryIO) -> None:
    while (piece := stream.readline(1 << 20)) and not piece.endswith(b"\n"):
        pass


def _object_fault(raw: bytes, value: Any) -> Fault:
    if type(value) is not dict:
        return _not_an_object(value)
    return _TOO_DEEP if _is_too_deep(value) else _explain(raw)


def _is_plain(raw: bytes, value: dict[str, Any]) -> bool:
    """Whether what orjson read is also what every other reader would have read: no deeper, and no key lost."""
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_too_deep(value):
        return False
    return _keys_are_unique(raw, value)


def _is_cut_off(raw: bytes) -> bool:
    """Whether the last line of a file, which has no line end, is the beginning of a row."""
    if not raw.startswith(b"{"):
        return False
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    try:
        json.loads(text, parse_int=float)
    except json.JSONDecodeError as error:
        # A string that never ends, or a complaint about the last few characters: a half-written word or escape.
        return error.msg.startswith("Unterminated string") or len(text) - error.pos <= 6
    except RecursionError:
        return False
    return False


def _is_too_deep(value: dict[str, Any]) -> bool:
    """Measured level by level: recursion would make the answer depend on the caller's own depth."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        parts = [part for item in level for part in (item.values() if type(item) is dict else item)]
        level = [part for part in parts if type(part) is dict or type(part) is list]
        if not level:
            return False
    return True


def _keys_are_unique(raw: bytes, value: dict[str, Any]) -> bool:
    """Whether no object in the row repeats a key; orjson keeps the last one silently.

    In the raw text, every key ends in a quote and a colon, and inside a string a quote is escaped. So there are at
    least as many such places as keys were written; when there are no more than keys were kept, none was lost. Where
    that proves nothing (a text that starts with a colon, a backslash before a quote) Python's slower parser decides.
    """
    if rb"\\" + b'"' not in raw and len(_KEY_END.findall(raw)) == _count_keys(value):
        return True
    try:
        json.loads(raw, object_pairs_hook=_unique, parse_int=float)
    except _Refused:
        return False
    return True


def _count_keys(value: dict[str, Any]) -> int:
    count = 0
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is dict:
            count += len(item)
            item = item.values()
        for part in item:
            if type(part) is dict or type(part) is list:
                waiting.append(part)
    return count


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"duplicate key {key[:80]!r}")
            seen.add(key)
    return value


def _refuse_constant(name: str) -> float:
    raise _Refused(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"the number {text[:20]} is too large")
    return value


def _not_an_object(value: object) -> Fault:
    name = {list: "an array", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return Fault("", f"the row is {name}, not an object", 'one JSON object, such as {"text": "..."}')


def _explain(raw: bytes) -> Fault:
    """Why orjson, or the test for duplicate keys, refused the line; columns count characters from 1."""
    expected = "one JSON object"
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode("utf-8")) + 1
        return Fault("", f"invalid UTF-8 (byte 0x{raw[error.start]:02x}) at column {column}", "text in UTF-8")
    if "\0" in text:
        return Fault("", f"a NUL character at column {text.index(chr(0)) + 1}", "text without NUL")
    try:
        json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique, parse_int=_finite, parse_float=_finite)
    except _Refused as error:
        return Fault("", str(error), expected + ", each key once" if "key" in str(error) else expected)
    except RecursionError:
        return _TOO_DEEP
    except json.JSONDecodeError as error:
        return Fault("", f"not valid JSON at column {error.pos + 1}: {error.msg}", expected)
    if _SURROGATE.search(raw):
        return Fault("", "a lone surrogate (half of a \\u pair)", "whole characters")
    return Fault("", "not valid JSON", expected)
