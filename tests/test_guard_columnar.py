"""Parquet and Arrow: rows as others write them, values JSON has no word for, and files that lie about themselves."""

from __future__ import annotations

import datetime
import decimal
import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guard.checks.rows import iter_examples, validate
from guard.containers.faults import CutShort
from guard.containers.plain import Foreign
from guard.containers.read import read_container
from guard.errors import DataFault

CHATS = [
    {
        "messages": [{"role": "user", "content": f"q{n} é"}, {"role": "assistant", "content": "a", "calls": [{"x": n}]}],
        "tags": ["a", "b"][: n % 3],
        "score": n / 2,
        "ok": n % 2 == 0,
        "source": None if n % 2 else "web",
    }
    for n in range(200)
]
WITHOUT_NULLS = [{key: item for key, item in row.items() if item is not None} for row in CHATS]


def read(data: bytes, container: str, **limits: Any) -> list[dict[str, Any] | None]:
    return [row.value for row in read_container(io.BytesIO(data), container, **limits)]


def parquet(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def arrow(table: pa.Table, form: str = "file", chunk: int = 64, **options: Any) -> bytes:
    out = io.BytesIO()
    new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with new(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return out.getvalue()


def test_parquet_and_arrow_give_lists_objects_and_no_key_where_nothing_is() -> None:
    table = pa.Table.from_pylist(CHATS)
    files = [(parquet(table), "parquet"), (parquet(table, row_group_size=7, compression="zstd"), "parquet"),
             (arrow(table), "arrow"), (arrow(table, compression="lz4"), "arrow"), (arrow(table, "stream"), "arrow")]  # fmt: skip
    for data, container in files:
        assert read(data, container) == WITHOUT_NULLS


def test_rows_are_numbered_and_ordinals_are_the_same_wherever_they_lie(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}"} if n % 5 else {"text": " "} for n in range(150)]
    (tmp_path / "a.parquet").write_bytes(parquet(pa.Table.from_pylist(rows)))
    (tmp_path / "a.arrow").write_bytes(arrow(pa.Table.from_pylist(rows)))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{row["text"]}"}}\n' for row in rows))
    found = [list(iter_examples(tmp_path / name, "pretrain")) for name in ("a.jsonl", "a.parquet", "a.arrow")]
    assert found[0] == found[1] == found[2] and len(found[0]) == 120 and found[0][-1].line_number == 150


def test_what_json_has_no_word_for_is_a_fault_only_where_it_is_needed() -> None:
    when = datetime.datetime(2026, 11, 21, 1, 2, 3, tzinfo=datetime.UTC)
    row = {
        "text": "fine", "when": when, "day": when.date(), "money": decimal.Decimal("1.50"), "nothing": float("nan"),
        "image": {"bytes": b"\xff", "path": "x"}, "raw": b"\0", "deep": {"at": [when], "none": None, "f": [1.5]},
        "bad": [float("inf")],
    }  # fmt: skip
    (value,) = read(parquet(pa.Table.from_pylist([row])), "parquet")
    assert value is not None and validate("pretrain", value) == {"text": "fine"}
    assert value["when"] == "2026-11-21T01:02:03.000000Z" and (value["day"], value["money"]) == ("2026-11-21", "1.50")
    assert value["deep"] == {"at": ["2026-11-21T01:02:03.000000Z"], "f": [1.5]}
    assert all(isinstance(value[key], Foreign) for key in ("nothing", "image", "raw", "bad"))
    faults = validate("pretrain", {"text": value["raw"]})
    assert isinstance(faults, list) and "must be a string" in faults[0].reason


def test_odd_types_are_read_or_left_aside_and_never_end_a_reading() -> None:
    columns = {
        "dictionary": pa.array(["a", "b"]).dictionary_encode(),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        "map_of_ids": pa.array([[(1, 1)], None], pa.map_(pa.int64(), pa.int64())),
        "large": pa.array(["x", "y"], pa.large_string()),
        "fixed": pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)),
        "duration": pa.array([1, 2], pa.duration("s")),
        "union": pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])]),
        "nulls": pa.nulls(2),
        "json": pa.array(["{}", "{}"], pa.string()),
        "time": pa.array([1, 2], pa.time32("s")),
    }
    first, second = read(arrow(pa.table(columns)), "arrow")
    assert first is not None and second is not None
    assert (first["dictionary"], first["map"], first["large"], first["fixed"]) == ("a", {"k": 1}, "x", [1, 2])
    assert isinstance(first["map_of_ids"], Foreign) and isinstance(first["union"], Foreign) and "nulls" not in first
    assert (first["duration"], first["time"]) == (1, "00:00:01") and "map" not in second


def test_text_that_is_no_utf8_is_a_fault_of_its_row_in_parquet() -> None:
    raw = pa.array([b"fine", b"caf\xe9"], pa.binary()).view(pa.string())
    fine, bad = read(parquet(pa.table({"text": raw})), "parquet")
    assert fine == {"text": "fine"} and bad is not None and isinstance(bad["text"], Foreign)
    with pytest.raises(DataFault, match="damaged"):
        read(arrow(pa.table({"text": raw})), "arrow")


def test_a_row_that_is_too_long_is_one_bad_row() -> None:
    rows = [{"text": "a"}, {"text": "x" * 5000}, {"text": "b"}]
    for data, container in ((parquet(pa.Table.from_pylist(rows)), "parquet"), (arrow(pa.Table.from_pylist(rows)), "arrow")):
        found = list(read_container(io.BytesIO(data), container, max_line_bytes=1000))
        assert [row.value for row in found] == [{"text": "a"}, None, {"text": "b"}]
        assert found[1].fault and "longer than 1000 bytes" in found[1].fault.reason and found[1].line_number == 2


def test_a_file_that_stops_is_cut_short_and_one_that_is_none_is_told() -> None:
    table = pa.Table.from_pylist(CHATS)
    for data, container in ((parquet(table), "parquet"), (arrow(table), "arrow"), (arrow(table, "stream"), "arrow")):
        for cut in (2, 40, len(data) // 2, len(data) - 1):
            with pytest.raises(CutShort):
                read(data[:cut], container)
        with pytest.raises(DataFault, match=r"no (Parquet|Arrow) file"):
            read(b'{"text": "x"}\n', container)
    with pytest.raises(DataFault, match="a parquet file"):
        read(parquet(table), "arrow")
    with pytest.raises(DataFault, match="follow the end"):
        read(arrow(table, "stream") + b"more", "arrow")


def test_small_bytes_that_repeat_for_ever_are_a_bomb() -> None:
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int32)), ["x" * 100_000])
    data = parquet(pa.table({"text": text}), compression="zstd")
    assert len(data) < 200_000
    with pytest.raises(DataFault, match="decompression bomb"):
        read(data, "parquet")
    with pytest.raises(DataFault, match=r"more than 0\.001 GB"):
        read(data, "parquet", most_bytes=1_000_000)


def test_bytes_that_were_changed_at_random_never_do_more_than_raise_a_fault() -> None:
    table = pa.Table.from_pylist(CHATS[:5])
    chance, seen = random.Random(5), Counter[str]()
    for data, container in ((parquet(table), "parquet"), (arrow(table), "arrow"), (arrow(table, "stream"), "arrow")):
        for _ in range(120):
            changed = bytearray(data)
            for _ in range(chance.choice((1, 1, 4))):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            try:
                read(bytes(changed), container)
                seen["read"] += 1
            except DataFault:
                seen["refused"] += 1
    assert min(seen["read"], seen["refused"]) > 30


def test_files_of_datasets_and_pandas_are_read_as_they_write_them(tmp_path: Path) -> None:
    import datasets
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(WITHOUT_NULLS)
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "a.parquet")
    made.to_json(tmp_path / "a.json")
    made.to_json(tmp_path / "array.json", lines=False)
    made.remove_columns(["messages", "tags"]).to_csv(tmp_path / "a.csv")
    made.select_columns(["score", "ok"]).to_pandas().to_csv(tmp_path / "with_index.csv")
    (saved,) = (tmp_path / "saved").glob("*.arrow")

    def rows(path: Path) -> list[Any]:
        with path.open("rb") as stream:
            return [row.value for row in read_container(stream, path.suffix[1:])]

    assert rows(saved) == rows(tmp_path / "a.parquet") == WITHOUT_NULLS
    written, array = ([{key: item for key, item in row.items() if item is not None} for row in rows(tmp_path / name)]
                      for name in ("a.json", "array.json"))  # fmt: skip
    assert written == array
    assert [row["messages"][0] for row in written] == [row["messages"][0] | {"calls": None} for row in WITHOUT_NULLS]
    assert rows(tmp_path / "a.csv")[:2] == [{"score": "0.0", "ok": "True", "source": "web"}, {"score": "0.5", "ok": "False"}]
    assert rows(tmp_path / "with_index.csv")[1] == {"score": "0.5", "ok": "False"}


@pytest.mark.parametrize("column", [pa.array([b"a", b"b"]), pa.array([[{"role": "user", "image": b"x"}]] * 2)])
def test_a_file_without_a_column_that_can_be_read_says_which_it_has(column: pa.Array) -> None:
    with pytest.raises(DataFault, match=r"no column of text or numbers: 'text' is .*binary"):
        read(parquet(pa.table({"text": column})), "parquet")
    assert read(parquet(pa.table({"text": column.slice(0, 0)})), "parquet") == []
