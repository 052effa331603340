"""Sequences of one length on disk, as other programs read them: `.npy` int64 [n, length], or an Arrow folder of `datasets`.

    DIR/train_512/pretrain.npy            np.load(...)             or pretrain_00000.npy ... with several files
    DIR/train_512/data-00000-of-00002.arrow, dataset_info.json, state.json      datasets.load_from_disk("DIR/train_512")

Tokens in, cut into rows as they come; what does not fill a row at the end is dropped and counted, because a shorter row is
none for a reader of matrices, and padding would be learnt. Which tokens go where: `trainer/pack.py`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from guard.durable import make_dir, open_new, rename_new, sha256_file, write_json

__all__ = ["ArrowRows", "NpyRows", "PackedRows"]

_ARROW_BYTES = 500_000_000  # what `datasets` itself puts into one file
_BATCH_TOKENS = 1 << 20
Ids = NDArray[np.int64]


class PackedRows(ABC):
    """Rows of `length` ids into `folder`, which must not exist; no folder is made before there is a row.

    `shard_rows`: most rows in one file, 0 for one file (`.npy`) or half a gigabyte (Arrow). Use as a context manager; a file
    in the making leaves no trace when the block ends with an error.
    """

    def __init__(self, folder: Path, length: int, shard_rows: int = 0) -> None:
        self.folder, self.length, self.shard_rows = folder, length, shard_rows
        self.rows = self.dropped_tokens = 0
        self.files: list[str] = []
        self._rest: Ids = np.empty(0, dtype=np.int64)
        self._open: AbstractContextManager[BinaryIO] | None = None
        self._open_rows = 0

    def add(self, ids: Ids) -> None:
        """The next tokens [any number]."""
        ids = np.concatenate([self._rest, ids])
        whole = len(ids) // self.length
        matrix = ids[: whole * self.length].reshape(whole, self.length)
        self._rest = ids[whole * self.length :].copy()
        while len(matrix):
            room = self.shard_rows - self._open_rows if self.shard_rows else len(matrix)
            self._write(matrix[:room])
            matrix = matrix[room:]

    def _write(self, matrix: Ids) -> None:
        if self._open is None:
            make_dir(self.folder)
            self.files.append(self._name(len(self.files)))
            self._open = open_new(self.folder / self.files[-1])
            self._begin(self._open.__enter__())
        self._append(matrix)
        self.rows += len(matrix)
        self._open_rows += len(matrix)
        if self._open_rows == self.shard_rows:
            self._close()

    def _close(self) -> None:
        opened, rows = self._open, self._open_rows
        self._open, self._open_rows = None, 0
        if opened is None:
            return
        try:
            self._end(rows)
        except BaseException as error:
            opened.__exit__(type(error), error, error.__traceback__)
            raise
        opened.__exit__(None, None, None)

    def __enter__(self) -> PackedRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._close()
            self.dropped_tokens = len(self._rest)
            if self.rows:
                self._finish()
        elif self._open is not None:
            self._open.__exit__(kind, error, trace)

    def record(self) -> dict[str, Any]:
        """What `dataset_metadata.json` says of it; after the block."""
        return {"sequences": self.rows, "length": self.length, "tokens": self.rows * self.length,
                "dropped_tokens": self.dropped_tokens,
                "files": [{"name": name, "sha256": sha256_file(self.folder / name)} for name in self.files]}  # fmt: skip

    @abstractmethod
    def _name(self, number: int) -> str: ...

    @abstractmethod
    def _begin(self, handle: BinaryIO) -> None: ...

    @abstractmethod
    def _append(self, matrix: Ids) -> None: ...

    @abstractmethod
    def _end(self, rows: int) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...


class NpyRows(PackedRows):
    """`pretrain.npy`, or `pretrain_00000.npy` and so on."""

    def _name(self, number: int) -> str:
        return f"pretrain_{number:05d}.npy" if self.shard_rows else "pretrain.npy"

    def _begin(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._header(0)

    def _header(self, rows: int) -> None:
        """numpy pads the header so that the first dimension can be rewritten in place when it is known."""
        self._handle.seek(0)
        header = {"descr": "<i8", "fortran_order": False, "shape": (rows, self.length)}
        np.lib.format.write_array_header_1_0(self._handle, header)

    def _append(self, matrix: Ids) -> None:
        self._handle.write(np.ascontiguousarray(matrix, dtype="<i8").data)

    def _end(self, rows: int) -> None:
        self._header(rows)

    def _finish(self) -> None:
        """Nothing stands beside the arrays."""


class ArrowRows(PackedRows):
    """A folder as `Dataset.save_to_disk` leaves it: one column `input_ids`, a list of int64."""

    def __init__(self, folder: Path, length: int, shard_rows: int = 0) -> None:
        super().__init__(folder, length, shard_rows or max(1, _ARROW_BYTES // (8 * length)))

    def _name(self, number: int) -> str:
        return f"data-{number:05d}.arrow"

    def _begin(self, handle: BinaryIO) -> None:
        import pyarrow as pa

        self._schema = pa.schema([("input_ids", pa.list_(pa.int64()))])
        self._stream = pa.ipc.new_stream(handle, self._schema)

    def _append(self, matrix: Ids) -> None:
        import pyarrow as pa

        step = max(1, _BATCH_TOKENS // self.length)
        for first in range(0, len(matrix), step):
            part = matrix[first : first + step]
            offsets = np.arange(len(part) + 1, dtype=np.int32) * self.length
            column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(part.ravel()))
            self._stream.write_batch(pa.record_batch([column], schema=self._schema))

    def _end(self, rows: int) -> None:
        self._stream.close()

    def _finish(self) -> None:
        """Give the files the names that tell how many they are, and write the two descriptions."""
        names = [f"data-{number:05d}-of-{len(self.files):05d}.arrow" for number in range(len(self.files))]
        for old, new in zip(self.files, names, strict=True):
            rename_new(self.folder / old, self.folder / new)
        self.files = names
        # Without `features`: `datasets` takes them from the schema, and their spelling changed between its versions.
        write_json(self.folder / "dataset_info.json", {"citation": "", "description": "", "homepage": "", "license": ""})
        fingerprint = hashlib.sha256("".join(sha256_file(self.folder / name) for name in names).encode()).hexdigest()[:16]
        write_json(self.folder / "state.json", {
            "_data_files": [{"filename": name} for name in names], "_fingerprint": fingerprint, "_format_columns": None,
            "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
        })  # fmt: skip
