"""One block of a frame: a stretch of one tensor as few bytes as a quick coder makes of it, and back, bit for bit.

A trained child differs from its parent by little, so the bits are turned into whole numbers whose order is the floats'
order (neighbouring floats are neighbouring numbers, across zero too), the parent's are subtracted with wrap-around, and
the difference is folded so that small ones of either sign become small numbers ("zigzag"). Training moves small and
large weights by about as much, which is many steps for a small float and few for a large one: so the differences are
laid in the order of the parent's magnitudes, which the reader knows too, and alike lie together. Byte by byte, each in
a plane of its own, most planes are then nearly empty and zstd makes little of them. Without a parent the sign is turned
to the far end, so that the exponent fills one plane; the mantissa hardly compresses and is stored as it is.
Every step maps all 2^n bit patterns one to one: NaN payloads, -0.0 and infinities come back as they were.

Order of floats as integers: W. Kahan, "Lecture notes on IEEE 754" (1996); zigzag: Protocol Buffers' encoding of
signed integers; byte planes of weights: Hershcovitch et al., "ZipNN" (2024). Not here: files (`frames.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from guard.errors import Damage

__all__ = ["DELTA", "FULL", "RAW", "SAME", "Block", "BlockCoder"]

RAW, FULL, DELTA, SAME = range(4)
"""Stored as it is; planes of its own bits; planes of the difference from the parent; the parent's very bytes."""
ZSTD_LEVEL = 1
_MAGNITUDE = {1: (0, 0x7F), 2: (6, 0x1FF), 4: (22, 0x1FF), 8: (51, 0xFFF)}
"""For floats of so many bytes: where the bits above lie (bf16 for two bytes; for fp16 it is more of the mantissa)."""
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Block:
    """A coded stretch. `planes` are empty for SAME, one for RAW, `width` of them otherwise."""

    mode: int
    planes: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        return sum(map(len, self.planes))


def _bits(data: bytes, width: int) -> Array:
    return np.frombuffer(data, dtype=f"<u{width}")


def _ordered(bits: Array, width: int) -> Array:
    """Float bits as unsigned integers in the floats' order: all bits flipped for negatives, the sign bit for others."""
    sign = bits >> (8 * width - 1)
    return bits ^ (np.negative(sign) | bits.dtype.type(1 << (8 * width - 1)))


def _unordered(numbers: Array, width: int) -> Array:
    sign = (numbers >> (8 * width - 1)) ^ 1
    return numbers ^ (np.negative(sign) | numbers.dtype.type(1 << (8 * width - 1)))


def _by_magnitude(parent: Array, width: int) -> Array:
    """The order of a parent's floats by exponent and first mantissa bit; equal ones keep theirs."""
    shift, mask = _MAGNITUDE[width]
    return np.argsort(((parent >> shift) & mask).astype(np.uint16), kind="stable")


def _difference(bits: Array, parent: Array, width: int, is_float: bool) -> Array:
    if is_float:
        bits, parent = _ordered(bits, width), _ordered(parent, width)
    difference = bits - parent
    return (difference << 1) ^ np.negative(difference >> (8 * width - 1))


def _apply(folded: Array, parent: Array, width: int, is_float: bool) -> Array:
    difference = (folded >> 1) ^ np.negative(folded & 1)
    if not is_float:
        return parent + difference
    return _unordered(_ordered(parent, width) + difference, width)


class BlockCoder:
    """Codes and decodes blocks; holds zstd's working memory, so one per thread."""

    def __init__(self) -> None:
        self._shrink = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self._grow = zstandard.ZstdDecompressor()

    def encode(self, data: bytes, width: int, is_float: bool, parent: bytes | None) -> Block:
        """The smallest form of `data` (a whole number of elements of `width` bytes); `parent`: as many bytes, or None."""
        if parent == data:
            return Block(SAME)
        bits = _bits(data, width)
        best = Block(RAW, (data,))
        if parent is not None:
            before = _bits(parent, width)
            folded = _difference(bits, before, width, is_float)
            planes = self._planes(folded[_by_magnitude(before, width)] if is_float else folded, width)
            best = min(best, Block(DELTA, planes), key=lambda block: block.size)
        turned = (bits << 1) | (bits >> (8 * width - 1)) if is_float else bits
        return min(best, Block(FULL, self._planes(turned, width)), key=lambda block: block.size)

    def _planes(self, numbers: Array, width: int) -> tuple[bytes, ...]:
        """Byte 0 of every number, then byte 1 ...; each compressed, or as it is where that is no longer."""
        columns = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, width)
        planes = []
        for place in range(width):
            plane = np.ascontiguousarray(columns[:, place]).tobytes()
            small = self._shrink.compress(plane)
            planes.append(small if len(small) < len(plane) else plane)
        return tuple(planes)

    def decode(self, block: Block, length: int, width: int, is_float: bool, parent: bytes | None) -> bytes:
        """The very bytes that were encoded. Raises Damage for a block that cannot be one."""
        if block.mode in (SAME, DELTA) and (parent is None or len(parent) != length):
            raise Damage("a block needs bytes of the parent that are not there")
        if block.mode == SAME:
            assert parent is not None
            return parent
        if block.mode == RAW:
            if len(block.planes[0]) != length:
                raise Damage("a stored block has the wrong length")
            return block.planes[0]
        numbers = self._join(block.planes, length // width, width)
        if block.mode == FULL:
            whole = (numbers >> 1) | (numbers << (8 * width - 1)) if is_float else numbers
        else:
            assert parent is not None
            before, folded = _bits(parent, width), numbers
            if is_float:
                folded = np.empty_like(numbers)
                folded[_by_magnitude(before, width)] = numbers
            whole = _apply(folded, before, width, is_float)
        return whole.tobytes()

    def _join(self, planes: tuple[bytes, ...], count: int, width: int) -> Array:
        columns = np.empty((count, width), dtype=np.uint8)
        for place, plane in enumerate(planes):
            columns[:, place] = np.frombuffer(self._plane(plane, count), dtype=np.uint8)
        return columns.reshape(-1).view(f"<u{width}")

    def _plane(self, stored: bytes, count: int) -> bytes:
        if len(stored) == count:
            return stored
        try:
            # Asked first: a damaged length must not make us take memory for it.
            if zstandard.frame_content_size(stored) != count:
                raise Damage("a plane of a block has the wrong length")
            return self._grow.decompress(stored, max_output_size=count)
        except zstandard.ZstdError as error:
            raise Damage(f"a plane of a block cannot be decompressed: {error}", cause=error) from error
