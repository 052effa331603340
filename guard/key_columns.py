"""Sorted columns of example fingerprints: which of these fingerprints stand in it, and for which example of which file.

A row has 20 bytes: the first 12 of the fingerprint, the file's number and the example's ordinal. Ninety-six bits tell a
billion examples apart (a chance of 1e-20 that a foreign one is taken for known). Rows ascend by the first 8 bytes; the
first key of every block is kept apart, so that a search looks into proven blocks only. Bulk questions cost a few array
operations, whatever the number of rows. Not here: files on disk (`guard/columns.py`), what was learnt of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guard.columns import BLOCK_ROWS, Columns

__all__ = ["KEY_LAYOUT", "Hits", "KeyColumns", "merged_chunks", "sorted_rows", "split_keys"]

KEY_LAYOUT = {"high": "<u8", "low": "<u4", "file": "<u4", "ordinal": "<u4"}
_ROUNDS = BLOCK_ROWS.bit_length()
MERGE_ROWS = 1 << 19
_HITS_AT_ONCE = 1 << 20
Rows = dict[str, NDArray[Any]]


class Hits(NamedTuple):
    """Where questions were found: position in the question [k], file number [k], ordinal in that file [k]."""

    question: NDArray[np.int64]
    file: NDArray[np.int64]
    ordinal: NDArray[np.int64]


def split_keys(fingerprints: bytes | memoryview) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """(high, low): the first 8 and the next 4 of each 16 bytes, big-endian, as numbers [n]."""
    words = np.frombuffer(fingerprints, dtype=">u8").reshape(-1, 2)
    return words[:, 0].astype(np.uint64), (words[:, 1] >> np.uint64(32)).astype(np.uint32)


def sorted_rows(sidecars: Sequence[bytes]) -> Rows:
    """Rows of whole files, numbered as given, in the order of a key folder. Each sidecar: 16 bytes for each ordinal."""
    counts = [len(data) // 16 for data in sidecars]
    high, low = split_keys(b"".join(sidecars))
    file = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
    ordinal = np.concatenate([np.arange(n, dtype=np.uint32) for n in counts]) if counts else np.empty(0, np.uint32)
    return _in_order({"high": high, "low": low, "file": file, "ordinal": ordinal})


def _in_order(rows: Rows) -> Rows:
    order = np.argsort(rows["high"], kind="stable")
    return {name: column[order] for name, column in rows.items()}


class KeyColumns:
    """One key folder, opened for questions."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.high = columns.columns["high"]
        # Proven with their blocks when a question leads there; a wrong one can only lead to a block that fails.
        self._first = np.ascontiguousarray(self.high[::BLOCK_ROWS])

    def find(self, high: NDArray[np.uint64], low: NDArray[np.uint32]) -> Iterator[Hits]:
        """All rows that equal a question, in portions of bounded size. Raises Damage for a block that is not sound."""
        if not self.columns.rows or not len(high):
            return
        order = np.argsort(high, kind="stable")
        asked = high[order]
        left, right = self._edge(asked, "left"), self._edge(asked, "right")
        found = np.flatnonzero(right > left)
        ends = np.cumsum((right - left)[found])
        start = 0
        while start < len(found):
            base = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, base + _HITS_AT_ONCE, "right")))
            yield self._rows_between(order, low, found[start:stop], left, right)
            start = stop

    def _rows_between(self, order: NDArray[np.int64], low: NDArray[np.uint32], found: NDArray[np.int64],
                      left: NDArray[np.int64], right: NDArray[np.int64]) -> Hits:  # fmt: skip
        lengths = (right - left)[found]
        owner = np.repeat(found, lengths)
        ends = np.cumsum(lengths)
        rows = np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths) + left[owner]
        self.columns.prove(rows // BLOCK_ROWS)
        same = np.asarray(self.columns.columns["low"][rows]) == low[order[owner]]
        rows, owner = rows[same], owner[same]
        return Hits(order[owner], self.columns.columns["file"][rows].astype(np.int64),
                    self.columns.columns["ordinal"][rows].astype(np.int64))  # fmt: skip

    def _edge(self, asked: NDArray[np.uint64], side: str) -> NDArray[np.int64]:
        """Where each of the ascending questions would be inserted, looking into proven blocks only."""
        left = side == "left"
        block = np.searchsorted(self._first, asked, side="left" if left else "right") - 1
        block = np.maximum(block, 0)
        self.columns.prove(block)
        low, high = block * BLOCK_ROWS, np.minimum((block + 1) * BLOCK_ROWS, self.columns.rows)
        for _ in range(_ROUNDS):
            middle = (low + high) >> 1
            value = self.high[np.minimum(middle, self.columns.rows - 1)]
            after = (value < asked) if left else (value <= asked)
            open_ = low < high
            low = np.where(open_ & after, middle + 1, low)
            high = np.where(open_ & ~after, middle, high)
        return low


def merged_chunks(parts: Sequence[Columns]) -> Iterator[Rows]:
    """The rows of several key folders as one, in order, a range of keys at a time; files are numbered on, part by part.

    Raises Damage for a block that is not sound. Memory: about MERGE_ROWS rows.
    """
    total = sum(part.rows for part in parts)
    pieces = max(1, -(-total // MERGE_ROWS))
    offsets = np.cumsum([0] + [part.files for part in parts])
    bounds = [np.uint64(min(piece * 2**64 // pieces, 2**64 - 1)) for piece in range(1, pieces)]
    for part in parts:
        part.prove(np.arange(-(-part.rows // BLOCK_ROWS)))
    edges = [np.concatenate([[0], np.searchsorted(part.columns["high"], np.array(bounds, np.uint64)), [part.rows]])
             .astype(np.int64) for part in parts]  # fmt: skip
    for piece in range(pieces):
        rows: Rows = {}
        for name, kind in KEY_LAYOUT.items():
            columns = [part.columns[name][edges[k][piece] : edges[k][piece + 1]] for k, part in enumerate(parts)]
            if name == "file":
                columns = [column + np.uint32(offsets[k]) for k, column in enumerate(columns)]
            rows[name] = np.concatenate(columns).astype(kind, copy=False)
        yield _in_order(rows)
