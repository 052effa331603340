"""One pass over a drop's content: rows or segments judged, counted and fingerprinted.

A `Tally` holds what was seen, in bounded memory whatever the file holds: counts, and the first faults by line.
This file opens nothing and gives no verdict on the whole: `guard/checks/identify.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from guard.checks.columns import Reading
from guard.checks.jsonl import EXPLAINED_FAULTS, Fault, Row, foreign_bytes, line_blocks, lines_of, read_row
from guard.checks.kinds import Detected, detect_columns
from guard.checks.quick_rows import QuickRows
from guard.checks.row_plans import form_bytes
from guard.checks.rows import Fields, read_fields, text_chunks, text_examples
from guard.checks.task_rows import is_evaluation_task
from guard.fingerprint import FINGERPRINT_BYTES, canonical_bytes, fingerprints_of
from guard.token_ids import highest_id

__all__ = [
    "LISTED_FAULTS", "ROWS_TO_DETECT", "RowFault", "Tally", "detect_kind", "scan_document", "scan_jsonl", "scan_rows",
    "scan_text",
]  # fmt: skip

LISTED_FAULTS = 20
ROWS_TO_DETECT = 100
_ROWS_TOGETHER = 64  # rows of a binary container may be 16 MB each
_REMEMBERED = 4_000_000  # fingerprints kept to count repeats: at most 64 MB, and as much again twice while counting


class RowFault(NamedTuple):
    """A fault and the line it stands in; `member`: the file of a packed folder that this line is in, else ""."""

    line: int
    field: str
    reason: str
    expected: str
    member: str = ""

    @property
    def place(self) -> str:
        """`line 17`, or `data/train-00000.jsonl:17` in a packed folder."""
        return f"{self.member}:{self.line}" if self.member else f"line {self.line}"

    def as_dict(self) -> dict[str, Any]:
        """The fault as plain values; a file that is no folder has no `member`."""
        return {key: value for key, value in self._asdict().items() if key != "member" or value}


@dataclass
class Tally:
    """What one pass over a file saw. `bytes_trained` are the UTF-8 bytes of the usable examples'
    trained texts, about."""

    rows: int = 0
    examples: int = 0
    bytes_trained: int = 0
    bad: int = 0
    unusable: int = 0
    bad_rows: list[RowFault] = field(default_factory=list)
    unusable_rows: list[RowFault] = field(default_factory=list)
    first_raw: bytes = b""  # the start of the first row, for a hint
    truncated_line: int = 0
    truncated_in: str = ""  # the file of a packed folder that this line is in
    max_token_id: int = -1
    max_token_line: int = 0
    max_token_in: str = ""
    evaluation_only: int = 0
    _seen: list[bytes] = field(default_factory=list)

    @property
    def duplicates_exact(self) -> bool:
        """False when the file had more examples than are remembered: there may be more repeats than were counted."""
        return self.examples <= _REMEMBERED

    @property
    def duplicates(self) -> int:
        """Examples that are repeated within the file."""
        import numpy as np  # takes a tenth of a second to import, and most children start for a file or two

        words = np.frombuffer(b"".join(self._seen), dtype=">u8").reshape(-1, 2)
        order = np.lexsort((words[:, 1], words[:, 0]))
        return int((words[order][1:] == words[order][:-1]).all(axis=1).sum())

    def use(self, prints: list[bytes]) -> bytes:
        """Count usable examples by their fingerprints; gives them joined."""
        joined = b"".join(prints)
        if self.examples < _REMEMBERED:
            self._seen.append(joined[: (_REMEMBERED - self.examples) * FINGERPRINT_BYTES])
        self.examples += len(prints)
        return joined

    def join(self, part: Tally, member: str) -> None:
        """Count what was seen of one file of a packed folder, with its name in every fault."""
        for kept in part._seen:
            self._seen.append(kept[: max(0, _REMEMBERED - self.examples) * FINGERPRINT_BYTES])
            self.examples += len(kept) // FINGERPRINT_BYTES
        self.examples += part.examples - sum(map(len, part._seen)) // FINGERPRINT_BYTES
        self.rows, self.bytes_trained = self.rows + part.rows, self.bytes_trained + part.bytes_trained
        self.bad, self.unusable = self.bad + part.bad, self.unusable + part.unusable
        self.evaluation_only += part.evaluation_only
        self.first_raw = self.first_raw or part.first_raw
        if part.truncated_line and not self.truncated_line:
            self.truncated_line, self.truncated_in = part.truncated_line, member
        if part.max_token_id > self.max_token_id:
            self.max_token_id, self.max_token_line, self.max_token_in = part.max_token_id, part.max_token_line, member
        for mine, new in ((self.bad_rows, part.bad_rows), (self.unusable_rows, part.unusable_rows)):
            mine += [fault._replace(member=member) for fault in new[: LISTED_FAULTS - len(mine)]]

    def note(self, row: Row, fields: Fields) -> None:
        """Remember what else is worth knowing of a usable row: its highest token id, and whether it only judges models."""
        if "input_ids" in fields:
            highest = highest_id(fields["input_ids"])
            if highest > self.max_token_id:
                self.max_token_id, self.max_token_line = highest, row.line_number
        self.evaluation_only += is_evaluation_task(fields)

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


def detect_kind(rows: Iterator[Row], reading: Reading | None = None) -> tuple[Detected | None, list[str]]:
    """The kind of the first row that says one, within the first rows, and the columns of the first object."""
    columns: list[str] = []
    for row in islice(rows, ROWS_TO_DETECT):
        if row.value is None:
            continue
        columns = columns or list(row.value)
        detected = detect_columns(reading.apply(row.value) if reading else row.value)
        if detected:
            return detected, columns
    return None, columns


def scan_jsonl(stream: BinaryIO, kind: str | None, max_line_bytes: int, write: Callable[[bytes], Any],
               reading: Reading | None = None, hopeless: int | None = None) -> Tally:  # fmt: skip
    """Judge every row; `write` gets the fingerprints of the usable examples in order, a block of lines at a time.

    Without a kind (no row said one) rows are only read: what is an object then counts as unusable.
    With more bad rows than `hopeless` reading stops there: nothing that may follow could save the file.
    """
    tally, quick = Tally(), QuickRows(kind, reading, max_line_bytes)
    careful = _CarefulRows(tally, kind, reading, max_line_bytes, hopeless)
    for first, block in line_blocks(stream, max_line_bytes):
        prints: list[bytes | None] = quick.fingerprints(block) if first > 1 else [None]
        tally.rows += len(prints) - prints.count(None)
        if None in prints:
            careful.fill(first, block, prints)
        write(tally.use([found for found in prints if found]))
        if (first == 1 and tally.bad and foreign_bytes(block[:16])) or careful.is_hopeless:
            break
    tally.bytes_trained += quick.bytes_trained
    return tally


def scan_rows(rows: Iterator[Row], kind: str | None, write: Callable[[bytes], Any], reading: Reading | None = None,
              hopeless: int | None = None) -> Tally:  # fmt: skip
    """Judge the rows of any container as `scan_jsonl` does those of lines. Raises what reading them raises."""
    tally = Tally()
    careful = _CarefulRows(tally, kind, reading, 0, hopeless)
    while together := list(islice(rows, _ROWS_TOGETHER)):
        prints = [found for row in together if (found := careful.judge(row))]
        write(tally.use(prints))
        if careful.is_hopeless:
            break
    return tally


@dataclass(frozen=True)
class _CarefulRows:
    """The rows that the quick way left, judged with every rule."""

    tally: Tally
    kind: str | None
    reading: Reading | None
    max_line_bytes: int
    hopeless: int | None

    @property
    def is_hopeless(self) -> bool:
        return self.hopeless is not None and self.tally.bad > self.hopeless

    def fill(self, first: int, block: bytes, prints: list[bytes | None]) -> None:
        """Put the fingerprints of the usable rows where there is none; `first` is the number of the block's first line."""
        lines = lines_of(block)
        unfinished = -1 if block.endswith(b"\n") else len(lines) - 1
        for place in [place for place, found in enumerate(prints) if found is None]:
            explain = self.tally.bad < EXPLAINED_FAULTS
            row = read_row(first + place, lines[place], place == unfinished, self.max_line_bytes, explain)
            if row is not None:
                prints[place] = self.judge(row)
                if self.is_hopeless:
                    return

    def judge(self, row: Row) -> bytes | None:
        """Count a row; its fingerprint when it can be trained on."""
        tally = self.tally
        tally.rows += 1
        tally.first_raw = tally.first_raw or row.raw[:200]
        if row.value is None:
            tally.refuse_bad(row, row.fault or Fault("", "not valid JSON"))
            return None
        fields = read_fields(self.kind, row.value, self.reading) if self.kind else [Fault("", "the columns say no known kind")]
        if isinstance(fields, list):
            tally.refuse_unusable(row, self.reading.told(fields) if self.reading else fields)
            return None
        tally.note(row, fields)
        form = canonical_bytes(fields)
        tally.bytes_trained += len(form) - form_bytes(fields)
        return fingerprints_of([form])[0]


def scan_text(stream: BinaryIO, write: Callable[[bytes], Any]) -> Tally:
    """Cut a plain text into its examples. Raises DataFault when it is not UTF-8 text."""
    tally = Tally()
    for example in text_examples(text_chunks(stream)):
        tally.rows += 1
        tally.bytes_trained += len(example.fields["text"].encode())
        write(tally.use([example.fingerprint]))
    return tally


def scan_document(stream: BinaryIO) -> Tally:
    """Read a document to its end: it has no examples, only text. Raises DataFault when it is not UTF-8 text."""
    tally = Tally()
    for text in text_chunks(stream):
        tally.bytes_trained += len(text.encode("utf-8"))
        tally.rows = tally.rows or int(not text.isspace())
    return tally
