"""Replay: a little of what was learnt earlier, drawn without bias and put behind what is new.

What is in an evaluation set by now is not drawn. By its own fingerprint that is known of every row at once; what a
conversation asks stands in its original alone, so originals are read only where something was really drawn from.
Not here: what is new (`trainer/choose.py`), or how a row is held against a set (`trainer/barred.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.bitmap import bitmap_flags
from guard.errors import Damage
from trainer.choose import Chosen, too_long
from trainer.curriculum import Curriculum, pack_stages
from trainer.dataset import FILE, LENGTH, ORDINAL, Dataset
from trainer.packing import pack
from trainer.selection import Selection, philox_keys

__all__ = ["ReplaySource", "add_replay"]

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ReplaySource:
    """An earlier dataset and, for each file index in it, the bitmap of ordinals that were learnt."""

    dataset: Dataset
    known: tuple[tuple[int, str], ...]
    barred: NDArray[np.bool_] | None = None
    """[rows of its train split]: never to be replayed, for it is in an evaluation set by now."""
    look: Callable[[int], NDArray[np.bool_]] | None = None
    """For a file index, by ordinal: what is barred beside that, where only the original can say so."""


@dataclass(frozen=True)
class _Drawn:
    """Candidates for replay from one source: random keys, rows in its train split, tokens."""

    keys: NDArray[np.uint64]
    rows: Integers
    lengths: Integers


def _learnt_rows(source: ReplaySource, block_size: int) -> Integers:
    """Rows of a source's train split that were learnt and fit. Raises Damage for a bitmap of another file."""
    table = source.dataset.train.examples
    learnt = np.zeros(len(table), dtype=bool)
    for file_index, bitmap in source.known:
        if not 0 <= file_index < len(source.dataset.files):
            raise Damage(f"{source.dataset.folder} has no file number {file_index}", hint="heirloom verify --all")
        flags = bitmap_flags(bitmap, int(source.dataset.files[file_index]["examples"]))
        mine = np.flatnonzero(table[:, FILE] == file_index)
        learnt[mine] |= flags[table[mine, ORDINAL]]
    if source.barred is not None:
        learnt &= ~source.barred
    return np.flatnonzero(learnt & ~too_long(source.dataset, block_size)).astype(np.int64)


def _draw(source: ReplaySource, for_dataset: str, block_size: int, seed: int, target: int) -> _Drawn:
    """The source's examples in drawing order, no more than could be wanted.

    A row's key depends on seed, row and the two datasets only: another source beside it changes nothing in the draw,
    and the next job on other data draws other examples although its recipe has the same seed.
    """
    rows = _learnt_rows(source, block_size)
    lane = int.from_bytes(hashlib.sha256(f"{source.dataset.id} for {for_dataset}".encode()).digest()[:8], "big")
    keys = philox_keys(seed, lane, source.dataset.train.count)[rows]
    order = np.argsort(keys, kind="stable")
    lengths = np.asarray(source.dataset.train.examples[:, LENGTH])[rows][order]
    if source.dataset.stage == "sft":
        lengths = np.minimum(lengths, block_size + 1)
    wanted = np.cumsum(lengths) - lengths < target
    return _Drawn(keys[order][wanted], rows[order][wanted], lengths[wanted])


def _taken(sources: Sequence[ReplaySource], for_dataset: str, block_size: int, seed: int, target: int) -> list[Integers]:
    """Of each source the rows that are replayed, ascending: those of the smallest keys, until they fill the target."""
    drawn = [_draw(source, for_dataset, block_size, seed, target) for source in sources]
    keys = np.concatenate([item.keys for item in drawn] or [np.empty(0, dtype=np.uint64)])
    lengths = np.concatenate([item.lengths for item in drawn] or [np.empty(0, dtype=np.int64)])
    order = np.argsort(keys, kind="stable")
    taken = np.zeros(len(keys), dtype=bool)
    taken[order[np.cumsum(lengths[order]) - lengths[order] < target]] = True
    ends = np.cumsum([len(item.rows) for item in drawn])
    return [np.sort(item.rows[mine]) for item, mine in zip(drawn, np.split(taken, ends[:-1]), strict=True)] if drawn else []


def _allowed(sources: Sequence[ReplaySource], for_dataset: str, block_size: int, seed: int, target: int) -> list[Integers]:
    """`_taken`, as if every original had been looked into: those that were not have no row in it."""
    sources = list(sources)
    looked: set[tuple[int, int]] = set()
    while True:
        taken = _taken(sources, for_dataset, block_size, seed, target)
        more = False
        for place, (source, rows) in enumerate(zip(sources, taken, strict=True)):
            files = {int(index) for index in source.dataset.train.examples[rows, FILE]} if source.look else set()
            fresh = sorted(index for index in files if (place, index) not in looked)
            looked |= {(place, index) for index in fresh}
            sources[place] = _looked_into(source, fresh)
            more = more or bool(fresh)
        if not more:
            return taken


def _looked_into(source: ReplaySource, files: Sequence[int]) -> ReplaySource:
    """The source without the rows of these files that their originals bar."""
    if not files or source.look is None:
        return source
    table = source.dataset.train.examples
    barred = np.zeros(len(table), dtype=bool) if source.barred is None else source.barred.copy()
    for index in files:
        mine = np.flatnonzero(table[:, FILE] == index)
        barred[mine] |= source.look(index)[table[mine, ORDINAL]]
    return dataclasses.replace(source, barred=barred)


def add_replay(chosen: Chosen, sources: Sequence[ReplaySource], *, fraction: float, block_size: int,
               seed: int, packing: str | None = None, curriculum: Curriculum | None = None) -> Chosen:  # fmt: skip
    """Add sequences of examples learnt earlier, until they hold about `fraction` of the new sequences' tokens.

    Drawn without bias over all sources' learnt examples, the same for the same seed; at most one example above the
    target. Replay sequences are marked and hold nothing that counts as learnt: replay shares a sequence with replay alone.
    `packing` and `curriculum` must be those of the new data: every stage has its part of replay.
    """
    selection = chosen.selection
    target = int(fraction * int(selection.sequence_lengths().sum()))
    if target < 1:
        return chosen
    for source, mine in zip(sources, _allowed(sources, selection.dataset_ids[0], block_size, seed, target), strict=True):
        if len(mine):
            selection = _append(selection, source.dataset, mine, block_size, packing, curriculum)
    replay_tokens = int(selection.sequence_lengths()[selection.replay].sum())
    counts = {**chosen.counts, "replay_tokens": replay_tokens, "sequences": len(selection.sequences)}
    return dataclasses.replace(chosen, selection=selection, counts=counts)


def _append(selection: Selection, dataset: Dataset, rows: Integers, block_size: int, packing: str | None,
            curriculum: Curriculum | None) -> Selection:  # fmt: skip
    """The selection with replay sequences over `rows` of a dataset behind its own."""
    datasets, ids = list(selection.datasets), list(selection.dataset_ids)
    if dataset.id not in ids:
        datasets.append(str(dataset.folder))
        ids.append(dataset.id)
    stages = selection.stages
    if curriculum is None or stages is None:
        packed = pack(dataset, rows, block_size, ids.index(dataset.id), packing)
    else:
        # By their length, never by what a folder said of the new data, although it may be of the very same dataset.
        by_length = dataclasses.replace(curriculum, given=())
        packed, more = pack_stages(dataset, rows, by_length, ids.index(dataset.id), packing)
        stages = np.concatenate([stages, more])
    documents = (None if selection.documents is None or packed.documents is None
                 else np.concatenate([selection.documents, packed.documents]))  # fmt: skip
    return dataclasses.replace(
        selection, datasets=tuple(datasets), dataset_ids=tuple(ids),
        ranges=np.concatenate([selection.ranges, packed.ranges]),
        sequences=np.concatenate([selection.sequences, packed.sequences + len(selection.ranges)]),
        replay=np.concatenate([selection.replay, np.ones(len(packed.sequences), dtype=bool)]),
        documents=documents, stages=stages,
    )  # fmt: skip
