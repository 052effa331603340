"""Choosing what a job trains: the examples of a dataset that are new to its base, and a little replay of older ones.

New means: not held out, not among the known fingerprints, the first of its kind in the data, and not too long to be
trained without cutting an answer. Pretraining text becomes one stream cut into sequences that share one token; a
conversation stays a sequence of its own. Everything works on sorted keys and arrays, never example by example.
Not here: the record itself (`trainer/selection.py`), preparing, and jobs. A guard judges the counts elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.bitmap import bitmap_flags
from guard.errors import CheckFailed, Damage
from trainer.dataset import CUT_LENGTH, CUT_START, FILE, KEY_DTYPE, LENGTH, LOSS_TOKENS, ORDINAL, START, Dataset
from trainer.selection import Selection, philox_keys

__all__ = ["Chosen", "ReplaySource", "add_replay", "known_flags", "select_new", "too_long"]

_CHUNK_KEYS = 1 << 20
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """A selection with what the job has to tell about it."""

    selection: Selection
    counts: dict[str, int]
    """examples = new + known + held_out + untouchable + repeated + too_long + too_short (known ones are trained again where
    that was asked: `known_again`); tokens, loss_tokens, replay_tokens, sequences."""
    example_rows: Integers
    """[E]: the new examples' rows in the train split."""
    example_loss_tokens: Integers
    """[E]: their loss-bearing tokens."""


@dataclass(frozen=True)
class ReplaySource:
    """An earlier dataset and, for each file index in it, the bitmap of ordinals that were learnt."""

    dataset: Dataset
    known: tuple[tuple[int, str], ...]
    barred: NDArray[np.bool_] | None = None
    """[rows of its train split]: never to be replayed, for it is in an evaluation set by now."""


@dataclass(frozen=True)
class _Drawn:
    """Candidates for replay from one source: random keys, rows in its train split, tokens."""

    keys: NDArray[np.uint64]
    rows: Integers
    lengths: Integers


@dataclass(frozen=True)
class _Packed:
    """Sequences over one dataset, and which of them carry each example (first and last sequence, inclusive)."""

    ranges: Integers
    sequences: Integers
    first: Integers
    last: Integers


def known_flags(keys: NDArray[np.bytes_], known_file: Path | str | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each 16-byte key [n]: is it in the file of known keys, and is it a repetition of an earlier one here?

    The file is read in chunks; memory is a few words per key. Raises Damage when it is missing or torn.
    """
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    starts_group = np.ones(len(keys), dtype=bool)
    starts_group[1:] = in_order[1:] != in_order[:-1]
    group = np.cumsum(starts_group) - 1
    unique = in_order[starts_group]
    known_group = np.zeros(len(unique), dtype=bool)
    for chunk in _chunks(known_file):
        if not len(unique):
            break
        place = np.minimum(np.searchsorted(unique, chunk), len(unique) - 1)
        known_group[place[unique[place] == chunk]] = True
    known, repeated = np.empty(len(keys), dtype=bool), np.empty(len(keys), dtype=bool)
    known[order] = known_group[group]
    repeated[order] = ~starts_group
    return known, repeated


def _chunks(known_file: Path | str | None) -> Sequence[NDArray[np.bytes_]]:
    if not known_file:
        return ()
    path = Path(known_file)
    size_bytes = path.stat().st_size if path.is_file() else -1
    if size_bytes < 0 or size_bytes % KEY_DTYPE.itemsize:
        raise Damage(f"the list of known examples {path} is missing or torn", subject=str(path),
                     hint="heirloom queue retry JOB writes it again")  # fmt: skip
    if not size_bytes:
        return ()
    keys = np.memmap(path, dtype=KEY_DTYPE, mode="r")
    return [keys[start : start + _CHUNK_KEYS] for start in range(0, len(keys), _CHUNK_KEYS)]


def _pack_stream(starts: Integers, lengths: Integers, block_size: int, dataset_index: int) -> _Packed:
    """Examples in a row as one stream, cut every `block_size` tokens into sequences of one token more.

    The token more is the next sequence's first input: so every token but the stream's first is predicted once.
    A sequence needs two tokens; examples that follow each other on disk share a range.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    count = max(0, -(-(total - 1) // block_size))
    # Stretches of examples without a gap on disk: where they begin in the stream and on disk.
    fresh = np.ones(len(starts), dtype=bool)
    fresh[1:] = starts[1:] != starts[:-1] + lengths[:-1]
    stretch_stream, stretch_disk = (ends - lengths)[fresh], starts[fresh]
    begin = np.arange(count, dtype=np.int64) * block_size
    end = np.minimum(begin + block_size + 1, total)
    first = np.searchsorted(stretch_stream, begin, side="right") - 1
    last = np.searchsorted(stretch_stream, end - 1, side="right") - 1
    pieces = last - first + 1
    range_ends = np.cumsum(pieces)
    owner = np.repeat(np.arange(count), pieces)
    stretch = np.arange(int(pieces.sum())) - (range_ends - pieces)[owner] + first[owner]
    stretch_end = np.append(stretch_stream[1:], total)[stretch]
    low, high = np.maximum(begin[owner], stretch_stream[stretch]), np.minimum(end[owner], stretch_end)
    disk = stretch_disk[stretch] + low - stretch_stream[stretch]
    ranges = np.stack([np.full(len(disk), dataset_index), disk, high - low], axis=1).astype(np.int64)
    sequences = np.stack([range_ends - pieces, range_ends], axis=1).astype(np.int64)
    # Token t (t >= 1) is predicted in sequence (t - 1) // block; an example begins at end - length.
    touch_first = np.maximum(ends - lengths - 1, 0) // block_size
    touch_last = np.maximum(ends - 2, 0) // block_size
    return _Packed(ranges, sequences, touch_first, touch_last)


def _pack_conversations(rows: Integers, block_size: int, dataset_index: int) -> _Packed:
    """One sequence per conversation ([n, 7] rows of the example table); the tail of a long context is left out."""
    excess = np.maximum(rows[:, LENGTH] - (block_size + 1), 0)
    head = np.where(excess > 0, rows[:, CUT_START] + rows[:, CUT_LENGTH] - excess, rows[:, LENGTH])
    tail_start = rows[:, START] + rows[:, CUT_START] + rows[:, CUT_LENGTH]
    tail = np.where(excess > 0, rows[:, LENGTH] - rows[:, CUT_START] - rows[:, CUT_LENGTH], 0)
    pieces = np.where(excess > 0, 2, 1)
    range_ends = np.cumsum(pieces)
    ranges = np.zeros((int(pieces.sum()), 3), dtype=np.int64)
    ranges[:, 0] = dataset_index
    ranges[range_ends - pieces, 1:] = np.stack([rows[:, START], head], axis=1)
    cut = excess > 0
    ranges[range_ends[cut] - 1, 1:] = np.stack([tail_start, tail], axis=1)[cut]
    sequences = np.stack([range_ends - pieces, range_ends], axis=1).astype(np.int64)
    each = np.arange(len(rows), dtype=np.int64)
    return _Packed(ranges, sequences, each, each)


def _pack(dataset: Dataset, rows: Integers, block_size: int, dataset_index: int) -> _Packed:
    table = np.asarray(dataset.train.examples[rows])
    if dataset.stage == "pretrain":
        return _pack_stream(table[:, START], table[:, LENGTH], block_size, dataset_index)
    return _pack_conversations(table, block_size, dataset_index)


def too_long(dataset: Dataset, block_size: int) -> NDArray[np.bool_]:
    """Conversations that would lose more than context (a pretraining text is never too long)."""
    table = dataset.train.examples
    if dataset.stage == "pretrain":
        return np.zeros(len(table), dtype=bool)
    return table[:, LENGTH] - table[:, CUT_LENGTH] > block_size + 1


def _touches(packed: _Packed, of_interest: Integers) -> Integers:
    """(sequence, example) pairs; `of_interest` are the positions of the counted examples among the packed ones."""
    first, last = packed.first[of_interest], packed.last[of_interest]
    pieces = last - first + 1
    example = np.repeat(np.arange(len(of_interest)), pieces)
    step = np.arange(int(pieces.sum())) - (np.cumsum(pieces) - pieces)[example]
    return np.stack([first[example] + step, example], axis=1).astype(np.int64)


def select_new(dataset: Dataset, *, stage: str, known_fps: Path | str | None, block_size: int,
               allow_repeat: bool = False, held_out: NDArray[np.bool_] | None = None,
               untouchable: NDArray[np.bool_] | None = None) -> Chosen:  # fmt: skip
    """Select what of a dataset's train split is new. "Nothing" is an answer (no sequences), not an error.

    `known_fps`: file of 16-byte fingerprints already learnt, or None. With `allow_repeat` known examples are trained
    too; they are counted as `known` and `known_again`, and never again as learnt. `held_out` marks examples [n] of the
    train split that this home holds out, where the dataset was split by somebody else; `untouchable` those [n] that are
    in a registered evaluation set: neither is trained, not even again. Raises CheckFailed when the
    dataset is of another stage, Damage when the known examples cannot be read.
    """
    if dataset.stage != stage:
        raise CheckFailed(f"the dataset {dataset.folder} is for {dataset.stage}, the job is {stage}",
                          hint=f"prepare it again as {'text' if stage == 'pretrain' else 'chat'}")  # fmt: skip
    # Every example falls into the first of these that fits, so that the counts add up.
    known, repeated = known_flags(dataset.train.fingerprints, known_fps)
    elsewhere = np.zeros_like(known) if held_out is None else held_out
    barred = np.zeros_like(known) if untouchable is None else untouchable & ~elsewhere
    outside = elsewhere | barred
    fits = ~repeated & ~too_long(dataset, block_size)
    known &= ~outside
    rest = ~outside & ~known
    new, again = rest & fits, known & fits & allow_repeat
    rows = np.flatnonzero(new | again).astype(np.int64)
    packed = _pack(dataset, rows, block_size, 0)
    fresh = np.flatnonzero(new[rows])
    too_short = 0
    if not len(packed.sequences):
        # One single token in all: there is nothing to predict it from, and nothing it could predict.
        too_short, fresh = len(fresh), fresh[:0]
    table = np.asarray(dataset.train.examples[rows[fresh]])
    lengths = table[:, LENGTH] if stage == "pretrain" else np.minimum(table[:, LENGTH], block_size + 1)
    loss = table[:, LOSS_TOKENS].copy()
    if stage == "pretrain" and len(fresh) and fresh[0] == 0:
        loss[0] -= 1  # nothing comes before the stream's first token to predict it from
    selection = Selection(
        datasets=(str(dataset.folder),), dataset_ids=(dataset.id,), ranges=packed.ranges, sequences=packed.sequences,
        replay=np.zeros(len(packed.sequences), dtype=bool), touches=_touches(packed, fresh),
        examples=np.stack([table[:, FILE], table[:, ORDINAL], lengths], axis=1).astype(np.int64),
    )  # fmt: skip
    counts = {
        "examples": dataset.train.count + dataset.val.count, "new": len(fresh), "known": int(known.sum()),
        "known_again": int(again.sum()), "held_out": dataset.val.count + int(elsewhere.sum()),
        "untouchable": int(barred.sum()),
        "repeated": int((rest & repeated).sum()), "too_long": int((rest & ~repeated & ~fits).sum()),
        "too_short": too_short, "tokens": int(lengths.sum()), "loss_tokens": int(loss.sum()), "replay_tokens": 0,
        "sequences": len(packed.sequences),
    }  # fmt: skip
    return Chosen(selection, counts, rows[fresh], loss)


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


def add_replay(chosen: Chosen, sources: Sequence[ReplaySource], *, fraction: float, block_size: int,
               seed: int) -> Chosen:  # fmt: skip
    """Add sequences of examples learnt earlier, until they hold about `fraction` of the new sequences' tokens.

    Drawn without bias over all sources' learnt examples, the same for the same seed; at most one example above the
    target. Replay sequences are marked and hold nothing that counts as learnt.
    """
    selection = chosen.selection
    target = int(fraction * int(selection.sequence_lengths().sum()))
    if target < 1:
        return chosen
    drawn = [_draw(source, selection.dataset_ids[0], block_size, seed, target) for source in sources]
    keys = np.concatenate([item.keys for item in drawn] or [np.empty(0, dtype=np.uint64)])
    lengths = np.concatenate([item.lengths for item in drawn] or [np.empty(0, dtype=np.int64)])
    order = np.argsort(keys, kind="stable")
    taken = np.zeros(len(keys), dtype=bool)
    taken[order[np.cumsum(lengths[order]) - lengths[order] < target]] = True
    position = 0
    for source, item in zip(sources, drawn, strict=True):
        mine = np.sort(item.rows[taken[position : position + len(item.rows)]])
        position += len(item.rows)
        if len(mine):
            selection = _append(selection, source.dataset, mine, block_size)
    replay_tokens = int(selection.sequence_lengths()[selection.replay].sum())
    counts = {**chosen.counts, "replay_tokens": replay_tokens, "sequences": len(selection.sequences)}
    return dataclasses.replace(chosen, selection=selection, counts=counts)


def _append(selection: Selection, dataset: Dataset, rows: Integers, block_size: int) -> Selection:
    """The selection with replay sequences over `rows` of a dataset behind its own."""
    datasets, ids = list(selection.datasets), list(selection.dataset_ids)
    if dataset.id not in ids:
        datasets.append(str(dataset.folder))
        ids.append(dataset.id)
    packed = _pack(dataset, rows, block_size, ids.index(dataset.id))
    return dataclasses.replace(
        selection, datasets=tuple(datasets), dataset_ids=tuple(ids),
        ranges=np.concatenate([selection.ranges, packed.ranges]),
        sequences=np.concatenate([selection.sequences, packed.sequences + len(selection.ranges)]),
        replay=np.concatenate([selection.replay, np.ones(len(packed.sequences), dtype=bool)]),
    )  # fmt: skip
