"""Packing: the sequences other programs read, the same held-out documents at every length, whole or not at all."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_data import jsonl, sentence, text_rows

from daemon.cli.main import main
from guard import durable
from guard.errors import CheckFailed, DataFault, NotFound, UsageError
from guard.fingerprint import example_fingerprint
from guard.heldout import is_held_out
from trainer.pack import PackPlan, expand, pack_folder
from trainer.pipeline import in_order
from trainer.tokenizer import load_tokenizer

CHAR = load_tokenizer("char")


def rows_of(folder: Path, name: str) -> Any:
    return np.concatenate([np.load(path) for path in sorted((folder / name).glob("*.npy"))])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "b.jsonl").write_bytes(jsonl(text_rows(60)) + b'{"text": ""}\n')
    (folder / "a.txt").write_text("\n".join(sentence(number, 9) for number in range(200)) + "\n")
    return folder


def test_documents_are_packed_in_order_with_a_separator_behind_each(tmp_path: Path, raw: Path) -> None:
    found = pack_folder([raw / "a.txt", raw / "b.jsonl"], tmp_path / "out", CHAR, PackPlan((16, 64), val_split=0.0))
    texts = [(raw / "a.txt").read_text(), *(row["text"] for row in text_rows(60))]
    stream = [value for text in texts for value in [*text.encode(), CHAR.separator_id]]
    for length in (16, 64):
        rows = rows_of(tmp_path / "out", f"train_{length}")
        assert rows.dtype == np.int64 and rows.shape == (len(stream) // length, length)
        assert rows.ravel().tolist() == stream[: rows.size]
        assert found["splits"][f"train_{length}"]["dropped_tokens"] == len(stream) % length
    assert found["skipped_rows"] == 1 and found["skipped"][0]["line"] == 61 and found["warnings"] == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "train_16", "train_64", "dataset_metadata.json", "tokenizer_state.json"}  # fmt: skip


def test_a_document_is_held_out_at_every_length_or_at_none(tmp_path: Path, raw: Path) -> None:
    pack_folder([raw / "b.jsonl"], tmp_path / "out", CHAR, PackPlan((4, 32), val_split=0.3))
    for length in (4, 32):
        for name, held in (("train", False), ("val", True)):
            wanted = [row["text"] for row in text_rows(60) if is_held_out(example_fingerprint(row), "", 0.3) is held]
            stream = [value for text in wanted for value in [*text.encode(), CHAR.separator_id]]
            rows = rows_of(tmp_path / "out", f"{name}_{length}")
            assert rows.size and rows.ravel().tolist() == stream[: rows.size]


def test_arrow_folders_are_what_datasets_loads(tmp_path: Path, raw: Path) -> None:
    import datasets

    inputs = [raw / "a.txt", raw / "b.jsonl"]
    pack_folder(inputs, tmp_path / "npy", CHAR, PackPlan((32,), val_split=0.3))
    pack_folder(inputs, tmp_path / "arrow", CHAR, PackPlan((32,), "arrow", val_split=0.3, shard_rows=50))
    for name in ("train_32", "val_32"):
        loaded = datasets.load_from_disk(str(tmp_path / "arrow" / name))
        assert loaded.column_names == ["input_ids"]
        assert np.array_equal(np.array(loaded["input_ids"]), rows_of(tmp_path / "npy", name))
    files = sorted(path.name for path in (tmp_path / "arrow" / "train_32").glob("*.arrow"))
    assert len(files) > 1 and files[0] == f"data-00000-of-{len(files):05d}.arrow"


def test_same_input_same_bytes_with_any_number_of_threads(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.source_file._BATCH_EXAMPLES", 7)
    for number, threads in enumerate((1, 3)):
        plan, inputs = PackPlan((32,), shard_rows=5), [raw / "b.jsonl", raw / "a.txt"]
        pack_folder(inputs, tmp_path / f"{number}", CHAR, plan, threads=threads)
    files = [{path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
             for name in ("0", "1")]  # fmt: skip
    assert files[0] == files[1]
    assert [len(np.load(path)) for path in sorted((tmp_path / "0" / "train_32").iterdir())][:2] == [5, 5]


@pytest.mark.parametrize("format", ["npy", "arrow"])
def test_a_failed_disk_leaves_nothing_behind(tmp_path: Path, raw: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(28, "no space left on device")

    monkeypatch.setattr(durable, "_fsync", fail)
    with pytest.raises(OSError, match="no space"):
        pack_folder([raw / "a.txt"], tmp_path / "out", CHAR, PackPlan((16,), format))
    assert {path.name for path in tmp_path.iterdir()} == {"raw"}


def test_what_a_person_may_get_wrong(tmp_path: Path, raw: Path) -> None:
    (raw / "empty.jsonl").write_bytes(b'{"text": " "}\n')
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("precious")
    good, out = [raw / "b.jsonl"], tmp_path / "out"
    for error, words, arguments in (
        (UsageError, "2 to", (good, out, CHAR, PackPlan((1,)))),
        (UsageError, "2 to", (good, out, CHAR, PackPlan(()))),
        (UsageError, "unknown format", (good, out, CHAR, PackPlan((8,), "csv"))),
        (UsageError, "val-split", (good, out, CHAR, PackPlan((8,), val_split=1.0))),
        (UsageError, "not empty", (good, tmp_path / "used", CHAR, PackPlan((8,)))),
        (CheckFailed, "do not fill one sequence", (good, out, CHAR, PackPlan((8, 100_000)))),
        (DataFault, "no row", ([raw / "empty.jsonl"], out, CHAR, PackPlan((8,)))),
    ):
        with pytest.raises(error, match=words):
            pack_folder(*arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "used"}


def test_too_little_to_judge_by_is_said_and_no_empty_folder_is_made(tmp_path: Path, raw: Path) -> None:
    found = pack_folder([raw / "b.jsonl"], tmp_path / "out", CHAR, PackPlan((8, 1000), val_split=0.05))
    assert found["warnings"] == ["val_1000 is not there: too few tokens are held out for one sequence"]
    assert (tmp_path / "out" / "val_8").is_dir() and not (tmp_path / "out" / "val_1000").exists()
    assert json.loads((tmp_path / "out" / "tokenizer_state.json").read_bytes())["content_hash"] == CHAR.content_hash


def test_patterns_are_expanded_here_too_and_odd_names_are_themselves(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.jsonl", "odd[1].txt"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in expand(["c.jsonl", "*.txt"], tmp_path)] == ["c.jsonl", "a.txt", "b.txt", "odd[1].txt"]
    assert [path.name for path in expand(["odd[1].txt", "*.txt"], tmp_path)] == ["odd[1].txt", "a.txt", "b.txt"]
    with pytest.raises(NotFound, match="no file fits"):
        expand(["*.parquet"], tmp_path)


def test_a_file_that_is_there_twice_is_packed_once_and_told(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (raw / "copy.jsonl").write_bytes((raw / "b.jsonl").read_bytes())
    line = "prepare pack --seq-length 16 --tokenization char"
    assert main([*line.split(), "--output", "out", "--input", "raw/b.jsonl", "raw/b.jsonl", "raw/copy.jsonl"]) == 0
    said = "".join(capsys.readouterr())
    assert "b.jsonl is named twice: it is packed once" in said and "copy.jsonl is the same as b.jsonl: it is packed once" in said
    assert main([*line.split(), "--output", "once", "--input", "raw/b.jsonl", "raw/[b].jsonl"]) == 0
    assert "twice" not in "".join(capsys.readouterr())  # a pattern finds what it finds
    assert rows_of(tmp_path / "out", "train_16").tobytes() == rows_of(tmp_path / "once", "train_16").tobytes()


def test_the_seeds_spelling_on_the_command_line(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "pack", "--input", "raw/*", "--output", "out", "--seq_length", "16", "--tokenization", "char"]) == 0
    assert rows_of(tmp_path / "out", "train_16").shape[1] == 16
    assert "learnt" not in "".join(capsys.readouterr())
    assert main(["prepare", "pack", "--input", "raw/*", "--output", "o3", "--seq-length", "8,16", "--tokenization", "char"]) == 0
    assert "at 2 lengths: dropped whole, it is learnt 2 times; drop train_16 alone" in "".join(capsys.readouterr())
    assert main(["prepare", "pack", "--input", "raw/*", "--output", "o2", "--seq_length", "many"]) == 2


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_items_and_few_are_read_ahead(threads: int) -> None:
    read: list[int] = []

    def items() -> Any:
        for number in range(50):
            read.append(number)
            yield number

    for given, (item, result) in enumerate(in_order(items(), lambda number: number * number, threads)):
        assert (item, result) == (given, given * given) and len(read) <= given + threads + 2


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_the_work_comes_out_where_it_belongs(threads: int) -> None:
    done: list[int] = []
    with pytest.raises(ZeroDivisionError):
        for item, _result in in_order([3, 2, 1, 0, 5], lambda number: 1 / number, threads):
            done.append(item)
    assert done == [3, 2, 1]
