"""What rendered text is refused with: the reason and the place. Not here: the formats (`prerendered.py`, `harmony_text.py`)."""

from __future__ import annotations

__all__ = ["Unreadable"]


class Unreadable(Exception):
    """The text leaves its format at `place` (characters from 0); told as a fault of its row, never further up."""

    def __init__(self, reason: str, place: int, expected: str) -> None:
        super().__init__(reason)
        self.reason, self.place, self.expected = reason, place, expected
