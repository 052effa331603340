"""Frames: whatever the bits, what comes out is what went in; a changed byte is never taken for the truth."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard import frames
from guard.errors import Damage
from guard.frame_blocks import DELTA, FULL, RAW, SAME, BlockCoder
from guard.frames import FrameHeader, FrameReader, FrameStats, decode_steps, encode_steps, frame_hash_steps, read_header
from guard.store.sums import drain
from guard.tensors import WIDTHS, FileBytes, Readable, spans_of

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPECIAL = (0x0000, 0x8000, 0x7F80, 0xFF80, 0x7F81, 0xFFFF, 0x0001, 0x8001, 0x7FC0, 0x3F80)
"""bf16: zeros, infinities, NaNs with payloads, denormals, one."""


def tensors_file(tensors: dict[str, tuple[str, list[int], bytes]], padding: int = 0) -> bytes:
    """A safetensors file of {name: (dtype, shape, bytes)}."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + b"".join(data for _dtype, _shape, data in tensors.values())


def no_parent(_header: FrameHeader) -> Readable:
    raise AssertionError("a key frame asks for no parent")


def store(folder: Path, name: str, data: bytes, parent: Path | None = None) -> tuple[Path, FrameStats]:
    """Write `data` as a frame; returns its path."""
    source = folder / f"{name}.safetensors"
    source.write_bytes(data)
    behind = hashlib.sha256(parent.read_bytes()).hexdigest() if parent else ""
    header = FrameHeader(source.name, len(data), hashlib.sha256(data).hexdigest(), int(parent is not None),
                         parent.stem if parent else "", behind)  # fmt: skip
    with open(folder / f"{name}.frame", "wb") as handle:
        stats = drain(encode_steps(FileBytes(source), handle, header, FileBytes(parent) if parent else None))
    return folder / f"{name}.frame", stats


def give_back(path: Path, parent: Path | None = None) -> bytes:
    parts: list[bytes] = []
    open_parent: Callable[[FrameHeader], Readable] = (lambda _header: FileBytes(parent)) if parent else no_parent
    reader = FrameReader(path, open_parent)
    digest = drain(decode_steps(reader, parts.append))
    assert digest == read_header(path).sha256
    return b"".join(parts)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A safetensors file with odd dtypes, empty and 0-d tensors, padding, and any bits."""
    tensors = {}
    for name in draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=4)):
        dtype = draw(st.sampled_from([*WIDTHS, "F8_E8M0", "C64"]))
        count = draw(st.sampled_from([0, 1, 3, 17]))
        shape = [] if count == 1 and draw(st.booleans()) else [count]
        size = count * WIDTHS.get(dtype, 1)
        tensors[name] = (dtype, shape, draw(st.binary(min_size=size, max_size=size)))
    return tensors_file(tensors, draw(st.integers(0, 9)))


@quick
@given(data=files(), before=files())
def test_every_bit_comes_back_with_any_parent_and_without_one(tmp_path: Path, data: bytes, before: bytes) -> None:
    parent = tmp_path / "parent.safetensors"
    parent.write_bytes(before)
    assert give_back(store(tmp_path, "alone", data)[0]) == data
    assert give_back(store(tmp_path, "child", data, parent)[0], parent) == data


@quick
@given(data=st.binary(max_size=300))
def test_what_is_no_safetensors_file_is_stored_all_the_same(tmp_path: Path, data: bytes) -> None:
    assert give_back(store(tmp_path, "x", data)[0]) == data


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("is_float", [True, False])
@given(pair=st.binary(min_size=8, max_size=160), seed=st.integers(0, 2**32))
@quick
def test_a_block_comes_back_in_every_form(width: int, is_float: bool, pair: bytes, seed: int) -> None:
    data = pair[: len(pair) // 8 * 8]
    parent = np.random.default_rng(seed).bytes(len(data))
    coder = BlockCoder()
    for before in (None, parent, data):
        block = coder.encode(data, width, is_float, before)
        assert coder.decode(block, len(data), width, is_float, before) == data
        assert block.size <= len(data)
        assert (block.mode == SAME) == (before == data)


def test_special_floats_keep_their_bits_against_each_other() -> None:
    coder, data = BlockCoder(), b""
    data = b"".join(struct.pack("<H", bits) for bits in SPECIAL for _other in SPECIAL) * 50
    parent = b"".join(struct.pack("<H", other) for _bits in SPECIAL for other in SPECIAL) * 50
    block = coder.encode(data, 2, True, parent)
    assert block.mode in (DELTA, FULL) and coder.decode(block, len(data), 2, True, parent) == data


def test_neighbouring_floats_differ_by_one_across_zero() -> None:
    """The order is the floats' own: the difference of -0.0 and 0.0 is one step, and of one ulp too."""
    from guard.frame_blocks import _bits, _difference

    def folded(one: int, other: int) -> int:
        return int(_difference(_bits(struct.pack("<H", one), 2), _bits(struct.pack("<H", other), 2), 2, True)[0])

    assert folded(0x0000, 0x8000) == 2 and folded(0x8000, 0x0000) == 1
    assert folded(0x3F80, 0x3F7F) == 2 and folded(0xBF80, 0xBF7F) == 1 and folded(0x1234, 0x1234) == 0


def noise(count: int, seed: int = 1) -> np.ndarray:
    """bf16 bits of normal numbers."""
    values = (np.random.default_rng(seed).standard_normal(count) * 0.02).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype("<u2")


def test_a_fork_costs_less_than_its_parent_and_an_unchanged_tensor_nothing(tmp_path: Path) -> None:
    bits = noise(40_000)
    parent = tmp_path / "parent.safetensors"
    parent.write_bytes(tensors_file({"w": ("BF16", [40_000], bits.tobytes()), "same": ("BF16", [40_000], bits.tobytes())}))
    moved = bits + np.random.default_rng(2).integers(0, 4, len(bits)).astype("<u2")
    child = tensors_file({"w": ("BF16", [40_000], moved.tobytes()), "same": ("BF16", [40_000], bits.tobytes())})
    alone, delta = store(tmp_path, "alone", child)[1], store(tmp_path, "delta", child, parent)[1]
    assert alone.stored < 0.72 * alone.raw and alone.from_parent == 0
    # Two bits of each of the changed half's 16, and next to nothing for the other half.
    assert delta.stored < 0.2 * delta.raw and delta.from_parent == 160_000
    unchanged = store(tmp_path, "unchanged", parent.read_bytes(), parent)[1]
    assert unchanged.stored < 600


def test_what_does_not_compress_is_stored_as_it_is(tmp_path: Path) -> None:
    data = np.random.default_rng(3).bytes(50_000)
    path, stats = store(tmp_path, "x", tensors_file({"x": ("U8", [50_000], data)}))
    assert stats.stored < stats.raw + 400 and data in path.read_bytes()
    assert BlockCoder().encode(data, 1, False, None).mode == RAW


@pytest.mark.parametrize(("name", "dtype", "shape"), [("w", "F16", [400]), ("w", "BF16", [20, 20]), ("other", "BF16", [400])])
def test_a_tensor_of_another_name_dtype_or_shape_is_no_parent(tmp_path: Path, name: str, dtype: str, shape: list[int]) -> None:
    data = noise(400).tobytes()
    parent = tmp_path / "parent.safetensors"
    parent.write_bytes(tensors_file({"w": ("BF16", [400], data)}))
    path, stats = store(tmp_path, "child", tensors_file({name: (dtype, shape, data)}), parent)
    assert stats.from_parent == 0 and give_back(path, parent).endswith(data)


def test_tensors_added_removed_and_in_another_order_find_their_parents(tmp_path: Path) -> None:
    one, two = noise(4000, 1).tobytes(), noise(4000, 2).tobytes()
    parent = tmp_path / "parent.safetensors"
    parent.write_bytes(tensors_file({"gone": ("BF16", [4000], two), "a": ("BF16", [4000], one), "b": ("BF16", [4000], two)}))
    child = tensors_file({"b": ("BF16", [4000], two), "new": ("F32", [2000], one), "a": ("BF16", [4000], one)}, padding=3)
    path, stats = store(tmp_path, "child", child, parent)
    assert stats.from_parent == 16_000 and give_back(path, parent) == child


def test_big_tensors_come_in_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "BLOCK_BYTES", 1000)
    data = tensors_file({"w": ("F64", [500], np.random.default_rng(1).standard_normal(500).tobytes())})
    source = tmp_path / "w.safetensors"
    source.write_bytes(data)
    with open(tmp_path / "w.frame", "wb") as handle:
        header = FrameHeader("w.safetensors", len(data), hashlib.sha256(data).hexdigest())
        steps = list(encode_steps(FileBytes(source), handle, header, None))
    assert max(steps) <= 1000 and sum(steps) == len(data) and give_back(tmp_path / "w.frame") == data
    reader = FrameReader(tmp_path / "w.frame", no_parent)
    for start, length in ((0, 0), (1, 8), (990, 2500), (len(data) - 1, 1)):
        assert reader.read(start, length) == data[start : start + length]
    with pytest.raises(Damage, match="holds no bytes"):
        reader.read(len(data), 1)


def test_a_source_that_is_not_what_was_sealed_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "x.safetensors"
    source.write_bytes(b"other")
    with open(tmp_path / "x.frame", "wb") as handle, pytest.raises(Damage, match="changed"):
        drain(encode_steps(FileBytes(source), handle, FrameHeader("x.safetensors", 5, "0" * 64), None))


def test_every_changed_byte_of_a_frame_is_found(tmp_path: Path) -> None:
    bits = noise(300)
    parent = tmp_path / "parent.safetensors"
    parent.write_bytes(tensors_file({"w": ("BF16", [300], bits.tobytes()), "v": ("I32", [50], b"\1\2\0\0" * 50)}))
    child = tensors_file({"w": ("BF16", [300], (bits + 1).tobytes()), "v": ("I32", [50], b"\1\3\0\0" * 50)})
    path, _stats = store(tmp_path, "child", child, parent)
    whole = path.read_bytes()
    assert drain(frame_hash_steps(path)) == ""
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        assert drain(frame_hash_steps(path)) != "", place
        try:
            assert drain(decode_steps(FrameReader(path, lambda _header: FileBytes(parent)))) is not None
        except Damage:
            continue  # told, and nothing else: never another error, never endless
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert drain(frame_hash_steps(path)) != ""
        with pytest.raises(Damage):
            FrameReader(path, no_parent)


def test_a_frame_of_a_later_schema_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SCHEMA", 2)
    path, _stats = store(tmp_path, "x", b"abc")
    monkeypatch.undo()
    with pytest.raises(Damage, match="schema 2"):
        read_header(path)


@pytest.mark.parametrize("header", [b"{}}", b"[1]", b'{"w": 3}',
                                    b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99]}}',
                                    b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, '
                                    b'"b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}'])  # fmt: skip
def test_a_header_that_cannot_be_is_one_span(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    spans = spans_of(FileBytes(path))
    assert [(span.name, span.start, span.end) for span in spans] == [("", 0, path.stat().st_size)]


@quick
@given(data=files())
def test_spans_are_the_whole_file_in_order(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data + b"tail")
    spans = spans_of(FileBytes(path))
    assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])] and spans[-1].end == len(data) + 4
