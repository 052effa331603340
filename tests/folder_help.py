"""Data sets as folders for tests: in the hub's layout, with splits in sub-folders, as `save_to_disk` writes them.

Arrow files are written with pyarrow and described by hand: `datasets` takes seconds to import, and one test of the real
thing (`test_guard_folders.py`) shows that they are read alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from guard.durable import sha256_file


def texts(word: str, count: int) -> list[dict[str, Any]]:
    return [{"text": f"{word} {number}: a heirloom keeps what it was given, row by row"} for number in range(count)]


def write_files(folder: Path, files: Mapping[str, Sequence[Mapping[str, Any]] | str | bytes]) -> Path:
    """Write rows (by the suffix: jsonl, parquet or arrow), texts and bytes under a folder; returns the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, "utf-8")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".parquet":
            parquet.write_table(pa.Table.from_pylist([dict(row) for row in content]), path)
        elif path.suffix == ".arrow":
            table = pa.Table.from_pylist([dict(row) for row in content])
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    return folder


def hub(folder: Path, train: int = 60, val: int = 20) -> Path:
    """A data set in the hub's layout: a card, two pieces of train, one of test."""
    rows = texts("train", train)
    return write_files(folder, {
        "README.md": "---\nlicense: mit\nconfigs: []\n---\n# Sums\n\nFor trying things out.\n",
        "data/train-00000-of-00002.parquet": rows[: train // 2], "data/train-00001-of-00002.parquet": rows[train // 2 :],
        "data/test-00000-of-00001.jsonl": texts("test", val)})  # fmt: skip


def saved(folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """A `DatasetDict` as `save_to_disk` lays it out."""
    files: dict[str, Any] = {"dataset_dict.json": json.dumps({"splits": list(rows)})}
    for split, items in rows.items():
        files |= {f"{split}/data-00000-of-00001.arrow": items, f"{split}/dataset_info.json": "{}",
                  f"{split}/state.json": json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})}  # fmt: skip
    return write_files(folder, files)


def contents(folder: Path, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """Every file below a folder with its SHA-256."""
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*"))
            if path.is_file() and str(path.relative_to(folder)) not in leave_out}  # fmt: skip
