"""Taking `.gz` and `.zst` off a stream: a piece at a time, never more than was asked for, and bombs not at all.

Every member of a gzip file and every frame of a zstd file is read, as gzip and zstd themselves do. A file that unpacks to
more than it may, or to more than 1,000 times its size, is refused by that name; one that stops in the middle is CutShort,
and one with something else behind its end is told so: nothing that was dropped is left out in silence.
Not here: what the bytes mean.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from guard.checks.kinds import packing_of, unpacked_container
from guard.containers.faults import CutShort
from guard.errors import DataFault

__all__ = ["MAX_RATIO", "MAX_WINDOW_BYTES", "RATIO_FROM_BYTES", "Meter", "unpacked"]

MAX_RATIO = 1000
RATIO_FROM_BYTES = 64 << 20
"""Below this much unpacked any ratio is allowed: it fits anywhere."""
MAX_WINDOW_BYTES = 128 << 20
"""How far back a zstd frame may refer, which is what its reader must hold: the most that `zstd -d` takes without being told."""

_INPUT_BYTES = {"gz": 1 << 16, "zst": 1 << 10}
"""How much is fed at once. zstd gives all that a piece unpacks to: at most 128 KiB for four bytes, so 32 MiB for a kibibyte."""
_OUTPUT_BYTES = 1 << 20
_NAMES = {"gz": "gzip", "zst": "zstandard"}
_MAGICS = {"gz": (b"\x1f\x8b",), "zst": (b"\x28\xb5\x2f\xfd", *(bytes([low, 0x2A, 0x4D, 0x18]) for low in range(0x50, 0x60)))}
_NEED_SEEKING = ("parquet", "arrow", "npy")


class Meter:
    """What came out of how much: raises DataFault when it is a bomb, or more than may be unpacked."""

    def __init__(self, most_bytes: int | None = None) -> None:
        self.most_bytes, self.bytes_in, self.bytes_out = most_bytes, 0, 0

    def add(self, bytes_in: int, bytes_out: int) -> None:
        """Count; raises DataFault at the first byte too many."""
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        if self.most_bytes is not None and self.bytes_out > self.most_bytes:
            raise DataFault(f"it unpacks to more than {self.most_bytes / 1e9:g} GB",
                            hint="drop smaller files, or raise intake.max_unpacked_gb in configs/heirloom.yaml")  # fmt: skip
        if self.bytes_out > max(RATIO_FROM_BYTES, MAX_RATIO * self.bytes_in):
            raise DataFault(f"it unpacks to more than {MAX_RATIO:,} times its size, as a decompression bomb does",
                            hint="if it is meant so, drop it unpacked")  # fmt: skip


class _Gzip:
    """One member of a gzip file."""

    errors: tuple[type[Exception], ...] = (zlib.error,)

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    def give(self, data: bytes) -> bytes:
        """What the data unpacks to, a piece at a time; b"" asks for what was left over."""
        return self._inner.decompress(self._inner.unconsumed_tail + data, _OUTPUT_BYTES)

    @property
    def has_more(self) -> bool:
        return bool(self._inner.unconsumed_tail) and not self._inner.eof

    @property
    def rest(self) -> bytes | None:
        """None until the member has ended; then what follows it."""
        return self._inner.unused_data if self._inner.eof else None


class _Zstd:
    """One frame of a zstd file."""

    has_more = False

    def __init__(self) -> None:
        import zstandard  # only for those who bring one

        self.errors: tuple[type[Exception], ...] = (zstandard.ZstdError,)
        self._inner = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()

    def give(self, data: bytes) -> bytes:
        return self._inner.decompress(data)

    @property
    def rest(self) -> bytes | None:
        return self._inner.unused_data if self._inner.eof else None


class _Unpacked(io.RawIOBase):
    """A readable stream over the unpacked bytes; it can be read again from its beginning, and from nowhere else."""

    def __init__(self, source: BinaryIO, packing: str, most_bytes: int | None) -> None:
        self._source, self._packing, self._most = source, packing, most_bytes
        self._rewind()

    def _rewind(self) -> None:
        self._source.seek(0)
        self._meter = Meter(self._most)
        self._decoder: _Gzip | _Zstd | None = None
        self._left, self._ready, self._at = b"", b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if (offset, whence) == (0, io.SEEK_SET):
            self._rewind()
        elif (offset, whence) not in ((0, io.SEEK_CUR), (self._at, io.SEEK_SET)):
            raise io.UnsupportedOperation("a packed stream is read from its beginning")
        return self._at

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._fill():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        self._at += count
        return count

    def _fill(self) -> bool:
        """Unpack one more piece, which may be empty; False at the end. Raises DataFault."""
        if self._decoder is not None and self._decoder.has_more:
            self._take(b"")
            return True
        piece = self._left or self._source.read(_INPUT_BYTES[self._packing])
        self._left = b""
        if self._decoder is None:
            piece = self._next_member(piece)
        if not piece:
            if self._decoder is not None:
                raise CutShort(f"the {_NAMES[self._packing]} data stops in the middle")
            return False
        self._take(piece)
        return True

    def _next_member(self, piece: bytes) -> bytes:
        """What follows is another member, padding (gzip files may end in zeroes), or nothing that belongs here."""
        if self._packing == "gz" and self._meter.bytes_in:
            while piece and not piece.strip(b"\0"):
                piece = self._source.read(_INPUT_BYTES["gz"])
            piece = piece.lstrip(b"\0")
        if not piece:
            return b""
        if len(piece) < 4:
            piece += self._source.read(4 - len(piece))
        if not piece.startswith(_MAGICS[self._packing]):
            raise self._no_member(piece)
        self._decoder = _Gzip() if self._packing == "gz" else _Zstd()
        return piece

    def _no_member(self, piece: bytes) -> DataFault:
        name = _NAMES[self._packing]
        if any(mark.startswith(piece) for mark in _MAGICS[self._packing]):
            return CutShort(f"the {name} data stops in the middle")
        if self._meter.bytes_in:
            return DataFault(f"something that is no {name} data follows after byte {self._meter.bytes_in} of the packed file",
                             hint=f"unpack it by hand, look at it, and drop it without .{self._packing}")  # fmt: skip
        return DataFault(f"the file is no {name} file: it begins with {bytes(piece[:4])!r}",
                         hint=f"rename it without .{self._packing}, if that is what it is")  # fmt: skip

    def _take(self, piece: bytes) -> None:
        assert self._decoder is not None
        try:
            self._ready = self._decoder.give(piece)
        except self._decoder.errors as error:
            raise self._damaged(error) from error
        if (rest := self._decoder.rest) is not None:
            self._left, self._decoder = rest, None
        self._meter.add(len(piece) - len(self._left), len(self._ready))

    def _damaged(self, error: Exception) -> DataFault:
        if "too much memory" in str(error):  # zstd's own words for a window that is larger than allowed
            return DataFault(f"the zstandard data wants a window of more than {MAX_WINDOW_BYTES >> 20} MiB",
                             hint="pack it again without --ultra --long above 27")  # fmt: skip
        return DataFault(f"the {_NAMES[self._packing]} data is damaged near byte {self._meter.bytes_in}: {error}",
                         hint="copy it again; gzip -t or zstd -t tells the same")  # fmt: skip


@contextlib.contextmanager
def unpacked(stream: BinaryIO, container: str, most_bytes: int | None = None) -> Iterator[tuple[BinaryIO, str]]:
    """(a stream that can be read from its beginning as often as one likes, its container without packing).

    `stream` is seekable and stays the caller's. `most_bytes`: more than so much unpacked is refused; None: only bombs are.
    What is read by jumping to and fro (Parquet, Arrow, npy) is unpacked into a file without a name that is gone afterwards.
    Reading raises DataFault (a bomb, damage, something behind its end), CutShort, OSError.
    """
    packing, inner = packing_of(container), unpacked_container(container)
    if not packing:
        yield stream, inner
        return
    plain = cast(BinaryIO, io.BufferedReader(_Unpacked(stream, packing, most_bytes), _OUTPUT_BYTES))
    if inner not in _NEED_SEEKING:
        yield plain, inner
        return
    with tempfile.TemporaryFile(prefix="heirloom-") as whole:
        while piece := plain.read(_OUTPUT_BYTES):
            whole.write(piece)
        whole.seek(0)
        yield cast(BinaryIO, whole), inner
