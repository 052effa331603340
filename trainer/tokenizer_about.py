"""What a plan must know of a tokenizer: hashes, sizes and the template's name, without making one.

The daemon's own process reads no foreign tokenizer: for `hf` it believes the small files that Heirloom wrote beside it
(`trainer/hf_tokenizer.py`, `keep_tokenizer`); a child proves them. Not here: encoding, and which folder it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from guard.errors import CheckFailed
from trainer.templates.find import TEMPLATE_FILE
from trainer.templates.mypt import MYPT
from trainer.tokenizer import load_tokenizer

__all__ = ["AboutTokenizer", "about_tokenizer"]


@dataclass(frozen=True)
class AboutTokenizer:
    """Facts of a tokenizer and the template beside it."""

    content_hash: str
    padded_vocab_size: int
    template: str
    template_hash: str


def about_tokenizer(tokenization: str, folder: Path | None = None) -> AboutTokenizer:
    """The facts. Raises UsageError for an unknown name or a missing folder, NotFound or CheckFailed for a wrong one."""
    if tokenization != "hf" or folder is None:
        tokenizer = load_tokenizer(tokenization, folder)
        return AboutTokenizer(tokenizer.content_hash, tokenizer.padded_vocab_size, MYPT.name, MYPT.hash)
    state = _read(folder / "tokenizer_state.json")
    if state.get("tokenization") != "hf" or not state.get("content_hash"):
        # Nobody kept it yet: a command in the foreground asks about a folder of its own.
        found = load_tokenizer("hf", folder)
        return AboutTokenizer(found.content_hash, found.padded_vocab_size, MYPT.name, MYPT.hash)
    template = _read(folder / TEMPLATE_FILE)
    return AboutTokenizer(str(state["content_hash"]), int(state["padded_vocab_size"]), str(template.get("name", MYPT.name)),
                          str(template.get("hash", MYPT.hash)))  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except orjson.JSONDecodeError as error:
        raise CheckFailed(f"{path} is not JSON: {error}", subject=str(path), hint="heirloom verify") from error
    return value if isinstance(value, dict) else {}
