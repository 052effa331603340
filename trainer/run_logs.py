"""The two logs of a run: metrics.jsonl (one line per step) and consumed.bin (the ids of the sequences really fed).

Logs in a staging folder, not finished files: appended and flushed as training goes, synced when a snapshot is taken,
which remembers how long they were. Resuming cuts them back to that length, so that each step stands there exactly
once however often a run is resumed. consumed.bin holds 8 bytes little-endian per id: its SHA-256 is the consumed hash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.errors import Damage

__all__ = ["RunLogs"]


class _Log:
    """A file that grows at its end."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        self._handle = open(path, "ab")  # noqa: SIM115 (closed by close)
        found = os.fstat(self._handle.fileno()).st_size
        if found < keep_bytes:
            self._handle.close()
            raise Damage(f"{path} has {found} bytes, the snapshot was taken at {keep_bytes}", subject=str(path),
                         hint="check the disk: lines that were safely written are gone")  # fmt: skip
        self._handle.truncate(keep_bytes)

    def append(self, data: bytes) -> None:
        self._handle.write(data)
        self._handle.flush()

    def size(self) -> int:
        return os.fstat(self._handle.fileno()).st_size

    def sync(self) -> None:
        os.fsync(self._handle.fileno())

    def close(self) -> None:
        self._handle.close()


class RunLogs:
    """Both logs, open. Use as a context manager."""

    def __init__(self, folder: Path, kept: Mapping[str, Any]) -> None:
        """`kept` is what `mark` returned when the snapshot was taken, or {} for a run from its beginning.

        Raises Damage when a file is shorter than it was, or when the ids are not those that were fed.
        """
        self._metrics = _Log(folder / "metrics.jsonl", int(kept.get("metrics_bytes", 0)))
        self._consumed = _Log(folder / "consumed.bin", int(kept.get("consumed_bytes", 0)))
        self._digest = hashlib.sha256((folder / "consumed.bin").read_bytes())
        if kept and self.consumed_sha256 != kept["consumed_sha256"]:
            self.close()
            raise Damage(f"{folder / 'consumed.bin'} is not what was written", hint="check the disk")

    @property
    def consumed_sha256(self) -> str:
        """SHA-256 over the ids of all sequences fed so far."""
        return self._digest.hexdigest()

    def append(self, row: Mapping[str, Any], sequences: NDArray[np.int64]) -> None:
        """Add one step: its line of metrics and the sequence ids [n] it was fed."""
        ids = sequences.astype("<i8").tobytes()
        self._digest.update(ids)
        self._consumed.append(ids)
        self._metrics.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def mark(self) -> dict[str, Any]:
        """What a snapshot of this moment has to remember; it may be taken when `sync` has been called afterwards."""
        return {
            "metrics_bytes": self._metrics.size(),
            "consumed_bytes": self._consumed.size(),
            "consumed_sha256": self.consumed_sha256,
        }

    def sync(self) -> None:
        """Make everything so far durable. May be called in another thread, while rows are added. Raises OSError."""
        self._metrics.sync()
        self._consumed.sync()

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._consumed.close()

    def __enter__(self) -> RunLogs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
