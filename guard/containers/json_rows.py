"""Rows of a `.json` file: one array of objects, one object that holds such an array, or objects after one another.

The file is never held whole: a scanner finds where each element ends, and each is then judged by the rules of a line of JSONL
(`guard/checks/jsonl.py`). An element that is bad by itself is a row with a fault; brackets that do not fit, a comma too many or
a second array end the reading with a DataFault, since nobody can tell any more which rows there are.
Not here: what a row is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from guard.checks.jsonl import EXPLAINED_FAULTS, Fault, Row, foreign_bytes, read_row
from guard.checks.kinds import detect_columns
from guard.containers.faults import CutShort
from guard.containers.json_nesting import Nesting, Parts, end_of_value
from guard.errors import DataFault

__all__ = ["read_json"]

_BLOCK_BYTES = 1 << 20
_SHOWN_BYTES = 4096
_SPACE = re.compile(rb"[ \t\r\n]*+")
_WRAPPERS = frozenset({"data", "dataset", "rows", "examples", "items", "records", "instances", "samples", "entries", "train"})
"""Names under which people keep a list of rows. Under any other name its elements must say a kind themselves."""
_HINT = "each row one JSON object: python -m json.tool FILE tells where it breaks"


def read_json(stream: BinaryIO, max_row_bytes: int) -> Iterator[Row]:
    """Every object, as a row or a fault; `line_number` is where it begins. Raises DataFault, CutShort, OSError.

    Memory: a megabyte, one row and what it parses to.
    """
    scanner = _Scanner(stream, max_row_bytes)
    first = scanner.peek()
    if first == b"[":
        yield from _elements(scanner)
        if scanner.peek():
            raise scanner.broken("something follows the end of the array")
    elif first == b"{":
        yield from _objects(scanner, max_row_bytes)
    elif first:
        raise scanner.broken("the file begins with neither [ nor {", "an array of objects, such as [{\"text\": \"...\"}]")


def _elements(scanner: _Scanner) -> Iterator[Row]:
    """The elements of the array that begins here."""
    scanner.expect(b"[")
    if scanner.peek() == b"]":
        scanner.expect(b"]")
        return
    while True:
        yield scanner.row()
        if scanner.peek() == b"]":
            scanner.expect(b"]")
            return
        scanner.expect(b",")
        if scanner.peek() == b"]":
            raise scanner.broken("a comma and no row after it")


def _objects(scanner: _Scanner, max_row_bytes: int) -> Iterator[Row]:
    """Objects after one another; a single one may be the wrapper of an array."""
    kept, line = scanner.lookahead(max_row_bytes), scanner.line()
    if kept is None:  # longer than any row: only the array in it can hold rows
        yield from _members(scanner, None)
        return
    first = scanner.row()
    inner = _wrapped(first.value) if first.value and not scanner.peek() else ""
    if inner:
        scanner.rewind_to(kept, line)
        yield from _members(scanner, inner)
        return
    yield first
    while found := scanner.peek():
        if found != b"{":
            raise scanner.broken("something that is no object follows an object")
        yield scanner.row()


def _wrapped(value: Mapping[str, Any]) -> str:
    """The key of the one list of objects in an object that is no row itself; "" when it is one."""
    lists = [key for key, item in value.items()
             if isinstance(item, list) and item and all(isinstance(part, dict) for part in item)]  # fmt: skip
    if detect_columns(value) or len(lists) != 1:
        return ""
    return lists[0] if lists[0] in _WRAPPERS or detect_columns(value[lists[0]][0]) else ""


def _members(scanner: _Scanner, wanted: str | None) -> Iterator[Row]:
    """The rows under one key of the object that begins here; None: under the only key with an array of objects."""
    found = ""
    scanner.expect(b"{")
    while True:
        key = scanner.key()
        rows = key == wanted if wanted is not None else scanner.begins_rows()
        if rows and found:
            raise scanner.broken(f"it holds two lists of objects, {found!r} and {key!r}", "one list of rows a file")
        if rows:
            found = key
            yield from _elements(scanner)
        else:
            scanner.skip()
        if scanner.peek() == b"}":
            scanner.expect(b"}")
            break
        scanner.expect(b",")
    if scanner.peek():
        raise scanner.broken("something follows the end of the object")
    if not found:
        raise DataFault("the file is one object, too long for a row, with no list of objects in it", hint=_HINT)


class _Scanner:
    """A place in the bytes. It knows brackets and texts, and nothing of what stands in them."""

    def __init__(self, stream: BinaryIO, max_row_bytes: int) -> None:
        self._stream, self._most = stream, max_row_bytes
        self._data = stream.read(_BLOCK_BYTES)
        foreign = foreign_bytes(self._data[:16])
        if foreign:
            raise DataFault(foreign.reason, hint="save it as UTF-8 JSON, or give it the name of what it is")
        self._at = 3 if self._data.startswith(b"\xef\xbb\xbf") else 0
        self._line, self._counted = 1, 0
        self._faults = 0

    def line(self) -> int:
        """The line of this place, from 1."""
        self._line += self._data.count(b"\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def broken(self, what: str, expected: str = "") -> DataFault:
        return DataFault(f"not valid JSON at line {self.line()}: {what}", hint=expected or _HINT)

    def _more(self) -> bool:
        """Forget what lies behind and read on; False at the end of the file."""
        self.line()
        piece = self._stream.read(_BLOCK_BYTES)
        self._data, self._at, self._counted = self._data[self._at :] + piece, 0, 0
        return bool(piece)

    def peek(self) -> bytes:
        """The next byte that is no white space, b"" at the end of the file."""
        while True:
            match = _SPACE.match(self._data, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._data):
                return self._data[self._at : self._at + 1]
            if not self._more():
                return b""

    def expect(self, byte: bytes) -> None:
        found = self.peek()
        if not found:
            raise CutShort(f"the file ends at line {self.line()}, before its {byte.decode()}", line=self.line())
        if found != byte:
            raise self.broken(f"{byte.decode()!r} was expected, and {ascii(found)[1:]} stands there")
        self._at += 1

    def key(self) -> str:
        """The key of an object's next member, and its colon."""
        line = self.line()
        if self.peek() not in (b'"', b""):
            raise self.broken("a key in quotes was expected")
        text = self._value(keep=self._most)
        self.expect(b":")
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise DataFault(f"not valid JSON at line {line}: a key that cannot be read", hint=_HINT) from error

    def begins_rows(self) -> bool:
        """Whether the value that begins here is an array whose first element is an object."""
        if self.peek() != b"[":
            return False
        while True:
            match = _SPACE.match(self._data, self._at + 1)
            assert match is not None
            if match.end() < len(self._data):
                return self._data[match.end() : match.end() + 1] == b"{"
            if len(self._data) - self._at > 2 * _BLOCK_BYTES or not self._more():
                return False

    def lookahead(self, most_bytes: int) -> bytes | None:
        """All bytes from here on if the value that begins here is no longer than `most_bytes`, else None; nothing is passed."""
        self.peek()
        while len(self._data) - self._at <= most_bytes + _BLOCK_BYTES:
            end = end_of_value(self._data, self._at)
            if end is not None:
                return self._data[self._at : end] if end - self._at <= most_bytes else None
            if not self._more():
                return self._data[self._at :]
        return None

    def rewind_to(self, kept: bytes, line: int) -> None:
        """Stand before a value again that was the last of the file and began in that line."""
        self._data, self._at, self._line, self._counted = kept, 0, line, 0

    def row(self) -> Row:
        """The value that begins here, judged as a row."""
        self.peek()
        line = self.line()
        raw = self._value(keep=self._most)
        if len(raw) > self._most:
            fault = Fault("", f"row longer than {self._most} bytes", f"at most {self._most} bytes a row")
            return Row(line, raw[:_SHOWN_BYTES], None, fault)
        row = read_row(0, raw, False, self._most, self._faults < EXPLAINED_FAULTS)
        if row is None:
            raise self.broken("a row was expected")
        self._faults += row.fault is not None
        return row._replace(line_number=line)

    def skip(self) -> None:
        """Pass over a value."""
        self.peek()
        self._value(keep=0)

    def _value(self, keep: int) -> bytes:
        """Pass over the value that begins here; its bytes, of which no more are kept than a few above `keep`."""
        first, begun = self.peek(), self.line()
        if not first:
            raise CutShort(f"the file ends at line {begun}, where a row was to begin", line=begun)
        nesting, parts = Nesting(), Parts(keep)
        while True:
            stop = nesting.scan(self._data, self._at)
            parts.add(self._data[self._at : stop])
            self._at = stop
            if nesting.fault:
                raise self.broken(nesting.fault)
            if nesting.done:
                return parts.joined()
            if not self._more():
                if nesting.is_scalar:
                    return parts.joined()
                raise CutShort(f"the file ends inside the row that begins at line {begun}", line=begun)
