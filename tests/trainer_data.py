"""Small stored originals, datasets and jobs for the tests of the trainer's data half. Not a test itself."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from guard.checks.identify import identify
from trainer.dataset import Dataset
from trainer.prepare import SourceFile, prepare_dataset
from trainer.tokenizer import load_tokenizer

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "some", "more", "words")


def sentence(seed: int, words: int) -> str:
    """A sentence that only the seed decides."""
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) for _ in range(words)) + f" {seed}."


def text_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": sentence(start + i, 3 + (start + i) % 9)} for i in range(count)]


def chat_row(number: int, context_words: int = 0) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": [{"role": "user", "content": f"question {number}"},
                                        {"role": "assistant", "content": sentence(number, 6)}]}  # fmt: skip
    if context_words:
        row |= {"system": "Be brief.", "context": sentence(number, context_words)}
    return row


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def store(root: Path, name: str, data: bytes, kind: str) -> SourceFile:
    """A file as intake would store it, with the sidecar that intake would write."""
    sha256 = hashlib.sha256(data).hexdigest()
    folder = root / sha256
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    identity = identify(folder / name, name, kind, out_folder=folder)
    assert identity.verdict == "ok", identity.reason
    return SourceFile(sha256, name, folder / name, folder)


def make(folder: Path, files: list[SourceFile], stage: str = "pretrain", tokenization: str = "char", *,
         fraction: float = 0.0, shard: int = 1000) -> Dataset:  # fmt: skip
    return prepare_dataset(files, load_tokenizer(tokenization), folder, stage=stage, shard_size_tokens=shard,
                           salt="salt", validation_fraction=fraction)  # fmt: skip
