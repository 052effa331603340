"""High-water files: the highest version and index numbers ever given, as home and vault keep them outside the ledger.

Not here: taking a number (`versions.py`, `indexes.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["noted_mark"]


def noted_mark(paths: Iterable[Path]) -> int:
    """The highest of the numbers that these files say; 0 when none of them can be read."""
    found = [0]
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text("ascii")))
    return max(found)
