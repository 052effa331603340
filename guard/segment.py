"""Plain text cut into segments where the content says so: the examples of a `.txt` or `.md`.

An insertion changes the segments around it and no others, so a text that grew is mostly known already. Boundaries
fall after line ends whose hash is small (content-defined chunking, as in restic and rsync; the chance of a cut
grows with the line's length, so that the target holds for prose and for code alike). Only a line longer than a
whole segment is cut inside: at white space, else after characters of a fixed class, else by length.
Segments joined give the text exactly. Sizes and hashes are taken from the canonical text (NFC, LF), so CRLF and
decomposed copies of a text are cut at the same places.
This file decodes nothing and knows no fingerprints. A change of any rule or number must raise SEGMENTER_VERSION.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from zlib import crc32

__all__ = ["MAX_BYTES", "MIN_BYTES", "SEGMENTER_VERSION", "TARGET_BYTES", "iter_segments", "segment_text"]

SEGMENTER_VERSION = 1
TARGET_BYTES = 2048
MIN_BYTES = 512
MAX_BYTES = 8192

_SCALE = 2**32 // (TARGET_BYTES - MIN_BYTES)  # a unit of n bytes ends a segment with the chance n / (target - min)
_BLOCK_CHARS = 1 << 16  # whole lines are handled in blocks of at least this size; also where a line is surely giant
_CHUNK_CHARS = 1 << 17  # the lines of a chunk and their bytes should stay in the cache of the core: a sixth faster than 1 << 20
_PIECE_CHARS = MAX_BYTES // 4  # the longest piece of a giant line: at 4 bytes a character still one segment

# A giant line is cut after white space and ideographic full stops; a giant word after any character that is 9 modulo
# 16: about one in sixteen, wherever the text starts. Where there is none, by length.
_SPACE = " \t\r\n\v\f\u3000\u3002\uff01\uff1f"
_WORD = re.compile(f"[^{_SPACE}]*+(?:\r\n|[{_SPACE}])|[^{_SPACE}]++")
_Block = tuple[list[str], list[bytes], str]  # units, their canonical bytes, and what stands after every unit


def segment_text(text: str) -> list[str]:
    """The segments of a whole text; joined they are the text."""
    return list(iter_segments([text]))


def iter_segments(chunks: Iterable[str]) -> Iterator[str]:
    """The same segments from a stream of text, however it was chunked, in memory of a few chunks."""
    cutter = _Cutter()
    for block in _unit_blocks(chunks):
        yield from cutter.feed(*block)
    if cutter.waiting:
        yield cutter.waiting


class _Cutter:
    """Decides after which unit (a line, or a piece of a giant line) a segment ends."""

    def __init__(self) -> None:
        self.waiting = ""  # the segment that is still open
        self.size_bytes = 0
        self.previous = b""

    def feed(self, units: list[str], canonical: list[bytes], end: str) -> Iterator[str]:
        """Take a block of units beside their canonical bytes (without the line end) and give finished segments."""
        start, size, previous = 0, self.size_bytes, self.previous
        for index, line in enumerate(canonical):
            length = len(line) + 1
            if size + length > MAX_BYTES and size:
                yield self._close(units[start:index], end)
                start, size = index, 0
            size += length
            # Two units are hashed, so that the blank line between paragraphs is not always or never a boundary.
            if size >= MIN_BYTES and crc32(line, crc32(previous)) < length * _SCALE:
                yield self._close(units[start : index + 1], end)
                start, size = index + 1, 0
            previous = line
        if start < len(units):
            self.waiting += end.join(units[start:]) + end
        self.size_bytes, self.previous = size, previous

    def _close(self, units: list[str], end: str) -> str:
        segment = self.waiting + (end.join(units) + end if units else "")
        self.waiting = ""
        return segment


def _unit_blocks(chunks: Iterable[str]) -> Iterator[_Block]:
    """Blocks of units with their canonical bytes; units are whole lines, or pieces of giant ones."""
    pending, inside_giant = "", False
    for chunk in _small(chunks):
        pending += chunk
        while len(pending) >= _BLOCK_CHARS:
            if not inside_giant:
                whole = pending.rfind("\n") + 1
                yield from _line_blocks(pending[:whole])
                pending = pending[whole:]
                inside_giant = len(pending) >= _BLOCK_CHARS
            if inside_giant:
                stop = pending.find("\n", 0, _BLOCK_CHARS) + 1
                yield _giant_block(pending[: stop or _BLOCK_CHARS])
                pending, inside_giant = pending[stop or _BLOCK_CHARS :], stop == 0
    if inside_giant and pending:
        stop = pending.find("\n") + 1 or len(pending)
        yield _giant_block(pending[:stop])
        pending = pending[stop:]
    yield from _line_blocks(pending)


def _small(chunks: Iterable[str]) -> Iterator[str]:
    """Chunks of a bounded size, so that cutting windows off the front stays cheap."""
    for chunk in chunks:
        for start in range(0, len(chunk), _CHUNK_CHARS):
            yield chunk[start : start + _CHUNK_CHARS]


def _line_blocks(text: str) -> Iterator[_Block]:
    """Whole lines (the last may lack its end) as units. A block is made canonical at once: that is what is fast."""
    canonical = _canonical(text).encode("utf-8").split(b"\n")
    units = text.split("\n")
    last, last_canonical = units.pop(), canonical.pop()
    start = 0
    if len(max(canonical, key=len, default=b"")) >= MAX_BYTES:
        for index, line in enumerate(canonical):
            if len(line) >= MAX_BYTES:
                yield units[start:index], canonical[start:index], "\n"
                yield from _giant_blocks(units[index] + "\n")
                start = index + 1
    yield units[start:], canonical[start:], "\n"
    if len(last_canonical) >= MAX_BYTES:
        yield from _giant_blocks(last)
    elif last:
        yield [last], [last_canonical], ""


def _giant_blocks(line: str) -> Iterator[_Block]:
    """A giant line that is here in full, in the windows in which a stream would have given it."""
    for start in range(0, len(line), _BLOCK_CHARS):
        yield _giant_block(line[start : start + _BLOCK_CHARS])


def _giant_block(window: str) -> _Block:
    """The pieces of one window of a giant line: words, and parts of giant words."""
    pieces: list[str] = []
    for word in _WORD.findall(window):
        if len(word) <= _PIECE_CHARS:
            pieces.append(word)
        else:
            pieces += _parts().findall(word)
    if window == _canonical(window):
        return pieces, [piece.encode("utf-8") for piece in pieces], ""
    return pieces, [_canonical(piece).encode("utf-8") for piece in pieces], ""


@cache
def _parts() -> re.Pattern[str]:
    """The pieces of a giant word. Compiled when first needed: a class of 4,000 characters costs 25 ms."""
    marks = re.escape("".join(chr(code) for code in range(0x29, 0x10000, 16) if not 0xD800 <= code < 0xE000))
    return re.compile(f"[^{marks}]{{0,{_PIECE_CHARS - 1}}}+[{marks}]|.{{1,{_PIECE_CHARS}}}", re.DOTALL)


def _canonical(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return text
