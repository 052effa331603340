"""Where the tensors lie in a safetensors file: its header read by ourselves, every byte of the file accounted for.

    8 bytes header length (little-endian) | header: JSON {name: {dtype, shape, data_offsets}} | the tensors' bytes

The header and whatever lies between tensors are spans too, so that the spans of a file in order are the file. A file
that is no sound safetensors file is one single span: it can still be stored, only not understood.
Not here: loading weights (the trainer's business), and coding them (`frames.py`).
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

__all__ = ["FLOATS", "WIDTHS", "FileBytes", "Readable", "Span", "spans_of"]

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit on its header."""
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
          "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}  # fmt: skip
"""Bytes of one element. A dtype that is not here is taken as single bytes, which is always right."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


class Readable(Protocol):
    """Bytes that can be read from anywhere: a file, or what a frame decodes to."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Span:
    """A stretch of the file. `name` is empty for the header and for gaps."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def width(self) -> int:
        """Bytes of one element; 1 where the length would not fit."""
        width = WIDTHS.get(self.dtype, 1)
        return width if (self.end - self.start) % width == 0 else 1


class FileBytes:
    """A plain file as `Readable`; never follows a symbolic link. Raises OSError."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._handle: BinaryIO = os.fdopen(descriptor, "rb", buffering=0)
        self.path = path
        self.size = os.fstat(descriptor).st_size

    def read(self, start: int, length: int) -> bytes:
        """Raises OSError when the file became shorter."""
        self._handle.seek(start)
        parts, missing = [], length
        while missing:
            part = self._handle.read(missing)
            if not part:
                raise OSError(f"{self.path} ended early")
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        self._handle.close()


def spans_of(source: Readable) -> list[Span]:
    """Every byte of a file in order, as spans. Empty tensors are left out: they have no bytes."""
    whole = [Span("", "", (), 0, source.size)] if source.size else []
    if source.size < 8:
        return whole
    length = int.from_bytes(source.read(0, 8), "little")
    if length > min(MAX_HEADER_BYTES, source.size - 8):
        return whole
    try:
        tensors = _tensors(json.loads(source.read(8, length)), 8 + length, source.size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return whole
    return _with_gaps(tensors, source.size)


def _tensors(header: dict[str, Any], origin: int, size: int) -> list[Span]:
    """The tensors by where they lie. Raises ValueError, TypeError or KeyError for a header that cannot be."""
    found = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = (int(number) for number in entry["data_offsets"])
        if not 0 <= first <= last <= size - origin:
            raise ValueError(f"{name} lies outside the file")
        if name and first < last:
            shape = tuple(int(number) for number in entry["shape"])
            found.append(Span(name, str(entry["dtype"]), shape, origin + first, origin + last))
    found.sort(key=lambda span: span.start)
    if any(one.end > other.start for one, other in itertools.pairwise(found)):
        raise ValueError("tensors overlap")
    return found


def _with_gaps(tensors: list[Span], size: int) -> list[Span]:
    spans, at = [], 0
    for tensor in tensors:
        if tensor.start > at:
            spans.append(Span("", "", (), at, tensor.start))
        spans.append(tensor)
        at = tensor.end
    return spans if at == size else [*spans, Span("", "", (), at, size)]
