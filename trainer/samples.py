"""The examples a model is judged on, as tokens: from prepared shards, or from the files themselves for any tokenizer.

Both ways give the same examples for one tokenizer: files are read as `trainer/prepare.py` reads them, in the order of their
hashes, held-out examples decided by the same salt. An example counts once, however often it stands there. With a limit those
with the lowest fingerprints are taken, as the gate takes them, so that every version is judged on the same ones.
Not here: losses (`measuring.py`), and which sets there are (`daemon/evaluating.py`).
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guard.checks.rows import Example
from guard.errors import CheckFailed
from guard.heldout import held_out_mask
from guard.splits import KeptBack
from trainer.dataset import CUT_LENGTH, CUT_START, LENGTH, START, open_dataset
from trainer.prepare import encode_text
from trainer.source_file import Sidecar, SourceFile, batches_of, each_once
from trainer.stopping import StopRequested
from trainer.template import Encoded, encode_each
from trainer.templates.base import Inexpressible, Template
from trainer.tokenizer import Tokenizer, require_same_tokenizer

__all__ = ["Counted", "FileSet", "Sample", "ShardSet", "choose", "samples_of"]


class Sample(NamedTuple):
    """One example in tokens."""

    key: bytes
    ids: NDArray[Any]
    """[n]"""
    mask: NDArray[np.uint8] | None
    """[n], 1 = bears loss; None: every token does, as in pretraining."""
    cut: tuple[int, int]
    """Start and length of the span that may be cut."""


@dataclass(frozen=True)
class ShardSet:
    """One split of a prepared dataset."""

    folder: Path
    split: str = "val"


@dataclass(frozen=True)
class FileSet:
    """Files to be read and encoded; with a salt only those of their examples that are held out."""

    files: tuple[SourceFile, ...]
    stage: str
    salt: str | None = None
    fraction: float = 0.0


@dataclass
class Counted:
    """What a set holds, counted while it is read."""

    examples: int = 0
    tokens: int = 0
    unsaid: int = 0
    """Conversations the template has no words for: left out."""


Source = ShardSet | FileSet


def samples_of(source: Source, tokenizer: Tokenizer, template: Template, counted: Counted,
               stop: Callable[[], bool] = lambda: False) -> Iterator[Sample]:  # fmt: skip
    """Every example of a set once, counted on the way.

    Raises CheckFailed for shards of another tokenizer and files of token ids (law 11), DataFault and Damage as readers do,
    StopRequested when `stop` says so.
    """
    seen: set[bytes] = set()
    found = _from_shards(source, tokenizer) if isinstance(source, ShardSet) else \
        _from_files(source, tokenizer, template, counted)  # fmt: skip
    for sample in found:
        if stop():
            raise StopRequested("stopped while reading a set")
        if sample.key not in seen:
            seen.add(sample.key)
            counted.examples += 1
            counted.tokens += len(sample.ids)
            yield sample


def _from_shards(source: ShardSet, tokenizer: Tokenizer) -> Iterator[Sample]:
    dataset = open_dataset(source.folder)
    require_same_tokenizer(tokenizer.state(), dataset.tokenizer_state, "the version", f"the dataset {source.folder.name}")
    split = dataset.split(source.split)
    keys = split.fingerprints.tobytes()  # of the array: a single S16 loses zero bytes at its end
    for row in range(split.count):
        start, length = int(split.examples[row, START]), int(split.examples[row, LENGTH])
        mask = split.mask(start, length) if dataset.stage == "sft" else None
        cut = int(split.examples[row, CUT_START]), int(split.examples[row, CUT_LENGTH])
        yield Sample(keys[16 * row : 16 * row + 16], split.tokens(start, length), mask, cut)


def _from_files(source: FileSet, tokenizer: Tokenizer, template: Template, counted: Counted) -> Iterator[Sample]:
    for file in each_once(source.files):
        with contextlib.ExitStack() as stack:
            sidecar = Sidecar(file, stack)
            apart = KeptBack(sidecar.val_keys())
            for batch, last in batches_of(file, source.stage):
                sidecar.compare(b"".join(example.fingerprint for example in batch))
                wanted = _wanted(source, batch, apart)
                # A plain text's last segment alone is followed by a separator, whichever of them are held out.
                encoded = _encoded(source, file, batch, wanted, last, tokenizer, template, counted)
                yield from encoded
            sidecar.end()


def _wanted(source: FileSet, batch: Sequence[Example], apart: KeptBack) -> list[bool]:
    if source.salt is None:
        return [True] * len(batch)
    keys = b"".join(example.fingerprint for example in batch)
    return list((held_out_mask(keys, source.salt, source.fraction) | apart.mask(keys)).tolist())


def _encoded(source: FileSet, file: SourceFile, batch: Sequence[Example], wanted: Sequence[bool], last: bool,
             tokenizer: Tokenizer, template: Template, counted: Counted) -> Iterator[Sample]:  # fmt: skip
    chosen = [example for example, take in zip(batch, wanted, strict=True) if take]
    if not chosen:
        return
    if any("input_ids" in example.fields for example in chosen):
        raise CheckFailed(f"{file.name} holds token ids, and which tokenizer made them is not proven", subject=file.name,
                          hint="judge by the text itself; prepared shards are judged where they lie")  # fmt: skip
    if source.stage == "sft":
        rows: list[Encoded | Inexpressible] = encode_each([example.fields for example in chosen], tokenizer, 1, template)
    else:
        rows = list(encode_text(chosen, last and wanted[-1], file, tokenizer))
    for example, row in zip(chosen, rows, strict=True):
        if isinstance(row, Inexpressible):
            counted.unsaid += 1
        else:
            yield Sample(example.fingerprint, row.ids, row.mask if source.stage == "sft" else None,
                         (row.cut_start, row.cut_length))  # fmt: skip


def choose(samples: Iterator[Sample], max_tokens: int, only: Collection[bytes] | None = None) -> Iterator[Sample]:
    """The samples to judge: those with the keys in `only`, or the lowest keys that hold at most `max_tokens` (0: all).

    At least one when there is any, however long. Holds no more than about `max_tokens` tokens in memory.
    """
    if only is not None:
        return (sample for sample in samples if sample.key in only)
    return iter(_lowest(samples, max_tokens)) if max_tokens else samples


def _lowest(samples: Iterator[Sample], max_tokens: int) -> list[Sample]:
    held: list[tuple[int, Sample]] = []
    total, edge = 0, 1 << 129
    for sample in samples:
        rank = int.from_bytes(sample.key, "big")
        if rank >= edge:
            continue
        heapq.heappush(held, (-rank, sample))
        total += len(sample.ids)
        while total > max_tokens and len(held) > 1:
            highest, dropped = heapq.heappop(held)
            total, edge = total - len(dropped.ids), -highest
    return [sample for _rank, sample in sorted(held, key=lambda item: -item[0])]
