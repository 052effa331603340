"""Preference files of any spelling into one `pairs_all.jsonl`, with what was left out and why.

Rows are judged by the rules of intake; a pair that comes again is written once. A safety filter, where one is configured
and not skipped, leaves out pairs that break a rule, each told by file, line and rule. Nothing is written until all rows
were read, and nothing at all when only judging.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from guard.checks.jsonl import Fault, Row
from guard.checks.rows import read_fields
from guard.checks.safety import Rule, broken_rules
from guard.durable import make_dir, open_new
from guard.errors import DataFault, NotFound, UsageError
from trainer.making import check_writable
from trainer.pairs.pair import PAIRS_FILE, pair_id, pair_line
from trainer.row_files import data_files, reading_beside, rows_of

__all__ = ["prepare_pairs"]

_LISTED = 20
_LONGEST_NAME = 200
_BATCH_ROWS = 256


@dataclass
class _Tally:
    """What was seen so far."""

    everything: bool
    rows: int = 0
    pairs: int = 0
    repeated: int = 0
    faults_count: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)

    def refuse(self, file: str, line: int, faults: Sequence[Fault]) -> None:
        self.faults_count += 1
        for fault in faults:
            if self.everything or len(self.faults) < _LISTED:
                self.faults.append({"file": file, "line": line, "field": fault.field, "reason": fault.reason,
                                    "expected": fault.expected})  # fmt: skip


def prepare_pairs(inputs: Sequence[Path], output_dir: Path | None, rules: Sequence[Rule] = (), *,
                  everything: bool = False) -> dict[str, Any]:  # fmt: skip
    """Write `output_dir`/pairs_all.jsonl from the files and folders; with no `output_dir` only judge.

    The report: `output` (or null), `rows`, `pairs`, `repeated`, `faults_count`, `faults[]` (the first 20, or all with
    `everything`: `file line field reason expected`), `dropped_count`, `dropped[]` (`file line rule`), `sources` {src: pairs}.
    Raises NotFound, UsageError for an output that exists, DataFault when no row can be used.
    """
    files = [item for path in inputs for item in _files(path)]
    output = output_dir / PAIRS_FILE if output_dir else None
    if output is not None and output.exists():
        raise UsageError(f"{output} exists already", subject=str(output), hint="name another --output-dir")
    if output is not None:
        check_writable(output.parent)
        make_dir(output.parent)
    tally = _Tally(everything)
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(open_new(output)) if output else None
        for path, name in files:
            _read(path, name, tally, rules, handle)
        if output is not None and not tally.pairs:
            reason = tally.faults[0]["reason"] if tally.faults else "every row was left out" if tally.rows else "no row in it"
            raise DataFault("no row can be used", subject=files[0][1], hint=reason)
    return {
        "output": str(output) if output else None, "rows": tally.rows, "pairs": tally.pairs, "repeated": tally.repeated,
        "faults_count": tally.faults_count, "faults": tally.faults, "dropped_count": len(tally.dropped),
        "dropped": tally.dropped, "sources": dict(sorted(tally.sources.items())),
    }  # fmt: skip


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    if not path.exists():
        raise NotFound(f"no file {path}", subject=str(path), hint="check the path after --input")
    if path.is_file():
        yield path, path.name
        return
    found = data_files(path)
    if not found:
        raise NotFound(f"there is no data file in {path}", subject=str(path), hint="rows: .jsonl, .parquet or Arrow")
    for item in found:
        yield item.path, f"{path.name}/{item.name}"


def _read(path: Path, name: str, tally: _Tally, rules: Sequence[Rule], handle: BinaryIO | None) -> None:
    """All rows of one file into the tally, and its pairs into the output."""
    rows, reading = rows_of(path), reading_beside(path, "preference")
    while batch := list(islice(rows, _BATCH_ROWS)):
        usable: list[tuple[Row, dict[str, Any]]] = []
        for row in batch:
            tally.rows += 1
            found = (read_fields("preference", row.value, reading) if row.value is not None else
                     [row.fault or Fault("", "not valid JSON")])  # fmt: skip
            if isinstance(found, list):
                tally.refuse(name, row.line_number, found)
            else:
                usable.append((row, found))
        for (row, fields), rule in zip(usable, broken_rules(rules, [item[1] for item in usable]), strict=True):
            if rule:
                tally.dropped.append({"file": name, "line": row.line_number, "rule": rule})
            else:
                _use(row.value or {}, fields, path.name.partition(".")[0], tally, handle)


def _use(value: Mapping[str, Any], fields: Mapping[str, Any], stem: str, tally: _Tally, handle: BinaryIO | None) -> None:
    """Write a pair that did not come before."""
    identity = uuid.UUID(pair_id(fields)).bytes
    if identity in tally.seen:
        tally.repeated += 1
        return
    tally.seen.add(identity)
    tally.pairs += 1
    source = _name_in(value, "src") or _name_in(value, "source") or stem
    tally.sources[source] = tally.sources.get(source, 0) + 1
    if handle is not None:
        handle.write(pair_line(fields, source, _name_in(value, "id")))


def _name_in(value: Mapping[str, Any], key: str) -> str:
    """An id or source that the row brings along, when it is a name."""
    text = value.get(key)
    return text if isinstance(text, str) and 0 < len(text) <= _LONGEST_NAME and text.isprintable() else ""
