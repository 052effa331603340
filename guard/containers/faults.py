"""What is wrong with a container as a whole: where its rows begin and end can then not be told any more.

A row that can be told apart from its neighbours and is bad by itself is no such fault: it is a `Row` with a fault.
"""

from __future__ import annotations

from guard.errors import DataFault

__all__ = ["CutShort"]


class CutShort(DataFault):
    """The bytes stop in the middle: perhaps they are still being written, or were copied only in part.

    `line`: where the last, unfinished row begins (from 1); 0 where the container knows no lines.
    """

    def __init__(self, message: str, *, line: int = 0, hint: str = "the file ends too early; copy it again") -> None:
        super().__init__(message, hint=hint)
        self.line = line
