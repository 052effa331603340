"""Rows that are token ids already: trained as they are, ids of another tokenizer refused, and never taken silently."""

import json
from pathlib import Path

import numpy as np
import pytest
from trainer_data import jsonl, make, store

from guard.checks.rows import iter_examples, validate
from guard.errors import DataFault
from guard.token_ids import highest_id
from trainer.dataset import LENGTH, START
from trainer.prepare import SourceFile
from trainer.tokenizer import load_tokenizer

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
