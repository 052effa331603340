"""Rows of an earlier index, by the text they were made of: what was embedded once is not embedded again.

Only an index that is whole (every file hashed) and was made by the very same embedder is believed. Anything else is
left aside, with a note that reaches the report: embedding all again is slower and just as right.
Not here: what becomes of the rows (`build.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.errors import HeirloomError
from trainer.retrieval.embed import HashedNgramEmbedder
from trainer.retrieval.index import Index, open_index, verify_index

if TYPE_CHECKING:
    import numpy as np

__all__ = ["EarlierRows", "earlier_rows", "embed_new"]


@dataclass
class EarlierRows:
    """Rows by the hash of their text; `note` says why an earlier index was left aside ("" when it was not)."""

    index: Index | None = None
    row_of: dict[bytes, int] = field(default_factory=dict)
    note: str = ""


def earlier_rows(folder: Path | str | None, embedder: HashedNgramEmbedder) -> EarlierRows:
    """What can be reused of the index in `folder` (None: there is none). Raises nothing about that index."""
    if folder is None:
        return EarlierRows()
    try:
        problems = verify_index(folder)
        if problems:
            return EarlierRows(note="the previous index was left aside: " + " ".join(problems[0]).strip())
        index = open_index(folder, hashed=False)
        if index.embedder.content_hash != embedder.content_hash:
            return EarlierRows(note="the previous index was left aside: it was embedded with other settings")
        return EarlierRows(index, {_digest(index.row(number)["text"]): number for number in range(len(index))})
    except (OSError, HeirloomError) as error:
        return EarlierRows(note=f"the previous index was left aside: {error}")


def embed_new(
    texts: Sequence[str], earlier: EarlierRows, embedder: HashedNgramEmbedder
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int]:
    """Rows float32 [len(texts), dimensions] in order, and how many of them were taken from the earlier index."""
    import numpy as np

    rows = np.empty((len(texts), embedder.dimensions), np.float32)
    new = []
    for number, text in enumerate(texts):
        at = earlier.row_of.get(_digest(text))
        if at is None or earlier.index is None:
            new.append(number)
        else:
            rows[number] = earlier.index.embeddings[at]
    if new:
        rows[new] = embedder.embed([texts[number] for number in new])
    return rows, len(texts) - len(new)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
