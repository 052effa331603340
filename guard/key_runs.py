"""Rows of keys in sorted runs, and one order made of many: sorting in pieces of bounded work and memory.

What is sorted at once is RUN_ROWS rows, what is merged at once MERGE_ROWS, so that whoever sorts ten million rows gets
back to other things many times a second. A row is one place in several columns; `high` is what is sorted by.
Not here: how rows lie on disk for good (`guard/columns.py`), or how they are asked (`guard/key_columns.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.columns import BLOCK_ROWS

__all__ = ["RUN_ROWS", "Rows", "Runs", "Sorted", "in_order", "joined", "key_rows", "merged", "split_keys"]

RUN_ROWS = 1 << 17
"""So many rows are sorted at a time: some 20 ms."""
MERGE_ROWS = 1 << 16
_LEAST_WINDOW = 1024
Rows = dict[str, NDArray[Any]]


def split_keys(fingerprints: bytes | memoryview) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """(high, low): the first 8 and the next 4 of each 16 bytes, big-endian, as numbers [n]."""
    words = np.frombuffer(fingerprints, dtype=">u8").reshape(-1, 2)
    return words[:, 0].astype(np.uint64), (words[:, 1] >> np.uint64(32)).astype(np.uint32)


def key_rows(fingerprints: bytes | memoryview, file: int, first: int = 0) -> Rows:
    """Rows of a stretch of one file's sidecar, 16 bytes for each ordinal from `first` on, in the order of the file."""
    high, low = split_keys(fingerprints)
    ordinal = np.arange(first, first + len(high), dtype=np.uint32)
    return {"high": high, "low": low, "file": np.full(len(high), file, dtype=np.uint32), "ordinal": ordinal}


def joined(parts: Sequence[Rows]) -> Rows:
    """Several stretches as one, one behind the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def in_order(rows: Rows) -> Rows:
    """The same rows, ascending by `high`; rows of one key keep their order."""
    order = np.argsort(rows["high"], kind="stable")
    return {name: column[order] for name, column in rows.items()}


@dataclass(frozen=True)
class Sorted:
    """Rows in ascending order of `high`, in memory or on disk: what is merged."""

    columns: Mapping[str, NDArray[Any]]
    rows: int
    first_file: int = 0
    """Its file numbers are counted on from here."""
    prove: Callable[[NDArray[np.int64]], None] | None = None
    """Compares blocks before they are used; None for what never was on a disk."""


def merged(sources: Sequence[Sorted]) -> Iterator[Rows]:
    """All rows in order, some MERGE_ROWS at a time, whatever their keys are.

    Of every source a window is looked at, and what lies up to the smallest last key of those that go on behind theirs is
    given out: so a key that fills millions of rows comes in portions like any other. Raises Damage for a block that is not
    sound, before anything of it is given out.
    """
    at = [0] * len(sources)
    while open_ := [place for place, source in enumerate(sources) if at[place] < source.rows]:
        size = max(_LEAST_WINDOW, MERGE_ROWS // len(open_))
        windows = {place: (at[place], min(at[place] + size, sources[place].rows)) for place in open_}
        for place, (start, end) in windows.items():
            if (prove := sources[place].prove) is not None:
                prove(np.arange(start // BLOCK_ROWS, (end - 1) // BLOCK_ROWS + 1))
        keys = {place: np.asarray(sources[place].columns["high"][start:end]) for place, (start, end) in windows.items()}
        lasts = [keys[place][-1] for place, (_start, end) in windows.items() if end < sources[place].rows]
        parts = []
        for place, (start, end) in windows.items():
            count = int(np.searchsorted(keys[place], min(lasts), "right")) if lasts else end - start
            at[place] = start + count
            if count:
                parts.append(_slice(sources[place], start, start + count))
        yield in_order(joined(parts))


def _slice(source: Sorted, start: int, end: int) -> Rows:
    rows = {name: np.asarray(column[start:end]) for name, column in source.columns.items()}
    if source.first_file:
        rows["file"] = rows["file"] + np.uint32(source.first_file)
    return rows


class Runs:
    """Rows that come unsorted, kept as sorted runs of bounded size until they are merged.

    In memory, or in a file without a name in `folder`, which is gone with this process.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder) if folder else None  # noqa: SIM115 - `close` ends it
        self._places: list[tuple[int, int]] = []
        self._held: list[Sorted] = []
        self._layout: dict[str, np.dtype[Any]] = {}
        self.rows = 0

    def add(self, rows: Rows) -> None:
        """Sort at most some RUN_ROWS rows and keep them. Raises OSError as the disk says."""
        rows = in_order(rows)
        count = len(rows["high"])
        self.rows += count
        if self._file is None:
            self._held.append(Sorted(rows, count))
            return
        self._layout = {name: column.dtype for name, column in rows.items()}
        self._places.append((self._file.tell(), count))
        for column in rows.values():
            self._file.write(column.tobytes())
        self._file.write(bytes(-self._file.tell() % 8))

    def sorted(self) -> list[Sorted]:
        """What `merged` takes."""
        if self._file is None or not self.rows:
            return self._held
        self._file.flush()
        whole = np.asarray(np.memmap(self._file, dtype=np.uint8, mode="r"))
        found = []
        for place, count in self._places:
            columns = {}
            for name, kind in self._layout.items():
                columns[name] = whole[place : place + count * kind.itemsize].view(kind)
                place += count * kind.itemsize
            found.append(Sorted(columns, count))
        return found

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()
