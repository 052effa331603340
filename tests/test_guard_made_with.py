"""Which tokenizer made the ids of a file: what is said of it, and ids of another one are refused (law 11, B13)."""

import json
from pathlib import Path

import numpy as np
import pytest

from guard.checks.identify import identify
from guard.checks.identity import Limits
from guard.checks.made_with import other_tokenizer, said_by_side, said_by_state
from guard.tars import pack_folder

GPT2 = {"tokenization": "gpt2", "content_hash": "ab" * 32}
MODEL = Limits(vocab_size=50266, tokenization="gpt2", content_hash="ab" * 32)


@pytest.mark.parametrize(
    ("said", "model", "words"),
    [
        ({}, GPT2, ""),
        (GPT2, {}, ""),
        (GPT2, GPT2, ""),
        ({"tokenization": "gpt2", "content_hash": ""}, GPT2, ""),
        ({"tokenization": "", "content_hash": "abababab"}, GPT2, ""),
        ({"tokenization": "gpt2", "content_hash": "cd" * 32}, GPT2, "gpt2 (cdcdcdcdcdcdcdcd), and the model's is gpt2"),
        ({"tokenization": "char", "content_hash": ""}, GPT2, "the tokenizer char, and the model's is gpt2"),
        ({"tokenization": "", "content_hash": "cdcdcdcd"}, GPT2, "the tokenizer cdcdcdcd"),
    ],
)
def test_ids_of_another_tokenizer_are_told_by_name_and_hash(said: dict[str, str], model: dict[str, str], words: str) -> None:
    found = other_tokenizer(said, model)
    assert words in found and bool(words) == bool(found)


def test_only_what_can_be_followed_says_a_tokenizer() -> None:
    assert said_by_state({**GPT2, "vocab_size": 3}) == GPT2
    for state in (None, [], {}, {"tokenization": "qwen"}, {**GPT2, "content_hash": "XY"}, {**GPT2, "tokenization": "a\nb"}):
        assert said_by_state(state) == {}
    assert said_by_side("char")["tokenization"] == "char" and said_by_side("abcdef01")["content_hash"] == "abcdef01"
    assert said_by_side("qwen") == said_by_side("") == {}


def packed(folder: Path, state: object) -> Path:
    for split in ("train_8", "val_8"):
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "a.npy", np.arange(80, dtype=np.int64).reshape(10, 8) + 1000 * (split == "val_8"))
    (folder / "tokenizer_state.json").write_text(json.dumps(state))
    (folder / "dataset_metadata.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("state", "verdict"), [(GPT2, "ok"), ({**GPT2, "content_hash": "cd" * 32}, "reject"), ({}, "ok")])
def test_a_packed_folder_of_another_tokenizer_is_refused(tmp_path: Path, state: dict[str, str], verdict: str) -> None:
    pack_folder(packed(tmp_path / "data", state), tmp_path / "data.tar")
    found = identify(tmp_path / "data.tar", "data.tar", limits=MODEL)
    assert found.verdict == verdict and found.tokenizer == state
    assert verdict == "ok" or ("cdcdcdcdcdcdcdcd" in found.reason and "--tokenization gpt2" in found.hint)
    assert identify(tmp_path / "data.tar", "data.tar").verdict == "ok", "without a model nobody can say"


def test_a_side_file_says_the_tokenizer_of_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(40, dtype=np.int64).reshape(5, 8))
    side = tmp_path / "ids.npy.meta.yaml"
    for value, verdict in (("gpt2", "ok"), ("char", "reject"), ('"abababab"', "ok"), ('"12345678"', "reject")):
        side.write_text(f"tokenization: {value}\n")
        assert identify(tmp_path / "ids.npy", "ids.npy", limits=MODEL, side=side).verdict == verdict
    side.write_text("tokenization: qwen\n")
    assert "first digits" in identify(tmp_path / "ids.npy", "ids.npy", limits=MODEL, side=side).reason


def test_text_has_no_tokenizer_whatever_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "words"}\n')
    side = tmp_path / "a.jsonl.meta.yaml"
    side.write_text("tokenization: char\n")
    found = identify(tmp_path / "a.jsonl", "a.jsonl", limits=MODEL, side=side)
    assert found.verdict == "ok" and found.tokenizer == {}


def test_other_programs_say_the_name_alone() -> None:
    assert other_tokenizer(said_by_state({"tokenization": "char"}), GPT2)
    assert other_tokenizer(said_by_state({"tokenization": "gpt2", "special_tokens": {}}), GPT2) == ""
