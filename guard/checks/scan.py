"""One pass over a drop's content: rows or segments judged, counted and fingerprinted.

A `Tally` holds what was seen, in bounded memory whatever the file holds: counts, and the first faults by line.
This file opens nothing and gives no verdict on the whole: `guard/checks/identify.py` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from guard.checks.columns import Reading
from guard.checks.jsonl import Fault, Row, read_rows
from guard.checks.kinds import Detected, detect_columns
from guard.checks.rows import Fields, text_chunks, text_examples, validate
from guard.fingerprint import example_fingerprint

__all__ = [
    "LISTED_FAULTS", "ROWS_TO_DETECT", "RowFault", "Tally", "detect_kind", "scan_document", "scan_jsonl", "scan_text",
]  # fmt: skip

LISTED_FAULTS = 20
ROWS_TO_DETECT = 100
_REMEMBERED = 1_000_000  # fingerprints kept to count repeats: about 100 MB, whatever the file's size


class RowFault(NamedTuple):
    """A fault and the line it stands in."""

    line: int
    field: str
    reason: str
    expected: str


@dataclass
class Tally:
    """What one pass over a file saw. `bytes_trained` are the UTF-8 bytes of the usable examples' trained fields."""

    rows: int = 0
    examples: int = 0
    bytes_trained: int = 0
    bad: int = 0
    unusable: int = 0
    bad_rows: list[RowFault] = field(default_factory=list)
    unusable_rows: list[RowFault] = field(default_factory=list)
    first_raw: bytes = b""  # the start of the first row, for a hint
    truncated_line: int = 0
    duplicates: int = 0
    _seen: set[bytes] = field(default_factory=set)

    @property
    def duplicates_exact(self) -> bool:
        """False when the file had more examples than are remembered: there may be more repeats than were counted."""
        return len(self._seen) < _REMEMBERED

    def use(self, fingerprint: bytes, fields: Fields) -> None:
        """Count a usable example."""
        self.examples += 1
        self.bytes_trained += _text_bytes(fields)
        if fingerprint in self._seen:
            self.duplicates += 1
        elif len(self._seen) < _REMEMBERED:
            self._seen.add(fingerprint)

    def refuse_bad(self, row: Row, fault: Fault) -> None:
        """Count a row that holds no JSON object."""
        self.bad += 1
        if row.truncated:
            self.truncated_line = row.line_number
        if len(self.bad_rows) < LISTED_FAULTS:
            self.bad_rows.append(RowFault(row.line_number, *fault))

    def refuse_unusable(self, row: Row, faults: list[Fault]) -> None:
        """Count a row that was read but cannot be trained on."""
        self.unusable += 1
        if len(self.unusable_rows) < LISTED_FAULTS:
            self.unusable_rows.append(RowFault(row.line_number, *faults[0]))


def detect_kind(stream: BinaryIO, max_line_bytes: int, reading: Reading | None = None) -> tuple[Detected | None, list[str]]:
    """The kind of the first row that says one, within the first rows, and the columns of the first object."""
    columns: list[str] = []
    for row, _ in zip(read_rows(stream, max_line_bytes), range(ROWS_TO_DETECT), strict=False):
        if row.value is None:
            continue
        columns = columns or list(row.value)
        detected = detect_columns(reading.apply(row.value) if reading else row.value)
        if detected:
            return detected, columns
    return None, columns


def scan_jsonl(stream: BinaryIO, kind: str | None, max_line_bytes: int, write: Callable[[bytes], Any],
               reading: Reading | None = None, hopeless: int | None = None) -> Tally:  # fmt: skip
    """Judge every row; `write` gets the fingerprint of each usable example in order.

    Without a kind (no row said one) rows are only read: what is an object then counts as unusable.
    With more bad rows than `hopeless` reading stops there: nothing that may follow could save the file.
    """
    tally = Tally()
    for row in read_rows(stream, max_line_bytes):
        tally.rows += 1
        if tally.rows == 1:
            tally.first_raw = row.raw[:200]
        if row.value is None:
            tally.refuse_bad(row, row.fault or Fault("", "not valid JSON"))
            if hopeless is not None and tally.bad > hopeless:
                break
            continue
        if reading:
            row = row._replace(value=reading.apply(row.value))
        fields = validate(kind, row.value or {}) if kind else [Fault("", "the columns say no known kind")]
        if isinstance(fields, list):
            tally.refuse_unusable(row, reading.told(fields) if reading else fields)
            continue
        fingerprint = example_fingerprint(fields)
        write(fingerprint)
        tally.use(fingerprint, fields)
    return tally


def scan_text(stream: BinaryIO, write: Callable[[bytes], Any]) -> Tally:
    """Cut a plain text into its examples. Raises DataFault when it is not UTF-8 text."""
    tally = Tally()
    for example in text_examples(text_chunks(stream)):
        tally.rows += 1
        write(example.fingerprint)
        tally.use(example.fingerprint, example.fields)
    return tally


def scan_document(stream: BinaryIO) -> Tally:
    """Read a document to its end: it has no examples, only text. Raises DataFault when it is not UTF-8 text."""
    tally = Tally()
    for text in text_chunks(stream):
        tally.bytes_trained += len(text.encode("utf-8"))
        tally.rows = tally.rows or int(not text.isspace())
    return tally


def _text_bytes(fields: Fields) -> int:
    if "text" in fields:
        return len(fields["text"].encode("utf-8"))
    texts = [fields.get("system", ""), fields.get("context", "")]
    texts += [turn["content"] for turn in fields["messages"]]
    return len("".join(texts).encode("utf-8"))
