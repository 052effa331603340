"""Rows that are token ids already: trained as they are, ids of another tokenizer refused, and never taken silently."""

import json
from pathlib import Path

import numpy as np
import pytest
from trainer_data import jsonl, make, store

from guard import tars
from guard.checks.identify import identify
from guard.checks.identity import Limits
from guard.checks.rows import iter_examples, validate
from guard.checks.token_source import another_tokenizer
from guard.errors import DataFault
from guard.token_ids import highest_id
from trainer.dataset import LENGTH, START
from trainer.pack import PackPlan, pack_folder
from trainer.prepare import SourceFile
from trainer.tokenizer import load_tokenizer

CHAR = Limits(vocab_size=265, tokenization="char", tokenizer_hash=load_tokenizer("char").content_hash)
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


def test_text_has_no_such_warning(tmp_path: Path) -> None:
    file = store(tmp_path / "f", "a.jsonl", jsonl([{"text": "abc"}]), "pretrain")
    assert make(tmp_path / "d", [file]).metadata["warnings"] == []


def packed(tmp_path: Path, tokenization: str, *, told: bool = True) -> Path:
    """Text packed with that tokenizer, as a folder that was taken in as a tar."""
    (tmp_path / "a.txt").write_text("a heirloom keeps what it was given, row by row. " * 40, "utf-8")
    pack_folder([tmp_path / "a.txt"], tmp_path / "packed", load_tokenizer(tokenization), PackPlan((16,), val_split=0.0))
    if not told:
        (tmp_path / "packed" / "tokenizer_state.json").unlink()
    tars.pack_folder(tmp_path / "packed", tmp_path / "packed.tar")
    return tmp_path / "packed.tar"


@pytest.mark.parametrize("told", [True, False])
def test_sequences_packed_with_the_models_tokenizer_are_trained(tmp_path: Path, told: bool) -> None:
    tar = packed(tmp_path, "char", told=told)
    identity = identify(tar, "packed", container="tar", limits=CHAR)
    assert (identity.verdict, identity.reason) == ("ok", "")
    dataset = make(tmp_path / "d", [SourceFile("0" * 64, "packed", tar)])
    assert dataset.train.count > 20
    assert ["says no tokenizer" in text for text in dataset.metadata["warnings"]] == ([] if told else [True])


def test_sequences_packed_with_another_tokenizer_are_refused_although_the_ids_are_within_the_vocabulary(tmp_path: Path) -> None:
    tar = packed(tmp_path, "char")
    state = load_tokenizer("gpt2").state()
    limits = Limits(vocab_size=50266, tokenization="gpt2", tokenizer_hash=state["content_hash"])
    identity = identify(tar, "packed", container="tar", limits=limits)
    assert identity.verdict == "reject" and identity.max_token_id < 265
    assert identity.reason.startswith("its token ids are those of the tokenizer char (sha256 ")
    assert "heirloom prepare pack --tokenization" in identity.hint
    with pytest.raises(DataFault, match=r"packed: its token ids are those of the tokenizer char .* the model's is gpt2"):
        make(tmp_path / "d", [SourceFile("0" * 64, "packed", tar)], tokenization="gpt2")


@pytest.mark.parametrize(("theirs", "ours", "same"), [
    ({"tokenization": "gpt2"}, ("gpt2", "h"), True), ({"tokenization": "gpt2"}, ("char", "h"), False),
    ({"tokenization": "gpt2"}, ("hf", "h"), True), ({"tokenization": "hf", "content_hash": "g"}, ("hf", "h"), False),
    ({}, ("char", "h"), True), ({"content_hash": 5}, ("char", "h"), False),
])  # fmt: skip
def test_a_tokenizer_is_another_by_its_hash_and_without_one_by_its_name(
    theirs: dict[str, object], ours: tuple[str, str], same: bool
) -> None:
    assert (another_tokenizer([theirs], *ours) == "") is same
