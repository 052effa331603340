"""Files and folders of rows by hand: which data files a folder holds, to which split each belongs, and their rows.

Used by the commands of `heirloom prepare` that take folders as other programs leave them: `save_to_disk` folders, folders
in the hub's layout, `train/` and `val/` beside one another. A folder's own words are believed where it has some
(`state.json`), else names decide. Not here: what a row means, and drops, which intake reads in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from guard.checks.jsonl import Row
from guard.checks.kinds import container_of, holds_rows
from guard.checks.rows import open_regular
from guard.containers.read import read_container
from guard.errors import DataFault

__all__ = ["DataFile", "data_files", "rows_of", "split_of"]

VAL_NAMES = ("val", "valid", "validation", "dev", "test", "eval")
_WORDS_ONLY = {"state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json", "tokenizer_state.json",
               "dataset_metadata.json", "readme.md", "license.txt", "license.md"}  # fmt: skip


class DataFile(NamedTuple):
    """One data file of a folder: where it is, its name within the folder, and `train` or `val`."""

    path: Path
    name: str
    split: str


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
    if path.name.lower() in _WORDS_ONLY or not container_of(path.name):
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
    container = container_of(path.name)
    if not holds_rows(container):
        raise DataFault(f"{path.name} holds no rows", subject=str(path), hint="rows: .jsonl, .json, .csv, .parquet, Arrow")
    # A person may name a link; readers follow none.
    with open_regular(path.resolve()) as stream:
        yield from read_container(stream, container)
