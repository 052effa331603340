"""A document cut into overlapping chunks, where its author would have cut it.

Places to cut, best first: before a heading, between paragraphs, after a sentence, between lines, between words, and
only then anywhere. A `#` or a blank line inside a code fence is code, not structure. A chunk's text is exactly
`text[start_char:end_char]` of the decoded document: nothing is normalised, so that a citation can be checked.
Pure functions of the text and two numbers; the same input gives the same chunks for ever, or CHUNKER_VERSION is raised.
Not here: reading documents (`documents.py`).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import NamedTuple

from guard.errors import UsageError

__all__ = ["CHUNKER_VERSION", "Chunk", "check_sizes", "chunk_text", "estimate_chunks"]

CHUNKER_VERSION = 1

_HEADING, _PARAGRAPH, _SENTENCE, _LINE, _SPACE = 5, 4, 3, 2, 1
_LINE_END = re.compile(r"\r\n|\n|\r")
_BLANK_LINES = re.compile(r"(?:[^\S\r\n]*(?:\r\n|\n|\r))*")
_HEADING_LINE = re.compile(r" {0,3}#{1,6}[ \t]")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
# A full stop, closing quotes or brackets, white space; ideographic full stops need no white space after them.
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？][”’」』）]*")


class Chunk(NamedTuple):
    """A piece of a document: lines count from 1 and include the last, characters from 0 and exclude the last."""

    text: str
    start_line: int
    end_line: int
    start_char: int
    end_char: int


def check_sizes(size: int, overlap: int) -> None:
    """Raise UsageError unless 0 <= overlap <= size / 2 and size >= 1 (characters)."""
    if size < 1 or not 0 <= overlap <= size // 2:
        raise UsageError(f"chunks of {size} characters cannot overlap by {overlap}",
                         hint="the overlap is at most half of the chunk: --chunk-size 800 --overlap 120")  # fmt: skip


def chunk_text(text: str, size: int, overlap: int) -> list[Chunk]:
    """Chunks of at most `size` characters, in order; neighbours share up to `overlap` characters.

    What is shared are whole sentences or lines where possible, and nothing across a heading. White space alone gives
    no chunk. Raises UsageError for sizes that make no sense.
    """
    check_sizes(size, overlap)
    lines = [0, *(match.end() for match in _LINE_END.finditer(text))]
    cuts = _Cuts(text, lines)
    chunks: list[Chunk] = []
    start, end_of_text = 0, len(text.rstrip())
    while start < end_of_text:
        end, strength = end_of_text, _HEADING
        if end_of_text - start > size:
            # Not below half the size: the overlap is less than that, so every chunk brings something new.
            end, strength = cuts.last_best(start + size // 2 + 1, start + size)
        chunk = _trimmed(text, lines, start, end)
        if chunk is not None and not (chunks and chunk.end_char <= chunks[-1].end_char):  # more than what is shared
            chunks.append(chunk)
        start = end if strength == _HEADING or not overlap else cuts.first_best(end - overlap, end)
    return chunks


def estimate_chunks(length: int, size: int, overlap: int) -> int:
    """About how many chunks a text of `length` characters (or bytes) gives, to be told before it is read.

    A chunk ends between its middle and its end, so on average it brings three quarters of `size`, less the overlap.
    """
    check_sizes(size, overlap)
    if length <= size:
        return min(length, 1)
    return -(-length * 4 // (3 * size - 4 * overlap))


def _trimmed(text: str, lines: list[int], start: int, end: int) -> Chunk | None:
    """The chunk without blank lines around it; the indentation of its first line stays."""
    blank = _BLANK_LINES.match(text, start, end)
    assert blank is not None
    start, end = blank.end(), start + len(text[start:end].rstrip())
    if start >= end:
        return None
    return Chunk(text[start:end], bisect_right(lines, start), bisect_right(lines, end - 1), start, end)


class _Cuts:
    """Where a text may be cut, and how well."""

    def __init__(self, text: str, lines: list[int]) -> None:
        self.text = text
        strengths = _line_strengths(text, lines)
        self.positions = sorted(strengths)
        self.strengths = [strengths[position] for position in self.positions]

    def last_best(self, low: int, high: int) -> tuple[int, int]:
        """The best place in [low, high] (the last of equals) and its strength; `high` itself when there is none."""
        first, stop = bisect_left(self.positions, low), bisect_right(self.positions, high)
        if first < stop:
            at = max(range(first, stop), key=lambda index: (self.strengths[index], index))
            return self.positions[at], self.strengths[at]
        space = max(self.text.rfind(mark, low - 1, high) for mark in " \t\u3000")
        return (space + 1, _SPACE) if space >= 0 else (high, 0)

    def first_best(self, low: int, high: int) -> int:
        """The best place in [low, high), the first of equals; after a space, or `low`, when there is none."""
        first, stop = bisect_left(self.positions, low), bisect_left(self.positions, high)
        if first < stop:
            return self.positions[max(range(first, stop), key=lambda index: (self.strengths[index], -index))]
        spaces = [at for mark in " \t\u3000" if (at := self.text.find(mark, low, high - 1)) >= 0]
        return min(spaces) + 1 if spaces else low


def _line_strengths(text: str, lines: list[int]) -> dict[int, int]:
    """Position -> strength for every start of a line and every start of a sentence outside of code."""
    strengths: dict[int, int] = {}
    fence, after_blank, prose_start = "", False, 0
    for start, end in zip(lines, [*lines[1:], len(text)], strict=True):
        line = text[start:end]
        mark = _FENCE.match(line)
        if mark and not fence:
            strengths[start] = _PARAGRAPH if after_blank else _LINE
            _add_sentences(text, prose_start, start, strengths)
            fence = mark.group(1)
        elif fence:
            strengths[start] = _LINE
            if mark and mark.group(1).startswith(fence) and not line[mark.end() :].strip():
                fence, prose_start = "", end
        elif _HEADING_LINE.match(line):
            strengths[start] = _HEADING
        else:
            strengths[start] = _PARAGRAPH if after_blank and line.strip() else _LINE
        after_blank = not line.strip()
    if not fence:
        _add_sentences(text, prose_start, len(text), strengths)
    return strengths


def _add_sentences(text: str, start: int, end: int, strengths: dict[int, int]) -> None:
    for match in _SENTENCE_END.finditer(text, start, end):
        strengths[match.end()] = max(strengths.get(match.end(), 0), _SENTENCE)
