"""How converted rows are written: lines of JSON, one JSON array, CSV, Parquet, or an Arrow folder in the layout of `datasets`.

Each writes what it is given to one new place, durably; where that is and whether it may stay is the caller's business
(`convert.py`). Equal rows give equal bytes: nothing here asks for the time or for chance.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from guard.containers.plain import Foreign
from guard.durable import fsync_dir, make_dir, open_new, rename_new, write_json
from guard.errors import DataFault
from trainer.convert_sources import RowFiles

__all__ = ["FORMATS", "write_arrow_folder", "write_csv", "write_json_rows", "write_parquet"]

FORMATS = ("jsonl", "json", "csv", "parquet", "arrow")
_GROUP_ROWS, _GROUP_BYTES = 50_000, 64 << 20
SHARD_BYTES = 500 << 20
"""`datasets` cuts there as well."""
_Check = Callable[[], None]


def write_json_rows(files: RowFiles, path: Path, check: _Check, *, as_array: bool) -> dict[str, Any]:
    """Lines of JSON, or one array with a row on each line. Raises DataFault for what JSON has no word for."""
    columns: dict[str, None] = {}
    count = 0
    with open_new(path) as handle:
        for source, line, row in files.rows():
            columns |= dict.fromkeys(row)
            if as_array:
                handle.write(b",\n" if count else b"[\n")
            handle.write(_as_json(source, line, row) + (b"" if as_array else b"\n"))
            count += 1
        if as_array:
            handle.write(b"\n]\n" if count else b"[]\n")
        check()
    return {"rows": count, "columns": list(columns)}


def _as_json(source: Path, line: int, row: Mapping[str, Any]) -> bytes:
    for key, value in row.items():
        if isinstance(value, Foreign):
            raise DataFault(f"{source.name}, row {line}: column {key!r} holds {value.what}, and JSON has no word for it",
                            hint="convert to .parquet or to an Arrow folder, or take the column out first")  # fmt: skip
    return orjson.dumps(row)


def write_csv(files: RowFiles, path: Path, check: _Check) -> dict[str, Any]:
    """A header and a record for each row; read twice, since the header names every column. Raises DataFault for nested values."""
    columns: dict[str, None] = {}
    for source, line, row in files.rows():
        columns |= dict.fromkeys(row)
        nested = next((key for key, value in row.items() if not isinstance(value, str | int | float | bool | None)), "")
        if nested:
            raise DataFault(f"{source.name}, row {line}: column {nested!r} is no single value, and CSV has no word for more",
                            hint="convert to .jsonl, .json or .parquet, which keep lists and objects")  # fmt: skip
    check()
    count = 0
    with open_new(path) as handle:
        text = io.TextIOWrapper(handle, "utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for _source, _line, row in files.rows():
            writer.writerow([_cell(row.get(name)) for name in columns])
            count += 1
        text.detach()
    return {"rows": count, "columns": list(columns)}


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def write_parquet(files: RowFiles, path: Path, check: _Check) -> dict[str, Any]:
    """One Parquet file, zstd inside. Raises DataFault for what it cannot hold."""
    schema = files.schema(check)
    count = 0
    try:
        with open_new(path) as handle, pq.ParquetWriter(handle, schema, compression="zstd") as writer:
            for group in _groups(files.batches(schema)):
                writer.write_table(pa.Table.from_batches(group, schema))
                count += sum(batch.num_rows for batch in group)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise DataFault(f"Parquet cannot hold it: {str(error).splitlines()[0][:200]}",
                        hint="convert to .jsonl or to an Arrow folder") from error  # fmt: skip
    return {"rows": count, "columns": schema.names}


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Batches until together they are worth a row group."""
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        group.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, rows, size = [], 0, 0
    if group:
        yield group


def write_arrow_folder(files: RowFiles, folder: Path, split: str, check: _Check) -> dict[str, Any]:
    """A folder that `datasets.load_from_disk` opens: numbered Arrow streams, `state.json` and `dataset_info.json`."""
    from datasets import Features  # two seconds, and only for those who want such a folder

    schema = files.schema(check)
    features = Features.from_arrow_schema(schema)
    schema = schema.with_metadata({"huggingface": orjson.dumps({"info": {"features": features.to_dict()}})})
    make_dir(folder)
    batches, made, count = files.batches(schema.remove_metadata()), 0, 0
    digest = hashlib.sha256()
    for first in batches:
        with open_new(folder / f"shard-{made}") as handle:
            count += _write_shard(_Digested(handle, digest), schema, first, batches)
        made += 1
    names = [f"data-{number:05d}-of-{made:05d}.arrow" for number in range(made)]
    for number, name in enumerate(names):
        rename_new(folder / f"shard-{number}", folder / name)
    info = {"citation": "", "description": "", "features": features.to_dict(), "homepage": "", "license": ""}
    write_json(folder / "dataset_info.json", info)
    write_json(folder / "state.json", {
        "_data_files": [{"filename": name} for name in names], "_fingerprint": digest.hexdigest()[:16], "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": split or None,
    })  # fmt: skip
    fsync_dir(folder)
    return {"rows": count, "columns": schema.names}


def _write_shard(handle: _Digested, schema: pa.Schema, first: pa.RecordBatch, more: Iterator[pa.RecordBatch]) -> int:
    """One Arrow stream; takes batches until it is large enough. Returns its rows."""
    count = size = 0
    with pa.ipc.new_stream(pa.PythonFile(handle, mode="w"), schema) as writer:
        batch: pa.RecordBatch | None = first
        while batch is not None:
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
            count, size = count + batch.num_rows, size + batch.nbytes
            batch = next(more, None) if size < SHARD_BYTES else None
    return count


class _Digested(io.RawIOBase):
    """A file that hashes what is written to it."""

    def __init__(self, handle: BinaryIO, digest: Any) -> None:
        self._handle, self._digest = handle, digest

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self._handle.write(data)

    def tell(self) -> int:
        return self._handle.tell()
