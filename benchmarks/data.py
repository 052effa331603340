"""The way of data: intake, shards, embeddings, each beside the bare work that nobody can avoid."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from benchmarks.measure import Figure, compare
from trainer.prepare import SourceFile, prepare_dataset
from trainer.tokenizer import load_tokenizer

__all__ = ["embedding_against_sklearn", "shards_against_tiktoken"]


def _text() -> str:
    return "\n\n".join(topics[name] for name in sorted(topics))


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
