"""Marks that stand for the texts of a conversation while a chat template renders it, and the proof of what was rendered.

A mark is a number between two private-use characters that occur nowhere else, so a template can neither trim it nor find
anything in it. Not here: rendering (`chat.py`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.templates.base import Inexpressible

__all__ = ["Marks", "Piece", "Slot", "matched", "trained_places"]

Slot = tuple[int, str]
"""Whose text: number of the turn (-1 before all turns) and field."""
_PLANE = range(0xF0010, 0xFFFFE, 2)


@dataclass(frozen=True)
class Piece:
    """A run of the rendering: the template's own text, or a record's text with its slot."""

    text: str
    start: int
    """Where it (or its mark) begins in the rendering with marks."""
    slot: Slot | None = None


class Marks:
    """One mark for each text of a conversation. Raises Inexpressible when no two characters are free for them."""

    def __init__(self, texts: Mapping[Slot, str], source: str) -> None:
        self.texts = dict(texts)
        used = set(source).union(*self.texts.values())
        free = next((code for code in _PLANE if chr(code) not in used and chr(code + 1) not in used), None)
        if free is None:
            raise Inexpressible("the conversation uses every private character", subject="messages")
        self.opening, self.closing = chr(free), chr(free + 1)
        self._numbers = {slot: number for number, slot in enumerate(self.texts)}
        self._slots = list(self.texts)

    def mark(self, slot: Slot) -> str:
        """What stands for a text; nothing for one that is empty."""
        return f"{self.opening}{self._numbers[slot]}{self.closing}" if slot in self._numbers else ""

    def split(self, shape: str) -> list[Piece]:
        """The rendering with marks, cut at them."""
        pieces, position = [], 0
        for found in re.finditer(f"{self.opening}([0-9]+){self.closing}", shape):
            pieces.append(Piece(shape[position : found.start()], position))
            pieces.append(Piece("", found.start(), self._slots[int(found.group(1))]))
            position = found.end()
        pieces.append(Piece(shape[position:], position))
        if any(self.opening in piece.text or self.closing in piece.text for piece in pieces):
            raise Inexpressible("the model's chat template takes texts apart", subject="messages")
        return pieces


def _variants(text: str) -> tuple[str, ...]:
    """What templates make of a text: nothing, or its outer white space taken away."""
    return text, text.strip(), text.lstrip(), text.rstrip(), text.lstrip("\n"), text.rstrip("\n"), text.strip("\n")


def matched(marks: Marks, shape: str, real: str) -> list[Piece]:
    """The pieces of `shape` with the texts that really stand at its marks in `real`.

    Raises Inexpressible when `real` is not `shape` with each text, perhaps trimmed, in its place.
    """
    pieces, found, position = marks.split(shape), [], 0
    for number, piece in enumerate(pieces):
        if piece.slot is None:
            text = piece.text if real.startswith(piece.text, position) else None
        else:
            after = pieces[number + 1].text
            final = number + 2 == len(pieces)
            text = next((item for item in _variants(marks.texts[piece.slot]) if real.startswith(item + after, position)
                         and (not final or position + len(item) + len(after) == len(real))), None)  # fmt: skip
        if text is None:
            raise Inexpressible("the model's chat template changes the texts of the conversation (or decides by them), so what"
                                " is its own cannot be told from what is the record's", subject="messages")  # fmt: skip
        found.append(Piece(text, piece.start, piece.slot))
        position += len(text)
    if position != len(real):
        raise Inexpressible("the model's chat template adds words that depend on the texts", subject="messages")
    return found


def trained_places(spans: Sequence[tuple[int, int]], start: int, end: int) -> list[tuple[int, int, bool]]:
    """start..end cut at the edges of `spans`, each piece with whether it lies in one of them; never empty."""
    edges = sorted({start, end, *(edge for span in spans for edge in span if start < edge < end)})
    if len(edges) == 1:
        edges = [start, start]
    return [(left, right, any(first <= left and right <= last and first < last for first, last in spans))
            for left, right in itertools.pairwise(edges)]  # fmt: skip
