"""Sets of example ordinals as compressed bitmaps: bit i is example i of a file; zlib, then base64 text.

One bit an example before compression, so that "what this version learnt of that file" stays small in the ledger.
This file does not know what was learnt or by whom; `guard/store/learnt.py` does.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from guard.errors import Damage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["bitmap_bits", "bitmap_flags", "pack_bitmap", "unpack_bitmap"]


def pack_bitmap(ordinals: Iterable[int], count: int) -> str:
    """The ordinals (each in 0..count-1) as text."""
    bits = bytearray((count + 7) // 8)
    for ordinal in ordinals:
        assert 0 <= ordinal < count, "an ordinal lies outside its file"
        bits[ordinal >> 3] |= 1 << (ordinal & 7)
    return base64.b64encode(zlib.compress(bytes(bits), 6)).decode()


def _bits(text: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except (binascii.Error, zlib.error, ValueError) as error:
        raise Damage("a bitmap of learnt examples is damaged", hint="heirloom verify --all", cause=error) from error


def unpack_bitmap(text: str) -> list[int]:
    """The ordinals in a bitmap, ascending. Raises Damage for text that is not one."""
    return [
        (place << 3) + bit for place, byte in enumerate(_bits(text)) if byte for bit in range(8) if byte >> bit & 1
    ]


def bitmap_bits(text: str) -> NDArray[np.bool_]:
    """The bitmap as it stands: one bool for each ordinal, and up to seven more. Raises Damage for text that is not one."""
    import numpy as np

    return np.unpackbits(np.frombuffer(_bits(text), dtype=np.uint8), bitorder="little").astype(bool)


def bitmap_flags(text: str, count: int) -> NDArray[np.bool_]:
    """The bitmap as one bool for each of a file's `count` examples: for files with very many of them.

    Raises Damage for text that is not a bitmap, or one of another file (it names an ordinal from `count` on).
    """
    import numpy as np

    flags = bitmap_bits(text)
    if flags[count:].any():
        raise Damage(f"a bitmap of learnt examples names more than the {count} examples of its file",
                     hint="heirloom verify --all")  # fmt: skip
    whole = np.zeros(count, dtype=bool)
    whole[: min(count, len(flags))] = flags[:count]
    return whole
