"""The way of data: intake, shards, embeddings, each beside the bare work that nobody can avoid."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import orjson

from benchmarks.measure import Figure, compare
from guard.checks.identify import identify
from trainer.prepare import SourceFile, prepare_dataset
from trainer.tokenizer import load_tokenizer

__all__ = ["embedding_against_sklearn", "intake_against_parsing", "shards_against_tiktoken"]


def _text() -> str:
    return "\n\n".join(topics[name] for name in sorted(topics))


def _chat_file(folder: Path, rows: int) -> Path:
    """Rows of about 700 bytes made of sentences of Python's reference."""
    dice = random.Random(5)
    words = _text().split()
    path = folder / "chat.jsonl"
    with path.open("w", encoding="utf-8") as handle:
        for number in range(rows):
            ask = " ".join(dice.choices(words, k=30)) + f" {number}"
            tell = " ".join(dice.choices(words, k=80))
            row = {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": tell}]}
            handle.write(json.dumps(row) + "\n")
    return path


def intake_against_parsing(runs: int) -> Figure:
    """MB/s of hash + parse + validate + fingerprint, against SHA-256 and orjson alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = _chat_file(Path(folder), 15_000)
        out = Path(folder) / "out"
        out.mkdir()

        def bare() -> None:
            data = path.read_bytes()
            hashlib.sha256(data).hexdigest()
            for line in data.splitlines():
                orjson.loads(line)

        return compare("intake", "MB/s", path.stat().st_size / 1e6, lambda: identify(path, "chat.jsonl", out_folder=out),
                       "sha256 + orjson", bare, runs)  # fmt: skip


def shards_against_tiktoken(runs: int) -> Figure:
    """MB/s of text into GPT-2 shards on one thread, against `encode_to_numpy` of the same text."""
    text = _text() * 3
    tokenizer = load_tokenizer("gpt2")
    encoding = tokenizer._encoding  # the bare library under our tokenizer
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "text.txt"
        source.write_text(text, "utf-8")
        file = SourceFile(hashlib.sha256(text.encode()).hexdigest(), source.name, source)
        made = iter(range(1000))

        def ours() -> None:
            prepare_dataset([file], tokenizer, Path(folder) / f"out{next(made)}", stage="pretrain",
                            shard_size_tokens=10_000_000, salt="x", validation_fraction=0.05)  # fmt: skip

        return compare("shards", "MB/s", len(text.encode()) / 1e6, ours, "tiktoken encode_to_numpy",
                       lambda: encoding.encode_to_numpy(text, disallowed_special=()), runs)  # fmt: skip


def embedding_against_sklearn(runs: int) -> Figure:
    """Chunks per second of our embedder, against a bare HashingVectorizer with 256 columns."""
    from sklearn.feature_extraction.text import HashingVectorizer

    from trainer.retrieval.chunk import chunk_text
    from trainer.retrieval.embed import HashedNgramEmbedder

    texts = [chunk.text for chunk in chunk_text(_text(), 800, 120)]
    embedder = HashedNgramEmbedder()
    bare = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=256)
    return compare("embedding", "chunks/s", len(texts), lambda: embedder.embed(texts), "HashingVectorizer",
                   lambda: bare.transform(texts).toarray(), runs)  # fmt: skip
