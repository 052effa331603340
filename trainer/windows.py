"""One example as rows that fit a model's block, for judging: its context cut first, as in training; then side by side.

Neighbouring windows share one token, so that every token but the example's first is predicted exactly once; a window sees
nothing of the one before it. Not here: which examples, and what their loss is (`evaluate.py`, `measuring.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["grouped", "windows"]

_BATCH_TOKENS = 4096

Item = TypeVar("Item")
Window = tuple[NDArray[Any], NDArray[np.uint8] | None]


def windows(tokens: NDArray[Any], mask: NDArray[np.uint8] | None, cut: tuple[int, int], block: int) -> Iterator[Window]:
    """Ids [<= block + 1] and mask of each window of an example of ids [n] and mask [n] or None.

    `cut`: (start, length) of the span that may be cut, counted from the example's first token.
    """
    length = len(tokens)
    excess = length - (block + 1)
    if 0 < excess <= cut[1]:
        keep = np.ones(length, dtype=bool)
        keep[cut[0] + cut[1] - excess : cut[0] + cut[1]] = False
        tokens, mask = tokens[keep], None if mask is None else mask[keep]
    for begin in range(0, max(1, len(tokens) - 1), block):
        window = slice(begin, begin + block + 1)
        if len(tokens[window]) >= 2:
            yield tokens[window], None if mask is None else mask[window]


def grouped(items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in their order, so many together as take about _BATCH_TOKENS positions padded to the longest; one at least."""
    group: list[Item] = []
    longest = 0
    for item in items:
        longest = max(longest, length(item))
        if group and longest * (len(group) + 1) > _BATCH_TOKENS:
            yield group
            group, longest = [], length(item)
        group.append(item)
    if group:
        yield group
