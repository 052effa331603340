"""The event export: the audit trail once more, outside the ledger, as lines of JSON in `data/events/00001.jsonl` ...

What the ledger knows beyond the folders (what was moved where, which jobs were asked for, whose tip was moved) can be
told again from here when the ledger is lost, and a ledger that ends before the export does is an old copy.

A line is appended right after the transaction that wrote its event, and synced before a file or version is
acknowledged (`views.refresh`) and at the end. The export may thus lack a tail, which the ledger's next writer appends;
it never has more than the ledger. A line that a sudden death cut off is cut away first.
Not here: the chain itself (`ledger.py`), or making a ledger from these lines (`rebuild.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from guard.copies import copy_verified
from guard.durable import append_to, cut_file, fsync_file, make_dir

__all__ = ["EVENT_KEYS", "GENESIS", "SEGMENT_EVENTS", "EventExport", "event_hash", "is_whole", "read_events"]

GENESIS = "0" * 64
EVENT_KEYS = ("seq", "utc", "boot_id", "actor", "verb", "subject", "payload", "previous", "hash")
SEGMENT_EVENTS = 10_000
"""Events in one file; number N is in file (N - 1) // 10,000 + 1."""
_TAIL_BYTES = 1 << 16

Event = Mapping[str, Any]


def event_hash(previous: str, fields: Sequence[object]) -> str:
    """SHA-256 over the previous hash and the event's own fields in canonical JSON."""
    return hashlib.sha256(orjson.dumps([previous, *fields])).hexdigest()


def is_whole(event: Event) -> bool:
    """Whether an event carries the hash of its own content."""
    try:
        return event_hash(event["previous"], [event[key] for key in EVENT_KEYS[:7]]) == event["hash"]
    except (KeyError, TypeError):
        return False


def _line(event: Event) -> bytes:
    return orjson.dumps({key: event[key] for key in EVENT_KEYS}, option=orjson.OPT_APPEND_NEWLINE)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None for anything else."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and is_whole(event) else None


def _segments(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*.jsonl") if path.stem.isdecimal()), key=lambda path: int(path.stem))


def read_events(folder: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Every line in order as (file name, event); the event is None where a line is damaged. Raises OSError."""
    for path in _segments(folder):
        with path.open("rb") as handle:
            for line in handle:
                yield path.name, _parsed(line) if line.endswith(b"\n") else None


class EventExport:
    """The export of one ledger. Written only by the ledger's writer, in `Ledger.transaction`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.newest = 0
        """Number of the newest event that was appended."""
        self._unsynced: set[Path] = set()
        self._failed: set[Path] = set()

    def head(self) -> tuple[int, str]:
        """Number and hash of the newest whole event; (0, 64 zeros) for none. Reads only."""
        for path in reversed(_segments(self.folder) if self.folder.is_dir() else []):
            event, _size = _last_whole(path)
            if event is not None:
                return int(event["seq"]), str(event["hash"])
        return 0, GENESIS

    def open(self) -> tuple[int, str]:
        """Get ready for appending: cut off what a sudden death left of a last line. Returns `head`. Raises OSError."""
        make_dir(self.folder)
        segments = _segments(self.folder)
        if segments:
            _event, size = _last_whole(segments[-1])
            if size < segments[-1].stat().st_size:
                cut_file(segments[-1], size)
        self.newest, digest = self.head()
        return self.newest, digest

    def append(self, events: Sequence[Event]) -> None:
        """Append events, whose numbers go on from `newest`. Raises OSError; then call `open` again."""
        for segment, part in groupby(events, key=lambda event: (event["seq"] - 1) // SEGMENT_EVENTS + 1):
            path, together = self.folder / f"{segment:05d}.jsonl", list(part)
            append_to(path, b"".join(_line(event) for event in together))
            self._unsynced.add(path)
            self.newest = together[-1]["seq"]

    def sync(self) -> None:
        """Make everything appended so far durable. Raises OSError.

        After a failed fsync the kernel calls lost pages clean (law 1): such a segment is written anew, not synced again.
        """
        for path in sorted(self._unsynced):
            if path in self._failed:
                copy_verified(path, path)
                continue
            try:
                fsync_file(path)
            except OSError:
                self._failed.add(path)
                raise
        self._unsynced.clear()
        self._failed.clear()


def _last_whole(path: Path) -> tuple[dict[str, Any] | None, int]:
    """The last whole event of a segment and where it ends; (None, 0) when no line of it is whole."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        span = _TAIL_BYTES
        while True:
            start = max(0, size - span)
            handle.seek(start)
            lines = handle.read(size - start).splitlines(keepends=True)
            end = size
            # The first piece of a tail may be half a line; only at the file's start it is a whole one.
            for line in reversed(lines if start == 0 else lines[1:]):
                event = _parsed(line) if line.endswith(b"\n") else None
                if event is not None:
                    return event, end
                end -= len(line)
            if start == 0:
                return None, 0
            span *= 8
