"""Token ids as the text that an example holds of them, `1 2 3`: made, read back and measured without a step of Python for each.

A million rows of 2,048 ids are two thousand million numbers: one by one they take an hour to write down and another to read.
Not here: whether ids belong to a model (`guard/checks/judging.py`, `trainer/prepare.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["highest_id", "ids_of", "ids_text"]

_MOST = (1 << 63) - 1
"""What a number beyond 64 bits is read as."""


def ids_text(ids: list[Any]) -> str:
    """The ids in decimal, joined by one space; "" unless all are whole numbers from 0 on and below 2^64."""
    try:
        text = orjson.dumps(ids)[1:-1].replace(b",", b" ").decode()
    except TypeError:
        return ""
    # Signs, points, words, brackets and quotes of anything else are no digits.
    return text if text.replace(" ", "").isdecimal() else ""


def ids_of(text: str) -> NDArray[np.int64]:
    """The ids [n] of such a text; one of more than 63 bits comes out as 2^63 - 1, which no vocabulary has."""
    import numpy as np  # heavy, and only for those who bring ids

    return np.fromstring(text, dtype=np.int64, sep=" ")


def highest_id(text: str) -> int:
    """The highest id of such a text, of any length."""
    found = int(ids_of(text).max())
    return found if found < _MOST else max(map(int, text.split(" ")))
