"""What can be converted: a file of rows, an Arrow folder, or a folder of such with splits; as rows or as batches of Arrow.

A first pass over rows finds one schema that holds them all, as Arrow needs one before the first is written. Names that a
folder's own files give are never followed out of it. Not here: what is written (`convert_sinks.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from guard.checks.folders import dataset_folders, row_container, split_of, split_word, waits_for
from guard.checks.jsonl import Row
from guard.checks.kinds import container_of, container_reason, holds_rows, ignored_name, unpacked_container
from guard.checks.rows import open_regular
from guard.containers.columnar import arrow_batches, parquet_batches
from guard.containers.read import read_container
from guard.containers.unpack import unpacked
from guard.errors import DataFault, NotFound, UsageError

__all__ = ["RowFiles", "find_splits"]

_STATE, _SPLIT_LIST = "state.json", "dataset_dict.json"
_ROWS_TOGETHER, _BYTES_TOGETHER = 1000, 8 << 20
_ONE_TYPE = "Parquet and Arrow want one type of value in a column; make them all text, or convert to .jsonl"
_SMALL_FILE_BYTES = 1 << 20


def find_splits(source: Path) -> dict[str, list[Path]]:
    """The files of each split in their order, under "" where there are no splits. Raises NotFound, UsageError, DataFault."""
    if not source.exists():
        raise NotFound(f"there is no file or folder {source}", subject=str(source), hint="check the name")
    if source.is_file():
        if not holds_rows(container_of(source.name)):
            reason = container_reason(source.name) if not container_of(source.name) else "it is plain text and holds no rows"
            raise UsageError(f"{source} cannot be converted: {reason}", subject=str(source), hint="name a file of rows")
        return {"": [source]}
    if (source / _SPLIT_LIST).is_file():
        names = _names_in(source / _SPLIT_LIST, lambda found: found["splits"])
        return {name: _files_of(source / name) for name in names}
    for folder in (source, source / "data"):  # the hub's layout has its files in either
        if here := _files_of(folder, must=False):
            return {"": here} if (folder / _STATE).is_file() else _by_word(here)
    found = {path.name: _files_of(path) for path in sorted(source.iterdir()) if path.is_dir() and split_of(path.name)}
    if not found:
        raise UsageError(f"{source} holds no rows", subject=str(source),
                         hint="name a file, an Arrow folder (save_to_disk), or a folder with train/ and val/")  # fmt: skip
    return found


def _by_word(paths: list[Path]) -> dict[str, list[Path]]:
    """Files by the split that their names say (`train-00000-of-00002.parquet`, `test.jsonl`); all together where none is said."""
    if "" not in dataset_folders(path.name for path in paths):
        return {"": paths}
    if problem := waits_for([path.name for path in paths]):
        raise DataFault(f"{paths[0].parent} is not whole: {problem}", subject=str(paths[0].parent), hint="make it whole first")
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(split_word(path.name) or "train", []).append(path)
    return found if len(found) > 1 else {"": paths}


def _files_of(folder: Path, *, must: bool = True) -> list[Path]:
    """The files of rows in a folder: those its state names, else all of them by name."""
    if (folder / _STATE).is_file():
        names = _names_in(folder / _STATE, lambda found: [item["filename"] for item in found["_data_files"]])
        paths = [folder / name for name in names]
        if missing := next((path for path in paths if not path.is_file()), None):
            raise DataFault(f"{folder / _STATE} names {missing.name}, which is not there", hint="copy the folder again, whole")
    else:
        listed = sorted(folder.iterdir()) if folder.is_dir() else []
        paths = [path for path in listed if path.is_file() and row_container(path.name) and not ignored_name(path.name)]
    if must and not paths:
        raise DataFault(f"{folder} holds no rows", subject=str(folder), hint="copy the folder again, whole")
    return paths


def _names_in(path: Path, pick: Callable[[Any], Any]) -> list[str]:
    """Names of files or folders that stand in one of a folder's own files. Raises DataFault for anything else."""
    try:
        with path.open("rb") as handle:
            names = pick(json.loads(handle.read(_SMALL_FILE_BYTES)))
        if names and all(isinstance(name, str) and name == Path(name).name and name not in ("", "..") for name in names):
            return list(names)
    except (ValueError, TypeError, KeyError, RecursionError):
        names = []
    raise DataFault(f"{path} cannot be read as what `datasets` writes", subject=str(path), hint="copy the folder again, whole")


@dataclass
class RowFiles:
    """Files that are read one after the other as one."""

    paths: Sequence[Path]
    bad: Callable[[Path, Row], None]
    """Gets every row that cannot be read."""
    progress: Callable[[int, float | None], None]

    def rows(self) -> Iterator[tuple[Path, int, dict[str, Any]]]:
        """(file, line or number, row) as plain values, a key missing where a column has none."""
        sizes = [path.stat().st_size for path in self.paths]
        count = 0
        for place, path in enumerate(self.paths):
            container = container_of(path.name)
            known = unpacked_container(container) in ("jsonl", "json", "csv", "npy")
            with open_regular(path.resolve()) as stream:  # readers follow no link; its own name says what it is
                for row in read_container(stream, container):
                    count += 1
                    if count % _ROWS_TOGETHER == 0:
                        share = (sum(sizes[:place]) + stream.tell()) / max(1, sum(sizes)) if known else None
                        self.progress(count, share)
                    if row.value is None:
                        self.bad(path, row)
                    else:
                        yield path, row.line_number, row.value

    @property
    def columnar(self) -> bool:
        """Whether all are stored in columns already, with a schema of their own."""
        return all(unpacked_container(container_of(path.name)) in ("parquet", "arrow") for path in self.paths)

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """All rows in batches of this schema, which is that of `schema()`."""
        if not self.columnar:
            for _path, _line, rows in self._together():
                yield _in_columns(rows, schema)
            return
        count = 0
        for batch in self._stored():
            yield _conform(batch, schema)
            count += batch.num_rows
            self.progress(count, None)

    def schema(self, check: Callable[[], None]) -> pa.Schema:
        """One schema for all rows; `check` is called when all were read.

        Raises DataFault naming column and line where two rows want different types, and what `check` raises.
        """
        schema: pa.Schema | None = None
        if self.columnar:
            for batch in self._first_batches():
                schema = _united(schema, batch.schema, "in another file")
        else:
            for path, line, rows in self._together():
                found = pa.schema([(name, _type_of(path, line, rows, name)) for name in _keys(rows)])
                schema = _united(schema, found, f"in or after line {line} of {path.name}")
        check()
        if schema is None or not schema.names:
            raise DataFault("there is no row with a column in it", subject=str(self.paths[0]), hint="nothing was written")
        plain = unpacked_container(container_of(self.paths[0].name))
        return pa.schema([field.with_type(_settled(field.type, plain == "csv")) for field in schema], schema.metadata)

    def _together(self) -> Iterator[tuple[Path, int, list[dict[str, Any]]]]:
        """Rows in lists of bounded size, with the file and line of the first."""
        start: tuple[Path, int] | None = None
        rows: list[dict[str, Any]] = []
        size = 0
        for path, line, row in self.rows():
            if start and (path != start[0] or len(rows) >= _ROWS_TOGETHER or size >= _BYTES_TOGETHER):
                yield *start, rows
                start, rows, size = None, [], 0
            start = start or (path, line)
            rows.append(row)
            size += sum(len(item) if isinstance(item, str) else 64 * len(item) if isinstance(item, list) else 8
                        for item in row.values())  # fmt: skip
        if start:
            yield *start, rows

    def _stored(self) -> Iterator[pa.RecordBatch]:
        for path in self.paths:
            with open_regular(path.resolve()) as stream, unpacked(stream, container_of(path.name)) as (plain, inner):
                yield from parquet_batches(plain, everything=True) if inner == "parquet" else arrow_batches(plain)

    def _first_batches(self) -> Iterator[pa.RecordBatch]:
        """The first batch of each file: it has the schema of all."""
        for path in self.paths:
            one = RowFiles([path], self.bad, self.progress)
            batches = one._stored()
            yield from (batch for batch in [next(batches, None)] if batch is not None)
            batches.close()  # type: ignore[attr-defined]


def _keys(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _type_of(path: Path, line: int, rows: Sequence[dict[str, Any]], name: str) -> pa.DataType:
    """The type that holds a column's values in all these rows. Raises DataFault."""
    values = [row.get(name) for row in rows]
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError) as error:
        place = next((end for end in range(1, len(values) + 1) if not _fits(values[:end])), len(values)) - 1
        raise DataFault(f"column {name!r} does not hold one type of value: row {place + 1} from line {line} of {path.name} on: "
                        f"{str(error).splitlines()[0][:120]}",
                        hint=_ONE_TYPE) from error  # fmt: skip


def _fits(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except (pa.ArrowException, OverflowError):
        return False
    return True


def _united(schema: pa.Schema | None, more: pa.Schema, where: str) -> pa.Schema:
    if schema is None or schema.equals(more):
        return more if schema is None else schema
    try:
        return pa.unify_schemas([schema, more], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataFault(f"a column holds another type of value {where}: {str(error).splitlines()[0][:160]}",
                        hint=_ONE_TYPE) from error  # fmt: skip


def _settled(kind: pa.DataType, is_csv: bool) -> pa.DataType:
    """Dictionaries are written out, and a column of a CSV that never has a value is one of text."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.string() if is_csv and pa.types.is_null(kind) else kind


def _in_columns(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    try:
        columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    except (pa.ArrowException, OverflowError) as error:
        raise DataFault(f"a value does not fit its column: {str(error).splitlines()[0][:160]}",
                        hint="make the column's values all text, or convert to .jsonl") from error  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the columns and types of the schema."""
    if batch.schema.equals(schema):
        return batch
    columns = [batch.column(field.name).cast(field.type) if field.name in batch.schema.names
               else pa.nulls(batch.num_rows, field.type) for field in schema]  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=schema)
