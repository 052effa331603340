"""What the bytes of a block of lines say about each line, found for all of them at once.

Before a row of JSON is taken apart at its quotes (`quick_rows.py`), this file says where they are and where that can be
done: it hides the quotes that are escaped, and marks the lines that need more. It knows bytes and lines, not JSON and
not rows; a mark too many costs time, and a missing one would be an error.

Source of the idea: simdjson's first stage (Langdale, Lemire 2019), here with whole arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Flags = NDArray[np.bool_]
    Positions = NDArray[np.intp]

__all__ = ["MarkedBlock", "mark_lines", "shown"]

_HIDDEN = b"\x01"
"""Stands for an escaped quote. In a block that holds this byte already nothing is hidden, and every line is foul."""
_LF, _CR, _QUOTE, _BACKSLASH = b'\n\r"\\'


@dataclass(frozen=True)
class MarkedBlock:
    """A block of n lines with p pairs of quotes; escaped quotes are hidden (`shown` brings them back)."""

    text: bytes
    data: Bytes
    """The bytes of `text`."""
    starts: Positions
    """[n] where each line begins."""
    ends: Positions
    """[n] where each line's end stands, or the block's."""
    foul: Flags
    """[n] whether a control character stands in the line, or a quote is missing; its quotes are not in `quotes` then."""
    quotes: Positions
    """[2p] where the quotes stand that open and close, in turn."""
    before: Positions
    """[n + 1] how many of these stand before each line, and in all."""
    rough: Flags
    """[p] False where the bytes between a pair of quotes are surely as RFC 8785 would write them in canonical form: they
    are ASCII, not empty, with its own escapes only, and neither begin nor end with what may stand for white space."""

    def line(self, place: int) -> bytes:
        """A line without its end, escaped quotes hidden."""
        return self.text[self.starts[place] : self.ends[place]]


def shown(line: bytes) -> bytes:
    """A line that is not foul, or a part of one, as it stood in its block."""
    return line.replace(_HIDDEN, b'"')


def mark_lines(block: bytes) -> MarkedBlock:
    """Mark the lines of a block. Memory: about ten times the block, and forty where it is nothing but quotes."""
    import numpy as np  # takes a tenth of a second to import, and a file of one row never comes here

    data = np.frombuffer(block, dtype=np.uint8)
    # Three comparisons and no table: to look every byte up costs four times as much.
    where = np.flatnonzero((data == _QUOTE) | (data == _BACKSLASH) | (data < 32))
    what = data[where]
    ends = where[what == _LF]
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate(([0], ends[:-1] + 1))
    after = np.minimum(_escaping(where[what == _BACKSLASH]) + 1, len(data) - 1)
    escaped = data[after]
    quotes, is_quote = where[what == _QUOTE], escaped == _QUOTE
    foul = _foul_lines(data, where[(what < 32) & (what != _LF)], ends)
    hidden = data
    if _HIDDEN in block:
        foul[:] = True
    elif is_quote.any():
        hidden = data.copy()
        hidden[after[is_quote]] = _HIDDEN[0]
        quotes = quotes[hidden[quotes] == _QUOTE]
    quotes, before = _pairs(quotes, ends, foul)
    rough = _rough_edges(hidden, quotes)
    opened = np.searchsorted(quotes, after[_unlike_rfc_8785(escaped)])
    rough[(opened[opened % 2 == 1]) // 2] = True  # an escape outside of quotes is no JSON, which the plans find out
    if not block.isascii():
        rough |= np.repeat(np.maximum.reduceat(data, starts) >= 128, np.diff(before) // 2)
    text = block if hidden is data else hidden.tobytes()
    return MarkedBlock(text, hidden, starts, ends, foul, quotes, before, rough)


def _pairs(quotes: Positions, ends: Positions, foul: Flags) -> tuple[Positions, Positions]:
    """The quotes of the lines in which every one has its other, and how many stand before each line."""
    import numpy as np

    foul |= np.diff(np.searchsorted(quotes, ends), prepend=0) % 2 == 1
    if foul.any():
        quotes = quotes[~foul[np.searchsorted(ends, quotes)]]
    return quotes, np.concatenate(([0], np.searchsorted(quotes, ends)))


def _escaping(slashes: Positions) -> Positions:
    """Which backslashes escape what follows: in every run of them, the first and every second one after it."""
    import numpy as np

    joined = slashes[1:] == slashes[:-1] + 1
    if not joined.any():
        return slashes
    places = np.arange(len(slashes))
    run = np.maximum.accumulate(np.where(np.concatenate(([True], ~joined)), places, 0))
    return slashes[(places - run) % 2 == 0]


def _unlike_rfc_8785(escaped: Bytes) -> Flags:
    """Which escapes, by the byte after the backslash, RFC 8785 does not write in this way, such as `\\/` and `\\u0041`."""
    plain = escaped == _QUOTE
    for byte in b"\\bfnt":
        plain |= escaped == byte
    return ~plain


def _may_be_white(escaped: Bytes) -> Flags:
    """Whether the escape that ends in this byte may stand for white space."""
    return (escaped == ord("n")) | (escaped == ord("t")) | (escaped == ord("r")) | (escaped == ord("f"))


def _rough_edges(data: Bytes, quotes: Positions) -> Flags:
    """[p] whether what stands between a pair of quotes is empty, or may begin or end with white space."""
    import numpy as np

    opening, closing = quotes[0::2], quotes[1::2]
    first, last = data[opening + 1], data[closing - 1]
    rough = (first <= 32) | ((last <= 32) & (last != _HIDDEN[0])) | (closing == opening + 1)
    # What `\\u` stands for is not known here, but it is no escape of RFC 8785.
    rough |= (first == _BACKSLASH) & _may_be_white(data[np.minimum(opening + 2, len(data) - 1)])
    rough |= _may_be_white(last) & (data[closing - 2] == _BACKSLASH)
    return rough


def _foul_lines(data: Bytes, controls: Positions, ends: Positions) -> Flags:
    """[n] which lines hold a control character; the carriage return of a line end is none."""
    import numpy as np

    foul = np.zeros(len(ends), dtype=bool)
    ends_line = (data[controls] == _CR) & (data[np.minimum(controls + 1, len(data) - 1)] == _LF)
    foul[np.searchsorted(ends, controls[~ends_line])] = True
    return foul
