"""Sorted columns of example fingerprints: which of these fingerprints stand in it, and for which example of which file.

A row has 20 bytes: the first 12 of the fingerprint, the file's number and the example's ordinal. Ninety-six bits tell a
billion examples apart (a chance of 1e-20 that a foreign one is taken for known). Rows ascend by the first 8 bytes; the
first key of every block is kept apart, so that a search looks into proven blocks only. Bulk questions cost a few array
operations, whatever the number of rows. Not here: files on disk (`guard/columns.py`), sorting
(`guard/key_runs.py`), or what was learnt of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guard.columns import BLOCK_ROWS, Columns
from guard.key_runs import Rows, Sorted, merged, split_keys
from guard.steps import Steps

__all__ = ["KEY_LAYOUT", "Hits", "KeyColumns", "merged_chunks", "split_keys"]

KEY_LAYOUT = {"high": "<u8", "low": "<u4", "file": "<u4", "ordinal": "<u4"}
_ROUNDS = BLOCK_ROWS.bit_length()
_HITS_AT_ONCE = 1 << 18


class Hits(NamedTuple):
    """Where questions were found: position in the question [k], file number [k], ordinal in that file [k]."""

    question: NDArray[np.int64]
    file: NDArray[np.int64]
    ordinal: NDArray[np.int64]


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
        left, right = self._edges(asked)
        found = np.flatnonzero(right > left)
        ends = np.cumsum((right - left)[found])
        total = int(ends[-1]) if len(found) else 0
        for start in range(0, total, _HITS_AT_ONCE):
            # One question may have millions of places: portions are cut through it, too.
            place = np.arange(start, min(start + _HITS_AT_ONCE, total))
            group = np.searchsorted(ends, place, "right")
            owner = found[group]
            rows = right[owner] - ends[group] + place
            self.columns.prove(rows // BLOCK_ROWS)
            same = np.asarray(self.columns.columns["low"][rows]) == low[order[owner]]
            rows, owner = rows[same], owner[same]
            yield Hits(order[owner], self.columns.columns["file"][rows].astype(np.int64),
                       self.columns.columns["ordinal"][rows].astype(np.int64))  # fmt: skip

    def ready_steps(self, high: NDArray[np.uint64]) -> Steps[None]:
        """Compare the blocks that a search for these begins with, in slices, so that `find` has little left to compare."""
        blocks = np.maximum(np.searchsorted(self._first, np.sort(high), side="left") - 1, 0)
        yield from self.columns.prove_steps(np.unique(np.minimum(np.concatenate([blocks, blocks + 1]), len(self._first) - 1)))

    def _edges(self, asked: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(first row, row behind the last) of each of the ascending questions. Most stand nowhere, or once."""
        left = self._edge(asked, "left")
        right = left.copy()
        hit = self._equal(np.arange(len(asked)), left, asked)
        right[hit] += 1
        more = self._equal(hit, right, asked)
        right[more] = self._edge(asked[more], "right")
        return left, right

    def _equal(self, places: NDArray[np.int64], rows: NDArray[np.int64], asked: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Those places of the questions whose row holds their key."""
        places = places[rows[places] < self.columns.rows]
        self.columns.prove(rows[places] // BLOCK_ROWS)
        return places[self.high[rows[places]] == asked[places]]

    def _edge(self, asked: NDArray[np.uint64], side: Literal["left", "right"]) -> NDArray[np.int64]:
        """Where each of the ascending questions would be inserted, looking into proven blocks only."""
        block = np.maximum(np.searchsorted(self._first, asked, side=side) - 1, 0)
        if not len(asked):
            return block
        start, stop = int(block[0]), int(block[-1]) + 1
        if stop - start <= 2 * (1 + np.count_nonzero(block[1:] != block[:-1])):
            # Most of the blocks in between are asked: they are searched as one.
            self.columns.prove(np.arange(start, stop))
            stretch = self.high[start * BLOCK_ROWS : stop * BLOCK_ROWS]
            return start * BLOCK_ROWS + np.searchsorted(stretch, asked, side=side)
        self.columns.prove(block)
        low, high = block * BLOCK_ROWS, np.minimum((block + 1) * BLOCK_ROWS, self.columns.rows)
        for _ in range(_ROUNDS):
            middle = (low + high) >> 1
            value = self.high[np.minimum(middle, self.columns.rows - 1)]
            after = (value < asked) if side == "left" else (value <= asked)
            open_ = low < high
            low = np.where(open_ & after, middle + 1, low)
            high = np.where(open_ & ~after, middle, high)
        return low


def merged_chunks(parts: Sequence[Columns]) -> Iterator[Rows]:
    """The rows of several key folders as one, in order, portion by portion; files are numbered on, part by part.

    Raises Damage for a block that is not sound, with its folder as subject. Memory: about MERGE_ROWS rows.
    """
    firsts = np.cumsum([0] + [part.files for part in parts]).tolist()
    yield from merged([Sorted(part.columns, part.rows, first, part.prove)
                       for part, first in zip(parts, firsts[:-1], strict=True)])  # fmt: skip
