"""Our shards in other hands: read as nanoGPT reads its own, decoded by tiktoken alone, the masks beside the tokens."""

import functools
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from trainer_data import chat_row, jsonl, make, sentence, store, text_rows

from guard.durable import sha256_file
from trainer.prepare import prepare_dataset
from trainer.tokenizer import GPT2_PATTERN, load_tokenizer


@functools.cache
def stock_gpt2() -> tiktoken.Encoding:
    """GPT-2's encoding as everyone has it, from the vocabulary files and nothing else of ours."""
    ranks = load_tokenizer("gpt2").ranks  # type: ignore[attr-defined]
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})


def memmaps(folder: Path, pattern: str, dtype: str) -> np.ndarray:
    return np.concatenate([np.memmap(path, dtype=dtype, mode="r") for path in sorted(folder.glob(pattern))])


def test_a_reader_of_uint16_files_finds_the_text_with_endoftext_between_documents(tmp_path: Path) -> None:
    rows = [*text_rows(40), {"text": "tags are text: <|endoftext|> <myPT_user> é 中文 👍"}]
    make(tmp_path / "d", [store(tmp_path / "f", "a.jsonl", jsonl(rows), "pretrain")], tokenization="gpt2", shard=100)
    assert len(list((tmp_path / "d" / "train").glob("shard_*[0-9].bin"))) > 1
    ids = memmaps(tmp_path / "d" / "train", "shard_*[0-9].bin", "uint16")
    text = stock_gpt2().decode(ids.tolist())
    assert text == "".join(row["text"] + "<|endoftext|>" for row in rows)


def test_masks_lie_beside_the_tokens_and_mark_the_answers(tmp_path: Path) -> None:
    rows = [chat_row(number) for number in range(30)]
    make(tmp_path / "d", [store(tmp_path / "f", "a.jsonl", jsonl(rows), "sft")], "sft", "gpt2", shard=200)
    ids = memmaps(tmp_path / "d" / "train", "shard_*[0-9].bin", "uint16")
    mask = memmaps(tmp_path / "d" / "train", "shard_*_mask.bin", "uint8")
    for path in (tmp_path / "d" / "train").glob("shard_*_mask.bin"):
        assert path.stat().st_size * 2 == path.with_name(path.name.replace("_mask", "")).stat().st_size
    close = load_tokenizer("gpt2").special("</myPT_assistant>")
    trained = [part for part in np.split(ids[mask == 1], np.flatnonzero(ids[mask == 1] == close) + 1) if len(part)]
    answers = [row["messages"][1]["content"] for row in rows]
    assert [stock_gpt2().decode(part[:-1].tolist()) for part in trained] == answers


@pytest.mark.parametrize(("stage", "name"), [("pretrain", "a.jsonl"), ("pretrain", "a.txt"), ("sft", "a.jsonl")])
def test_threads_and_batches_change_no_byte(tmp_path: Path, stage: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jsonl([chat_row(number) for number in range(50)] if stage == "sft" else text_rows(50))
    if name == "a.txt":
        data = "\n".join(sentence(number, 12) for number in range(400)).encode()
    file, tokenizer = store(tmp_path / "f", name, data, stage), load_tokenizer("gpt2")
    hashes = []
    for threads, batch in ((1, 1024), (1, 3), (4, 3)):
        monkeypatch.setattr("trainer.source_file._BATCH_EXAMPLES", batch)
        out = tmp_path / f"{threads}-{batch}"
        prepare_dataset([file], tokenizer, out, stage=stage, shard_size_tokens=300, salt="s", validation_fraction=0.3,
                        threads=threads)  # fmt: skip
        hashes.append({path.relative_to(out): sha256_file(path) for path in out.rglob("*") if path.is_file()})
    assert hashes[0] == hashes[1] == hashes[2] and len(hashes[0]) > 8
