"""The one way to the rows of a file, whatever holds them.

Each container has its reader in a file of its own, which is loaded only when such a file comes: numpy and pyarrow are heavy, and
most drops are JSONL. Every reader gives the same rows for the same bytes for ever, since ordinals are counted over them.
Not here: what a row is for (`guard/checks/rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from guard.checks.jsonl import MAX_LINE_BYTES, Row, read_rows
from guard.containers.unpack import unpacked

__all__ = ["read_container"]


def read_container(stream: BinaryIO, container: str, *, max_line_bytes: int = MAX_LINE_BYTES,
                   most_bytes: int | None = None) -> Iterator[Row]:  # fmt: skip
    """Every row of a file of this container (`kinds.container_of`), as a row or a fault, in order.

    `stream`: seekable, at its first byte; it stays open. `max_line_bytes`: a longer row is a fault. `most_bytes`: a file that
    unpacks to more is refused; None: only bombs are. Raises DataFault when the container itself is broken, CutShort when it
    stops in the middle, OSError. `line_number`: the line where the row begins, or its number from 1 in a binary container.
    """
    with unpacked(stream, container, most_bytes) as (plain, inner):
        if inner == "jsonl":
            yield from read_rows(plain, max_line_bytes)
        elif inner == "json":
            from guard.containers.json_rows import read_json

            yield from read_json(plain, max_line_bytes)
        elif inner == "csv":
            from guard.containers.csv_rows import read_csv

            yield from read_csv(plain, max_line_bytes)
        elif inner == "npy":
            from guard.containers.npy_rows import read_npy

            yield from read_npy(plain, max_line_bytes)
        elif inner == "parquet":
            from guard.containers.columnar import read_parquet

            yield from read_parquet(plain, max_line_bytes, most_bytes)
        elif inner == "arrow":
            from guard.containers.columnar import read_arrow

            yield from read_arrow(plain, max_line_bytes, most_bytes)
        elif inner == "tar":
            from guard.checks.members import folder_rows

            yield from folder_rows(plain, max_line_bytes, most_bytes)
        else:
            raise ValueError(f"{container} holds no rows")
