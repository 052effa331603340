"""A frame: one safetensors file as the difference from its parent's, or by itself, that gives it back byte for byte.

    "HLFRAME1" | header length, 4 bytes | header: JSON | blocks | SHA-256 of everything before, 32 bytes

    header  {schema: 1, file, size, sha256, depth, parent: {version, sha256} or null}
    block   mode 1 byte, element width 1, flags 2 (1: floats), length in the file 4, offset in the parent 8,
            length of each plane 4 ..., then the planes; all little-endian, lengths in bytes

Blocks follow the file from its first byte to its last, at most 2 MiB each, so that memory stays small whatever the
file's size; a tensor that the parent has too, with the same name, dtype and shape, is coded against it where that is
smaller. A frame without a parent is a key frame (depth 0). Reading a frame at any place decodes the same place of its
parents, without writing anything.
Not here: where frames lie and which parent they take (`guard/store/vault_frames.py`), coding (`frame_blocks.py`).
"""

from __future__ import annotations

import bisect
import hashlib
import os
import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from guard.errors import Damage
from guard.frame_blocks import DELTA, RAW, SAME, Block, BlockCoder
from guard.tensors import FLOATS, FileBytes, Readable, Span, spans_of

__all__ = ["BLOCK_BYTES", "FrameHeader", "FrameReader", "FrameStats", "decode_steps", "encode_steps", "frame_hash_steps",
           "read_header"]  # fmt: skip

MAGIC = b"HLFRAME1"
SCHEMA = 1
BLOCK_BYTES = 2 << 20
MAX_HEADER_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")
_BLOCK = struct.Struct("<BBHIQ")
_FOOTER_BYTES = 32
_IS_FLOAT = 1


@dataclass(frozen=True)
class FrameHeader:
    """What a frame says of itself. `parent` and `parent_sha256` (of the parent's decoded file) are "" for a key frame."""

    file: str
    size: int
    sha256: str
    depth: int = 0
    parent: str = ""
    parent_sha256: str = ""

    def packed(self) -> bytes:
        parent = {"version": self.parent, "sha256": self.parent_sha256} if self.parent else None
        text = orjson.dumps({"schema": SCHEMA, "file": self.file, "size": self.size, "sha256": self.sha256,
                             "depth": self.depth, "parent": parent}, option=orjson.OPT_SORT_KEYS)  # fmt: skip
        return MAGIC + _LENGTH.pack(len(text)) + text


@dataclass(frozen=True)
class FrameStats:
    """What came of an encoding, in bytes. `from_parent`: how much of the file stands on the parent."""

    raw: int
    stored: int
    from_parent: int


# --- writing -----------------------------------------------------------------------------------------------------------


class _Writer:
    """Writes and hashes at once."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._digest, self.size = handle, hashlib.sha256(), 0

    def add(self, data: bytes) -> None:
        self._handle.write(data)
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> None:
        self._handle.write(self._digest.digest())
        self.size += _FOOTER_BYTES


def encode_steps(
    source: Readable, handle: BinaryIO, header: FrameHeader, parent: Readable | None
) -> Generator[int, None, FrameStats]:
    """Write the frame of `source`; yields bytes read, a block at a time. `parent` decodes to `header.parent_sha256`.

    Raises Damage when the source's bytes are not those of `header`, OSError when the disk says no.
    """
    writer, coder, digest, from_parent = _Writer(handle), BlockCoder(), hashlib.sha256(), 0
    writer.add(header.packed())
    twins = _twins(parent)
    for span in spans_of(source):
        twin = twins.get((span.name, span.dtype, span.shape)) if span.name else None
        step = BLOCK_BYTES // span.width * span.width
        for start in range(span.start, span.end, step):
            data = source.read(start, min(step, span.end - start))
            digest.update(data)
            there = twin.start + start - span.start if twin is not None else 0
            before = parent.read(there, len(data)) if parent is not None and twin is not None else None
            block = coder.encode(data, span.width, span.dtype in FLOATS, before)
            _write_block(writer, block, span, len(data), there)
            from_parent += len(data) if block.mode in (DELTA, SAME) else 0
            yield len(data)
    if digest.hexdigest() != header.sha256 or source.size != header.size:
        raise Damage(f"the content of {header.file} changed", hint="heirloom verify --all names it")
    writer.finish()
    return FrameStats(source.size, writer.size, from_parent)


def _twins(parent: Readable | None) -> dict[tuple[str, str, tuple[int, ...]], Span]:
    spans = spans_of(parent) if parent is not None else []
    return {(span.name, span.dtype, span.shape): span for span in spans if span.name}


def _write_block(writer: _Writer, block: Block, span: Span, length: int, there: int) -> None:
    flags = _IS_FLOAT if span.dtype in FLOATS else 0
    writer.add(_BLOCK.pack(block.mode, span.width, flags, length, there if block.mode in (DELTA, SAME) else 0))
    writer.add(b"".join(_LENGTH.pack(len(plane)) for plane in block.planes))
    for plane in block.planes:
        writer.add(plane)


# --- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a block lies in the frame, and what it stands for."""

    start: int
    length: int
    mode: int
    width: int
    is_float: bool
    parent_at: int
    planes: tuple[tuple[int, int], ...]
    """Offset and length of each plane in the frame."""


class FrameReader:
    """A frame as the file it stands for; decodes what is asked for. Raises Damage for a frame that is not sound.

    `open_parent` is called once, when the first block needs it, with the header.
    """

    def __init__(self, path: Path, open_parent: Callable[[FrameHeader], Readable]) -> None:
        self._frame, self.path = FileBytes(path), path
        self._open_parent = open_parent
        self._parent: Readable | None = None
        self._coder = BlockCoder()
        self._cached: tuple[int, bytes] = (-1, b"")
        try:
            self.header, at = _parse_header(self._frame, path)
            self.size = self.header.size
            self._places = _index(self._frame, at, self.size, path)
        except BaseException:
            self._frame.close()
            raise
        self._starts = [place.start for place in self._places]

    def read(self, start: int, length: int) -> bytes:
        """Raises Damage outside the file, or where a block or the parent is not sound."""
        if not 0 <= start <= start + length <= self.size:
            raise Damage(f"{self.path} holds no bytes {start} to {start + length}", subject=str(self.path))
        parts, at = [], bisect.bisect_right(self._starts, start) - 1
        while length:
            data, skip = self._block(at), start - self._starts[at]
            part = data[skip : skip + length]
            parts.append(part)
            start, length, at = start + len(part), length - len(part), at + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _block(self, number: int) -> bytes:
        if self._cached[0] != number:
            self._cached = (number, self._decode(self._places[number]))
        return self._cached[1]

    def _decode(self, place: _Place) -> bytes:
        before = None
        if place.mode in (DELTA, SAME):
            if self._parent is None:
                self._parent = self._open_parent(self.header)
            if place.parent_at + place.length > self._parent.size:
                raise _bad(self.path, "needs bytes that its parent does not have")
            before = self._parent.read(place.parent_at, place.length)
        block = Block(place.mode, tuple(self._frame.read(at, length) for at, length in place.planes))
        try:
            return self._coder.decode(block, place.length, place.width, place.is_float, before)
        except Damage as error:
            raise Damage(f"{self.path}: {error.message}", subject=str(self.path), cause=error) from error

    def close(self) -> None:
        """Close the frame and the parents that were opened for it."""
        self._frame.close()
        if self._parent is not None:
            self._parent.close()


def _bad(path: Path, what: str) -> Damage:
    return Damage(f"{path} {what}", subject=str(path), hint="heirloom verify --backup")


def _parse_header(frame: FileBytes, path: Path) -> tuple[FrameHeader, int]:
    """The header and where the blocks begin."""
    fixed = len(MAGIC) + _LENGTH.size
    if frame.size < fixed + _FOOTER_BYTES or frame.read(0, len(MAGIC)) != MAGIC:
        raise _bad(path, "is not a frame that this Heirloom knows")
    (length,) = _LENGTH.unpack(frame.read(len(MAGIC), _LENGTH.size))
    if length > min(MAX_HEADER_BYTES, frame.size - fixed - _FOOTER_BYTES):
        raise _bad(path, "has a header longer than itself")
    try:
        found = orjson.loads(frame.read(fixed, length))
        if found["schema"] != SCHEMA:
            raise _bad(path, f"has schema {found['schema']}; this Heirloom knows {SCHEMA}")
        parent = found["parent"] or {"version": "", "sha256": ""}
        header = FrameHeader(str(found["file"]), int(found["size"]), str(found["sha256"]), int(found["depth"]),
                             str(parent["version"]), str(parent["sha256"]))  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise _bad(path, f"has a header that cannot be read: {error}") from error
    return header, fixed + length


def _index(frame: FileBytes, at: int, size: int, path: Path) -> list[_Place]:
    """Find every block. Raises Damage unless they make up exactly the file and exactly the frame."""
    places, start, end = [], 0, frame.size - _FOOTER_BYTES
    while at + _BLOCK.size <= end:
        mode, width, flags, length, parent_at = _BLOCK.unpack(frame.read(at, _BLOCK.size))
        count = {SAME: 0, RAW: 1}.get(mode, width)
        at += _BLOCK.size
        if mode > SAME or width not in (1, 2, 4, 8) or not 0 < length <= BLOCK_BYTES or length % width:
            raise _bad(path, "has a block that cannot be")
        if at + count * _LENGTH.size > end:
            break
        lengths = struct.unpack(f"<{count}I", frame.read(at, count * _LENGTH.size))
        at += count * _LENGTH.size
        planes = []
        for plane in lengths:
            planes.append((at, plane))
            at += plane
        if at > end:
            break
        places.append(_Place(start, length, mode, width, bool(flags & _IS_FLOAT), parent_at, tuple(planes)))
        start += length
    if at != end or start != size:
        raise _bad(path, "is cut short or its blocks do not make up the file")
    return places


def read_header(path: Path) -> FrameHeader:
    """What a frame says of itself; its blocks are not looked at. Raises Damage, OSError."""
    frame = FileBytes(path)
    try:
        return _parse_header(frame, path)[0]
    finally:
        frame.close()


def frame_hash_steps(path: Path) -> Generator[int, None, str]:
    """Read a frame from the disk and compare it with the hash at its end; yields bytes, returns what is wrong or ""."""
    digest, frame = hashlib.sha256(), FileBytes(path)
    try:
        # Clean pages are dropped, so that the disk is read and not our own cache.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        end = max(0, frame.size - _FOOTER_BYTES)
        for start in range(0, end, BLOCK_BYTES):
            data = frame.read(start, min(BLOCK_BYTES, end - start))
            digest.update(data)
            yield len(data)
        sound = frame.size >= _FOOTER_BYTES and frame.read(end, _FOOTER_BYTES) == digest.digest()
    finally:
        frame.close()
    return "" if sound else "its content changed"


def decode_steps(source: Readable, write: Callable[[bytes], object] = lambda _data: None) -> Generator[int, None, str]:
    """Read `source` from end to end, hand every part to `write`; yields bytes, returns the SHA-256 in hex."""
    digest = hashlib.sha256()
    for start in range(0, source.size, BLOCK_BYTES):
        data = source.read(start, min(BLOCK_BYTES, source.size - start))
        digest.update(data)
        write(data)
        yield len(data)
    return digest.hexdigest()
