"""Prepared datasets: every example once, the same bytes for the same files, damage found, and preparing by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_data import chat_row, jsonl, make, sentence, store, text_rows

from guard.checks.rows import iter_examples
from guard.durable import sha256_file
from guard.errors import CheckFailed, Damage, DataFault, NotFound, UsageError
from guard.heldout import is_held_out
from trainer.dataset import LENGTH, LOSS_TOKENS, ORDINAL, START, Dataset, Split, open_dataset, verify_dataset
from trainer.prepare import SourceFile, planned_id
from trainer.prepare_folder import prepare_folder
from trainer.template import render_text
from trainer.tokenizer import load_tokenizer


def texts(dataset: Dataset, split: Split) -> list[str]:
    tokenizer = load_tokenizer(dataset.metadata["tokenization"])
    return [tokenizer.decode(split.tokens(int(row[START]), int(row[LENGTH]))) for row in split.examples]


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(
           lambda text: text.strip()), min_size=1, max_size=12), fraction=st.sampled_from([0.0, 0.4]),
       kind=st.sampled_from(["char", "gpt2"]))  # fmt: skip
def test_no_example_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], fraction: float, kind: str
) -> None:
    root = tmp_path_factory.mktemp("data")
    file = SourceFile("0" * 64, "a.jsonl", root / "a.jsonl")
    file.path.write_bytes(jsonl([{"text": text} for text in rows]))
    dataset = make(root / "d", [file], tokenization=kind, fraction=fraction, shard=20)
    separator = {"char": "<myPT_eot>", "gpt2": "<|endoftext|>"}[kind]
    found: dict[int, str] = {}
    for split in (dataset.train, dataset.val):
        found |= dict(zip(split.examples[:, ORDINAL].tolist(), texts(dataset, split), strict=True))
    assert found == {ordinal: text + separator for ordinal, text in enumerate(rows)}
    assert dataset.train.count + dataset.val.count == len(rows)
    verify_dataset(root / "d")


def test_held_out_examples_are_exactly_those_the_home_says(tmp_path: Path) -> None:
    file = store(tmp_path / "files", "a.jsonl", jsonl(text_rows(200)), "pretrain")
    dataset = make(tmp_path / "d", [file], fraction=0.2)
    keys = dataset.val.fingerprints.tobytes()
    held = [example.fingerprint for example in iter_examples(file.path, "pretrain")
            if is_held_out(example.fingerprint, "salt", 0.2)]  # fmt: skip
    assert keys == b"".join(held) and 10 < len(held) < 80
    assert set(dataset.train.examples[:, ORDINAL]).isdisjoint(dataset.val.examples[:, ORDINAL])


def test_masks_sum_to_the_loss_tokens_and_examples_are_the_serialised_conversations(tmp_path: Path) -> None:
    rows = [chat_row(number, context_words=number * 7) for number in range(30)]
    dataset = make(tmp_path / "d", [store(tmp_path / "f", "c.jsonl", jsonl(rows), "sft")], "sft", shard=300)
    assert texts(dataset, dataset.train) == [render_text(row) for row in rows]
    for row in dataset.train.examples:
        assert int(dataset.train.mask(int(row[START]), int(row[LENGTH])).sum()) == row[LOSS_TOKENS] > 0
    total = dataset.train.mask(0, dataset.train.total_tokens).mean()
    assert dataset.mask_ratio == pytest.approx(total) and len(dataset.train.reader.shards) > 10


def test_a_plain_text_is_one_document_and_a_row_is_one(tmp_path: Path) -> None:
    text = "".join(sentence(number, 12) + "\n" for number in range(200))
    plain = make(tmp_path / "t", [store(tmp_path / "f", "a.txt", text.encode(), "pretrain")])
    assert plain.train.count > 3
    assert "".join(texts(plain, plain.train)) == text + "<myPT_eot>"
    rows = make(tmp_path / "j", [store(tmp_path / "f", "a.jsonl", jsonl(text_rows(5)), "pretrain")])
    assert all(item.endswith("<myPT_eot>") for item in texts(rows, rows.train))


def test_the_order_and_the_names_of_the_files_change_nothing(tmp_path: Path) -> None:
    one = store(tmp_path / "f", "a.jsonl", jsonl(text_rows(5)), "pretrain")
    two = store(tmp_path / "f", "b.jsonl", jsonl(text_rows(5, start=50)), "pretrain")
    first, second = make(tmp_path / "1", [one, two]), make(tmp_path / "2", [two, one, one])
    assert first.id == second.id
    for name in ("train/shard_00000.bin", "train/examples.npy", "train/examples.fp", "dataset_metadata.json"):
        assert sha256_file(tmp_path / "1" / name) == sha256_file(tmp_path / "2" / name)


def test_the_id_depends_on_everything_the_tokens_depend_on(tmp_path: Path) -> None:
    file = SourceFile("a" * 64, "a.jsonl", tmp_path / "a.jsonl")
    usual: dict[str, Any] = {"stage": "pretrain", "shard_size_tokens": 10, "salt": "s", "validation_fraction": 0.1}
    char, gpt2 = load_tokenizer("char"), load_tokenizer("gpt2")
    variants: list[dict[str, Any]] = [{"stage": "sft"}, {"shard_size_tokens": 11}, {"salt": "t"},
                                      {"validation_fraction": 0.2}]  # fmt: skip
    ids = [planned_id([file], char, **{**usual, **change}) for change in ({}, *variants)]
    ids.append(planned_id([file], gpt2, **usual))
    ids.append(planned_id([SourceFile("b" * 64, "a.jsonl", file.path)], char, **usual))
    ids.append(planned_id([SourceFile("a" * 64, "a.txt", tmp_path / "a.txt")], char, **usual))
    assert len(set(ids)) == len(ids)


def test_the_salt_itself_is_not_written_down(tmp_path: Path) -> None:
    dataset = make(tmp_path / "d", [store(tmp_path / "f", "a.jsonl", jsonl(text_rows(3)), "pretrain")])
    assert '"salt"' not in json.dumps(dataset.metadata) and dataset.metadata["options"]["salt_sha256"]


@pytest.mark.parametrize("change", [lambda data: data[:-16], lambda data: data + bytes(16),
                                    lambda data: bytes(16) + data[16:]])  # fmt: skip
def test_a_stored_file_that_is_not_what_was_admitted_is_damage(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    file = store(tmp_path / "f", "a.jsonl", jsonl(text_rows(5)), "pretrain")
    assert file.sidecar
    sidecar = file.sidecar / "examples.fp"
    sidecar.write_bytes(change(sidecar.read_bytes()))
    with pytest.raises(Damage, match="recorded when it was admitted"):
        make(tmp_path / "d", [file])
    # Nothing finished is left: no metadata, no shard.
    assert not any(path.is_file() for path in (tmp_path / "d").rglob("*"))


def test_a_low_mask_ratio_is_a_warning_in_the_words_of_the_guide(tmp_path: Path) -> None:
    rows = [chat_row(number, context_words=200) for number in range(4)]
    low = make(tmp_path / "low", [store(tmp_path / "f", "low.jsonl", jsonl(rows), "sft")], "sft")
    fine = make(tmp_path / "fine", [store(tmp_path / "f", "fine.jsonl", jsonl([chat_row(1)]), "sft")], "sft")
    assert low.mask_ratio < 0.1 and "Mask ratio too low" in low.metadata["warnings"][0]
    assert fine.metadata["warnings"] == []


def test_a_file_without_examples_gives_an_empty_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    dataset = make(tmp_path / "d", [SourceFile("0" * 64, "a.jsonl", tmp_path / "a.jsonl")])
    assert dataset.train.count == dataset.train.total_tokens == 0
    assert len(verify_dataset(tmp_path / "d").val.examples) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "d", [store(tmp_path / "f", "c.jsonl", jsonl([chat_row(n) for n in range(9)]), "sft")], "sft")
    return tmp_path / "d"


@pytest.mark.parametrize("name", ["train/shard_00000.bin", "train/shard_00000_mask.bin", "train/examples.npy",
                                  "train/examples.fp", "val/examples.npy"])  # fmt: skip
def test_a_flipped_bit_is_found_by_verify_and_a_missing_byte_by_open(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(Damage):
        verify_dataset(folder)
    (folder / name).write_bytes(data[:-1])
    with pytest.raises(Damage):
        open_dataset(folder)


def test_metadata_that_disagrees_is_refused(folder: Path) -> None:
    path = folder / "dataset_metadata.json"
    good = json.loads(path.read_bytes())

    def told(change: dict[str, object], error: type[Exception], words: str) -> None:
        path.write_text(json.dumps(good | change))
        with pytest.raises(error, match=words):
            open_dataset(folder)

    told({"format_version": 99}, CheckFailed, "format 99")
    told({"dtype": "int64"}, CheckFailed, "int64")
    told({"dtype": "uint32"}, Damage, "bytes, expected")
    told({"tokenizer_hash": "0" * 64}, Damage, "different tokenizers")
    told({"splits": {}}, Damage, "incomplete")
    path.write_text("{")
    with pytest.raises(Damage, match="not JSON"):
        open_dataset(folder)
    path.unlink()
    with pytest.raises(NotFound, match="not a prepared dataset"):
        open_dataset(folder)


# --- by hand ------------------------------------------------------------------------------------------------------


def test_preparing_by_hand_gives_a_whole_dataset_and_says_what_was_skipped(tmp_path: Path) -> None:
    source = tmp_path / "chat.jsonl"
    source.write_bytes(jsonl([chat_row(number) for number in range(60)]) + b'{"messages": []}\nnot json\n')
    told = prepare_folder("chat", [source], tmp_path / "out", "char", 0.2, 500)
    dataset = verify_dataset(tmp_path / "out")
    assert told["train"]["examples"] + told["val"]["examples"] == 60 and told["val"]["examples"] > 0
    assert told["skipped_rows"] == 2 and [row["line"] for row in told["skipped"]] == [61, 62]
    assert dataset.stage == "sft" and told["dataset_id"] == dataset.id
    assert {path.name for path in tmp_path.iterdir()} == {"chat.jsonl", "out"}


def test_an_empty_output_folder_and_a_link_to_the_input_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("hello world\n" * 50)
    (tmp_path / "a.txt").symlink_to("real.txt")
    (tmp_path / "out").mkdir()
    assert prepare_folder("text", [tmp_path / "a.txt"], tmp_path / "out", "char", 0.0)["files"][0]["name"] == "a.txt"
    assert open_dataset(tmp_path / "out").stage == "pretrain"


def test_what_a_person_may_get_wrong_by_hand(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(jsonl(text_rows(5)))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("precious")
    out = tmp_path / "out"
    for error, words, arguments in (
        (UsageError, "not empty", ("text", [source], tmp_path / "used")),
        (UsageError, "unknown kind", ("sft", [source], out)),
        (UsageError, "val-split", ("text", [source], out, "char", 1.0)),
        (UsageError, "tokenization", ("text", [source], out, "bert")),
        (UsageError, "no input", ("text", [], out)),
        (UsageError, "no input for sft", ("chat", [tmp_path / "used" / "mine"], out)),
        (NotFound, "no file", ("text", [tmp_path / "gone.txt"], out)),
        (DataFault, "no row", ("chat", [source], out, "char")),
    ):
        with pytest.raises(error, match=words):
            prepare_folder(*arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "used"}
    assert (tmp_path / "used" / "mine").read_text() == "precious"


def test_tokens_are_uint16_and_the_example_table_is_mapped_not_read(tmp_path: Path) -> None:
    dataset = make(tmp_path / "d", [store(tmp_path / "f", "a.jsonl", jsonl(text_rows(4)), "pretrain")])
    assert dataset.train.tokens(0, 5).dtype == np.uint16 and isinstance(dataset.train.examples, np.memmap)
