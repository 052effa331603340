"""The rows of a data set that was packed into a tar: its files of rows one after the other, and where each begins.

Nothing is extracted: a file is read from its place in the tar, row by row, in bounded memory. The order of the files
(`folders.py`) is the order of the examples for ever. pyarrow and numpy are imported only for the files that need them.
Not here: what a row is for (`rows.py`), or the counting (`scan_folder.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, BinaryIO, NamedTuple

from guard.checks.folders import Member, dataset_folders, is_junk, members_of, named_missing, shown_name, waits_for
from guard.checks.jsonl import MAX_LINE_BYTES, Row, read_rows
from guard.errors import DataFault
from guard.tars import Stored, open_part, stored_files

__all__ = ["DataSet", "card_text", "data_set_in", "folder_rows", "read_member"]

_ROWS_AT_ONCE = 256
_CARD_BYTES = 1 << 16
_CARD_CHARACTERS = 500
_DESCRIPTION_BYTES = 1 << 22
_TOLD = ("state.json", "dataset_dict.json")


class DataSet(NamedTuple):
    """A data set in a tar: its files of rows in reading order, each with its place, and all of its files by name."""

    members: list[tuple[Member, Stored]]
    files: dict[str, Stored]


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
    problem = waits_for(list(files)) or _told_missing(stream, files)
    if problem:
        raise DataFault(f"the data set is not whole: {problem}", hint="copy the folder again")
    return DataSet([(member, files[member.name]) for member in members_of(files)], files)


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


def folder_rows(stream: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Row]:
    """Every row of every file of a packed data set, in order; line numbers are those in their files. Raises DataFault."""
    for member, file in data_set_in(stream).members:
        with open_part(stream, file) as part:
            yield from read_member(part, member, max_line_bytes)


def read_member(part: BinaryIO, member: Member, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Row]:
    """The rows of one file of a data set, which `part` is (seekable). Raises DataFault naming it when it cannot be read."""
    readers = {"jsonl": lambda: read_rows(part, max_line_bytes), "parquet": lambda: _parquet(part),
               "arrow": lambda: _arrow(part), "npy": lambda: _npy(part)}  # fmt: skip
    name = shown_name(member.name)
    if member.container not in readers:
        raise DataFault(f"{name}: {member.container} in a folder is not read yet", hint="jsonl, parquet, arrow, npy are")
    try:
        yield from readers[member.container]()
    except DataFault:
        raise
    except (ValueError, TypeError, OverflowError, NotImplementedError, KeyError, EOFError) as error:  # pyarrow's and numpy's own
        message = str(error).partition("\n")[0][:200]
        raise DataFault(f"{name} cannot be read as {member.container}: {message}", hint="write it anew") from error


def _numbered(rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    return (Row(number, b"", row, None) for number, row in enumerate(rows, 1))


def _parquet(part: BinaryIO) -> Iterator[Row]:
    from pyarrow import parquet  # 0.4 s, for those who bring such files

    with parquet.ParquetFile(part, pre_buffer=False) as file:
        yield from _numbered(row for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE) for row in batch.to_pylist())


def _arrow(part: BinaryIO) -> Iterator[Row]:
    """`save_to_disk` writes Arrow's stream format; others write its file format."""
    from pyarrow import ipc

    part.seek(0)
    is_file = part.read(6) == b"ARROW1"
    part.seek(0)
    if is_file:
        with ipc.open_file(part) as file:
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
            yield from _numbered(row for batch in batches for row in _in_slices(batch))
        return
    with closing(ipc.open_stream(part)) as stream:
        yield from _numbered(row for batch in stream for row in _in_slices(batch))


def _in_slices(batch: Any) -> Iterator[dict[str, Any]]:
    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
        yield from batch.slice(start, _ROWS_AT_ONCE).to_pylist()


def _npy(part: BinaryIO) -> Iterator[Row]:
    """An array of token ids [n, length], read some rows at a time."""
    import numpy as np

    version = np.lib.format.read_magic(part)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(part)
    if len(shape) != 2 or fortran or dtype.kind not in "iu":
        raise ValueError(f"an array of whole numbers [rows, length] in rows is wanted, and this is {dtype} {list(shape)}")
    row_bytes, number = shape[1] * dtype.itemsize, 0
    while number < shape[0]:
        data = part.read(row_bytes * min(_ROWS_AT_ONCE, shape[0] - number))
        rows = np.frombuffer(data, dtype=dtype)
        if not row_bytes or len(data) % row_bytes or not len(data):
            raise ValueError("it is cut off")
        for row in rows.reshape(-1, shape[1]).tolist():
            number += 1
            yield Row(number, b"", {"input_ids": row}, None)
