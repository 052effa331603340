"""Hugging Face tokenizers at work: trained here, kept, in shards (uint32 where needed) and in versions, never mistaken.

Not here: how a folder is read and what its ids are (`test_trainer_tokenizer_hf.py`).
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hf_help import _trained, corpus, foreign_folder, unigram_folder  # noqa: F401 - fixtures
from pyarrow import parquet
from trainer_data import chat_row, jsonl, store, text_rows
from trainer_help import SHAPE, base_job, make_dataset, train_job

from guard.errors import CheckFailed, DataFault, NotFound, UsageError
from trainer.dataset import open_dataset, verify_dataset
from trainer.hf_tokenizer import keep_tokenizer, open_tokenizer
from trainer.pack import PackPlan, pack_folder
from trainer.prepare import planned_id, prepare_dataset
from trainer.prepare_folder import prepare_folder
from trainer.stopping import StopRequested
from trainer.template import encode
from trainer.templates.harmony_simple import HARMONY_SIMPLE
from trainer.templates.mypt import MYPT, SPECIAL_TOKENS
from trainer.tokenizer import load_tokenizer
from trainer.tokenizer_about import about_tokenizer
from trainer.tokenizer_train import train_tokenizer
from trainer.train_job import run_base, run_train
from trainer.version_files import load_version


def test_a_kept_tokenizer_is_the_same_everywhere_it_goes(tmp_path: Path) -> None:
    source = foreign_folder(tmp_path / "hf")
    kept = keep_tokenizer(source, tmp_path / "kept")
    assert keep_tokenizer(source, tmp_path / "kept") == kept and len(list((tmp_path / "kept").iterdir())) == 1
    tokenizer, template = open_tokenizer(source)
    assert template.name == "chat_template" and load_tokenizer("hf", kept).state() == tokenizer.state()
    assert open_tokenizer(kept)[1].hash == template.hash
    about = about_tokenizer("hf", kept)
    assert (about.content_hash, about.template_hash) == (tokenizer.content_hash, template.hash)
    assert about.padded_vocab_size == tokenizer.padded_vocab_size


# --- shards of uint32, and rows a template cannot say ------------------------------------------------------------------


def wide_folder(folder: Path) -> Path:
    """A vocabulary beyond uint16."""
    made = foreign_folder(folder, chat_template="")
    document = json.loads((made / "tokenizer.json").read_bytes())
    document["added_tokens"][0]["id"], document["added_tokens"][1]["id"] = 151_643, 151_645
    (made / "tokenizer.json").write_text(json.dumps(document))
    return made


def test_a_vocabulary_beyond_uint16_has_shards_of_uint32(tmp_path: Path) -> None:
    tokenizer, template = open_tokenizer(wide_folder(tmp_path / "hf"))
    assert tokenizer.dtype == np.dtype("<u4") and tokenizer.vocab_size == 151_646 + 9
    rows = [chat_row(number) for number in range(30)]
    file = store(tmp_path / "files", "c.jsonl", jsonl(rows), "sft")
    dataset = prepare_dataset([file], tokenizer, tmp_path / "ds", stage="sft", shard_size_tokens=200, salt="s",
                              validation_fraction=0.2, template=template)  # fmt: skip
    dataset = verify_dataset(tmp_path / "ds")
    assert dataset.metadata["dtype"] == dataset.tokenizer_state["dtype"] == "uint32" and len(dataset.train.reader.shards) > 1
    shard = dataset.folder / "train" / "shard_00000.bin"
    assert np.fromfile(shard, dtype="<u4").max() > 1 << 16 and shard.stat().st_size == 4 * dataset.train.reader.shards[0].tokens
    index, ordinal, start, length, *_rest = dataset.train.examples[3]
    assert dataset.files[index]["name"] == "c.jsonl"
    assert dataset.train.tokens(start, length).tolist() == encode(rows[ordinal], tokenizer).ids.tolist()


def tool_row() -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "u"},
                         {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]},
                         {"role": "tool", "content": "r"}, {"role": "assistant", "content": "a"}]}  # fmt: skip


def test_rows_a_template_has_no_words_for_are_counted_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from guard.checks import rows as rules

    # What a row with tools must look like is the guard's to say; here such rows reach the trainer as they are.
    monkeypatch.setitem(rules._VALIDATORS, "sft", lambda value: {"messages": value["messages"]})
    path = tmp_path / "c.jsonl"
    path.write_bytes(jsonl([chat_row(1), tool_row(), chat_row(2)]))
    found = prepare_folder("chat", [path], tmp_path / "out", "char", 0.0)
    told = open_dataset(tmp_path / "out").metadata
    assert found["train"]["examples"] == 2 and told["files"][0]["examples"] == 3
    assert told["inexpressible"] == {"count": 1, "first": [
        {"file": "c.jsonl", "line": 2, "ordinal": 1, "reason": "the template mypt has no words for a tool call"}]}  # fmt: skip
    assert "1 conversation is inexpressible in the template mypt" in found["warnings"][0]
    assert open_dataset(tmp_path / "out").train.examples[:, 1].tolist() == [0, 2]
    path.write_bytes(jsonl([tool_row()]))
    with pytest.raises(DataFault, match="none of 1 conversations can be said in the template mypt"):
        prepare_folder("chat", [path], tmp_path / "none", "char", 0.0)
    assert not (tmp_path / "none").exists()
    folder = foreign_folder(tmp_path / "hf", chat_template="")
    prepare_folder("chat", [path], tmp_path / "said", "hf", 0.0, tokenizer_folder=folder, template="harmony_simple")
    assert open_dataset(tmp_path / "said").metadata["template"] == "harmony_simple"


def test_plain_text_is_prepared_once_for_every_template(tmp_path: Path, trained: Path) -> None:
    file = store(tmp_path / "files", "a.jsonl", jsonl(text_rows(5)), "pretrain")
    tokenizer = load_tokenizer("hf", trained)
    how: dict[str, Any] = {"shard_size_tokens": 100, "salt": "s", "validation_fraction": 0.1}
    ids = {planned_id([file], tokenizer, stage=stage, template=template, **how)
           for stage in ("pretrain", "sft") for template in (MYPT, HARMONY_SIMPLE)}  # fmt: skip
    assert len(ids) == 3


def test_text_that_a_vocabulary_has_no_tokens_for_is_counted_and_told(tmp_path: Path, trained: Path) -> None:
    folder = unigram_folder(tmp_path / "uni")
    assert load_tokenizer("hf", folder).unknown_id == 0
    assert load_tokenizer("hf", trained).unknown_id is load_tokenizer("char").unknown_id is None
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "ab" * 300 + "éa" * count} for count in (0, 100)))
    found = prepare_folder("text", [path], tmp_path / "out", "hf", 0.0, tokenizer_folder=folder)
    splits = open_dataset(tmp_path / "out").metadata["splits"]
    assert splits["train"]["unknown_tokens"] == 100 and "unknown_tokens" not in splits["val"]
    assert found["warnings"] == ["7.1 % of the tokens are <unk>: this tokenizer cannot spell this text"]
    packed = pack_folder([path], tmp_path / "packed", load_tokenizer("hf", folder), PackPlan((16,), val_split=0.0))
    assert packed["unknown_tokens"] == {"train": 100} and packed["warnings"] == found["warnings"]
    path.write_bytes(jsonl([{"text": "ab" * 3000 + "é"}]))
    found = prepare_folder("text", [path], tmp_path / "few", "hf", 0.0, tokenizer_folder=folder)
    assert found["warnings"] == []  # one in six thousand is a typing error
    assert open_dataset(tmp_path / "few").metadata["splits"]["train"]["unknown_tokens"] == 1


@pytest.mark.parametrize("words", [{"tokenizer_folder": "x"}, {"template": "harmony"}])
def test_a_folder_belongs_to_the_tokenization_hf(tmp_path: Path, words: dict[str, Any]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(UsageError, match="belong to --tokenization hf"):
        prepare_folder("text", [path], tmp_path / "out", "char", **words)


# --- tokenizer train ---------------------------------------------------------------------------------------------------


def test_training_gives_the_same_bytes_every_time_and_learns_from_every_kind_of_row(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(jsonl([{"messages": [{"role": "user", "content": "zebra " * 9000}], "id": "qqq " * 9000}]))
    files = [corpus(tmp_path / "a.md"), rows]
    found = [train_tokenizer(files, 300, tmp_path / name, min_frequency=1, specials=["<|mine|>"]) for name in ("a", "b")]
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer_state.json", "special_tokens_map.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    tokenizer = load_tokenizer("hf", tmp_path / "a")
    assert tokenizer.vocab_size == found[0]["vocab_size"] == 300 and tokenizer.content_hash == found[0]["content_hash"]
    assert len(tokenizer.encode(" zebra")) < 3 and len(tokenizer.encode("qqq")) == 3  # an id names, it says nothing
    assert list(tokenizer.special_tokens) == ["<|endoftext|>", *SPECIAL_TOKENS, "<|mine|>"] and found[0]["texts"] > 1


@pytest.mark.parametrize(("change", "error", "told"), [
    ({"vocab_size": 100}, UsageError, "must be 266"), ({"specials": [""]}, UsageError, "cannot be empty"),
    ({"specials": [" "]}, UsageError, "cannot be empty"), ({"inputs": ["nothing.txt"]}, NotFound, "no file"),
    ({"inputs": ["a.bin"]}, UsageError, "no text to learn"), ({"inputs": ["empty.txt"]}, DataFault, "no text in"),
    ({"min_frequency": 0}, UsageError, "at least 1"), ({"out_dir": "."}, UsageError, "exists already"),
    ({"template": "x"}, UsageError, "unknown template"), ({"inputs": []}, UsageError, "no input"),
])  # fmt: skip
def test_training_says_what_is_wrong(tmp_path: Path, change: dict[str, Any], error: type[Exception], told: str) -> None:
    corpus(tmp_path / "a.txt")
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "empty.txt").write_bytes(b"")
    asked: dict[str, Any] = {"inputs": ["a.txt"], "vocab_size": 300, "out_dir": "new", **change}
    asked |= {"inputs": [tmp_path / name for name in asked["inputs"]], "out_dir": tmp_path / asked["out_dir"]}
    with pytest.raises(error, match=told):
        train_tokenizer(**asked)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new*"))


# --- B13: another tokenizer is refused, in a version, in a judged set -------------------------------------------------


def test_the_same_texts_give_the_same_tokenizer_whatever_holds_them(tmp_path: Path) -> None:
    rows = [{"text": f"{word} keeps \u00e9very heirloom for weeks"} for word in "abcdefgh"]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(row["text"] for row in rows) + "\n", "utf-8")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    plain = "".join(row["text"] + "\n" for row in rows).encode()
    (tmp_path / "b.txt").write_bytes(plain)
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(plain))
    for first, *others in (("a.jsonl", "a.json", "a.jsonl.gz", "a.csv", "a.parquet"), ("b.txt", "b.md.gz")):
        made = train_tokenizer([tmp_path / first], 300, tmp_path / f"{first}-out")
        for name in others:
            assert train_tokenizer([tmp_path / name], 300, tmp_path / f"{name}-out")["content_hash"] == made["content_hash"]


def test_a_version_carries_its_tokenizer_and_a_changed_one_is_refused(tmp_path: Path, trained: Path) -> None:
    job = base_job(tmp_path / "s", {"layers": 1, "heads": 2, "width": 16, "hidden": 32, "block_size": 48})
    run_base({**job, "tokenization": "hf", "tokenizer_folder": str(trained)})
    out = tmp_path / "s" / "out"
    model, tokenizer = load_version(out)
    assert tokenizer.content_hash == load_tokenizer("hf", trained).content_hash and model.config.vocab_size == 320
    document = json.loads((out / "tokenizer.json").read_bytes())
    document["model"]["merges"] = document["model"]["merges"][:-1]
    (out / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckFailed, match="uses the tokenizer hf"):
        load_version(out)


def test_a_set_of_another_tokenizer_is_never_judged(tmp_path: Path, trained: Path) -> None:
    job = base_job(tmp_path / "base")
    run_base(job)
    dataset = make_dataset(tmp_path / "data")
    foreign = tmp_path / "foreign"
    (tmp_path / "t.txt").write_text("some other text\n" * 50)
    prepare_folder("text", [tmp_path / "t.txt"], foreign, "hf", 0.0, tokenizer_folder=trained)
    wanted = {"name": "old", "role": "ancestry", "dataset": str(foreign), "split": "train", "stage": "pretrain", "max_tokens": 9}
    job = train_job(tmp_path / "job", tmp_path / "base" / "out", dataset, steps=1, evaluation=[wanted])
    with pytest.raises(CheckFailed, match=r"the model uses the tokenizer char .* the set old uses hf"):
        run_train(job)


def test_going_on_with_shards_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    run_base(base_job(tmp_path / "base"))
    dataset = make_dataset(tmp_path / "data")
    job = train_job(tmp_path / "job", tmp_path / "base" / "out", dataset, steps=4, evaluation=[],
                    snapshot={"every_steps": 1, "every_seconds": 0})  # fmt: skip
    asked = iter(range(100))
    with pytest.raises(StopRequested):
        run_train(job, stop=lambda: next(asked) > 4)
    assert list((tmp_path / "job" / "snapshots").iterdir())
    for name, key in (("tokenizer_state.json", "content_hash"), ("dataset_metadata.json", "tokenizer_hash")):
        told = json.loads((dataset.folder / name).read_bytes()) | {key: "0" * 64}
        (dataset.folder / name).write_text(json.dumps(told))
    with pytest.raises(CheckFailed, match=r"base uses the tokenizer char .* uses char \(sha256 0000"):
        run_train(job)


def test_a_model_is_trained_from_ids_beyond_uint16(tmp_path: Path) -> None:
    folder = keep_tokenizer(wide_folder(tmp_path / "hf"), tmp_path / "kept")
    shape = {**SHAPE, "vocab_size": None, "width": 8, "heads": 1, "kv_heads": 1, "hidden": 8, "layers": 1}
    run_base({**base_job(tmp_path / "base", shape), "tokenization": "hf", "tokenizer_folder": str(folder)})
    (tmp_path / "chat.jsonl").write_bytes(jsonl([chat_row(number) for number in range(12)]))
    prepare_folder("chat", [tmp_path / "chat.jsonl"], tmp_path / "ds", "hf", 0.1, tokenizer_folder=folder)
    job = train_job(tmp_path / "job", tmp_path / "base" / "out", open_dataset(tmp_path / "ds"), steps=1)
    result = run_train(job)
    assert result["steps_executed"] == 1 and result["evaluation"][0]["child_loss"] > 0
    model, tokenizer = load_version(tmp_path / "job" / "out")
    assert model.config.vocab_size == tokenizer.padded_vocab_size == 151_680
