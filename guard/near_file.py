"""Files of signatures: one for each stored file of examples, 64 bytes for each ordinal, believed chunk by chunk.

Derived from the stored original by a limited child (`guard/near_task.py`) and kept in `data/near/`, outside the sealed
folder: one that is lost or damaged is made again. It says itself whose signatures it holds and of which version.
Not here: what a signature is (`guard/minhash.py`), or the index over all of them (`guard/store/near.py`).

    header   64 bytes: b"HEIRLMH", version (1 byte), rows (8, little-endian), SHA-256 of the original (32),
             CRC-32 of these 48 bytes (4), 12 zero bytes
    rows     64 bytes each
    table    CRC-32 (4 bytes, little-endian) of every CHUNK_ROWS rows
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.durable import publish
from guard.errors import Damage, is_environment
from guard.minhash import BINS, VERSION

__all__ = ["CHUNK_ROWS", "SignatureFile", "write_signatures"]

CHUNK_ROWS = 1024
_MAPPED_BYTES = 1 << 20
"""Larger files are mapped; a map of a file of three rows costs ten times what reading it does."""
_HEADER_BYTES = 64
_MAGIC = b"HEIRLMH" + bytes([VERSION])


def write_signatures(path: Path, sha256: str, rows: NDArray[np.uint8]) -> None:
    """Write the signatures [n, 64] of an original over what was there, in one step. Raises OSError.

    Not synced: what a power cut leaves is found out by the checksums, and made again; a burst of files costs no sync each.
    """
    data = np.ascontiguousarray(rows).tobytes()
    size = CHUNK_ROWS * BINS
    table = b"".join(zlib.crc32(data[start : start + size]).to_bytes(4, "little") for start in range(0, len(data), size))
    head = _MAGIC + len(rows).to_bytes(8, "little") + bytes.fromhex(sha256)
    publish(path, head + zlib.crc32(head).to_bytes(4, "little") + bytes(12) + data + table)


class SignatureFile:
    """One file of signatures, opened for reading."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Raises Damage when it is missing, of another original or version, or has the wrong size; OSError of the machine."""
        self.path = path
        try:
            mapped = path.stat().st_size > _MAPPED_BYTES
            raw = np.asarray(np.memmap(path, dtype=np.uint8, mode="r")) if mapped else np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            if is_environment(error):
                raise  # too many open files say nothing about this one
            raise self._damaged(str(error)) from error
        size = len(raw)
        head = raw[:_HEADER_BYTES].tobytes()
        expected = _MAGIC + head[8:16] + bytes.fromhex(sha256)
        if head[:48] != expected or head[48:52] != zlib.crc32(expected).to_bytes(4, "little"):
            raise self._damaged("it does not hold the signatures of this file")
        self.count = int.from_bytes(head[8:16], "little")
        chunks = -(-self.count // CHUNK_ROWS)
        if size != _HEADER_BYTES + self.count * BINS + 4 * chunks:
            raise self._damaged("it has the wrong size")
        self._rows = raw[_HEADER_BYTES : _HEADER_BYTES + self.count * BINS].reshape(-1, BINS)
        self._crcs = np.frombuffer(raw[_HEADER_BYTES + self.count * BINS :].tobytes(), dtype="<u4")
        self._proven = np.zeros(chunks, dtype=bool)

    def _damaged(self, what: str) -> Damage:
        return Damage(f"the signatures {self.path.name} cannot be used: {what}", subject=str(self.path),
                      hint="the daemon makes them again by itself from the stored file")  # fmt: skip

    def at(self, ordinals: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The signatures of these ordinals [k, 64], each chunk compared before it is used. Raises Damage."""
        if len(ordinals) and (int(ordinals.max()) >= self.count or int(ordinals.min()) < 0):
            raise self._damaged("it has fewer examples than were asked for")
        for chunk in np.flatnonzero(np.bincount(ordinals // CHUNK_ROWS)):
            if not self._proven[chunk]:
                part = self._rows[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]
                if zlib.crc32(part.tobytes()) != int(self._crcs[chunk]):
                    raise self._damaged(f"chunk {int(chunk)} is not what was written")
                self._proven[chunk] = True
        return np.asarray(self._rows[ordinals])

    def all(self) -> NDArray[np.uint8]:
        """Every signature [n, 64]. Raises Damage."""
        return self.at(np.arange(self.count))
