"""Looking at data without touching it: counts, columns and faults of files, folders and prepared datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainer_data import chat_row, jsonl, make, store, text_rows

from daemon.cli.main import main
from guard.durable import json_bytes
from guard.errors import DataFault, NotFound, UsageError
from trainer.dataset import open_dataset
from trainer.pairs.prepare import prepare_pairs
from trainer.prepare_folder import prepare_folder
from trainer.row_files import data_files, rows_of
from trainer.validate import LISTED, token_fault, validate_path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jsonl(rows))
    return path


def arrow_folder(folder: Path, rows: list[dict[str, Any]], pieces: int = 2) -> Path:
    """A folder as `save_to_disk` leaves it, with a cache file beside its data."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    names = [f"data-{number:05d}-of-{pieces:05d}.arrow" for number in range(pieces)]
    step = -(-len(rows) // pieces)
    for number, name in enumerate([*names, "cache-0123.arrow"]):
        with pa.ipc.new_stream(str(folder / name), table.schema) as sink:
            sink.write_table(table.slice(number * step % len(rows), step))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_sound_file_is_fine_and_tells_its_columns_and_a_sample(scratch: Path) -> None:
    path = write(scratch / "chat.jsonl", [chat_row(number, 5) for number in range(7)])
    before = path.stat()
    report = validate_path(path)
    assert report["ok"] and (report["kind"], report["rows"], report["examples"]) == ("sft", 7, 7)
    assert report["columns"] == ["messages", "system", "context"] and report["sample"] == chat_row(0, 5)
    assert path.stat() == before and [item.name for item in scratch.iterdir()] == ["chat.jsonl"]


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
BAD = [
    ("sft", {"messages": "hello"}, "messages", "Field 'messages' must be a list"),
    ("sft", {"text2": "x"}, "messages", "Missing required field 'messages'"),
    ("pretrain", {"text": "  "}, "text", "Field 'text' is empty after stripping"),
    ("preference", PAIR | {"chosen": " "}, "chosen", "Field 'chosen' is empty after stripping"),
    ("preference", PAIR | {"rejected": "a"}, None, "Responses are identical"),
    ("preference", {"prompt": "q", "chosen": "a"}, "rejected", "Missing required field 'rejected'"),
]


@pytest.mark.parametrize(("kind", "row", "field", "reason"), BAD)
def test_a_bad_row_is_told_by_line_field_and_reason(
    kind: str, row: dict[str, Any], field: str, reason: str, scratch: Path
) -> None:
    good = {"sft": chat_row(1), "pretrain": {"text": "fine"}, "preference": PAIR}[kind]
    report = validate_path(write(scratch / "x.jsonl", [good, row, good | {"id": "2"}]), kind)
    assert not report["ok"] and report["faults_count"] == 1 and report["rows"] == 3
    fault = report["faults"][0]
    assert (fault["line"], fault["reason"]) == (2, reason) and field in (fault["field"], None)


@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_twenty_faults_are_listed_unless_all_are_asked_for(kind: str, scratch: Path) -> None:
    path = write(scratch / "x.jsonl", [{"messages": [], "chosen": "", "rejected": "b"}] * 50)
    few, everything = (validate_path(path, kind, everything=flag) for flag in (False, True))
    assert few["faults_count"] == everything["faults_count"] == 50
    assert len(few["faults"]) == LISTED and {fault["line"] for fault in everything["faults"]} == set(range(1, 51))


def test_rows_that_are_no_json_are_faults_of_their_line(scratch: Path) -> None:
    path = scratch / "x.jsonl"
    path.write_bytes(jsonl(text_rows(3)) + b"{nonsense\n" + jsonl(text_rows(2, 9)))
    assert [fault["line"] for fault in validate_path(path)["faults"]] == [4]


def test_a_folder_of_arrow_files_is_read_by_what_it_says_it_holds(scratch: Path) -> None:
    folder = arrow_folder(scratch / "sft" / "train", [chat_row(number) for number in range(9)])
    arrow_folder(scratch / "sft" / "val", [chat_row(number) for number in range(100, 103)], 1)
    report = validate_path(scratch / "sft")
    assert report["ok"] and report["splits"] == {"train": 9, "val": 3} and report["columns"] == ["messages"]
    (folder / "data-00001-of-00002.arrow").unlink()
    told = validate_path(scratch / "sft")
    assert not told["ok"] and "data-00001-of-00002.arrow" in told["reason"]


def test_arrow_files_of_an_earlier_saving_are_not_read_and_told(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = arrow_folder(scratch / "set", [chat_row(number) for number in range(9)], 1)
    (folder / "data-00002-of-00003.arrow").write_bytes((folder / "data-00000-of-00001.arrow").read_bytes())
    report = validate_path(folder)
    assert report["ok"] and report["rows"] == 9 and report["unread"] == ["data-00002-of-00003.arrow"]
    assert main(["prepare", "validate", str(folder)]) == 0
    assert "Not read, for its state.json does not name them: data-00002-of-00003.arrow" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "reason"), [
    ("data/train-00000-of-00002.jsonl", "it lacks data/train-00001-of-00002.jsonl"),
    ("data/test-00000-of-00001.jsonl.part", "data/test-00000-of-00001.jsonl.part in it is an unfinished"),
    ("below/train/a.jsonl.part", "below: train/a.jsonl.part in it is an unfinished"),
    ("link", "link in it is not a regular file"),
])  # fmt: skip
def test_a_folder_that_intake_would_not_take_yet_is_at_fault_for_intakes_reason(
        name: str, reason: str, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    folder = scratch / "set"
    inside = "below/train/b.jsonl" if name.startswith("below") else "data/test-00000-of-00001.jsonl"
    write(folder / inside, text_rows(3))
    assert main(["prepare", "validate", str(folder)]) == 0
    if name == "link":
        (folder / name).symlink_to(folder / inside)
    else:
        write(folder / name, text_rows(3))
    capsys.readouterr()
    assert main(["prepare", "validate", str(folder)]) == 3
    assert f"is not whole: {reason}" in capsys.readouterr().out


def test_parquet_and_both_forms_of_arrow_give_the_same_rows(scratch: Path) -> None:
    rows = [{"text": f"row {number}", "note": None if number % 2 else "odd"} for number in range(150)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, scratch / "a.parquet", row_group_size=40)
    for name, make_sink in (("b.arrow", pa.ipc.new_stream), ("c.arrow", pa.ipc.new_file)):
        with make_sink(str(scratch / name), table.schema) as sink:
            sink.write_table(table, max_chunksize=33)
    found = [[(row.line_number, row.value) for row in rows_of(scratch / name)] for name in ("a.parquet", "b.arrow", "c.arrow")]
    assert found[0] == found[1] == found[2] and found[0][1] == (2, {"text": "row 1"}) and len(found[0]) == 150
    (scratch / "d.parquet").write_bytes(b"PAR1 cut short")
    assert not validate_path(scratch / "d.parquet")["ok"]


def test_splits_are_known_by_their_names(scratch: Path) -> None:
    held_out = ("val/a.jsonl", "data/test-00000-of-00001.parquet", "val_512/x.npy", "Validation/x.csv")
    trained = ("train/a.jsonl", "train/test-questions.jsonl")
    for name in (*held_out, *trained):
        write(scratch / "splits" / name, text_rows(1))
    assert {item.name: item.split for item in data_files(scratch / "splits")} == {
        **dict.fromkeys(held_out, "val"), **dict.fromkeys(trained, "train")}  # fmt: skip
    for name in ("train/a.jsonl", "val/a.jsonl", "settings.json", "notes.txt"):
        write(scratch / "set" / name, text_rows(1))
    assert [item.name for item in data_files(scratch / "set")] == ["train/a.jsonl", "val/a.jsonl"]
    write(scratch / "hidden" / ".cache" / "x.jsonl", text_rows(1))
    for name in ("b/x.jsonl", "a.txt"):
        write(scratch / "hidden" / name, text_rows(1))
    assert [item.name for item in data_files(scratch / "hidden")] == ["a.txt", "b/x.jsonl"]
    write(scratch / "splits" / "data/values.jsonl", text_rows(1))
    with pytest.raises(DataFault, match=r"values\.jsonl says neither train nor val beside train/a"):
        data_files(scratch / "splits")
    for name in ("data/values.jsonl", "evaluate.jsonl"):
        write(scratch / "heap" / name, text_rows(1))
    assert {item.split for item in data_files(scratch / "heap")} == {"train"}


def test_an_id_beyond_the_vocabulary_is_named() -> None:
    fault = token_fault([1, 50_000, 60_000], 50_000)
    assert fault is not None and fault.reason == "Token ID 50000 out of vocabulary range"
    assert token_fault([0, 49_999], 50_000) is None and token_fault([-1], 5) is not None


def test_packed_ids_are_compared_with_the_vocabulary_in_every_container(scratch: Path) -> None:
    rows = [{"input_ids": [1, 2, number]} for number in (3, 50_000, 7)]
    arrow_folder(scratch / "train", rows, 1)
    np.save(scratch / "pretrain.npy", np.array([row["input_ids"] for row in rows]))
    for path in (scratch / "train", scratch / "pretrain.npy", write(scratch / "x.jsonl", rows)):
        assert validate_path(path)["ok"], path
        report = validate_path(path, vocab_size=50_000)
        assert not report["ok"] and report["kind"] == "pretrain" and report["columns"] == ["input_ids"]
        fault = report["faults"][0]
        assert (fault["line"], fault["reason"]) == (2, "Token ID 50000 out of vocabulary range")


def test_a_prepared_dataset_is_read_whole(scratch: Path) -> None:
    file = store(scratch / "files", "a.jsonl", jsonl(text_rows(40)), "pretrain")
    folder = make(scratch / "ds", [file], fraction=0.2, shard=200).folder
    report = validate_path(folder)
    assert report["ok"] and report["type"] == "dataset" and sum(item["examples"] for item in report["splits"].values()) == 40
    shard = folder / "train" / "shard_00001.bin"
    data = bytearray(shard.read_bytes())
    data[10:12] = (300).to_bytes(2, "little")
    shard.write_bytes(data)
    told = validate_path(folder)
    assert not told["ok"] and told["faults"][0]["file"] == "train/shard_00001.bin"
    assert told["faults"][0]["reason"] == "Token ID 300 out of vocabulary range"
    data[10:12] = (66).to_bytes(2, "little")
    shard.write_bytes(data)
    assert "SHA-256" in validate_path(folder)["reason"]
    (folder / "tokenizer_state.json").write_bytes(json_bytes({"content_hash": "0"}))
    assert "different tokenizers" in validate_path(folder)["reason"]


def test_what_is_not_there_and_what_is_no_kind_are_said(scratch: Path) -> None:
    with pytest.raises(NotFound):
        validate_path(scratch / "none")
    with pytest.raises(UsageError):
        validate_path(scratch, "letters")
    assert not validate_path(scratch)["ok"]
    (scratch / "empty.jsonl").touch()
    assert not validate_path(scratch / "empty.jsonl")["ok"]
    (scratch / "notes.txt").write_text("Some words.\n")
    assert validate_path(scratch / "notes.txt")["ok"]


QUESTIONS = [{"q": f"question {number}", "a": f"answer {number}"} for number in range(9)]
COLUMNS = "columns: {q: user, a: assistant}\n"


def test_a_file_is_judged_with_the_side_file_that_lies_beside_it(scratch: Path) -> None:
    path = write(scratch / "qa.jsonl", [*QUESTIONS, {"q": "nothing said", "a": " "}])
    assert not validate_path(path)["kind"]
    (scratch / "qa.jsonl.meta.yaml").write_text(COLUMNS)
    for everything in (False, True):
        report = validate_path(path, everything=everything)
        assert (report["kind"], report["rows"], report["examples"], report["columns"]) == ("sft", 10, 9, ["q", "a"])
        assert [(fault["line"], fault["field"]) for fault in report["faults"]] == [(10, "messages[1].content")]
    (scratch / "qa.jsonl.meta.yaml").write_text("columns: {q: nobody}\n")
    report = validate_path(path)
    assert not report["ok"] and report["reason"].startswith("its side file: ") and report["hint"]
    (scratch / "qa.jsonl.meta.yml").write_text(COLUMNS)
    with pytest.raises(UsageError, match="two side files"):
        validate_path(path)


def test_the_side_file_of_a_folder_is_that_of_its_files(scratch: Path) -> None:
    for split in ("train", "val"):
        write(scratch / "set" / split / "a.jsonl", QUESTIONS)
    (scratch / "set.meta.yaml").write_text(COLUMNS)
    report = validate_path(scratch / "set")
    assert report["ok"] and (report["kind"], report["splits"]) == ("sft", {"train": 9, "val": 9})


def test_files_are_prepared_as_their_side_files_say(scratch: Path) -> None:
    path = write(scratch / "qa.jsonl", QUESTIONS)
    write(scratch / "plain.jsonl", [{"messages": [{"role": role, "content": row[key]} for role, key in
                                                  (("user", "q"), ("assistant", "a"))]} for row in QUESTIONS])  # fmt: skip
    with pytest.raises(DataFault, match="no row can be used"):
        prepare_folder("chat", [path], scratch / "without", "char", 0.0)
    (scratch / "qa.jsonl.meta.yaml").write_text(COLUMNS)
    prepare_folder("chat", [path], scratch / "one", "char", 0.0)
    prepare_folder("chat", [scratch / "plain.jsonl"], scratch / "two", "char", 0.0)
    one, two = (open_dataset(scratch / name).train for name in ("one", "two"))
    assert one.count == 9 and one.fingerprints.tobytes() == two.fingerprints.tobytes()
    with pytest.raises(UsageError, match="columns are those of sft"):
        prepare_folder("text", [path], scratch / "three", "char", 0.0)
    (scratch / "qa.jsonl.meta.yaml").write_text("columns: 7\n")
    with pytest.raises(DataFault, match=r"qa\.jsonl\.meta\.yaml"):
        prepare_folder("chat", [path], scratch / "three", "char", 0.0)


def test_pairs_are_read_as_their_side_file_says(scratch: Path) -> None:
    path = write(scratch / "p.jsonl", [{"ask": "q", "good": "a", "bad": "b"}])
    (scratch / "p.jsonl.meta.yaml").write_text("columns: {ask: prompt, good: chosen, bad: rejected}\n")
    assert prepare_pairs([path], None)["pairs"] == 1
