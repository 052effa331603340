"""Rows of a `.npy` file: a matrix of whole numbers [n, length] of packed token ids, each row one sequence `input_ids`.

Never a pickle: an array of objects is refused before anything in it is read. What is not such a matrix is refused with what to
type. Read a slice at a time; the header is read by numpy's own reader, which bounds it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from guard.checks.jsonl import Row
from guard.containers.faults import CutShort
from guard.errors import DataFault

__all__ = ["read_npy"]

_SLICE_BYTES = 1 << 20
_SAVE = "np.save(FILE, ids.reshape(-1, LENGTH).astype(np.int64))"


def read_npy(stream: BinaryIO, max_row_bytes: int) -> Iterator[Row]:
    """Each row [length] as {"input_ids": [int]}, numbered from 1. Raises DataFault, CutShort, OSError.

    Memory: a megabyte of ids, or one row.
    """
    import numpy as np  # heavy, and only for those who bring one

    shape, dtype = _layout(stream, max_row_bytes)
    begin = stream.tell()
    size, wanted = stream.seek(0, os.SEEK_END) - begin, math.prod(shape) * dtype.itemsize
    if size < wanted:
        raise CutShort(f"the array is cut short: {size:,} of {wanted:,} bytes are there")
    if size > wanted:
        raise DataFault(f"{size - wanted:,} bytes follow the end of the array", hint="save it again with np.save")
    stream.seek(begin)
    row_bytes = shape[1] * dtype.itemsize
    together = max(1, _SLICE_BYTES // row_bytes)
    for first in range(0, shape[0], together):
        count = min(together, shape[0] - first)
        piece = stream.read(count * row_bytes)
        if len(piece) < count * row_bytes:
            raise CutShort("the array became shorter while it was read")
        for place, ids in enumerate(np.frombuffer(piece, dtype=dtype).reshape(count, shape[1]).tolist()):
            yield Row(first + place + 1, b"", {"input_ids": ids}, None)


def _layout(stream: BinaryIO, max_row_bytes: int) -> tuple[tuple[int, int], Any]:
    """(shape, dtype) of a matrix that can be rows. Raises DataFault."""
    shape, fortran, dtype = _header(stream)
    if dtype.kind not in "iu":
        what = "Python objects (a pickle)" if dtype.hasobject else f"{dtype}"
        raise DataFault(f"the array holds {what}, and token ids are whole numbers", hint=f"save it as such: {_SAVE}")
    if len(shape) == 1:
        raise DataFault(f"the array is one long row of {shape[0]:,} ids, and rows of one length are needed [n, length]",
                        hint="cut it: n = len(ids) // 2048; np.save(FILE, ids[:n * 2048].reshape(n, 2048))")  # fmt: skip
    if len(shape) != 2:
        raise DataFault(f"the array has {len(shape)} dimensions, and rows of ids have two [n, length]", hint=_SAVE)
    if fortran and min(shape) > 1:
        raise DataFault("the array is stored column by column (Fortran order)", hint="np.save(FILE, np.ascontiguousarray(ids))")
    if not shape[1]:
        raise DataFault(f"the array has {shape[0]:,} rows without a single id", hint="save the ids: " + _SAVE)
    if shape[1] * dtype.itemsize > max_row_bytes:
        raise DataFault(f"a row of {shape[1]:,} ids is longer than {max_row_bytes} bytes",
                        hint="cut it into rows of a model's context, such as 2048: " + _SAVE)  # fmt: skip
    return (shape[0], shape[1]), dtype


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, Any]:
    from numpy.lib import format as npy

    start = stream.read(6)
    if start != npy.MAGIC_PREFIX:
        if npy.MAGIC_PREFIX.startswith(start):
            raise CutShort("the array is cut short: not even its header is there")
        raise DataFault(f"the file is no .npy array: it begins with {start!r}", hint="save it with np.save, or rename it")
    stream.seek(0)
    try:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise DataFault(f"the array is written in version {version} of its format", hint="save plain whole numbers: " + _SAVE)
        return npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
    except ValueError as error:
        if "EOF" in str(error):
            raise CutShort("the array is cut short: its header stops in the middle") from error
        raise DataFault(f"the header of the array cannot be read: {str(error).splitlines()[0][:200]}",
                        hint="save it again with np.save") from error  # fmt: skip
