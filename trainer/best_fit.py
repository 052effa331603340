"""Filling bins: which pieces share a sequence, so that few tokens of the sequences stay unused. Sizes in, bins out.

Best fit decreasing first. Where pieces are large against a bin (chats of 170 tokens and sequences of 512) it leaves 3 %
empty, since it places the large ones without a thought for what the gaps will need; there each bin in turn is filled as full
as the pieces that are left allow (minimum bin slack, Gupta and Ho 1999), and the better of the two is taken.
Both handle equal sizes at once: the work depends on how many different sizes there are and hardly on the number of pieces.
Deterministic. Not here: what a piece is (`trainer/packing.py`).
"""

from __future__ import annotations

import bisect
from collections import Counter

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_fit", "fit", "fullest_bins"]

Integers = NDArray[np.int64]
GOOD_ENOUGH = 0.995
"""Full to this part, best fit decreasing is left at that."""
_MOST_WORK = 1 << 26
"""Different sizes times capacity up to which the fullest bins are looked for: ten seconds for a million pieces of 5,000 sizes."""


def fit(sizes: Integers, capacity: int) -> Integers:
    """The bin of each piece [n] (1 <= size <= capacity), in as few bins as either way finds.

    Bins are numbered by the first piece that stands in them: the beginning of the data is the beginning of the list.
    """
    bins = best_fit(sizes, capacity)
    full = int(sizes.sum()) / max(1, capacity * int(bins.max(initial=-1) + 1))
    if full < GOOD_ENOUGH and len(np.unique(sizes)) * capacity <= _MOST_WORK:
        other = fullest_bins(sizes, capacity)
        bins = other if other.max(initial=-1) < bins.max(initial=-1) else bins
    return bins


def best_fit(sizes: Integers, capacity: int) -> Integers:
    """Largest first, each into the fullest bin that has room: exactly best fit decreasing, equal sizes in their order.

    Bins of equal room are handled at once.
    """
    bins = np.zeros(len(sizes), dtype=np.int64)
    rooms = _Rooms()
    made = 0
    order = np.argsort(-sizes, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(sizes[order])) + 1, len(order)) if len(order) else order
    start = 0
    for end in ends.tolist():
        items, size = order[start:end], int(sizes[order[start]])
        start = end
        while len(items) and (room := rooms.tightest(size)):
            items = _fill(rooms, room, rooms.take(room), items, size, bins)
        if len(items):
            count = -(-len(items) // (capacity // size))
            _fill(rooms, capacity, np.arange(made, made + count), items, size, bins)
            made += count
    return _by_first_item(bins, made)


class _Rooms:
    """Bins by the room that is left in them."""

    def __init__(self) -> None:
        self._bins: dict[int, list[Integers]] = {}
        self._sorted: list[int] = []

    def tightest(self, size: int) -> int:
        """The least room that a piece of this size fits into; 0 when there is none."""
        place = bisect.bisect_left(self._sorted, size)
        return self._sorted[place] if place < len(self._sorted) else 0

    def take(self, room: int) -> Integers:
        """All bins of this room, in the order they were begun; they are nobody's then."""
        del self._sorted[bisect.bisect_left(self._sorted, room)]
        return np.sort(np.concatenate(self._bins.pop(room)))

    def put(self, room: int, which: Integers) -> None:
        """Bins that have this room now."""
        if room not in self._bins:
            self._bins[room] = []
            bisect.insort(self._sorted, room)
        self._bins[room].append(which)


def _fill(rooms: _Rooms, room: int, free: Integers, items: Integers, size: int, bins: Integers) -> Integers:
    """Put items of one size into bins of one room, each bin filled before the next; returns the items that are left over."""
    each = room // size
    used = min(len(free), -(-len(items) // each))
    taken = min(len(items), used * each)
    bins[items[:taken]] = np.repeat(free[:used], each)[:taken]
    in_last = taken - (used - 1) * each
    for which, count in ((free[: used - 1], each), (free[used - 1 : used], in_last), (free[used:], 0)):
        rest = room - count * size
        if len(which) and rest:
            rooms.put(rest, which)
    return items[taken:]


def _by_first_item(bins: Integers, count: int) -> Integers:
    first = np.full(count, len(bins), dtype=np.int64)
    np.minimum.at(first, bins, np.arange(len(bins)))
    rank = np.empty(count, dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(count)
    return rank[bins]


def fullest_bins(sizes: Integers, capacity: int) -> Integers:
    """Each bin takes the largest piece that is left and, of the others, those that fill it best; larger ones first."""
    order = np.argsort(-sizes, kind="stable")
    values, starts, counts = np.unique(-sizes[order], return_index=True, return_counts=True)
    left = dict(zip((-values).tolist(), counts.tolist(), strict=True))
    next_piece = dict(zip((-values).tolist(), starts.tolist(), strict=True))
    bins = np.zeros(len(sizes), dtype=np.int64)
    made, remaining = 0, list(left)
    while remaining:
        largest = remaining[0]
        left[largest] -= 1
        pattern = Counter([largest, *_filling(capacity - largest, remaining, left)])
        left[largest] += 1
        times = min(left[size] // each for size, each in pattern.items())
        for size, each in pattern.items():
            begin = next_piece[size]
            bins[order[begin : begin + each * times]] = np.repeat(np.arange(made, made + times), each)
            next_piece[size] += each * times
            left[size] -= each * times
        made += times
        remaining = [size for size in remaining if left[size]]
    return _by_first_item(bins, made)


def _filling(room: int, sizes: list[int], left: dict[int, int]) -> list[int]:
    """Sizes that fill the room best, each at most as often as it is left; `sizes` fall.

    Which sums can be reached is a row of bits, shifted by each size; looked at backwards, it tells how.
    """
    every = (1 << (room + 1)) - 1
    reached, tried = [1], []
    for size in sizes:
        if size > room or not left[size]:
            continue
        sums = reached[-1]
        for _ in range(min(left[size], room // size)):
            more = (sums | sums << size) & every
            if more == sums:
                break
            sums = more
        reached.append(sums)
        tried.append(size)
        if sums >> room & 1:
            break
    found, total, step = [], reached[-1].bit_length() - 1, len(tried)
    while total:
        while reached[step - 1] >> total & 1:
            step -= 1
        found.append(tried[step - 1])
        total -= tried[step - 1]
    return found
