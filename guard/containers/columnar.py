"""Rows of Parquet files and of Arrow's own files and streams, a few at a time.

Whatever a file says of itself is checked before it is believed: offsets, lengths and text of every batch that comes from an Arrow
file (Parquet's reader builds its batches itself). Columns that JSON has no word for are never read.
Not here: what becomes of a value (`plain.py`).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from guard.checks.jsonl import Fault, Row, foreign_bytes
from guard.containers.faults import CutShort
from guard.containers.plain import Foreign, plain_column, unreadable
from guard.containers.unpack import Meter
from guard.errors import DataFault

__all__ = ["arrow_batches", "parquet_batches", "read_arrow", "read_parquet", "rows_of"]

_ROWS_TOGETHER = 64
_BUFFER_BYTES = 1 << 20
_METADATA_BYTES = 64 << 20
_NO_MACHINE_HAS = 1 << 40
_AGAIN = "copy it again, or write it again"
_PARQUET, _ARROW = b"PAR1", b"ARROW1"

Batches = Iterator[pa.RecordBatch]


def read_parquet(stream: BinaryIO, max_row_bytes: int, most_bytes: int | None = None) -> Iterator[Row]:
    """Every row of a Parquet file, numbered from 1; `raw` is empty. Raises DataFault, CutShort, OSError.

    Memory: a page of each column, and 64 rows. `most_bytes`: more than so much unpacked is refused.
    """
    yield from _rows(parquet_batches(stream), max_row_bytes, _meter_of(stream, most_bytes))


def read_arrow(stream: BinaryIO, max_row_bytes: int, most_bytes: int | None = None) -> Iterator[Row]:
    """Every row of an Arrow file or stream, numbered from 1; `raw` is empty. Raises DataFault, CutShort, OSError.

    Memory: 64 rows where the file is mapped and not packed inside, else one of its batches.
    """
    yield from _rows(arrow_batches(stream), max_row_bytes, _meter_of(stream, most_bytes))


def _rows(batches: Batches, max_row_bytes: int, meter: Meter) -> Iterator[Row]:
    number = 1
    for packed in batches:
        with _told("columnar"):
            batch = _spelt_out(packed)
            meter.add(0, batch.nbytes)
            rows = rows_of(batch)
        faults = _too_long(batch, rows, max_row_bytes)
        for place, value in enumerate(rows):
            yield Row(number + place, b"", None if place in faults else value, faults.get(place))
        number += len(rows)


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch as plain values; a key is not there where its value is NULL."""
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        what = unreadable(column.type)
        columns.append((name, [Foreign(what)] * len(column) if what else plain_column(column)))
    return [{name: values[place] for name, values in columns if values[place] is not None} for place in range(batch.num_rows)]


def _spelt_out(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch without dictionaries: a text that many rows share counts for each."""
    if not any(pa.types.is_dictionary(kind) for kind in batch.schema.types):
        return batch
    columns = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _too_long(batch: pa.RecordBatch, rows: list[dict[str, Any]], most: int) -> dict[int, Fault]:
    """The rows that are longer than a row may be; looked for only where together they are."""
    if batch.nbytes <= most:
        return {}
    sizes = enumerate(len(orjson.dumps(row, default=repr)) for row in rows)
    fault = Fault("", f"row longer than {most} bytes", f"at most {most} bytes a row")
    return {place: fault for place, size in sizes if size > most}


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """What pyarrow says of a file, as ours. What the machine refuses stays what it is, unless no machine could give it."""
    try:
        yield
    except MemoryError as error:
        asked = re.search(r"malloc of size (\d+)", str(error))
        if asked is None or int(asked[1]) < _NO_MACHINE_HAS:
            raise
        raise DataFault(f"the {what} file is damaged: it asks for {int(asked[1]):,} bytes of memory", hint=_AGAIN) from error
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise DataFault(f"the {what} file is damaged: {words[0][:200]}", hint=_AGAIN) from error


def parquet_batches(stream: BinaryIO, *, everything: bool = False) -> Batches:
    """A Parquet file in batches of 64 rows; columns that JSON has no word for are not read and NULL, but for `everything`."""
    _begins_and_ends(stream, _PARQUET, "Parquet")
    with _told("Parquet"):
        file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False, thrift_string_size_limit=_METADATA_BYTES,
                              thrift_container_size_limit=_METADATA_BYTES // 64)  # fmt: skip
    schema = file.schema_arrow
    wanted = [field.name for field in schema if everything or not unreadable(field.type)]
    if twice := next((name for name in schema.names if schema.names.count(name) > 1), ""):
        raise DataFault(f"the file has two columns called {twice[:80]!r}", hint="name each column once")
    if not wanted:
        if file.metadata.num_rows and schema.names:
            told = ", ".join(f"{field.name[:40]!r} is {unreadable(field.type)}" for field in list(schema)[:3])
            raise DataFault(f"the file has no column of text or numbers: {told}", hint="write texts as strings, not as bytes")
        return
    batches = file.iter_batches(batch_size=_ROWS_TOGETHER, columns=wanted, use_threads=False)
    while True:
        with _told("Parquet"):
            batch = next(batches, None)
        if batch is None:
            return
        yield _with_the_others(batch, schema)


def _with_the_others(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the columns that were not read, so that a row is known to have them."""
    if len(batch.schema.names) == len(schema.names):
        return batch
    columns = [batch.column(field.name) if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
               for field in schema]  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=schema.remove_metadata())


def _meter_of(stream: BinaryIO, most_bytes: int | None) -> Meter:
    """What may come out of a file of this size."""
    meter = Meter(most_bytes)
    meter.add(stream.seek(0, os.SEEK_END), 0)
    stream.seek(0)
    return meter


def _begins_and_ends(stream: BinaryIO, mark: bytes, name: str) -> None:
    """Raises DataFault for a file that does not begin with its mark, CutShort for one that does not end with it."""
    stream.seek(0)
    head = stream.read(max(len(mark), 16))
    if not head.startswith(mark):
        if mark.startswith(head):
            raise CutShort(f"the {name} file is cut short")
        foreign = foreign_bytes(head)
        what = foreign.reason if foreign and not foreign.reason.endswith(f"{name.lower()} file, not text") else ""
        raise DataFault(f"the file is no {name} file: " + (what or f"it begins with {head[:4]!r}"),
                        hint="give it the name of what it is, such as .jsonl or .csv")  # fmt: skip
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(len(mark), end - len(mark)))
    if stream.read() != mark:
        raise CutShort(f"the {name} file is cut short: its end, where the table of its contents stands, is not there")
    stream.seek(0)


def arrow_batches(stream: BinaryIO) -> Batches:
    """An Arrow file or stream in checked batches of at most 64 rows."""
    head = stream.read(len(_ARROW))
    stream.seek(0)
    is_file = head == _ARROW
    if is_file:
        _begins_and_ends(stream, _ARROW, "Arrow")
    elif len(head) < 4:
        raise CutShort("the Arrow file is cut short")
    elif head[:4] != b"\xff\xff\xff\xff":
        foreign = foreign_bytes(head)
        raise DataFault("the file is no Arrow file: " + (foreign.reason if foreign else f"it begins with {head[:4]!r}"),
                        hint="give it the name of what it is, such as .jsonl or .csv")  # fmt: skip
    with _mapped(stream) as source:
        for batch in _file_batches(source) if is_file else _stream_batches(source):
            with _told("Arrow"):  # before anything in it is touched
                batch.validate(full=True)
            for first in range(0, batch.num_rows, _ROWS_TOGETHER):
                yield batch.slice(first, _ROWS_TOGETHER)


@contextlib.contextmanager
def _mapped(stream: BinaryIO) -> Iterator[pa.NativeFile]:
    """The bytes as pyarrow reads them: mapped where there is a file, so that a large batch costs no memory of its own."""
    try:
        path = f"/proc/self/fd/{stream.fileno()}"
    except (OSError, io.UnsupportedOperation):
        path = ""
    with pa.memory_map(path) if path and os.path.exists(path) else pa.PythonFile(stream, mode="r") as source:
        yield source


def _file_batches(source: pa.NativeFile) -> Batches:
    with _told("Arrow"):
        reader = pa.ipc.open_file(source)
        count = reader.num_record_batches
    for place in range(count):
        with _told("Arrow"):
            batch = reader.get_batch(place)
        yield batch


def _stream_batches(source: pa.NativeFile) -> Batches:
    try:
        with _told("Arrow"):
            reader = pa.ipc.open_stream(source)
        while (batch := _next(reader)) is not None:
            yield batch
    except DataFault as fault:
        # A stream that ends before a batch is complete is cut short; pyarrow calls it many names.
        if any(words in fault.message for words in ("but only read", "bytes available", "Expected to be able to read")):
            raise CutShort("the Arrow stream stops in the middle") from fault
        raise
    if source.tell() < source.size():
        raise DataFault(f"{source.size() - source.tell():,} bytes follow the end of the Arrow stream", hint=_AGAIN)


def _next(reader: Any) -> pa.RecordBatch | None:
    with _told("Arrow"):
        try:
            return reader.read_next_batch()
        except StopIteration:
            return None
