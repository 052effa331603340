"""Stored originals become a prepared dataset: streamed example by example, split, encoded, written, in bounded memory.

Files are read through `guard/checks/rows.py`, so an example's ordinal and fingerprint are the same here as at intake;
where the sidecar of fingerprints exists it is compared, and a difference is damage. Files are taken in the order of
their hashes, never of their arrival. `prepare_folder` does the same by hand for any folder.
Not here: which examples are new to a model (`trainer/selection.py`), and jobs (`trainer/prepare_job.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from guard.checks.columns import PLAIN, RULES_VERSION, Reading
from guard.checks.kinds import container_of, holds_rows
from guard.checks.rows import Example, iter_examples
from guard.durable import fsync_dir, make_dir, write_json
from guard.errors import Damage, DataFault, UsageError
from guard.fingerprint import FINGERPRINT_BYTES
from guard.heldout import held_out_mask
from guard.splits import KeptBack, recorded_splits, val_keys
from guard.token_ids import highest_id, ids_of
from guard.trained import texts_of, trained_fields
from trainer.dataset import (
    FORMAT_VERSION,
    METADATA,
    STATE,
    Dataset,
    dataset_id,
    maker_versions,
    open_dataset,
)
from trainer.pipeline import in_order
from trainer.split_writer import SplitWriter
from trainer.stopping import StopRequested
from trainer.template import Encoded, encode_each
from trainer.templates.base import Template
from trainer.templates.mypt import MYPT
from trainer.tokenizer import Tokenizer
from trainer.unsaid import Unsaid

__all__ = ["DEFAULT_SHARD_TOKENS", "LOW_MASK_RATIO", "Progress", "SourceFile", "planned_id", "prepare_dataset"]

DEFAULT_SHARD_TOKENS = 10_000_000
LOW_MASK_RATIO = 0.10
_BATCH_EXAMPLES = 1024
_BATCH_CHARACTERS = 1 << 18  # a larger one is no faster on one thread, and two wait for one another while its arrays grow
STAGES = ("pretrain", "sft")
_NO_MASK = np.empty(0, dtype=np.uint8)  # text is learnt whole

Progress = Callable[[int, int], None]
"""Called now and then with (examples, tokens) so far."""


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


def _options(shard_size_tokens: int, salt: str, validation_fraction: float) -> dict[str, Any]:
    # The salt decides the split and so belongs to the identity; it is hashed to stay the home's own.
    return {
        "shard_size_tokens": shard_size_tokens,
        "validation_fraction": validation_fraction,
        "salt_sha256": hashlib.sha256(salt.encode()).hexdigest(),
    }


def _in_order(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Each content once, in the order of the hashes, so that equal ids mean equal tokens."""
    return [file for _key, file in sorted({item.identity: item for item in reversed(files)}.items())]


def planned_id(files: Sequence[SourceFile], tokenizer: Tokenizer, *, stage: str, shard_size_tokens: int, salt: str,
               validation_fraction: float, template: Template = MYPT) -> str:  # fmt: skip
    """The id the dataset of these files would have, without making it."""
    pairs = [item.identity for item in files]
    return dataset_id(pairs, tokenizer, stage, _options(shard_size_tokens, salt, validation_fraction),
                      template if stage == "sft" else MYPT)  # fmt: skip


class _Sidecar:
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


def _batches(file: SourceFile, stage: str) -> Iterator[tuple[list[Example], bool]]:
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
            characters += sum(map(len, texts_of(example.fields)))
    except FileNotFoundError as error:
        raise Damage(f"{file.path} is gone", subject=file.sha256, hint="heirloom verify --all") from error
    if batch:
        yield batch, True


def _encode_text(batch: Sequence[Example], last: bool, file: SourceFile, tokenizer: Tokenizer) -> list[Encoded]:
    """Ids of pretraining text; a separator ends every document: a row, or a plain text's last segment."""
    separator = np.array([tokenizer.separator_id], dtype=tokenizer.dtype)
    rows = []
    texts = iter(tokenizer.encode_batch([example.fields["text"] for example in batch if "text" in example.fields]))
    for position, example in enumerate(batch):
        if "input_ids" in example.fields:
            ids = _given_ids(example, file, tokenizer)
        else:
            ids = next(texts)
            if holds_rows(file.container) or (last and position == len(batch) - 1):
                ids = np.concatenate([ids, separator])
        rows.append(Encoded(ids, _NO_MASK, 0, 0))
    return rows


def _given_ids(example: Example, file: SourceFile, tokenizer: Tokenizer) -> NDArray[Any]:
    """The ids of a row that was packed elsewhere, as they are: its separators are in it. Raises DataFault."""
    text = example.fields["input_ids"]
    ids = ids_of(text)
    if int(ids.max()) >= tokenizer.vocab_size:
        raise DataFault(f"{file.name}, line {example.line_number}: Token ID {highest_id(text)} out of vocabulary range",
                        subject=file.name, hint=f"it was made with another tokenizer; the ids of {tokenizer.tokenization} go "
                        f"from 0 to {tokenizer.vocab_size - 1}")  # fmt: skip
    return ids.astype(tokenizer.dtype)


def prepare_dataset(files: Sequence[SourceFile], tokenizer: Tokenizer, out_folder: Path | str, *, stage: str,
                    shard_size_tokens: int, salt: str, validation_fraction: float, threads: int = 1, template: Template = MYPT,
                    progress: Progress | None = None, stop: Callable[[], bool] = lambda: False) -> Dataset:  # fmt: skip
    """Make a dataset in `out_folder` (missing or empty), durably, its metadata last; returns it opened.

    `shard_size_tokens`: most tokens in a shard. `threads` change the speed and never a byte. A conversation that `template`
    cannot say is counted and left out.
    Raises UsageError for an unknown stage or a folder in use, DataFault for files that cannot be prepared,
    Damage when a stored original is not what was admitted, StopRequested between two batches when `stop` says so.
    """
    if stage not in STAGES:
        raise UsageError(f"unknown stage {stage!r}", hint=f"one of {', '.join(STAGES)}")
    out_folder, files = Path(out_folder), _in_order(files)
    if out_folder.exists() and any(out_folder.iterdir()):
        raise UsageError(f"{out_folder} is not empty", subject=str(out_folder), hint="name a new or empty folder")
    tokenizer.check_specials()
    make_dir(out_folder)
    with contextlib.ExitStack() as stack:
        writers = {held_out: SplitWriter(out_folder / name, tokenizer, shard_size_tokens, stage == "sft", stack)
                   for name, held_out in (("train", False), ("val", True))}  # fmt: skip
        counts, unsaid = [], Unsaid()
        given: dict[str, None] = {}
        for index, file in enumerate(files):
            run = _FileRun(index, file, stage, salt, validation_fraction, threads, stop, template, unsaid, given)
            counts.append(run.write(tokenizer, writers, progress))
        unsaid.refuse_all(template.name, sum(writer.count for writer in writers.values()))
        for writer in writers.values():
            writer.finish()
    identity = planned_id(files, tokenizer, stage=stage, shard_size_tokens=shard_size_tokens, salt=salt,
                          validation_fraction=validation_fraction, template=template)  # fmt: skip
    options = _options(shard_size_tokens, salt, validation_fraction)
    metadata = _metadata(identity, stage, tokenizer, template if stage == "sft" else MYPT, options, files, counts, writers,
                         unsaid, given)  # fmt: skip
    write_json(out_folder / STATE, tokenizer.state())
    write_json(out_folder / METADATA, metadata)
    fsync_dir(out_folder)
    return open_dataset(out_folder)


@dataclass(frozen=True)
class _FileRun:
    """One file on its way into the writers."""

    index: int
    file: SourceFile
    stage: str
    salt: str
    validation_fraction: float
    threads: int
    stop: Callable[[], bool]
    template: Template
    unsaid: Unsaid
    given: dict[str, None]
    """The names of files with rows that were token ids already."""

    def write(self, tokenizer: Tokenizer, writers: dict[bool, SplitWriter], progress: Progress | None) -> int:
        """Encode and write all examples of the file; returns how many there were.

        This thread reads, proves and writes; `threads` others encode.
        """
        count = 0
        with contextlib.ExitStack() as stack:
            sidecar = _Sidecar(self.file, stack)
            apart = KeptBack(sidecar.val_keys())
            batches = in_order(self._proven(sidecar), lambda batch: self._encode(*batch, tokenizer), self.threads)
            for (batch, _last), encoded in stack.enter_context(contextlib.closing(batches)):
                rows = encoded if self.stage == "pretrain" else self.unsaid.take(self.file.name, batch, encoded)
                if not self.file.says_tokenizer and any("input_ids" in example.fields for example in batch):
                    self.given[self.file.name] = None
                held_out = self._held_out(b"".join(example.fingerprint for example in batch), apart)
                for side, writer in writers.items():
                    mine = [(example, row) for example, held, row in zip(batch, held_out, rows, strict=True)
                            if held is side and row is not None]  # fmt: skip
                    writer.add_batch(self.index, mine)
                count += len(batch)
                if progress:
                    done = writers.values()
                    progress(sum(item.count for item in done), sum(item.writer.total_tokens for item in done))
        return count

    def _held_out(self, fingerprints: bytes, apart: KeptBack) -> list[bool]:
        """For each example whether it is for judging: as whoever gave the file says, else by its fingerprint."""
        if self.file.split:
            return [self.file.split == "val"] * (len(fingerprints) // FINGERPRINT_BYTES)
        drawn = held_out_mask(fingerprints, self.salt, self.validation_fraction)
        return list((drawn | apart.mask(fingerprints)).tolist())

    def _proven(self, sidecar: _Sidecar) -> Iterator[tuple[list[Example], bool]]:
        """The batches of the file, compared with what was recorded when it was admitted. Raises Damage, StopRequested."""
        for batch, last in _batches(self.file, self.stage):
            if self.stop():
                raise StopRequested(f"stopped while preparing {self.file.name}")
            fingerprints = b"".join(example.fingerprint for example in batch)
            assert len(fingerprints) == len(batch) * FINGERPRINT_BYTES
            sidecar.compare(fingerprints)
            yield batch, last
        sidecar.end()

    def _encode(self, batch: Sequence[Example], last: bool, tokenizer: Tokenizer) -> Any:
        """Runs in any thread, so it counts and keeps nothing."""
        if self.stage == "pretrain":
            return _encode_text(batch, last, self.file, tokenizer)
        return encode_each([trained_fields(example.fields) for example in batch], tokenizer, 1, self.template)


def _metadata(identity: str, stage: str, tokenizer: Tokenizer, template: Template, options: dict[str, Any],
              files: Sequence[SourceFile], counts: Sequence[int], writers: dict[bool, SplitWriter],
              unsaid: Unsaid, given: Iterable[str]) -> dict[str, Any]:  # fmt: skip
    splits = {"train": writers[False].record(), "val": writers[True].record()}
    tokens = sum(split["tokens"] for split in splits.values())
    loss_tokens = sum(split["loss_tokens"] for split in splits.values())
    ratio = loss_tokens / tokens if tokens else 0.0
    low = stage == "sft" and tokens > 0 and ratio < LOW_MASK_RATIO
    return {
        "format_version": FORMAT_VERSION,
        "id": identity,
        "kind": stage,
        "dtype": tokenizer.dtype.name,
        "byte_order": "little",
        "tokenization": tokenizer.tokenization,
        "tokenizer_hash": tokenizer.content_hash,
        "vocab_size": tokenizer.vocab_size,
        "template": template.name,
        "template_hash": template.hash,
        "versions": maker_versions(template, max(file.reading.rules for file in files) if files else RULES_VERSION),
        "options": options,
        "files": [{"sha256": file.sha256, "name": file.name, "container": file.container, "examples": count,
                   **({"reading": reading} if (reading := file.reading.as_dict()) else {}),
                   **({"kind": file.kind} if file.kind else {}), **({"split": file.split} if file.split else {})}
                  for file, count in zip(files, counts, strict=True)],
        "splits": splits,
        "mask_ratio": ratio,
        **({"inexpressible": {"count": unsaid.count, "first": unsaid.listed}} if unsaid.count else {}),
        "warnings": [*(_taken_on_trust(name, tokenizer) for name in given),
                     *unsaid.warnings(template.name), *([_low_ratio(ratio)] if low else [])],
    }  # fmt: skip


def _taken_on_trust(name: str, tokenizer: Tokenizer) -> str:
    return f"{name} holds token ids and says no tokenizer: they were taken to be those of {tokenizer.tokenization}"


def _low_ratio(ratio: float) -> str:
    return (f"Mask ratio too low: {ratio:.1%} of the tokens are trained (short answers or long contexts);"
            " training works but is slower")  # fmt: skip
