"""How many bytes of text each token id stands for: what bits per byte are counted in.

Control tokens and the separator between documents are no text: 0 bytes. Over the ids of any text the lengths add up to its
UTF-8 bytes (as the tokenizer's own normaliser leaves it; an unknown token counts as its name). Not here: any model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from trainer.tokenizer import Tokenizer
from trainer.tokenizer_hf import HfTokenizer

__all__ = ["byte_lengths", "control_ids"]

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "\u2581"
"""How sentencepiece writes a space."""


def control_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """The ids that are no text: control tokens and the separator, ascending."""
    return np.array(sorted({*tokenizer.special_tokens.values(), tokenizer.separator_id}), dtype=np.int64)


def byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bytes of text of every id [vocab_size]."""
    lengths = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    found = _hf_lengths(tokenizer) if isinstance(tokenizer, HfTokenizer) else [len(item) for item in tokenizer.token_bytes()]
    lengths[: len(found)] = found
    lengths[control_ids(tokenizer)] = 0
    return lengths


def _hf_lengths(tokenizer: HfTokenizer) -> list[int]:
    literal = {int(item["id"]) for item in tokenizer.document["added_tokens"]}
    spelt = [item.decode() for item in tokenizer.token_bytes()]
    if _of_type(tokenizer.document, "ByteLevel"):  # one character of the vocabulary stands for one byte
        return [len(item.encode()) if number in literal else len(item) for number, item in enumerate(spelt)]
    marked = _of_type(tokenizer.document, "WordPiece")
    return [_length(item, marked) for item in spelt]


def _length(item: str, word_pieces: bool) -> int:
    if _BYTE.fullmatch(item):
        return 1
    if word_pieces:  # pieces within a word carry a mark, and the space before a word is nobody's
        return len(item.removeprefix("##").encode())
    return len(item.replace(_SPACE, " ").encode())


def _of_type(document: Mapping[str, Any], name: str) -> bool:
    """Whether a part of this type stands among the tokenizer's steps."""
    parts = [document.get(part) for part in ("pre_tokenizer", "decoder", "model")]
    return f'"type":"{name}"'.encode() in orjson.dumps(parts)
