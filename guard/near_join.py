"""Which examples are alike: sketches of 8 bytes find candidates among millions, whole signatures decide.

A sketch is the first 8 of a signature's 64 bytes. One question is compared with every sketch: LEAST_EQUAL equal bytes
make a candidate. Many questions at once meet the stream of sketches in TRIPLES of bytes: whoever shares one triple is a
candidate. Two texts of resemblance J share LEAST_EQUAL of 8 bytes with a chance of 99.9 % at J = 0.8, and one of the
triples with 98.4 % (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, 3.4: banding); strangers do 3 and 0.8
times in a million. Pure arrays; where signatures lie is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_EQUAL", "SKETCH", "Join", "candidates"]

SKETCH = 8
LEAST_EQUAL = 3
TRIPLES = ((0, 1, 2), (3, 4, 5), (0, 6, 7), (1, 2, 6), (1, 3, 7), (2, 4, 7), (0, 3, 6), (0, 4, 5), (2, 3, 5), (1, 4, 6),
           (1, 5, 7), (0, 3, 4), (2, 4, 6), (3, 6, 7))  # fmt: skip
"""Chosen one after the other, each adding the most to the chance at J = 0.75."""
_SCAN_ROWS = 1 << 18
_SIEVE_BITS = 20
_TRIES = 4
"""Of so many stored examples that share a triple with a question, the first are looked at: forms made from one template
would otherwise be compared each with each."""
Bytes = NDArray[np.uint8]
Fetch = Callable[[NDArray[np.int64]], Bytes]
MayMeet = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]


def candidates(sketch: Bytes, columns: Sequence[Bytes]) -> NDArray[np.int64]:
    """Rows of eight sketch columns [n] that share LEAST_EQUAL bytes with one sketch [8], ascending."""
    found = []
    for start in range(0, len(columns[0]), _SCAN_ROWS):
        equal = np.zeros(min(_SCAN_ROWS, len(columns[0]) - start), dtype=np.uint8)
        for byte, column in zip(sketch, columns, strict=True):
            equal += (column[start : start + _SCAN_ROWS] == byte).view(np.uint8)
        found.append(np.flatnonzero(equal >= LEAST_EQUAL) + start)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


class Join:
    """Many questions against a stream of stored signatures; each question keeps the first that is alike."""

    def __init__(self, questions: Bytes, least_equal: int) -> None:
        """`questions`: signatures [n, 64]; those of zeroes are never alike. `least_equal`: equal bytes of 64 that count."""
        self.questions, self.least_equal = questions, least_equal
        self.equal = np.zeros(len(questions), dtype=np.int64)
        """[n]: equal bytes with the one found, 0 where none was."""
        self.place = np.full(len(questions), -1, dtype=np.int64)
        """[n]: where the one found stands in the whole stream, -1 where none was."""
        self._open = np.flatnonzero(questions.any(axis=1))

    def feed(self, columns: Sequence[Bytes], base: int, fetch: Fetch, may_meet: MayMeet) -> None:
        """Meet a part of the stream: eight sketch columns [m], which begin at `base` in the whole stream.

        `fetch` gives the signatures [k, 64] of rows of this part; `may_meet` says of pairs (question [k], row of this
        part [k]) which count. Memory: some words for each question, and for each of _SCAN_ROWS rows.
        """
        for start in range(0, len(columns[0]), _SCAN_ROWS):
            part = [np.asarray(column[start : start + _SCAN_ROWS]) for column in columns]
            for triple in TRIPLES:
                if not len(self._open):
                    return
                questions, rows = self._meet(part, triple)
                rows += start
                allowed = may_meet(questions, rows)
                questions, rows = questions[allowed], rows[allowed]
                if len(rows):
                    self._decide(questions, rows, base, fetch)

    def _meet(self, part: Sequence[Bytes], triple: tuple[int, int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(question, row) pairs that share a triple of bytes."""
        asked = _keys([self.questions[self._open, byte] for byte in triple])
        stored = _keys([part[byte] for byte in triple])
        sieve = np.zeros(1 << _SIEVE_BITS, dtype=bool)
        sieve[asked & np.uint32((1 << _SIEVE_BITS) - 1)] = True
        rows = np.flatnonzero(sieve[stored & np.uint32((1 << _SIEVE_BITS) - 1)])
        rows = rows[np.argsort(stored[rows], kind="stable")]
        keys = stored[rows]
        left, right = np.searchsorted(keys, asked, "left"), np.searchsorted(keys, asked, "right")
        questions, places = [], []
        for number in range(_TRIES):
            more = np.flatnonzero(left + number < right)
            questions.append(self._open[more])
            places.append(rows[left[more] + number])
        return np.concatenate(questions), np.concatenate(places)

    def _decide(self, questions: NDArray[np.int64], rows: NDArray[np.int64], base: int, fetch: Fetch) -> None:
        equal = (fetch(rows) == self.questions[questions]).sum(axis=1)
        alike = equal >= self.least_equal
        # Written from the last to the first, so that of several the first stays.
        questions, rows, equal = questions[alike][::-1], rows[alike][::-1], equal[alike][::-1]
        self.equal[questions], self.place[questions] = equal, rows + base
        self._open = self._open[self.place[self._open] < 0]


def _keys(columns: Sequence[Bytes]) -> NDArray[np.uint32]:
    first, second, third = (column.astype(np.uint32) for column in columns)
    return first << np.uint32(16) | second << np.uint32(8) | third
