"""Embeddings beside the bare work that nobody can avoid. Shards stand in `shards.py`, intake in `intake.py`."""

from __future__ import annotations

from pydoc_data.topics import topics

from benchmarks.measure import Figure, compare

__all__ = ["embedding_against_sklearn"]


def _text() -> str:
    return "\n\n".join(topics[name] for name in sorted(topics))


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
