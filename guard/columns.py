"""Immutable folders of equally long columns of numbers, each row belonging to an example of a file.

What indexes of examples are made of: written once, memory-mapped by any number of readers, and believed only block by
block: every block of rows has a CRC-32 that is compared before anything in it is used, so that neither a flipped bit
nor a half-written page can make an example known or unknown. All of it is derived from the sidecars beside the stored
files. Not here: which rows stand in it and in what order (`guard/store/known.py`), and which folders count (the ledger).

A folder holds `columns.bin` (little-endian, each column beginning at a multiple of 64 bytes, in the order of their names),
`files.bin` (32 bytes of SHA-256 for each file number), `blocks.bin` (a CRC-32 for each BLOCK_ROWS rows, over the columns in
that order) and, last, `columns.json`. One file, because a map of it holds a descriptor as long as it lives.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.durable import (
    fsync_tree,
    make_dir,
    open_new,
    remove_tree,
    rename_new,
    sha256_bytes,
    sync_so_far,
    write_bytes,
    write_json,
)
from guard.errors import Damage, is_environment
from guard.steps import Steps

__all__ = ["BLOCK_ROWS", "Chunk", "SYNC_BYTES", "Columns", "Stamp", "folder_stamp", "write_columns_steps"]

BLOCK_ROWS = 8192
PROOF_BLOCKS = 64
"""So many blocks are compared in one step: 10 MB of keys, some 10 ms."""
SYNC_BYTES = 8 << 20
"""After so many bytes a large folder is synced while it grows: syncing 1.3 GB at its end stopped everything for seconds."""
_SCHEMA = 1
_FILE_BYTES = 32
_ALIGNED = 64
_FILES = ("columns.json", "columns.bin", "files.bin", "blocks.bin")
Chunk = Mapping[str, NDArray[Any]]
Stamp = tuple[tuple[int, int, int], ...]
"""Inode, size and time of change of each file of a folder."""


def folder_stamp(folder: Path) -> Stamp:
    """By what it is known that a folder was not written to since. Raises OSError where a file is missing."""
    facts = [(folder / name).stat() for name in _FILES]
    return tuple((item.st_ino, item.st_size, item.st_mtime_ns) for item in facts)


def write_columns_steps(folder: Path, layout: Mapping[str, str], rows: int, chunks: Iterable[Chunk],
                        files: Sequence[str]) -> Steps[None]:  # fmt: skip
    """Write a folder whole and durable. What lay there from an earlier attempt is replaced.

    `layout`: column name -> numpy type; `chunks`: `rows` rows in order, each chunk a mapping of equally long columns;
    `files`: SHA-256 hex for each number in the column `file`. Yields after every chunk, and syncs on the way. Raises OSError
    as the disk says, Damage when the chunks do not hold so many rows.
    """
    staging = folder.with_name(f".{folder.name}.new")
    for old in (staging, folder):
        if old.exists():
            remove_tree(old)
    make_dir(staging)
    places, size = _places(layout, rows)
    written, unsynced = 0, 0
    with open_new(staging / "columns.bin") as handle:
        handle.truncate(size)
        for chunk in chunks:
            for name, kind in layout.items():
                handle.seek(places[name] + written * np.dtype(kind).itemsize)
                unsynced += handle.write(np.ascontiguousarray(chunk[name], dtype=kind).tobytes())
            written += len(next(iter(chunk.values())))
            if unsynced >= SYNC_BYTES:
                sync_so_far(handle)
                unsynced = 0
            yield
        if written != rows:
            raise _damaged(folder, f"{written} rows came where {rows} were promised")
    crcs = bytearray()
    views = _map(staging, layout, rows)
    for block in range(-(-rows // BLOCK_ROWS)):
        crcs += _crc(views, block).to_bytes(4, "little")
        if block % PROOF_BLOCKS == PROOF_BLOCKS - 1:
            yield
    del views
    table = b"".join(bytes.fromhex(name) for name in files)
    write_bytes(staging / "files.bin", table)
    write_bytes(staging / "blocks.bin", bytes(crcs))
    write_json(staging / "columns.json", {
        "schema": _SCHEMA, "rows": rows, "layout": dict(layout), "files": len(files),
        "files_sha256": sha256_bytes(table), "blocks_sha256": sha256_bytes(bytes(crcs)), "block_rows": BLOCK_ROWS})  # fmt: skip
    fsync_tree(staging)
    rename_new(staging, folder)


def _places(layout: Mapping[str, str], rows: int) -> tuple[dict[str, int], int]:
    """Where each column begins, and the size of the whole."""
    places, end = {}, 0
    for name in sorted(layout):
        places[name] = -(-end // _ALIGNED) * _ALIGNED
        end = places[name] + rows * np.dtype(layout[name]).itemsize
    return places, end


def _map(folder: Path, layout: Mapping[str, str], rows: int) -> dict[str, NDArray[Any]]:
    places, size = _places(layout, rows)
    path = folder / "columns.bin"
    if path.stat().st_size != size:
        raise _damaged(folder, "columns.bin has the wrong size")
    # A memory map of nothing is an error of its own.
    whole = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, dtype=np.uint8)
    return {name: np.asarray(whole)[place : place + rows * np.dtype(layout[name]).itemsize].view(layout[name])
            for name, place in places.items()}  # fmt: skip


def _crc(views: Mapping[str, NDArray[Any]], block: int) -> int:
    crc = 0
    for name in sorted(views):
        crc = zlib.crc32(views[name][block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS].tobytes(), crc)
    return crc


def _damaged(folder: Path, what: str) -> Damage:
    return Damage(f"the index of known examples is damaged: {what}", subject=str(folder),
                  hint="the daemon makes it again by itself from the stored files")  # fmt: skip


class Columns:
    """One folder, opened for reading. `columns`: each memory-mapped, [rows]; use only rows that `prove` has passed."""

    def __init__(self, folder: Path) -> None:
        """Raises Damage when the folder is not what was written (block contents are compared later, by `prove`)."""
        self.folder = folder
        try:
            self.stamp = folder_stamp(folder)
            head = orjson.loads((folder / "columns.json").read_bytes())
            table, crcs = (folder / "files.bin").read_bytes(), (folder / "blocks.bin").read_bytes()
            sound = (head["schema"] == _SCHEMA and head["block_rows"] == BLOCK_ROWS
                     and sha256_bytes(table) == head["files_sha256"] and sha256_bytes(crcs) == head["blocks_sha256"])  # fmt: skip
            if not sound:
                raise _damaged(folder, "its tables are not what was written")
            self.rows = int(head["rows"])
            self.columns = _map(folder, head["layout"], self.rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, OSError) and is_environment(error):
                raise  # too many open files say nothing about this one
            raise _damaged(folder, str(error)) from error
        self._table = table
        self._names: list[str] | None = None
        self._crcs = np.frombuffer(crcs, dtype="<u4")
        self._proven = np.zeros(len(self._crcs), dtype=bool)

    @property
    def files(self) -> int:
        """How many files its rows come from."""
        return len(self._table) // _FILE_BYTES

    def file(self, number: int) -> str:
        """SHA-256 hex of a file by its number here."""
        return self._table[number * _FILE_BYTES : (number + 1) * _FILE_BYTES].hex()

    def file_names(self) -> list[str]:
        """SHA-256 hex of every file, by number."""
        if self._names is None:
            self._names = [self.file(number) for number in range(self.files)]
        return self._names

    def prove(self, blocks: NDArray[np.int64]) -> None:
        """Compare the CRC of blocks not compared before in this process. Raises Damage naming the first that differs."""
        for block in np.flatnonzero(np.bincount(blocks)):  # np.unique imports numpy.ma: 30 ms of a command
            if not self._proven[block]:
                if _crc(self.columns, int(block)) != int(self._crcs[block]):
                    raise _damaged(self.folder, f"block {int(block)} is not what was written")
                self._proven[block] = True

    def prove_steps(self, blocks: NDArray[np.int64]) -> Steps[None]:
        """`prove` in slices."""
        wanted = np.flatnonzero(np.bincount(blocks)) if len(blocks) else blocks
        fresh = wanted[~self._proven[wanted]]
        for start in range(0, len(fresh), PROOF_BLOCKS):
            self.prove(fresh[start : start + PROOF_BLOCKS])
            yield

    def prove_all_steps(self) -> Steps[None]:
        """Compare every block that was not compared before, in slices. Raises Damage."""
        yield from self.prove_steps(np.arange(len(self._crcs)))
