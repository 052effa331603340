"""The rows of a data set that was packed into a tar: its files of rows one after the other, and where each begins.

Nothing is extracted: a file is read from its place in the tar, row by row, in bounded memory. The order of the files
(`folders.py`) is the order of the examples for ever. pyarrow and numpy are imported only for the files that need them.
Not here: what a row is for (`rows.py`), or the counting (`scan_folder.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from guard.checks.folders import Member, dataset_folders, is_junk, members_of, named_missing, shown_name, unread_files, waits_for
from guard.checks.jsonl import MAX_LINE_BYTES, Row
from guard.checks.made_with import said_by_state
from guard.errors import DataFault
from guard.tars import Stored, open_part, stored_files

__all__ = ["DataSet", "card_text", "data_set_in", "folder_rows", "read_member", "tokenizer_in"]

_CARD_BYTES = 1 << 16
_CARD_CHARACTERS = 500
_DESCRIPTION_BYTES = 1 << 22
_TOLD = ("state.json", "dataset_dict.json")


class DataSet(NamedTuple):
    """A data set in a tar: its files of rows in reading order, each with its place, and all of its files by name.

    `unread`: Arrow files that the `state.json` beside them does not name, and that are therefore no rows of it.
    """

    members: list[tuple[Member, Stored]]
    files: dict[str, Stored]
    unread: tuple[str, ...] = ()


def data_set_in(stream: BinaryIO) -> DataSet:
    """The one data set that a tar holds, at its top or in a folder of it.

    Raises DataFault when there is none, more than one, or pieces of it are missing.
    """
    stored = {file.name: file for file in stored_files(stream)}
    found = dataset_folders(stored)
    if len(found) != 1:
        what = "no data set" if not found else f"{len(found)} data sets ({', '.join(map(shown_name, sorted(found)[:3]))})"
        raise DataFault(f"the tar holds {what}", hint="pack one folder that datasets saved, one in the hub's layout, or one "
                        "with train/ and val/; other files are dropped as they are")  # fmt: skip
    top = next(iter(found))
    cut = len(top) + 1 if top else 0
    files = {name[cut:]: file for name, file in stored.items() if name.startswith(f"{top}/" if top else "") and not is_junk(name)}
    unread = _unread(stream, files)
    kept = [name for name in files if name not in unread]
    problem = waits_for(kept) or _told_missing(stream, files)
    if problem:
        raise DataFault(f"the data set is not whole: {problem}", hint="copy the folder again")
    return DataSet([(member, files[member.name]) for member in members_of(kept)], files, tuple(sorted(unread)))


def _unread(stream: BinaryIO, files: dict[str, Stored]) -> set[str]:
    folders = [(name.rpartition("/")[0], file) for name, file in files.items() if name.rpartition("/")[2] == "state.json"]
    return {name for folder, file in folders for name in unread_files(folder, _json(stream, file), files)}


def _told_missing(stream: BinaryIO, files: dict[str, Stored]) -> str:
    """What the set's own descriptions name and is not there."""
    for name, file in files.items():
        folder, _, last = name.rpartition("/")
        if last in _TOLD and (problem := named_missing(folder, _json(stream, file), files)):
            return problem
    return ""


def _json(stream: BinaryIO, file: Stored) -> object:
    with open_part(stream, file) as part:
        try:
            return json.loads(part.read(_DESCRIPTION_BYTES))
        except (ValueError, RecursionError):
            return None  # no description that anybody could follow: the files themselves count


def tokenizer_in(stream: BinaryIO, files: dict[str, Stored]) -> dict[str, str]:
    """What the set's `tokenizer_state.json` says of the tokenizer that made its ids; {} without one."""
    return said_by_state(_json(stream, files["tokenizer_state.json"])) if "tokenizer_state.json" in files else {}


def card_text(stream: BinaryIO, files: dict[str, Stored]) -> str:
    """The first words of the data set's card (README.md without its header of settings), "" when it has none."""
    card = next((file for name, file in files.items() if name.lower() == "readme.md"), None)
    if card is None:
        return ""
    with open_part(stream, card) as part:
        text = part.read(_CARD_BYTES).decode("utf-8", "replace")
    if text.startswith("---"):
        text = text.partition("\n---")[2].partition("\n")[2]
    words = [line.lstrip("# ").strip() for line in text.splitlines()]
    return " ".join(line for line in words if line)[:_CARD_CHARACTERS].strip()


def folder_rows(stream: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES, most_bytes: int | None = None) -> Iterator[Row]:
    """Every row of every file of a packed data set, in order; line numbers are those in their files. Raises DataFault."""
    for member, file in data_set_in(stream).members:
        with open_part(stream, file) as part:
            yield from read_member(part, member, max_line_bytes, most_bytes)


def read_member(part: BinaryIO, member: Member, max_line_bytes: int = MAX_LINE_BYTES,
                most_bytes: int | None = None) -> Iterator[Row]:  # fmt: skip
    """The rows of one file of a data set, which `part` is (seekable). Raises DataFault naming it when it cannot be read."""
    from guard.containers.read import read_container  # which reads packed folders through this file

    try:
        yield from read_container(part, member.container, max_line_bytes=max_line_bytes, most_bytes=most_bytes)
    except DataFault as fault:
        raise DataFault(f"{shown_name(member.name)}: {fault.message}", hint=fault.hint) from fault
