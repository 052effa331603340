"""Rows of a `.csv` or `.tsv` file (RFC 4180): the first record names the columns, every value is text.

The separator is a comma, a semicolon or a tab, whichever the header has most of outside quotes. Quoted values may hold line
ends. A record with more or fewer cells than the header is a bad row; an empty cell is a key that is not there. A record that
grows beyond the size of a row ends the reading: a quote was never closed, and what follows are no records.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import BinaryIO

from guard.checks.jsonl import Fault, Row, foreign_bytes
from guard.containers.faults import CutShort
from guard.errors import DataFault

__all__ = ["read_csv"]

_SEPARATORS = (",", ";", "\t")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SHOWN_BYTES = 4096
_LONE_CR = "new-line character seen in unquoted field"
_CR_REASON, _CR_HINT = "a line ends in CR without LF", "save it with LF or CRLF line ends"


def read_csv(stream: BinaryIO, max_row_bytes: int) -> Iterator[Row]:
    """Every record after the header, as a row or a fault; `line_number` is where it begins, `raw` is empty.

    Raises DataFault (no header that can be used, a record without an end), CutShort, OSError. Memory: one record.
    """
    lines = _Lines(stream, max_row_bytes)
    names, records = _header(lines, max_row_bytes)
    while True:
        begun = lines.begin_record()
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise CutShort(f"the quotes that open in the row of line {begun} are never closed", line=begun) from error
            fault = Fault("", f"not valid CSV: {error}", "quotes around a value, and doubled inside it")
            if _LONE_CR in str(error):
                fault = Fault("", f"not valid CSV: {_CR_REASON}", _CR_HINT)
            yield Row(begun, lines.first, None, fault)
            continue
        if cells:
            yield _row(lines, begun, names, cells)


def _header(lines: _Lines, max_row_bytes: int) -> tuple[list[str], Iterator[list[str]]]:
    """The column names, and the reader of what follows. Raises DataFault."""
    # The limit is the module's, not the reader's: it is set to what a row may hold whenever one is made.
    csv.field_size_limit(max_row_bytes + 1)
    lines.begin_record()
    first = lines.pending = next(lines, "")
    if first.lstrip().startswith(("{", "[")):
        raise DataFault("the first line is JSON and no header of column names", hint="rename it to end in .jsonl or .json")
    bare = _QUOTED.sub("", first)
    separator = max(_SEPARATORS, key=bare.count)
    records = csv.reader(lines, delimiter=separator, strict=True)
    try:
        names = next(records, [])
    except csv.Error as error:
        if _LONE_CR in str(error):
            raise DataFault(_CR_REASON, hint=_CR_HINT) from error
        raise DataFault(f"the first line is no header of column names: {error}",
                        hint="name the columns in it, e.g. text") from error  # fmt: skip
    lines.refuse_foreign_letters()
    if twice := next((name for name in names if name and names.count(name) > 1), ""):
        raise DataFault(f"the header names the column {twice[:80]!r} twice", hint="name each column once")
    return names, records


def _row(lines: _Lines, begun: int, names: list[str], cells: list[str]) -> Row:
    if lines.fault:
        return Row(begun, lines.first, None, lines.fault)
    if len(cells) != len(names):
        fault = Fault("", f"{len(cells)} cells and {len(names)} columns", "as many cells as the header has, quotes around a "
                      "value with a separator, a quote or a line end in it")  # fmt: skip
        return Row(begun, lines.first, None, fault, lines.unended and len(cells) < len(names))
    # A column without a name is an index that some programs write first.
    return Row(begun, b"", {name: cell for name, cell in zip(names, cells, strict=True) if name and cell}, None)


class _Lines:
    """The lines of the file as text, and what is remembered of the record they belong to."""

    def __init__(self, stream: BinaryIO, max_row_bytes: int) -> None:
        self._stream, self._most = stream, max_row_bytes
        self._number = self._begun = self._size = 0
        self.pending: str | None = None
        """A line that was looked at and is read again."""
        self.first = b""
        """The beginning of the record."""
        self.fault: Fault | None = None
        """What in the record is no UTF-8."""
        self.unended = False
        """Whether the last line that was read has no line end."""

    def begin_record(self) -> int:
        """Forget the record; the number of the line in which the next begins."""
        self._size, self.fault, self.first = 0, None, b""
        self._begun = self._number + 1
        return self._begun

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.pending is not None:
            line, self.pending = self.pending, None
            if line:
                return line
            raise StopIteration
        raw = self._stream.readline(self._most + 1)
        self._number += 1
        if self._number == 1:
            if foreign := foreign_bytes(raw[:16]):
                raise DataFault(foreign.reason, hint="save it as UTF-8 text, or give it the name of what it is")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        self._size += len(raw)
        if self._size > self._most:
            raise DataFault(f"the row that begins at line {self._begun} is longer than {self._most} bytes",
                            hint="is a quote in it never closed? a row may hold at most so much")  # fmt: skip
        if not raw:
            raise StopIteration
        self.first = self.first or raw[:_SHOWN_BYTES]
        self.unended = not raw.endswith(b"\n")
        return self._decoded(raw)

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            column = len(raw[: error.start].decode("utf-8")) + 1
            reason = f"invalid UTF-8 (byte 0x{raw[error.start]:02x}) at line {self._number}, column {column}"
            self.fault = self.fault or Fault("", reason, "text in UTF-8")
            return raw.decode("utf-8", "replace")

    def refuse_foreign_letters(self) -> None:
        """Raises DataFault when what was read of the header is no UTF-8."""
        if self.fault:
            raise DataFault(self.fault.reason,
                            hint="save it as UTF-8 text, with iconv -f WINDOWS-1252 -t UTF-8 (in Excel: Save as,"
                            " CSV UTF-8)")  # fmt: skip
