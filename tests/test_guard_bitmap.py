"""Bitmaps of learnt examples: what goes in comes out, and damage is told."""

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.bitmap import bitmap_flags, pack_bitmap, unpack_bitmap
from guard.errors import Damage


@given(st.sets(st.integers(0, 300)))
def test_packing_and_unpacking_gives_the_same_ordinals_both_ways(ordinals: set[int]) -> None:
    packed = pack_bitmap(ordinals, 301)
    assert unpack_bitmap(packed) == sorted(ordinals)
    flags = bitmap_flags(packed, 301)
    assert len(flags) == 301 and set(flags.nonzero()[0].tolist()) == ordinals


@pytest.mark.parametrize("text", ["", "not base64!", base64.b64encode(b"not zlib").decode(),
                                  base64.b64encode(zlib.compress(b"abc")[:-3]).decode()])  # fmt: skip
def test_a_damaged_bitmap_is_told(text: str) -> None:
    with pytest.raises(Damage):
        unpack_bitmap(text)
    with pytest.raises(Damage):
        bitmap_flags(text, 10)


def test_a_bitmap_of_a_longer_file_is_damage() -> None:
    with pytest.raises(Damage, match="more than the 8"):
        bitmap_flags(pack_bitmap([3, 9], 10), 8)
