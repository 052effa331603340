"""Choosing what a job trains: the examples of a dataset that are new to its base.

New means: not held out, not among the known fingerprints, the first of its kind in the data, and not too long to be
trained without cutting an answer. Everything works on sorted keys and arrays, never example by example.
Not here: which of it shares a sequence (`trainer/packing.py`), the record itself (`trainer/selection.py`), replay
(`trainer/replay.py`), preparing, and jobs.
A guard judges the counts elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.errors import CheckFailed, Damage
from trainer.curriculum import Curriculum, most_that_fit_stages, pack_stages
from trainer.dataset import CUT_LENGTH, FILE, KEY_DTYPE, LENGTH, LOSS_TOKENS, ORDINAL, Dataset
from trainer.packing import Packed, most_that_fit, pack, touches
from trainer.selection import Selection

__all__ = ["Chosen", "known_flags", "select_new", "too_long"]

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


def too_long(dataset: Dataset, block_size: int) -> NDArray[np.bool_]:
    """Conversations that would lose more than context (a pretraining text is never too long)."""
    table = dataset.train.examples
    if dataset.stage == "pretrain":
        return np.zeros(len(table), dtype=bool)
    return table[:, LENGTH] - table[:, CUT_LENGTH] > block_size + 1


def _packed(dataset: Dataset, rows: Integers, block_size: int, packing: str | None,
            curriculum: Curriculum | None) -> tuple[Packed, Integers | None]:  # fmt: skip
    """Sequences over the rows, and the stage of each where there are stages."""
    if curriculum is None:
        return pack(dataset, rows, block_size, 0, packing), None
    return pack_stages(dataset, rows, curriculum, 0, packing)


def _full_sequences(packed: Packed, stages: Integers | None, curriculum: Curriculum | None) -> float:
    """Sequences, short ones as the part of a block that they can hold."""
    if stages is None or curriculum is None:
        return len(packed.sequences)
    return float(curriculum.array()[stages, 0].sum() / curriculum.block_size)


def select_new(dataset: Dataset, *, stage: str, known_fps: Path | str | None, block_size: int,
               allow_repeat: bool = False, held_out: NDArray[np.bool_] | None = None,
               untouchable: NDArray[np.bool_] | None = None, packing: str | None = None,
               at_most: int | None = None, curriculum: Curriculum | None = None) -> Chosen:  # fmt: skip
    """Select what of a dataset's train split is new. "Nothing" is an answer (no sequences), not an error.

    `known_fps`: file of 16-byte fingerprints already learnt, or None. With `allow_repeat` known examples are trained
    too; they are counted as `known` and `known_again`, and never again as learnt. `held_out` marks examples [n] of the
    train split that this home holds out, where the dataset was split by somebody else; `untouchable` those [n] that are
    in a registered evaluation set: neither is trained, not even again. `packing` as in `packing.pack`; `at_most`: take
    only the first of what is new, as much as best fit puts into so many sequences (the counts stay those of all of it).
    With a `curriculum` sequences stand in the order of its stages, and `at_most` counts those of the block's length.
    Raises CheckFailed when the dataset is of another stage, Damage when the known examples cannot be read.
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
    table = np.asarray(dataset.train.examples[rows])
    packed, stages = _packed(dataset, rows, block_size, packing, curriculum)
    # A document of one single token: there is nothing to predict it from, and nothing it could predict.
    bears = packed.last >= packed.first
    fresh = np.flatnonzero(new[rows] & bears)
    too_short = int((new[rows] & ~bears).sum())
    lengths = table[:, LENGTH] if stage == "pretrain" else np.minimum(table[:, LENGTH], block_size + 1)
    # Nothing comes before a document's first token to predict it from; of a conversation it was never marked.
    loss = table[:, LOSS_TOKENS] - packed.begins
    tokens, loss_tokens = int(lengths[fresh].sum()), int(loss[fresh].sum())
    if at_most is not None and _full_sequences(packed, stages, curriculum) > at_most:
        kept = (most_that_fit_stages(dataset, rows, curriculum, packing, at_most) if curriculum
                else most_that_fit(dataset, rows, block_size, at_most))  # fmt: skip
        packed, stages = _packed(dataset, rows[:kept], block_size, packing, curriculum)
        fresh = fresh[fresh < kept]
        fresh = fresh[packed.last[fresh] >= packed.first[fresh]]
    selection = Selection(
        datasets=(str(dataset.folder),), dataset_ids=(dataset.id,), ranges=packed.ranges, sequences=packed.sequences,
        replay=np.zeros(len(packed.sequences), dtype=bool), touches=touches(packed, fresh), documents=packed.documents,
        examples=np.stack([table[fresh, FILE], table[fresh, ORDINAL], lengths[fresh]], axis=1).astype(np.int64),
        stages=stages, curriculum=curriculum.array() if curriculum else None,
    )  # fmt: skip
    counts = {
        "examples": dataset.train.count + dataset.val.count, "new": int(new.sum()) - too_short, "known": int(known.sum()),
        "known_again": int(again.sum()), "held_out": dataset.val.count + int(elsewhere.sum()),
        "untouchable": int(barred.sum()),
        "repeated": int((rest & repeated).sum()), "too_long": int((rest & ~repeated & ~fits).sum()),
        "too_short": too_short, "tokens": tokens, "loss_tokens": loss_tokens, "replay_tokens": 0,
        "sequences": len(packed.sequences),
    }  # fmt: skip
    return Chosen(selection, counts, rows[fresh], loss[fresh])
