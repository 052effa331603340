"""Files and folders of rows by hand: which data files a folder holds, to which split each belongs, and their rows.

Used by the commands of `heirloom prepare` that take folders as other programs leave them: `save_to_disk` folders, folders
in the hub's layout, `train/` and `val/` beside one another. A folder's own words are believed where it has some
(`state.json`), else names decide. Not here: what a row means, and drops, which intake reads in its own way.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from guard.checks.jsonl import Row, read_rows
from guard.checks.kinds import container_of
from guard.checks.rows import open_regular
from guard.errors import DataFault

__all__ = ["DataFile", "data_files", "row_container", "rows_of", "split_of"]

VAL_NAMES = ("val", "valid", "validation", "dev", "test", "eval")
_WORDS_ONLY = {"state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json", "tokenizer_state.json",
               "dataset_metadata.json", "readme.md", "license.txt", "license.md"}  # fmt: skip
_BINARY = {".parquet": "parquet", ".arrow": "arrow"}
_BATCH_ROWS = 64


class DataFile(NamedTuple):
    """One data file of a folder: where it is, its name within the folder, and `train` or `val`."""

    path: Path
    name: str
    split: str


def row_container(path: Path) -> str:
    """How the file holds rows: a container of `guard/checks/kinds.py`; "" where it is none."""
    return container_of(path.name) or _BINARY.get(path.suffix.lower(), "")


def split_of(name: str) -> str:
    """`val` for a path below a folder, or of a file, that is called so (`val_512`, `test-00000-of-00001.parquet`)."""
    for part in name.lower().split("/"):
        word = part.partition(".")[0].replace("-", "_").partition("_")[0]
        if word in VAL_NAMES:
            return "val"
    return "train"


def data_files(folder: Path) -> list[DataFile]:
    """The data files below a folder, by name, without hidden ones. Raises DataFault for a piece that is missing."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) or not path.is_file() or not _is_data(path):
            continue
        name = "/".join(parts)
        found.append(DataFile(path, name, split_of(name)))
    _missing_pieces(folder)
    return found


def _is_data(path: Path) -> bool:
    if path.name.lower() in _WORDS_ONLY or not row_container(path):
        return False
    told = _told_pieces(path.parent)
    return not told or path.suffix != ".arrow" or path.name in told


def _told_pieces(folder: Path) -> list[str]:
    """The Arrow files that a `save_to_disk` folder says it has; what else lies there is its cache."""
    try:
        state = orjson.loads((folder / "state.json").read_bytes())
        return [str(item["filename"]) for item in state["_data_files"]]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return []  # no such folder, or somebody else's state.json: names decide


def _missing_pieces(folder: Path) -> None:
    for state in sorted([folder / "state.json", *folder.glob("*/state.json")]):
        missing = [name for name in _told_pieces(state.parent) if not (state.parent / name).is_file()]
        if missing:
            raise DataFault(f"{state.parent} says that it holds {missing[0]}, which is not there", subject=str(state.parent),
                            hint="copy the whole folder again")  # fmt: skip


def rows_of(path: Path) -> Iterator[Row]:
    """Every row of a file of rows, or a fault in its place. Raises DataFault when it is none, OSError as the disk says."""
    container = row_container(path)
    if not container or container.startswith("text"):
        raise DataFault(f"{path.name} holds no rows", subject=str(path), hint="rows: .jsonl, .parquet or Arrow")
    # A person may name a link; readers follow none.
    with open_regular(path.resolve()) as stream:
        yield from _read(stream, container, path)


def _read(stream: BinaryIO, container: str, path: Path) -> Iterator[Row]:
    if container == "jsonl":
        return read_rows(stream)
    try:
        return importlib.import_module("guard.containers.read").read_container(stream, container)
    except ImportError:  # a release without the other containers
        return _binary_rows(stream, container, path)


def _binary_rows(stream: BinaryIO, container: str, path: Path) -> Iterator[Row]:
    """Rows of Parquet and Arrow files, some at a time; a key without a value is a missing key."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        batches: Any = (pq.ParquetFile(stream).iter_batches(batch_size=_BATCH_ROWS) if container == "parquet"
                        else _arrow_batches(stream))  # fmt: skip
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                for value in batch.slice(start, _BATCH_ROWS).to_pylist():
                    number += 1
                    yield Row(number, b"", {key: item for key, item in value.items() if item is not None}, None)
    except pa.ArrowInvalid as error:
        raise DataFault(f"{path.name} cannot be read as {container}: {error}", subject=str(path), cause=error,
                        hint="is the copy complete?") from error  # fmt: skip


def _arrow_batches(stream: BinaryIO) -> Iterator[Any]:
    """The batches of an Arrow file in either of its two forms: a stream (as `save_to_disk` writes), or a file."""
    import pyarrow as pa

    if stream.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(stream)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
        return
    stream.seek(0)
    yield from pa.ipc.open_stream(stream)
