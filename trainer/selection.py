"""The frozen list of what a job reads: token ranges, joined into sequences, and the order they are fed in.

Everything is a pure function of the record and a few integers, so that a job killed anywhere goes on at its step and
feeds the same bytes (law 7). The order comes from Philox's raw numbers and a stable sort, not from a library's shuffle,
which may change between releases. Not here: how a selection is made (`trainer/choose.py`) and reading its tokens.
"""

from __future__ import annotations

import functools
import hashlib
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.durable import open_new, write_json
from guard.errors import Damage

__all__ = ["Selection", "load_selection", "philox_keys", "training_steps"]

_ARRAYS = {"ranges": (np.int64, 3), "sequences": (np.int64, 2), "replay": (np.bool_, 0), "examples": (np.int64, 3),
           "touches": (np.int64, 2)}  # fmt: skip
_DOCUMENTS = "documents"
_STAGES = ("stages", "curriculum")
_SCHEMA_WITH_STAGES = 3
_SCHEMA = 2
_SCHEMA_WITHOUT_DOCUMENTS = 1
"""What earlier releases wrote, and what has no documents still: the same bytes and the same hash."""


def philox_keys(seed: int, lane: int, count: int) -> NDArray[np.uint64]:
    """`count` 64-bit numbers that depend on (seed, lane) alone: Philox4x64-10 (Salmon et al. 2011), raw output."""
    key = np.array([seed % 2**64, lane % 2**64], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key).random_raw(count), dtype=np.uint64).reshape(count)


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.argsort(philox_keys(seed, epoch, count), kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


@dataclass(frozen=True, eq=False)
class Selection:
    """What a job feeds. A sequence's tokens are its ranges joined; `datasets[0]` holds the new data."""

    datasets: tuple[str, ...]
    """Folders of the prepared datasets; the others are sources of replay."""
    ranges: NDArray[np.int64]
    """[R, 3]: dataset index, start token in that dataset's train split, length."""
    sequences: NDArray[np.int64]
    """[S, 2]: first range and end range (exclusive)."""
    replay: NDArray[np.bool_]
    """[S]: the sequence is replay."""
    examples: NDArray[np.int64]
    """[E, 3]: file index in dataset 0, ordinal, input tokens of the newly learnt examples."""
    touches: NDArray[np.int64]
    """[P, 2]: the sequence carries loss-bearing tokens of the example."""
    dataset_ids: tuple[str, ...] = ()
    """Ids of the datasets: part of the hash, where the folders are not (a prepared folder is moved into place)."""
    documents: NDArray[np.int64] | None = None
    """[R]: which document of its sequence a range belongs to, counted from 0 and never falling. Documents of a sequence do
    not see one another. None, as in lists of earlier releases: a sequence is read as one document."""

    stages: NDArray[np.int64] | None = None
    """[S]: the stage of a curriculum that the sequence is fed in; None: there is one, the whole list."""
    curriculum: NDArray[np.int64] | None = None
    """[K, 2]: of each stage the length of its sequences, and the model's block (tokens); lengths ascend."""

    @functools.cached_property
    def shares(self) -> bool:
        """Do several documents share a sequence anywhere?"""
        return self.documents is not None and bool(self.documents.any())

    @property
    def schema(self) -> int:
        """The number of the form that is hashed and written."""
        if self.stages is not None:
            return _SCHEMA_WITH_STAGES
        return _SCHEMA_WITHOUT_DOCUMENTS if self.documents is None else _SCHEMA

    def _values(self) -> dict[str, NDArray[Any]]:
        """The arrays that are hashed and written, by name and in order."""
        values: dict[str, NDArray[Any]] = {
            name: np.ascontiguousarray(getattr(self, name), dtype=dtype) for name, (dtype, _width) in _ARRAYS.items()
        }
        if self.documents is not None:
            values[_DOCUMENTS] = np.ascontiguousarray(self.documents, dtype=np.int64)
        if self.stages is not None:
            values |= {name: np.ascontiguousarray(getattr(self, name), dtype=np.int64) for name in _STAGES}
        return values

    def content_hash(self) -> str:
        """SHA-256 over the dataset ids and all arrays."""
        digest = hashlib.sha256("\n".join((f"heirloom-selection-{self.schema}", *self.dataset_ids)).encode())
        for name, array in self._values().items():
            digest.update(f"\n{name} {array.shape}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()

    def sequence_lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence [S]."""
        ends = np.concatenate([[0], np.cumsum(self.ranges[:, 2])])
        return ends[self.sequences[:, 1]] - ends[self.sequences[:, 0]]

    def document_count(self) -> int:
        """Documents (or pieces of them) in all sequences."""
        inside = 0 if self.documents is None else int((np.diff(self.documents) > 0).sum())
        return len(self.sequences) + inside

    def used(self, block_size: int) -> float:
        """Part of what the sequences could hold that is really fed, 0 to 1: padding up to the block counts as unused."""
        fed = int(self.ranges[:, 2].sum()) - self.document_count()
        room = len(self.sequences) * block_size
        if self.stages is not None and self.curriculum is not None:
            room = int(self.curriculum[self.stages, 0].sum())
        return fed / max(1, room)

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The permutation of the sequences [S] in an epoch (read-only); stages follow one another, shuffled inside."""
        if self.stages is None:
            return _order(len(self.sequences), seed, epoch)
        if (seed, epoch) not in self._ordered:
            shuffled = _order(len(self.sequences), seed, epoch)
            self._ordered.clear()  # asked for again and again, and for the next epoch after the last
            self._ordered[seed, epoch] = shuffled[np.argsort(self.stages[shuffled], kind="stable")]
        return self._ordered[seed, epoch]

    @functools.cached_property
    def _ordered(self) -> dict[tuple[int, int], NDArray[np.int64]]:
        return {}

    @functools.cached_property
    def stage_counts(self) -> NDArray[np.int64]:
        """[K]: sequences of each stage; of a list without a curriculum, all of them."""
        if self.stages is None or self.curriculum is None:
            return np.array([len(self.sequences)], dtype=np.int64)
        return np.bincount(self.stages, minlength=len(self.curriculum)).astype(np.int64)

    def scaled(self, count: int, stage: int) -> int:
        """How many sequences of a stage hold about the tokens of `count` that fill the block; at least one."""
        if self.curriculum is None:
            return count
        length, block_size = (int(value) for value in self.curriculum[stage])
        return max(1, count * block_size // length)

    def stage_of_step(self, step: int, batch_sequences: int) -> int:
        """The stage that a step (counted from 0 over all epochs) feeds from; 0 without a curriculum."""
        position = step % self.steps_per_epoch(batch_sequences)
        return int(np.searchsorted(np.cumsum(self.stage_steps(batch_sequences)), position, side="right"))

    def stage_steps(self, batch_sequences: int) -> list[int]:
        """[K]: steps of each stage in an epoch."""
        return [-(-int(count) // self.scaled(batch_sequences, stage)) for stage, count in enumerate(self.stage_counts)]

    def steps_per_epoch(self, batch_sequences: int) -> int:
        """Steps until every sequence was fed once; the last step of an epoch, or of a stage, may be smaller."""
        return sum(self.stage_steps(batch_sequences))

    def batch(self, seed: int, step: int, batch_sequences: int) -> NDArray[np.int64]:
        """Sequence ids of a step (counted from 0 over all epochs): at most `batch_sequences` of the block's length."""
        epoch, position = divmod(step, self.steps_per_epoch(batch_sequences))
        edges = [self._fed_after(done, batch_sequences) for done in (position, position + 1)]
        return self.order(seed, epoch)[edges[0] : edges[1]]

    def _fed_after(self, steps: int, batch_sequences: int) -> int:
        """Sequences fed in the first `steps` steps of an epoch."""
        fed = 0
        for stage, (count, needed) in enumerate(zip(self.stage_counts, self.stage_steps(batch_sequences), strict=True)):
            if steps < needed:
                return fed + steps * self.scaled(batch_sequences, stage)
            fed, steps = fed + int(count), steps - needed
        return fed

    def _fed(
        self, seed: int, steps: int, batch_sequences: int, skipped: Collection[int] = ()
    ) -> Iterator[NDArray[np.int64]]:
        """All ids fed in `steps` steps but for the skipped ones (from 0), an epoch at a time."""
        per_epoch = self.steps_per_epoch(batch_sequences)
        for epoch in range(-(-steps // per_epoch) if per_epoch else 0):
            ids = self.order(seed, epoch)[: self._fed_after(steps - epoch * per_epoch, batch_sequences)]
            kept = np.ones(len(ids), dtype=bool)
            for step in skipped:
                if step // per_epoch == epoch:
                    first, end = (self._fed_after(step % per_epoch + more, batch_sequences) for more in (0, 1))
                    kept[first:end] = False
            yield ids[kept]

    def consumed_hash(self, seed: int, steps: int, batch_sequences: int, skipped: Collection[int] = ()) -> str:
        """SHA-256 over the sequence ids fed in `steps` steps, in order, each as 8 bytes little-endian. `skipped`: steps
        among them (from 0) that were passed over."""
        digest = hashlib.sha256()
        for ids in self._fed(seed, steps, batch_sequences, skipped):
            digest.update(ids.astype("<i8").tobytes())
        return digest.hexdigest()

    def learnt_examples(
        self, seed: int, steps: int, batch_sequences: int, skipped: Collection[int] = ()
    ) -> NDArray[np.bool_]:
        """[E]: all sequences that carry the example's loss-bearing tokens are fed within `steps` steps (law 4), the
        `skipped` ones (from 0) left out: what one epoch passed over, another may have fed."""
        fed = np.zeros(len(self.sequences), dtype=bool)
        enough = steps if skipped else min(steps, self.steps_per_epoch(batch_sequences))
        for ids in self._fed(seed, enough, batch_sequences, skipped):
            fed[ids] = True
        touched = np.bincount(self.touches[:, 1], minlength=len(self.examples))
        missing = np.bincount(self.touches[~fed[self.touches[:, 0]], 1], minlength=len(self.examples))
        return (touched > 0) & (missing == 0)

    def save(self, folder: Path | str) -> str:
        """Write selection.npz and then selection.json into a folder, durably; returns the content hash."""
        folder, content_hash = Path(folder), self.content_hash()
        arrays: dict[str, Any] = self._values()
        with open_new(folder / "selection.npz") as handle:
            np.savez(handle, **arrays)
        record = {"schema": self.schema, "sha256": content_hash, "datasets": list(self.datasets),
                  "dataset_ids": list(self.dataset_ids), "sequences": len(self.sequences),
                  "examples": len(self.examples)}  # fmt: skip
        write_json(folder / "selection.json", record)
        return content_hash

    @classmethod
    def load(cls, folder: Path | str) -> Selection:
        """Read back what `save` wrote. Raises Damage when a file is missing or is not what was written."""
        return load_selection(folder)


def load_selection(folder: Path | str) -> Selection:
    """A saved selection, checked against its hash. Raises Damage."""
    folder = Path(folder)
    try:
        record = orjson.loads((folder / "selection.json").read_bytes())
        with np.load(folder / "selection.npz", allow_pickle=False) as arrays:
            names = [*_ARRAYS] if record["schema"] == _SCHEMA_WITHOUT_DOCUMENTS else [*_ARRAYS, _DOCUMENTS]
            names += _STAGES if record["schema"] == _SCHEMA_WITH_STAGES else ()
            values = {name: arrays[name] for name in names}
        found = Selection(datasets=tuple(record["datasets"]), dataset_ids=tuple(record["dataset_ids"]), **values)
        intact = found.content_hash() == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise Damage(f"the selection in {folder} cannot be read: {error}", subject=str(folder),
                     hint="heirloom queue retry JOB prepares it again") from error  # fmt: skip
    if not intact:
        raise Damage(f"the selection in {folder} is not what was written (its hash differs)", subject=str(folder),
                     hint="heirloom queue retry JOB prepares it again")  # fmt: skip
    return found


def training_steps(selection: Selection, batch_sequences: int, *, epochs: int, iterations: int | None = None,
                   max_steps: int | None = None) -> int:  # fmt: skip
    """Optimiser steps of a job: `iterations` exactly when given, else whole epochs; never above `max_steps`."""
    steps = iterations or epochs * selection.steps_per_epoch(batch_sequences)
    if not len(selection.sequences):
        return 0
    return min(steps, max_steps) if max_steps else steps
