"""What skipped steps change about a plan: which ids were really fed, and which examples were therefore learnt (law 4).

Both the child that skipped and the daemon that proves it reckon with this, each from the frozen list it holds, and
neither takes the other's word. Not here: why a step is skipped (`trainer/anomaly.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bitmap import bitmap_bits, pack_bitmap
from guard.errors import Damage
from trainer.dataset import FILE, LOSS_TOKENS, ORDINAL, START, Dataset, open_dataset
from trainer.selection import Selection

__all__ = ["Left", "what_is_left"]


Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Left:
    """A plan without its skipped steps."""

    consumed_sha256: str
    learnt: list[dict[str, Any]]
    """By file: sha256, bitmap, count, tokens; as `prepared.json` has it."""
    tokens: int
    """First-pass input tokens of what was learnt."""
    loss_tokens: int
    """Loss-bearing tokens of what was learnt."""


def what_is_left(selection: Selection, plan: Mapping[str, Any], skipped: Collection[int]) -> Left:
    """`plan`: a training job's frozen plan, whose list is `selection`; `skipped`: steps from 0.

    Raises Damage when an example of the list is nowhere in what the plan says will be learnt, or its dataset is not there.
    """
    seed, steps = int(plan["seed"]), int(plan["steps"])
    batch, prepared = int(plan["recipe"]["training"]["batch_sequences"]), plan["prepared"]
    planned = selection.learnt_examples(seed, steps, batch)
    learnt = selection.learnt_examples(seed, steps, batch, skipped)
    consumed = selection.consumed_hash(seed, steps, batch, skipped)
    gone = selection.examples[planned & ~learnt]
    entries = [dict(item) for item in prepared["learnt"]]
    if not len(gone):
        return Left(consumed, entries, int(prepared["tokens"]), int(prepared["loss_tokens"]))
    dataset = open_dataset(plan["dataset"]["path"])
    rows = _rows_of(dataset, gone)
    _take_away(entries, dataset, gone, rows)
    return Left(consumed, entries, int(selection.examples[learnt, 2].sum()),
                int(prepared["loss_tokens"]) - _loss_tokens(dataset, selection, rows))  # fmt: skip


def _rows_of(dataset: Dataset, examples: Integers) -> Integers:
    """Where these examples [n, 3] (file index, ordinal, tokens) stand in the train split [n]."""
    table = _joined(np.asarray(dataset.train.examples)[:, [FILE, ORDINAL]])
    order = np.argsort(table, kind="stable")
    place = np.minimum(np.searchsorted(table[order], _joined(examples)), len(table) - 1)
    rows: Integers = order[place].astype(np.int64)
    if not np.array_equal(table[rows], _joined(examples)):
        raise Damage("the frozen list names examples that its dataset does not have", subject=str(dataset.folder),
                     hint="heirloom queue retry ID prepares it again")  # fmt: skip
    return rows


def _joined(pairs: Integers) -> Integers:
    """(file, ordinal) as one number that sorts as the pair does."""
    joined: Integers = (pairs[:, 0].astype(np.int64) << 40) + pairs[:, 1]
    return joined


def _take_away(entries: list[dict[str, Any]], dataset: Dataset, gone: Integers, rows: Integers) -> None:
    """Take examples out of the entries of their files. A folder prepared elsewhere counts as one file, whose ordinals are
    the rows of its train split."""
    files = [str(item["sha256"]) for item in dataset.files]
    found = 0
    for entry in entries:
        known = entry["sha256"] in files
        mine = gone[:, 0] == files.index(entry["sha256"]) if known else np.ones(len(gone), dtype=bool)
        flags = bitmap_bits(entry["bitmap"])
        flags[gone[mine, 1] if known else rows] = False
        entry |= {"bitmap": pack_bitmap(np.flatnonzero(flags).tolist(), len(flags)), "count": int(flags.sum()),
                  "tokens": int(entry["tokens"]) - int(gone[mine, 2].sum())}  # fmt: skip
        found += int(mine.sum())
    if found != len(gone):
        raise Damage("the plan does not know every example of its own list", subject=str(dataset.folder),
                     hint="heirloom queue retry ID prepares it again")  # fmt: skip


def _loss_tokens(dataset: Dataset, selection: Selection, rows: Integers) -> int:
    """Loss-bearing tokens of these rows: as the split has them, less each first token that nothing precedes."""
    table = np.asarray(dataset.train.examples)[rows]
    if dataset.stage != "pretrain":
        return int(table[:, LOSS_TOKENS].sum())
    ranges = selection.ranges[selection.ranges[:, 0] == 0]
    ranges = ranges[np.argsort(ranges[:, 1], kind="stable")]
    before = np.searchsorted(ranges[:, 1], table[:, START], side="left") - 1
    inside = (before >= 0) & (table[:, START] < ranges[before, 1] + ranges[before, 2])
    return int(table[:, LOSS_TOKENS].sum() - (~inside).sum())
