"""Rows that are token ids already: trained as they are, ids of another tokenizer refused, and never taken silently."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainer_data import jsonl, make, store

from guard.checks.columns import PLAIN
from guard.checks.jsonl import Row
from guard.checks.rows import iter_examples, validate
from guard.errors import DataFault
from guard.token_ids import highest_id
from trainer.dataset import LENGTH, START
from trainer.prepare import SourceFile
from trainer.tokenizer import load_tokenizer
from trainer.validate import _faults_of

ROWS = [[1, 2, 3], [255, 0, 7, 9], [5]]


def test_ids_are_trained_as_they_are_and_without_a_separator(tmp_path: Path) -> None:
    file = store(tmp_path / "f", "a.jsonl", jsonl([{"input_ids": row} for row in ROWS]), "pretrain")
    dataset = make(tmp_path / "d", [file])
    found = [dataset.train.tokens(int(row[START]), int(row[LENGTH])).tolist() for row in dataset.train.examples]
    assert found == ROWS
    assert dataset.metadata["warnings"] == ["a.jsonl holds token ids and says no tokenizer: they were taken to be those of char"]


def test_an_npy_file_and_rows_with_the_same_ids_are_the_same_examples(tmp_path: Path) -> None:
    ids = np.arange(96, dtype=np.int64).reshape(12, 8)
    np.save(tmp_path / "a.npy", ids)
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"input_ids": row} for row in ids.tolist()]))
    prints = [[example.fingerprint for example in iter_examples(tmp_path / name, "pretrain")] for name in ("a.npy", "a.jsonl")]
    assert prints[0] == prints[1] and len(set(prints[0])) == 12
    dataset = make(tmp_path / "d", [SourceFile("0" * 64, "a.npy", tmp_path / "a.npy")], shard=20)
    assert dataset.train.tokens(0, 96).tolist() == list(range(96))


@pytest.mark.parametrize("wrong", [265, 50_000, 2**63])
def test_an_id_of_another_tokenizer_is_refused_by_file_row_and_number(tmp_path: Path, wrong: int) -> None:
    (tmp_path / "a.jsonl").write_text('{"input_ids": [1]}\n' + json.dumps({"input_ids": [2, wrong]}) + "\n")
    with pytest.raises(DataFault, match=f"a.jsonl, line 2: Token ID {wrong} out of vocabulary range"):
        make(tmp_path / "d", [SourceFile("0" * 64, "a.jsonl", tmp_path / "a.jsonl")])
    assert load_tokenizer("char").vocab_size == 265


@pytest.mark.parametrize("ids", [[0], [1, 22, 333], [2**63 - 1, 0], [2**64 - 1], [2**64, 5], [10**40, 1]])
def test_the_written_form_of_ids_is_exact_however_long_they_are(ids: list[int]) -> None:
    fields = validate("pretrain", {"input_ids": ids})
    assert fields == {"input_ids": " ".join(map(str, ids))} and highest_id(fields["input_ids"]) == max(ids)


def test_whoever_said_the_tokenizer_is_not_warned(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"input_ids": [1]}\n')
    file = SourceFile("0" * 64, "a.jsonl", tmp_path / "a.jsonl", says_tokenizer=True)
    assert make(tmp_path / "d", [file]).metadata["warnings"] == []


def test_text_has_no_such_warning(tmp_path: Path) -> None:
    file = store(tmp_path / "f", "a.jsonl", jsonl([{"text": "abc"}]), "pretrain")
    assert make(tmp_path / "d", [file]).metadata["warnings"] == []


PADDED = {"input_ids": [7, 8, 9, 264, 264], "attention_mask": [1, 1, 1, 0, 0]}


@pytest.mark.parametrize("row", [
    PADDED, {**PADDED, "labels": [7, 8, 9, -100, -100]}, {**PADDED, "labels": PADDED["input_ids"]},
    {"input_ids": [-1, 7, 8, 9], "attention_mask": [0, 1, 1, 1]},
    {"input_ids": [7, 8, 9], "attention_mask": None, "labels": None},
])  # fmt: skip
def test_padding_is_left_out(row: dict[str, object]) -> None:
    assert validate("pretrain", row) == {"input_ids": "7 8 9"}


@pytest.mark.parametrize(("beside", "field", "words"), [
    ({"attention_mask": [1, 1, 1, 0]}, "attention_mask", "as long as 'input_ids'"),
    ({"attention_mask": 1}, "attention_mask", "as long as 'input_ids'"),
    ({"attention_mask": [1, 1, 2, 0, 0]}, "attention_mask[2]", "neither 0 nor 1"),
    ({"attention_mask": [1, 1, [1], 0, 0]}, "attention_mask[2]", "neither 0 nor 1"),
    ({"attention_mask": [0] * 5}, "attention_mask", "all of it is padding"),
    ({"labels": [-100, 8, 9, -100, -100]}, "labels", "masks tokens: token ids are trained whole"),
    ({"labels": [8, 9, 264, -100, -100], "attention_mask": None}, "labels", "masks tokens"),
    ({"labels": [8, 9, 10, 264, 264]}, "labels", "something else than 'input_ids'"), ({"labels": 1}, "labels", "must be a list"),
])  # fmt: skip
def test_what_stands_beside_ids_is_obeyed_or_refused(beside: dict[str, object], field: str, words: str) -> None:
    faults = validate("pretrain", {**PADDED, **beside})
    assert isinstance(faults, list) and faults[0].field == field and words in faults[0].reason and faults[0].expected


def test_padding_is_left_out_of_tables_and_is_no_id_of_another_tokenizer(tmp_path: Path) -> None:
    rows = [PADDED, {"input_ids": [1, 2, 50_000], "attention_mask": [1, 1, 0]}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.jsonl", "a.parquet", "a.arrow"):
        assert [example.fields["input_ids"] for example in iter_examples(tmp_path / name, "pretrain", PLAIN)] == ["7 8 9", "1 2"]
    assert _faults_of("pretrain", Row(1, b"", rows[1], None), 265, PLAIN) == []
