"""One file to prepare: how it is read, and its examples in batches, proven to be those that were admitted.

Files are read through `guard/checks/rows.py`, so an example's ordinal and fingerprint are the same here as at intake; where
the sidecar of fingerprints exists it is compared, and a difference is damage. Not here: tokens (`trainer/prepare.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from guard.checks.columns import PLAIN, Reading
from guard.checks.kinds import container_of
from guard.checks.rows import Example, iter_examples
from guard.errors import Damage
from guard.splits import recorded_splits, val_keys
from guard.trained import texts_of

__all__ = ["Sidecar", "SourceFile", "batches_of", "each_once"]

_BATCH_EXAMPLES = 1024
_BATCH_CHARACTERS = 1 << 18  # a larger one is no faster on one thread, and two wait for one another while its arrays grow


@dataclass(frozen=True)
class SourceFile:
    """A file to prepare: where it is, what it is, the folder of its sidecar when it is a stored original, how it is read."""

    sha256: str
    name: str
    path: Path
    sidecar: Path | None = None
    reading: Reading = PLAIN
    kind: str = ""
    """Its kind, where that is not called like the stage it is trained in."""
    called: str = ""
    """The name that says what it is, where its bytes lie under another: those of a link lie wherever it points."""
    split: str = ""
    """`train` or `val`: all its examples belong there, as whoever gave it says; "": drawn by fingerprint."""
    says_tokenizer: bool = False
    """Whether somebody said which tokenizer made its token ids, so that they were compared with this one."""

    @property
    def container(self) -> str:
        """What holds its rows, each of which is a document; `text`: the file is one, and its segments are the examples."""
        return container_of(self.called or self.path.name) or "text"

    @property
    def identity(self) -> tuple[str, str]:
        """What its tokens depend on: the bytes, and how they are read."""
        rows = self.container != "text"
        rules = f"rules{self.reading.rules}" if rows and self.reading.rules > 1 else ""
        read = ":".join(filter(None, (self.container, self.reading.digest, rules, self.kind)))
        return self.sha256, f"{read}@{self.split}" if self.split else read


def each_once(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Each content once, in the order of the hashes, so that equal ids mean equal tokens."""
    return [file for _key, file in sorted({item.identity: item for item in reversed(files)}.items())]


class Sidecar:
    """Compares fingerprints with `examples.fp` in passing. Raises Damage at the first difference."""

    def __init__(self, file: SourceFile, stack: contextlib.ExitStack) -> None:
        self.file = file
        path = file.sidecar / "examples.fp" if file.sidecar else None
        self.stream: BinaryIO | None = stack.enter_context(path.open("rb")) if path and path.is_file() else None

    def val_keys(self) -> bytes:
        """The fingerprints of what the file keeps for judging: read from the sidecar, before its rows are."""
        record = recorded_splits(self.file.sidecar)
        if self.stream is None or not record.get("splits"):
            return b""
        keys = val_keys(record, self.stream.read())
        self.stream.seek(0)
        return keys

    def compare(self, fingerprints: bytes) -> None:
        if self.stream and self.stream.read(len(fingerprints)) != fingerprints:
            self._differs()

    def end(self) -> None:
        if self.stream and self.stream.read(1):
            self._differs()

    def _differs(self) -> None:
        raise Damage(f"{self.file.name} does not hold the examples recorded when it was admitted",
                     subject=self.file.sha256,
                     hint=f"heirloom show {self.file.sha256[:12]}; heirloom verify --all")  # fmt: skip


def batches_of(file: SourceFile, stage: str) -> Iterator[tuple[list[Example], bool]]:
    """Examples in batches of bounded size, each with whether the file ends there."""
    batch: list[Example] = []
    characters = 0
    try:
        for example in iter_examples(file.path, file.kind or stage, file.reading, name=file.called):
            # One example is always held back, so that the last batch is known to be the last.
            if len(batch) >= _BATCH_EXAMPLES or characters >= _BATCH_CHARACTERS:
                yield batch, False
                batch, characters = [], 0
            batch.append(example)
            text = example.fields.get("text")
            characters += len(text) if text else sum(map(len, texts_of(example.fields)))
    except FileNotFoundError as error:
        raise Damage(f"{file.path} is gone", subject=file.sha256, hint="heirloom verify --all") from error
    if batch:
        yield batch, True
