"""Text that a tokenizer has no tokens for and writes as one unknown token: counted while data is made, and told.

What is lost so is lost silently, as every such id is a valid one. Only a vocabulary with an unknown token can lose text
that way: gpt2, char and every byte-level one spell anything. Some write a run of such characters as one token, so the share
is the least that is lost. Not here: conversations without words (`unsaid.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.tokenizer import Tokenizer

__all__ = ["unknown_in", "unknown_record", "unspelt_warnings"]

_WORTH_SAYING = 0.001


def unknown_in(arrays: Sequence[NDArray[Any]], tokenizer: Tokenizer) -> int:
    """How many of the ids are the tokenizer's unknown token."""
    if tokenizer.unknown_id is None:
        return 0
    return sum(int(np.count_nonzero(ids == tokenizer.unknown_id)) for ids in arrays)


def unknown_record(count: int) -> dict[str, int]:
    """What the metadata of a split says of it: nothing where there is none."""
    return {"unknown_tokens": count} if count else {}


def unspelt_warnings(counts: Mapping[str, int], tokens: int, tokenizer: Tokenizer) -> list[str]:
    """A sentence for people from one in a thousand of all `tokens` on, else none. `counts`: of each split."""
    unknown = sum(counts.values())
    if tokenizer.unknown_id is None or not tokens or unknown / tokens < _WORTH_SAYING:
        return []
    name = tokenizer.decode([tokenizer.unknown_id]) or f"id {tokenizer.unknown_id}"
    return [f"{100 * unknown / tokens:.1f} % of the tokens are {name}: this tokenizer cannot spell this text"]
