"""Which tokenizer packed the token ids of a file, as far as anybody said so, and whether that is the model's (law 11).

Ids carry no tokenizer: those of one mean nothing to another, and most of them lie in both vocabularies. A packed folder says it
in `tokenizer_state.json`, a side file with `tokenization: gpt2`, `char`, or the first digits of a tokenizer's hash. Where nobody
said anything, only the range of the ids can be judged (`judging.py`). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["NAMED", "other_tokenizer", "said_by_side", "said_by_state"]

NAMED = ("gpt2", "char")
"""Tokenizations that are one tokenizer wherever they are; any other is known by its hash alone."""
_HASH = re.compile(r"[0-9a-f]{8,64}")


def said_by_state(state: object) -> dict[str, str]:
    """What a `tokenizer_state.json` says, {} when it is none that can be followed. Other programs write no hash into it."""
    if not isinstance(state, dict):
        return {}
    name, digest = state.get("tokenization"), state.get("content_hash")
    if digest is None and name in NAMED:
        return {"tokenization": name, "content_hash": ""}
    sound = isinstance(name, str) and name.isalnum() and len(name) <= 20 and isinstance(digest, str) and _HASH.fullmatch(digest)
    return {"tokenization": str(name), "content_hash": str(digest)} if sound else {}


def said_by_side(value: str) -> dict[str, str]:
    """What the key `tokenization` of a side file says; {} for a value that is neither a name nor a hash."""
    if value in NAMED:
        return {"tokenization": value, "content_hash": ""}
    return {"tokenization": "", "content_hash": value} if _HASH.fullmatch(value) else {}


def other_tokenizer(said: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Why ids that were made as `said` are none of the model's, "" when they may be. `model`: a tokenizer's state, or {}."""
    ours, theirs = str(model.get("content_hash") or ""), str(said.get("content_hash") or "")
    name, own = str(said.get("tokenization") or ""), str(model.get("tokenization") or "")
    if not said or not ours:
        return ""
    same = ours.startswith(theirs) if theirs else name == own
    if same:
        return ""
    made = f"{name} ({theirs[:16]})" if name and theirs else name or theirs[:16]
    return f"its token ids were made with the tokenizer {made}, and the model's is {own} ({ours[:16]})"
