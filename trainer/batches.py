"""From the frozen list of a job to padded tensors: what exactly is fed at step n.

A pure function of (selection, seed, step): sequences of the step, each gathered from its token ranges, turned into
inputs, targets and weights by the objective, sorted by length to waste little padding, cut into micro-batches in a
fixed order. Padding stands on the right with weight 0; attention looks only back, so it cannot reach a real token.
Which sequences exist and in which order is `trainer/selection.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.dataset import Dataset, open_dataset
from trainer.selection import Selection

__all__ = ["Batch", "Feed", "StepBatch", "pad"]

Row = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True)
class Batch:
    """One micro-batch; n sequences padded to the longest, T positions."""

    inputs: Tensor
    """int64 [n, T]"""
    targets: Tensor
    """int64 [n, T]"""
    weights: Tensor
    """float32 [n, T]; 0 where nothing is trained"""


@dataclass(frozen=True)
class StepBatch:
    """Everything of one optimizer step."""

    sequences: NDArray[np.int64]
    """The sequence ids in the order of the frozen list: what the consumed hash is made of."""
    micro_batches: list[Batch]
    weight: float
    """Sum of all weights: what the summed loss is divided by."""
    tokens: int
    """Input tokens, padding not counted."""
    loss_tokens: int
    replay_tokens: int


def pad(rows: Sequence[Row]) -> Batch:
    """Right-pad rows of different lengths into one batch."""
    longest = max(len(inputs) for inputs, _targets, _weights in rows)
    inputs = torch.zeros(len(rows), longest, dtype=torch.int64)
    targets = torch.zeros(len(rows), longest, dtype=torch.int64)
    weights = torch.zeros(len(rows), longest, dtype=torch.float32)
    for number, (x, y, w) in enumerate(rows):
        inputs[number, : len(x)] = torch.from_numpy(x)
        targets[number, : len(y)] = torch.from_numpy(y)
        weights[number, : len(w)] = torch.from_numpy(w)
    return Batch(inputs, targets, weights)


class Feed:
    """Gives the batch of any step. Opens the selection's datasets once; keeps no position."""

    def __init__(
        self, selection: Selection, objective: ModuleType, *, seed: int, batch_sequences: int, micro_sequences: int,
        use_mask: bool,
    ) -> None:  # fmt: skip
        self.selection = selection
        self.datasets: list[Dataset] = [open_dataset(folder) for folder in selection.datasets]
        self._objective = objective
        self._seed, self._batch_sequences, self._micro_sequences = seed, batch_sequences, micro_sequences
        self._use_mask = use_mask

    def step(self, step: int) -> StepBatch:
        """The batch of step `step` (0-based). Raises Damage when the shards are not those of the selection."""
        chosen = self.selection.batch(self._seed, step, self._batch_sequences)
        rows = [self.row(int(sequence)) for sequence in chosen]
        lengths = np.array([len(row[0]) for row in rows])
        by_length = np.argsort(lengths, kind="stable")
        micro_batches = [
            pad([rows[index] for index in by_length[start : start + self._micro_sequences]])
            for start in range(0, len(rows), self._micro_sequences)
        ]
        return StepBatch(
            sequences=chosen,
            micro_batches=micro_batches,
            weight=float(sum(float(row[2].sum(dtype=np.float64)) for row in rows)),
            tokens=int(lengths.sum()),
            loss_tokens=sum(int(np.count_nonzero(row[2])) for row in rows),
            replay_tokens=int(lengths[self.selection.replay[chosen]].sum()),
        )

    def row(self, sequence: int) -> Row:
        """Inputs, targets and weights of one sequence."""
        row: Row = self._objective.rows(*self.tokens_and_mask(sequence))
        return row

    def tokens_and_mask(self, sequence: int) -> tuple[NDArray[np.integer], NDArray[np.uint8] | None]:
        """The ids [n] of a sequence and, when masks count, its loss mask [n]."""
        first, end = self.selection.sequences[sequence]
        tokens, masks = [], []
        for source, start, length in self.selection.ranges[first:end]:
            split = self.datasets[int(source)].train
            tokens.append(split.tokens(int(start), int(length)))
            if self._use_mask or (int(source) > 0 and self.datasets[int(source)].stage == "sft"):
                # Replayed conversations train their answers only, whatever the job itself trains.
                masks.append(split.mask(int(start), int(length)))
        return np.concatenate(tokens), np.concatenate(masks) if masks else None
