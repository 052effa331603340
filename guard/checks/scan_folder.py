"""One pass over a packed data set: its files of rows judged one after the other, counted as one.

Beside the tally there is where each file's examples begin (`splits`), and faults name their file. This gives no verdict:
`guard/checks/identify.py` does. Not here: how a file's rows are read (`members.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from guard.checks.columns import Reading
from guard.checks.folders import shown_name
from guard.checks.kinds import Detected
from guard.checks.members import DataSet, read_member
from guard.checks.scan import Tally, detect_kind, scan_jsonl, scan_rows
from guard.tars import open_part

__all__ = ["FolderTally", "detect_folder_kind", "scan_folder"]


@dataclass
class FolderTally(Tally):
    """A tally of several files; `splits`: {split, member, start, count} for each, in ordinals of the whole."""

    splits: list[dict[str, Any]] = field(default_factory=list)


def detect_folder_kind(stream: BinaryIO, found: DataSet, max_line_bytes: int,
                       reading: Reading | None = None) -> tuple[Detected | None, list[str]]:  # fmt: skip
    """The kind of the first row that says one, and the columns of the first object. Raises DataFault."""
    columns: list[str] = []
    for member, file in found.members:
        with open_part(stream, file) as part:
            detected, first = detect_kind(read_member(part, member, max_line_bytes), reading)
        columns = columns or first
        if detected:
            return detected, columns
    return None, columns


def scan_folder(stream: BinaryIO, found: DataSet, kind: str | None, max_line_bytes: int, write: Callable[[bytes], Any],
                reading: Reading | None = None, hopeless: int | None = None) -> FolderTally:  # fmt: skip
    """Judge every row of every file; `write` gets the fingerprints of the usable examples in order. Raises DataFault.

    As `scan_jsonl`: without a kind rows are only read, and beyond `hopeless` bad rows reading stops.
    """
    whole = FolderTally()
    for member, file in found.members:
        with open_part(stream, file) as part:
            if member.container == "jsonl":
                tally = scan_jsonl(part, kind, max_line_bytes, write, reading, hopeless)
            else:
                tally = scan_rows(read_member(part, member, max_line_bytes), kind, write, reading)
        name = shown_name(member.name)
        whole.splits.append({"split": member.split, "member": name, "start": whole.examples, "count": tally.examples})
        whole.join(tally, name)
        if hopeless is not None and whole.bad > hopeless:
            break
    return whole
