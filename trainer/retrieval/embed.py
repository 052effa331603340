"""Text to vectors without a model: hashed character n-grams through scikit-learn, and nothing learnt.

Each word gives its character n-grams (with a space for its start and end), each run of Chinese or Japanese its
characters and pairs; counts are damped, and every n-gram adds a few signed entries to a vector of length 1
(feature hashing, Weinberger et al. 2009, arXiv 0902.2206). Everything is a frozen constant: a row depends on its text
and on `config()` alone, never on the other documents, so that an index grows by embedding only what is new.
Rare words therefore weigh no more than common ones here; that is made good at query time (`search.py`).
The figures behind the choices are in DECISIONS.md. It belongs to no language model and knows no index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from guard.errors import CheckFailed, UsageError
from trainer.retrieval.words import STOP_WORDS, WORDS_VERSION, is_run, pairs, words

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DIMENSIONS", "HashedNgramEmbedder"]

DIMENSIONS = 256
_VERSION = 1
_BUCKETS = 1 << 20  # n-grams are counted in so many buckets before they are projected
_BATCH_TEXTS = 256  # how many texts are in memory as counts at a time
_LONG_WORD = 40  # the n-grams of longer words are not worth remembering
_RUN_LENGTHS = (1, 2)


class HashedNgramEmbedder:
    """Embeds texts; equal settings give equal bits on every machine.

    `ngram_range`: shortest and longest n-gram of a word. `projections`: entries that one n-gram adds to a vector.
    `saturation`: an n-gram counted c times weighs c / (c + saturation). Raises UsageError for impossible settings.
    """

    def __init__(self, dimensions: int = DIMENSIONS, ngram_range: tuple[int, int] = (3, 5), projections: int = 4,
                 saturation: float = 8.0) -> None:  # fmt: skip
        shortest, longest = ngram_range
        if dimensions < 1 or not 1 <= shortest <= longest or projections < 1 or not 0 < saturation < float("inf"):
            raise UsageError(f"impossible embedder: dimensions {dimensions}, n-grams {ngram_range}, projections"
                             f" {projections}, saturation {saturation}", hint="all of them are above 0")  # fmt: skip
        self.dimensions = dimensions
        self.ngram_range = (shortest, longest)
        self.projections = projections
        self.saturation = float(saturation)

    def config(self) -> dict[str, Any]:
        """Everything that a row depends on, as it stands in an index's config.json."""
        stop_words = hashlib.sha256("\n".join(sorted(STOP_WORDS)).encode()).hexdigest()
        return {
            "name": "hashed-ngrams", "version": _VERSION, "dimensions": self.dimensions,
            "ngram_range": list(self.ngram_range), "run_lengths": list(_RUN_LENGTHS), "buckets": _BUCKETS,
            "projections": self.projections, "saturation": self.saturation, "words_version": WORDS_VERSION,
            "stop_words_sha256": stop_words, "normalised": "l2", "dtype": "float32",
        }  # fmt: skip

    @property
    def content_hash(self) -> str:
        """SHA-256 in hex over `config()`: rows of equal hashes may be compared and reused."""
        return hashlib.sha256(orjson.dumps(self.config(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HashedNgramEmbedder:
        """The embedder that made an index. Raises CheckFailed when this version cannot embed in the same way."""
        try:
            shortest, longest = config["ngram_range"]
            embedder = cls(config["dimensions"], (shortest, longest), config["projections"], config["saturation"])
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise CheckFailed("the index's embedder settings cannot be understood", cause=error,
                              hint="heirloom index build") from error  # fmt: skip
        if embedder.config() != dict(config):
            raise CheckFailed("the index was embedded by another version of Heirloom, so questions cannot be compared"
                              " with it", hint="heirloom index build")  # fmt: skip
        return embedder

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """float32 [len(texts), dimensions], rows of length 1; a text without any word gives zeros.

        A row does not depend on its neighbours in the call.
        """
        import numpy as np

        rows = np.zeros((len(texts), self.dimensions), np.float32)
        for start in range(0, len(texts), _BATCH_TEXTS):
            batch = texts[start : start + _BATCH_TEXTS]
            rows[start : start + len(batch)] = self._embed_batch(batch)
        return rows

    def _embed_batch(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Counted, damped, projected, normalised. Sums in float64 and a fixed order: the same bits everywhere."""
        import numpy as np
        from sklearn.feature_extraction.text import HashingVectorizer

        vectorizer = HashingVectorizer(n_features=_BUCKETS, analyzer=self._ngrams, norm=None, alternate_sign=False)
        counts = vectorizer.transform(texts)
        row_of = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        weights = counts.data / (counts.data + self.saturation)
        sums = np.zeros(len(texts) * self.dimensions)
        for number in range(self.projections):
            columns, signs = _project(counts.indices, number, self.dimensions)
            sums += np.bincount(row_of * self.dimensions + columns, weights * signs, sums.size)
        # bincount adds in the order of the entries; a sum over an axis may not.
        squares = np.bincount(np.repeat(np.arange(len(texts)), self.dimensions), sums * sums, len(texts))
        lengths, rows = np.sqrt(squares)[:, None], sums.reshape(len(texts), self.dimensions)
        return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0).astype(np.float32)

    def _ngrams(self, text: str) -> list[str]:
        found: list[str] = []
        for word in words(text):
            if is_run(word):
                found += [*word, *pairs(word)] if len(word) > 1 else [word]
            elif len(word) > _LONG_WORD:
                found += _word_ngrams.__wrapped__(word, *self.ngram_range)
            else:
                found += _word_ngrams(word, *self.ngram_range)
        return found


@lru_cache(maxsize=1 << 14)
def _word_ngrams(word: str, shortest: int, longest: int) -> tuple[str, ...]:
    """Like scikit-learn's `char_wb`: the n-grams of the word between two spaces."""
    padded = f" {word} "
    return tuple(padded[at : at + length] for length in range(shortest, longest + 1)
                 for at in range(len(padded) - length + 1)) or (padded,)  # fmt: skip


def _project(buckets: Any, number: int, dimensions: int) -> tuple[Any, Any]:
    """Column and sign of each bucket in projection `number`: the finaliser of splitmix64, the same wherever it runs."""
    import numpy as np

    mixed = buckets.astype(np.uint64) + np.uint64((number + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    columns = (mixed >> np.uint64(1)) % np.uint64(dimensions)
    return columns.astype(np.int64), 1.0 - 2.0 * (mixed & np.uint64(1)).astype(np.float64)
