"""`prepare convert`: what goes in comes out, whatever lies between, and the output is there whole or not at all."""

from __future__ import annotations

import datetime
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daemon.cli.main import main
from guard.errors import DataFault, HeirloomError, NotFound, UsageError
from trainer import convert_sinks
from trainer.convert import convert
from trainer.convert_sources import find_splits

datasets.disable_progress_bars()

ROWS: list[dict[str, Any]] = [
    {
        "messages": [{"role": "user", "content": f"q{n} é\n", "calls": [{"name": "f", "ids": [n, 2]}]}, {"role": "assistant"}],
        "score": 0.5 + n, "n": n, "ok": True, **({"source": "web"} if n % 2 else {}), "empty": [],
    }
    for n in range(30)
]  # fmt: skip
FLAT: list[dict[str, Any]] = [{"text": f'a "{n}", b\nc', "label": str(n)} for n in range(7)]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("way", [["a.json"], ["a.parquet"], ["arrow"], ["arrow", "a.parquet", "a.json", "x"], ["a.json", "b"]])
def test_nested_rows_survive_every_way_between_json_parquet_and_arrow(rows_file: Path, way: list[str]) -> None:
    here = rows_file
    for name in way:
        found = convert(here, here.parent / name)
        here = here.parent / name
        assert found["rows"] == 30 and found["output"] == str(here)
    convert(here, here.parent / "back.jsonl")
    assert lines_of(here.parent / "back.jsonl") == ROWS
    assert not [path for path in here.parent.iterdir() if path.name.startswith(".")]


def test_an_arrow_folder_is_opened_by_datasets_and_one_of_its_own_is_read(
    rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_sinks, "SHARD_BYTES", 2000)
    monkeypatch.setattr("trainer.convert_sources._ROWS_TOGETHER", 8)
    folder = rows_file.parent / "saved"
    convert(rows_file, folder)
    loaded = datasets.load_from_disk(folder)
    files = sorted(path.name for path in folder.glob("*.arrow"))
    assert len(files) > 1 and files[0] == f"data-00000-of-{len(files):05d}.arrow"
    assert loaded.num_rows == 30 and loaded[3]["messages"][0]["calls"] == [{"name": "f", "ids": [3, 2]}]
    loaded.save_to_disk(rows_file.parent / "theirs", num_shards=3)
    convert(rows_file.parent / "theirs", rows_file.parent / "ours.jsonl")
    assert lines_of(rows_file.parent / "ours.jsonl") == [
        {**row, "messages": [row["messages"][0], {"role": "assistant"}]} for row in ROWS
    ]
    convert(rows_file, rows_file.parent / "twin")
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [
        path.read_bytes() for path in sorted((rows_file.parent / "twin").iterdir())
    ]


def test_splits_are_kept(tmp_path: Path) -> None:
    whole = datasets.DatasetDict(train=datasets.Dataset.from_list(FLAT[:5]), val=datasets.Dataset.from_list(FLAT[5:]))
    whole.save_to_disk(tmp_path / "dict")
    assert convert(tmp_path / "dict", tmp_path / "same")["splits"] == {"train": 5, "val": 2}
    again = datasets.load_from_disk(tmp_path / "same")
    assert again["train"].to_list() == FLAT[:5] and again["val"].to_list() == FLAT[5:] and str(again["train"].split) == "train"
    convert(tmp_path / "dict", tmp_path / "lines", "jsonl")
    assert lines_of(tmp_path / "lines" / "train" / "data.jsonl") == FLAT[:5]
    convert(tmp_path / "lines", tmp_path / "back")
    assert datasets.load_from_disk(tmp_path / "back")["val"].to_list() == FLAT[5:]
    convert(tmp_path / "dict" / "val", tmp_path / "val.csv")
    with pytest.raises(UsageError, match="has the splits train, val"):
        convert(tmp_path / "dict", tmp_path / "one.jsonl")


@pytest.mark.parametrize("names", [
    ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"),
    ("data/train-00000-of-00001.parquet", "data/train_extra.parquet", "data/validation-00000-of-00001.parquet", "README.md"),
    ("train.parquet", "training.parquet", "dev.parquet"), ("train/a.parquet", "train/b.parquet", "testing/a.parquet"),
])  # fmt: skip
def test_splits_that_names_say_are_never_mixed(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        held = any(word in name for word in ("test", "validation", "dev"))
        pq.write_table(pa.table({"text": ["held out" if held else "trained"]}), path)
    found = convert(tmp_path / "set", tmp_path / "out", "jsonl")
    assert len(found["splits"]) in (2, 3) and found["rows"] == len([name for name in names if name != "README.md"])
    for name in found["splits"]:
        texts = {row["text"] for row in lines_of(tmp_path / "out" / name / "data.jsonl")}
        assert texts == {"trained" if name.startswith("train") else "held out"}
    with pytest.raises(UsageError, match="has the splits"):
        convert(tmp_path / "set", tmp_path / "one.jsonl")


def test_a_heap_of_files_is_converted_as_one(tmp_path: Path) -> None:
    for name in ("a.jsonl", "test_cases.jsonl"):
        (tmp_path / "heap" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "heap" / name).write_text('{"text": "x"}\n')
    assert convert(tmp_path / "heap", tmp_path / "out.jsonl")["rows"] == 2


def test_csv_goes_both_ways_and_refuses_what_is_nested(tmp_path: Path, rows_file: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([*FLAT, {"text": "only"}]))
    for here, there in (("a.json", "b.csv"), ("b.csv", "c.parquet"), ("c.parquet", "d.csv"), ("d.csv", "e.jsonl")):
        convert(tmp_path / here, tmp_path / there)
    assert lines_of(tmp_path / "e.jsonl") == [*FLAT, {"text": "only"}]
    assert pq.read_table(tmp_path / "c.parquet").schema.types == [pa.string(), pa.string()]
    with pytest.raises(DataFault, match="row 1: column 'messages' is no single value") as caught:
        convert(rows_file, tmp_path / "x.csv")
    assert ".jsonl" in caught.value.hint and not (tmp_path / "x.csv").exists()


def test_columns_keep_their_types_between_parquet_and_arrow(tmp_path: Path) -> None:
    table = pa.table({
        "raw": [b"\xff", None], "when": [datetime.datetime(2026, 1, 1), None], "nan": [float("nan"), 1.0],
        "small": pa.array([1, 2], pa.int8()), "word": pa.array(["a", "b"]).dictionary_encode(),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    convert(tmp_path / "a.parquet", tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "b.parquet")
    back = pq.read_table(tmp_path / "b.parquet")
    assert back.schema.types == [pa.binary(), pa.timestamp("us"), pa.float64(), pa.int8(), pa.string()]
    assert back["raw"].to_pylist() == [b"\xff", None] and back["word"].to_pylist() == ["a", "b"]
    with pytest.raises(DataFault, match="column 'raw' holds binary, and JSON has no word"):
        convert(tmp_path / "b.parquet", tmp_path / "c.jsonl")


def test_rows_that_differ_become_one_schema_or_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.convert_sources._ROWS_TOGETHER", 2)
    rows = [{"a": 1}, {"a": 2}, {"a": 2.5, "b": {"x": 1}}, {"b": {"y": "z"}}, {}, {"c": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert(tmp_path / "a.jsonl", tmp_path / "a.parquet")
    convert(tmp_path / "a.parquet", tmp_path / "b.jsonl")
    assert lines_of(tmp_path / "b.jsonl") == [{"a": 1.0}, {"a": 2.0}, {"a": 2.5, "b": {"x": 1}}, {"b": {"y": "z"}}, {}, {}]
    for text, words in (('{"a": 1}\n{"a": "x"}\n', "row 2 from line 1 of c.jsonl"), ("[1, 2]\n", "cannot be read"),
                        ('{"a": 1}\n{}\n{"a": "x"}\n', "line 3 of c.jsonl"), ('{"a": {}}\n', "Parquet cannot hold it"),
                        ("{}\n", "no row with a column")):  # fmt: skip
        (tmp_path / "c.jsonl").write_text(text)
        with pytest.raises(DataFault, match=words):
            convert(tmp_path / "c.jsonl", tmp_path / "c.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.parquet", "b.jsonl", "c.jsonl"]


def test_ids_of_numpy_and_packed_files_are_converted_too(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(3, 4)
    np.save(tmp_path / "ids.npy", ids)
    convert(tmp_path / "ids.npy", tmp_path / "folder")
    assert datasets.load_from_disk(tmp_path / "folder")["input_ids"][:] == ids.tolist()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    convert(tmp_path / "a.jsonl.gz", tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [{"text": "x"}]


@pytest.mark.parametrize(
    ("source", "output", "error", "words"),
    [
        ("gone.jsonl", "x.json", NotFound, "no file or folder"),
        ("a.txt", "x.json", UsageError, "plain text"),
        ("a.pdf", "x.json", UsageError, "not a kind this version can read"),
        ("rows.jsonl", "a.txt.zip", UsageError, "names no form"),
        ("rows.jsonl", "a.txt", UsageError, "names no form"),
        ("rows.jsonl", "empty", UsageError, "exists already"),
        ("empty", "x.json", UsageError, "holds no rows"),
        ("heap", "heap/x.json", UsageError, "is inside"),
        ("heap", "heap/new/x", UsageError, "is inside"),
        ("broken", "x.json", DataFault, "which is not there"),
        ("outside", "x.json", DataFault, "cannot be read as what"),
        ("blank.json", "x.jsonl", DataFault, "no row in it"),
    ],
)
def test_what_a_person_may_get_wrong(
    rows_file: Path, source: str, output: str, error: type[HeirloomError], words: str
) -> None:
    home = rows_file.parent
    (home / "a.txt").write_text("x")
    (home / "a.pdf").write_text("x")
    (home / "blank.json").write_text("[]")
    for name, files in (("empty", None), ("broken", ["data.arrow"]), ("outside", ["../rows.jsonl"])):
        (home / name).mkdir()
        if files:
            (home / name / "state.json").write_text(json.dumps({"_data_files": [{"filename": item} for item in files]}))
    (home / "heap").mkdir()
    (home / "heap" / "a.jsonl").write_text('{"text": "x"}\n')
    before = sorted(home.rglob("*"))
    with pytest.raises(error, match=words) as caught:
        convert(home / source, home / output)
    assert caught.value.hint and sorted(home.rglob("*")) == before


def test_the_command_tells_what_it_made_and_names_bad_rows_by_line(
    rows_file: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    home = rows_file.parent
    assert main(["prepare", "convert", str(rows_file), str(home / "a.parquet"), "--json"]) == 0
    found = json.loads(capfdbinary.readouterr().out)
    assert (found["rows"], found["format"], found["splits"]) == (30, "parquet", {}) and found["columns"][0] == "messages"
    bad = home / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": "x", "text": "y"}\n{"text": "fine"}\nnothing\n')
    for name in ("b.json", "b.csv", "b.parquet", "b"):
        assert main(["prepare", "convert", str(bad), str(home / name)]) == 3
        told = capfdbinary.readouterr().err.decode()
        assert "2 rows cannot be read" in told and "bad.jsonl:2 duplicate key 'text'" in told and "bad.jsonl:4" in told
        assert not (home / name).exists()
    assert main(["prepare", "convert", str(rows_file), str(home / "c"), "--to", "xml"]) == 2


def test_a_large_file_is_converted_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as handle:
        for n in range(1500):
            handle.write(json.dumps({"text": f"{n} " + "x" * 20_000}) + "\n")
    told: list[tuple[int, float | None]] = []
    tracemalloc.start()
    convert(tmp_path / "a.jsonl", tmp_path / "a.json", progress=lambda rows, share: told.append((rows, share)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20 and [rows for rows, _share in told] == [1000] and 0.6 < (told[0][1] or 0) < 0.8


def test_a_file_that_names_no_split_beside_splits_is_not_converted_as_one(scratch: Path) -> None:
    (scratch / "set").mkdir()
    for name in ("train", "test", "exam2"):
        (scratch / "set" / f"{name}.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataFault, match=r"exam2\.jsonl says neither train nor val"):
        find_splits(scratch / "set")
    (scratch / "set" / "exam2.jsonl").unlink()
    assert sorted(find_splits(scratch / "set")) == ["test", "train"]
