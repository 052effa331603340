"""Files and folders of rows by hand: which data files a folder holds, to which split each belongs, and their rows.

Used by the commands of `heirloom prepare` that take folders as other programs leave them: `save_to_disk` folders, folders
in the hub's layout, `train/` and `val/` beside one another, and heaps of files, plain texts among them. Which names are
data and which split they say is told by `guard/checks/folders.py`, as for drops. Not here: what a row means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import orjson

from guard.checks.columns import PLAIN, Reading
from guard.checks.folders import (
    dataset_folders,
    is_junk,
    members_of,
    named_missing,
    row_container,
    split_of,
    unread_files,
    waits_for,
)
from guard.checks.jsonl import Row
from guard.checks.kinds import container_of, holds_rows, unpacked_container
from guard.checks.rows import open_regular
from guard.checks.side import read_side, reading_in, sides_beside
from guard.containers.read import read_container
from guard.errors import DataFault, UsageError

__all__ = ["DataFile", "data_files", "reading_beside", "rows_of", "side_beside", "unread_in", "whole_problem"]

_WORDS_ONLY = {"tokenizer_state.json", "dataset_metadata.json", "readme.md", "license.txt", "license.md"}
_TELL = ("state.json", "dataset_dict.json")


class DataFile(NamedTuple):
    """One data file of a folder: where it is, its name within the folder, and `train` or `val`."""

    path: Path
    name: str
    split: str


def data_files(folder: Path) -> list[DataFile]:
    """The data files below a folder, by name, without hidden ones. Raises DataFault for what intake would wait with."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if problem := whole_problem(folder, names):
        raise DataFault(f"{folder} is not whole: {problem}", subject=str(folder), hint="copy the whole folder again")
    stale = set(unread_in(folder, names))
    names = [name for name in names if name not in stale]
    if "" in dataset_folders(names):  # one drop: what lies beside its rows is settings
        return [DataFile(folder / member.name, member.name, member.split) for member in members_of(names)]
    return [DataFile(folder / name, name, split_of(name) or "train") for name in names if _is_data(name)]


def _is_data(name: str) -> bool:
    if is_junk(name) or name.rpartition("/")[2].lower() in _WORDS_ONLY:
        return False
    hidden = any(part.startswith(".") for part in name.split("/"))
    return bool(row_container(name)) or (unpacked_container(container_of(name)) == "text" and not hidden)


def whole_problem(folder: Path, names: Sequence[str], irregular: Sequence[str] = ()) -> str:
    """Why intake would not take a data set at or below a folder yet, by its names and by what describes it; "" when it would.

    `irregular`: names of what is no regular file.
    """
    stale = set(unread_in(folder, names))
    for unit in sorted(dataset_folders([*names, *irregular])):
        top = f"{unit}/" if unit else ""
        here = [name[len(top) :] for name in names if name.startswith(top) and name not in stale]
        odd = [name[len(top) :] for name in irregular if name.startswith(top)]
        if problem := waits_for(here, odd):
            return f"{unit}: {problem}" if unit else problem
    places = [(name.rpartition("/")[0], _told(folder, name)) for name in names if name.rpartition("/")[2] in _TELL]
    return next(filter(None, (named_missing(place, told, names) for place, told in places)), "")


def unread_in(folder: Path, names: Sequence[str]) -> list[str]:
    """The Arrow files among these that the `state.json` beside them does not name: none of their rows are read."""
    states = [name for name in names if name.rpartition("/")[2] == "state.json"]
    return sorted({stale for name in states for stale in unread_files(name.rpartition("/")[0], _told(folder, name), names)})


def _told(folder: Path, name: str) -> object:
    try:
        return orjson.loads((folder / name).read_bytes())
    except orjson.JSONDecodeError:
        return None  # somebody else's state.json: names decide


def side_beside(path: Path) -> Path | None:
    """The side file of a file that a person names, or of the folder it was found in. Raises UsageError when there are two."""
    found = sides_beside(path)
    if len(found) > 1:
        raise UsageError(f"{path.name} has two side files", subject=str(path), hint=f"take {found[1].name} away")
    return found[0] if found else None


def reading_beside(path: Path, kind: str) -> Reading:
    """How the side file beside a file says that its rows are read; `kind`: what they are to become, "" for any.

    Raises UsageError for columns of another kind, DataFault for a side file that says it wrongly.
    """
    side = side_beside(path)
    if side is None:
        return PLAIN
    try:
        reading = reading_in(read_side(side))
    except DataFault as fault:
        raise DataFault(f"{side.name}: {fault.message}", subject=str(side), hint=fault.hint) from fault
    if kind and not reading.fits(kind):
        raise UsageError(f"{side.name}: its columns are those of {reading.kind()}, and {kind} is asked for", subject=str(side),
                         hint=f"name the columns of {kind}")  # fmt: skip
    return replace(reading, rules=PLAIN.rules)


def rows_of(path: Path) -> Iterator[Row]:
    """Every row of a file of rows, or a fault in its place. Raises DataFault when it is none, OSError as the disk says."""
    container = container_of(path.name)
    if not holds_rows(container):
        raise DataFault(f"{path.name} holds no rows", subject=str(path), hint="rows: .jsonl, .json, .csv, .parquet, Arrow")
    # A person may name a link; readers follow none.
    with open_regular(path.resolve()) as stream:
        yield from read_container(stream, container)
