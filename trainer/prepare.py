"""Stored originals become a prepared dataset: streamed example by example, split, encoded, written, in bounded memory.

Files are taken in the order of their hashes, never of their arrival. `prepare_folder` does the same by hand for any folder.
Not here: reading a file and proving what it holds (`trainer/source_file.py`), which examples are new to a model
(`trainer/choose.py`), and jobs (`trainer/prepare_job.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.checks.columns import RULES_VERSION
from guard.checks.kinds import holds_rows
from guard.checks.rows import Example
from guard.durable import fsync_dir, make_dir, write_json
from guard.errors import DataFault, UsageError
from guard.fingerprint import FINGERPRINT_BYTES
from guard.heldout import held_out_mask
from guard.splits import KeptBack
from guard.token_ids import highest_id, ids_of
from guard.trained import trained_fields
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
from trainer.source_file import Sidecar, SourceFile, batches_of, each_once
from trainer.split_writer import SplitWriter
from trainer.stopping import StopRequested
from trainer.template import Encoded, encode_each
from trainer.templates.base import Template
from trainer.templates.mypt import MYPT
from trainer.tokenizer import Tokenizer
from trainer.unsaid import Unsaid
from trainer.unspelt import unspelt_warnings

__all__ = ["DEFAULT_SHARD_TOKENS", "LOW_MASK_RATIO", "Progress", "SourceFile", "encode_text", "planned_id", "prepare_dataset"]

DEFAULT_SHARD_TOKENS = 10_000_000
LOW_MASK_RATIO = 0.10
STAGES = ("pretrain", "sft")
_NO_MASK = np.empty(0, dtype=np.uint8)  # text is learnt whole

Progress = Callable[[int, int], None]
"""Called now and then with (examples, tokens) so far."""


def _options(shard_size_tokens: int, salt: str, validation_fraction: float) -> dict[str, Any]:
    # The salt decides the split and so belongs to the identity; it is hashed to stay the home's own.
    return {
        "shard_size_tokens": shard_size_tokens,
        "validation_fraction": validation_fraction,
        "salt_sha256": hashlib.sha256(salt.encode()).hexdigest(),
    }


def planned_id(files: Sequence[SourceFile], tokenizer: Tokenizer, *, stage: str, shard_size_tokens: int, salt: str,
               validation_fraction: float, template: Template = MYPT) -> str:  # fmt: skip
    """The id the dataset of these files would have, without making it."""
    pairs = [item.identity for item in files]
    return dataset_id(pairs, tokenizer, stage, _options(shard_size_tokens, salt, validation_fraction),
                      template if stage == "sft" else MYPT)  # fmt: skip


def encode_text(batch: Sequence[Example], last: bool, file: SourceFile, tokenizer: Tokenizer) -> list[Encoded]:
    """Ids of pretraining text; a separator ends every document: a row, or a plain text's last segment (`last`: it is there).

    Raises DataFault for token ids outside the vocabulary.
    """
    separator, each_row = np.array([tokenizer.separator_id], dtype=tokenizer.dtype), holds_rows(file.container)
    rows = []
    texts = iter(tokenizer.encode_batch([example.fields["text"] for example in batch if "text" in example.fields]))
    for position, example in enumerate(batch):
        if "input_ids" in example.fields:
            ids = _given_ids(example, file, tokenizer)
        else:
            ids = next(texts)
            if each_row or (last and position == len(batch) - 1):
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
    out_folder, files = Path(out_folder), each_once(files)
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
            sidecar = Sidecar(self.file, stack)
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

    def _proven(self, sidecar: Sidecar) -> Iterator[tuple[list[Example], bool]]:
        """The batches of the file, compared with what was recorded when it was admitted. Raises Damage, StopRequested."""
        for batch, last in batches_of(self.file, self.stage):
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
            return encode_text(batch, last, self.file, tokenizer)
        return encode_each([trained_fields(example.fields) for example in batch], tokenizer, 1, self.template)


def _metadata(identity: str, stage: str, tokenizer: Tokenizer, template: Template, options: dict[str, Any],
              files: Sequence[SourceFile], counts: Sequence[int], writers: dict[bool, SplitWriter],
              unsaid: Unsaid, given: Iterable[str]) -> dict[str, Any]:  # fmt: skip
    splits = {"train": writers[False].record(), "val": writers[True].record()}
    tokens = sum(split["tokens"] for split in splits.values())
    unknown = {name: split.get("unknown_tokens", 0) for name, split in splits.items()}
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
                     *unsaid.warnings(template.name), *unspelt_warnings(unknown, tokens, tokenizer),
                     *([_low_ratio(ratio)] if low else [])],
    }  # fmt: skip


def _taken_on_trust(name: str, tokenizer: Tokenizer) -> str:
    return f"{name} holds token ids and says no tokenizer: they were taken to be those of {tokenizer.tokenization}"


def _low_ratio(ratio: float) -> str:
    return (f"Mask ratio too low: {ratio:.1%} of the tokens are trained (short answers or long contexts);"
            " training works but is slower")  # fmt: skip
