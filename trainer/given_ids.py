"""Rows that were token ids already when they came: taken as they are, as far as they can be those of the tokenizer.

Not here: ids as text (`guard/token_ids.py`), the making of a dataset (`trainer/prepare.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from guard.checks.rows import Example
from guard.checks.token_source import PACK_AGAIN, another_tokenizer, told_in_file
from guard.errors import DataFault
from guard.token_ids import highest_id, ids_of
from trainer.tokenizer import Tokenizer

__all__ = ["GivenIds", "given_ids"]


def given_ids(example: Example, name: str, tokenizer: Tokenizer) -> NDArray[Any]:
    """The ids [n] of a row, its separators among them. Raises DataFault for one that the tokenizer has not."""
    text = example.fields["input_ids"]
    ids = ids_of(text)
    if int(ids.max()) >= tokenizer.vocab_size:
        raise DataFault(f"{name}, line {example.line_number}: Token ID {highest_id(text)} out of vocabulary range", subject=name,
                        hint=f"it was made with another tokenizer; the ids of {tokenizer.tokenization} go from 0 to"
                        f" {tokenizer.vocab_size - 1}")  # fmt: skip
    return ids.astype(tokenizer.dtype)


class GivenIds:
    """The files that hold such rows, each asked once whose ids they are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._seen: dict[Path, str] = {}

    def see(self, name: str, path: Path, container: str, batch: Sequence[Example]) -> None:
        """Look at examples of a file. Raises DataFault when it says that its ids are another tokenizer's (law 11)."""
        if path in self._seen or not any("input_ids" in example.fields for example in batch):
            return
        told = told_in_file(path) if container == "tar" else []
        problem = another_tokenizer(told, self._tokenizer.tokenization, self._tokenizer.content_hash)
        if problem:
            raise DataFault(f"{name}: {problem}", subject=name, hint=PACK_AGAIN)
        self._seen[path] = "" if told else name

    def warnings(self) -> list[str]:
        """A sentence for each file that names no tokenizer."""
        return [f"{name} holds token ids and says no tokenizer: they were taken to be those of {self._tokenizer.tokenization}"
                for name in dict.fromkeys(filter(None, self._seen.values()))]  # fmt: skip
