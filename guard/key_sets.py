"""Keys of two parts as sets: which are different, and which of many are among others. Pure arrays of bounded size.

Keys are compared by their first half with the machine's own sorting, and by the second only where the first ones are
equal: they are hashes. Not here: where keys come from, or more of them than may be worked on in one step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["among", "different", "distinct_keys"]


def different(high: NDArray[Any], low: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(order in which the keys ascend [n], which of them in that order differ from the one before [n])."""
    order = np.argsort(high, kind="stable")
    same = high[order[1:]] == high[order[:-1]]
    fresh = np.ones(len(order), dtype=bool)
    if (low[order[1:]][same] != low[order[:-1]][same]).any():
        # Others with the same first eight bytes: never seen among hashes, and made by hand easily enough.
        order = np.lexsort((low, high))
        same = high[order[1:]] == high[order[:-1]]
    fresh[1:] = ~same | (low[order[1:]] != low[order[:-1]])
    return order, fresh


def distinct_keys(high: NDArray[np.uint64], low: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(places of the different keys, in ascending order; for each key the number of its equal among them).

    A row that stands ten thousand times in a file is asked about once: each asking would find all places of all the others.
    """
    order, fresh = different(high, low)
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.cumsum(fresh) - 1
    return order[fresh], number


def among(high: NDArray[np.uint64], low: NDArray[np.uint32], asked_high: NDArray[np.uint64],
           asked_low: NDArray[np.uint32]) -> NDArray[np.bool_]:  # fmt: skip
    """For each key that is asked for [n]: is it one of the different keys, which ascend?"""
    found = np.zeros(len(asked_high), dtype=bool)
    place = np.searchsorted(high, asked_high, "left")
    open_ = np.arange(len(asked_high))
    while len(open_):  # once, but for keys that share their first eight bytes
        open_ = open_[place[open_] < len(high)]
        open_ = open_[high[place[open_]] == asked_high[open_]]
        same = low[place[open_]] == asked_low[open_]
        found[open_[same]] = True
        open_ = open_[~same]
        place[open_] += 1
    return found
