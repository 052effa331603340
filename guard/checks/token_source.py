"""Whose token ids a folder of packed sequences holds, as far as it says so, and whether a model reads the same (law 11).

`heirloom prepare pack` puts `tokenizer_state.json` beside its sequences, and programs of the same manners do too. Ids of another
tokenizer are often within the vocabulary, so that nothing else would tell. Text that lies beside such a file is no concern.
Not here: where a vocabulary ends (`judging.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from guard.checks.members import data_set_in, description
from guard.checks.rows import open_regular
from guard.tars import Stored

__all__ = ["PACK_AGAIN", "another_tokenizer", "told_in_file", "told_tokenizers"]

PACK_AGAIN = "pack the text again with the model's own: heirloom prepare pack --tokenization gpt2|char|hf"
_STATE = "tokenizer_state.json"
_FIXED = ("gpt2", "char")
"""Tokenizations that are always the same; `hf` says nothing without its hash."""


def told_tokenizers(stream: BinaryIO, files: Mapping[str, Stored]) -> list[dict[str, Any]]:
    """What a packed folder says of its tokenizers: the objects in its `tokenizer_state.json` files, by name."""
    found = [description(stream, file) for name, file in sorted(files.items()) if name.rpartition("/")[2] == _STATE]
    return [item for item in found if isinstance(item, dict)]


def told_in_file(path: Path) -> list[dict[str, Any]]:
    """The same of a stored folder. Raises DataFault for a tar that holds no data set, OSError."""
    with open_regular(path) as stream:
        return told_tokenizers(stream, data_set_in(stream).files)


def another_tokenizer(told: list[dict[str, Any]], tokenization: str, content_hash: str) -> str:
    """Why ids of these tokenizers are not the model's: "" when they are, or when nothing says otherwise."""
    for state in told:
        theirs, their_hash = str(state.get("tokenization") or "?"), str(state.get("content_hash") or "")
        differs = their_hash != content_hash if their_hash and content_hash else (
            theirs != tokenization and theirs in _FIXED and tokenization in _FIXED)  # fmt: skip
        if differs:
            return (f"its token ids are those of the tokenizer {theirs}{_short(their_hash)}, the model's is"
                    f" {tokenization}{_short(content_hash)}")  # fmt: skip
    return ""


def _short(content_hash: str) -> str:
    return f" (sha256 {content_hash[:16]})" if content_hash else ""
