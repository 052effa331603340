"""Immutable folders of equally long columns of numbers, each row belonging to an example of a file.

What indexes of examples are made of: written once, memory-mapped by any number of readers, and believed only block by
block: every block of rows has a CRC-32 that is compared before anything in it is used, so that neither a flipped bit
nor a half-written page can make an example known or unknown. All of it is derived from the sidecars beside the stored
files. Not here: which rows stand in it and in what order (`guard/store/known.py`), and which folders count (the ledger).

A folder holds `<column>.bin` (little-endian), `files.bin` (32 bytes of SHA-256 for each file number), `blocks.bin`
(a CRC-32 for each BLOCK_ROWS rows, over the columns in the order of their names) and, last, `columns.json`.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.durable import fsync_tree, make_dir, open_new, remove_tree, rename_new, sha256_bytes, write_bytes, write_json
from guard.errors import Damage
from guard.steps import Steps

__all__ = ["BLOCK_ROWS", "Columns", "write_columns_steps"]

BLOCK_ROWS = 8192
_SCHEMA = 1
_FILE_BYTES = 32
Chunk = Mapping[str, NDArray[Any]]


def write_columns_steps(folder: Path, layout: Mapping[str, str], chunks: Iterable[Chunk], files: Sequence[str]) -> Steps[int]:
    """Write a folder whole and durable; returns its number of rows. What lay there from an earlier attempt is replaced.

    `layout`: column name -> numpy type; `chunks`: the rows in order, each a mapping of equally long columns;
    `files`: SHA-256 hex for each number in the column `file`. Yields after every chunk. Raises OSError as the disk says.
    """
    staging = folder.with_name(f".{folder.name}.new")
    for old in (staging, folder):
        if old.exists():
            remove_tree(old)
    make_dir(staging)
    count = 0
    with contextlib.ExitStack() as stack:
        handles = {name: stack.enter_context(open_new(staging / f"{name}.bin")) for name in layout}
        for chunk in chunks:
            for name, kind in layout.items():
                handles[name].write(np.ascontiguousarray(chunk[name], dtype=kind).tobytes())
            count += len(next(iter(chunk.values())))
            yield
    crcs = bytearray()
    views = _map(staging, layout, count)
    for block in range(-(-count // BLOCK_ROWS)):
        crcs += _crc(views, block).to_bytes(4, "little")
        if block % 64 == 63:
            yield
    table = b"".join(bytes.fromhex(name) for name in files)
    write_bytes(staging / "files.bin", table)
    write_bytes(staging / "blocks.bin", bytes(crcs))
    write_json(staging / "columns.json", {
        "schema": _SCHEMA, "rows": count, "layout": dict(layout), "files": len(files),
        "files_sha256": sha256_bytes(table), "blocks_sha256": sha256_bytes(bytes(crcs)), "block_rows": BLOCK_ROWS})  # fmt: skip
    fsync_tree(staging)
    rename_new(staging, folder)
    return count


def _map(folder: Path, layout: Mapping[str, str], rows: int) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for name, kind in layout.items():
        path, dtype = folder / f"{name}.bin", np.dtype(kind)
        if path.stat().st_size != rows * dtype.itemsize:
            raise _damaged(folder, f"{name}.bin has the wrong size")
        # A memory map of nothing is an error of its own.
        found[name] = np.memmap(path, dtype=dtype, mode="r") if rows else np.empty(0, dtype=dtype)
    return found


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
            head = orjson.loads((folder / "columns.json").read_bytes())
            table, crcs = (folder / "files.bin").read_bytes(), (folder / "blocks.bin").read_bytes()
            sound = (head["schema"] == _SCHEMA and head["block_rows"] == BLOCK_ROWS
                     and sha256_bytes(table) == head["files_sha256"] and sha256_bytes(crcs) == head["blocks_sha256"])  # fmt: skip
            if not sound:
                raise _damaged(folder, "its tables are not what was written")
            self.rows = int(head["rows"])
            self.columns = _map(folder, head["layout"], self.rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, str(error)) from error
        self._table = table
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
        return [self.file(number) for number in range(self.files)]

    def prove(self, blocks: NDArray[np.int64]) -> None:
        """Compare the CRC of blocks not compared before in this process. Raises Damage naming the first that differs."""
        for block in np.flatnonzero(np.bincount(blocks)):  # np.unique imports numpy.ma: 30 ms of a command
            if not self._proven[block]:
                if _crc(self.columns, int(block)) != int(self._crcs[block]):
                    raise _damaged(self.folder, f"block {int(block)} is not what was written")
                self._proven[block] = True

    def prove_all_steps(self) -> Steps[None]:
        """Compare every block, in slices. Raises Damage."""
        for start in range(0, len(self._crcs), 64):
            self.prove(np.arange(start, min(start + 64, len(self._crcs))))
            yield
