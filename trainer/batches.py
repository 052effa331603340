"""From the frozen list of a job to padded tensors: what exactly is fed at step n.

A pure function of (selection, seed, step): sequences of the step, each gathered from its token ranges, turned into
inputs, targets and weights by the objective, sorted by length to waste little padding, cut into micro-batches in a
fixed order. Padding stands on the right with weight 0; attention looks only back, so it cannot reach a real token.
Where several documents share a sequence, the objective sees each by itself and the results are put side by side: no
target and no mask ever belongs to a neighbour, and a packed sequence trains exactly what its documents train alone.
A micro-batch of such sequences is one long row: since documents are kept apart anyway, rows need no common length.
Which sequences exist and in which order is `trainer/selection.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.dataset import Dataset, open_dataset
from trainer.dealing import deal
from trainer.selection import Selection

__all__ = ["Batch", "Document", "Feed", "Row", "StepBatch", "in_groups", "pad", "side_by_side"]

Row = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
Document = tuple[NDArray[np.integer], NDArray[np.uint8] | None]


@dataclass(frozen=True)
class Batch:
    """One micro-batch; n sequences padded to the longest, T positions."""

    inputs: Tensor
    """int64 [n, T]"""
    targets: Tensor
    """int64 [n, T]"""
    weights: Tensor
    """float32 [n, T]; 0 where nothing is trained"""
    documents: Tensor | None = None
    """int64 [n, T]: neighbours of one row with one number are one document; None: each row is one document."""
    groups: Tensor | None = None
    """int64 [n]: rows with one number are one example of a grouped objective, in the order of its documents; else None."""


@dataclass(frozen=True)
class StepBatch:
    """Everything of one optimizer step."""

    sequences: NDArray[np.int64]
    """The sequence ids in the order of the frozen list: what the consumed hash is made of."""
    micro_batches: list[Batch]
    """Of all lanes, or of this process's own, lane by lane."""
    weight: float
    """Sum of all weights: what the summed loss is divided by."""
    tokens: int
    """Input tokens, padding not counted."""
    loss_tokens: int
    replay_tokens: int
    lane_sizes: dict[int, int] = field(default_factory=dict)
    """Micro-batches of each lane that is worked on here; empty: all are of lane 0."""
    lanes_used: int = 1
    """The first so many lanes have sequences, in whatever process."""

    def lanes(self) -> Iterator[tuple[int, list[Batch]]]:
        """Each lane with its micro-batches, in order."""
        rest = iter(self.micro_batches)
        for lane, size in (self.lane_sizes or {0: len(self.micro_batches)}).items():
            yield lane, list(itertools.islice(rest, size))


def _summed_weight(rows: Sequence[Row]) -> float:
    return float(sum(float(row[2].sum(dtype=np.float64)) for row in rows))


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


def side_by_side(rows: Sequence[Row]) -> Batch:
    """Documents in one long row: whatever their lengths, there is no padding."""
    inputs, targets, weights = (torch.from_numpy(np.concatenate(part))[None] for part in zip(*rows, strict=True))
    numbers = torch.repeat_interleave(torch.tensor([len(row[0]) for row in rows]))
    return Batch(inputs, targets, weights, numbers[None] if len(rows) > 1 else None)


def in_groups(examples: Sequence[Sequence[Row]]) -> Batch:
    """Whole examples of several documents: a row for each document, and the number of its example beside it."""
    batch = pad([row for rows in examples for row in rows])
    numbers = torch.repeat_interleave(torch.tensor([len(rows) for rows in examples]))
    return Batch(batch.inputs, batch.targets, batch.weights, None, numbers)


class Feed:
    """Gives the batch of any step. Opens the selection's datasets once; keeps no position."""

    def __init__(
        self, selection: Selection, objective: ModuleType, *, seed: int, batch_sequences: int, micro_sequences: int,
        use_mask: bool, apart: bool = False, lanes: int = 1,
    ) -> None:  # fmt: skip
        """`apart`: feed each document of a sequence in a row of its own, to a model that cannot keep them apart itself."""
        self.selection = selection
        self.datasets: list[Dataset] = [open_dataset(folder) for folder in selection.datasets]
        self._objective = objective
        self._seed, self._batch_sequences, self._micro_sequences = seed, batch_sequences, micro_sequences
        self._use_mask, self._apart = use_mask, apart
        self._lanes, self._own = lanes, range(lanes)

    def keep_lanes(self, own: range) -> None:
        """Make the micro-batches of these lanes only: the others are another process' matter."""
        self._own = own

    def step(self, step: int) -> StepBatch:
        """The batch of step `step` (0-based). Raises Damage when the shards are not those of the selection."""
        chosen = self.selection.batch(self._seed, step, self._batch_sequences)
        sequences = [self.rows(int(sequence)) for sequence in chosen]
        lengths = np.array([sum(len(row[0]) for row in rows) for rows in sequences])
        weights = [row[2] for rows in sequences for row in rows]
        counts = getattr(self._objective, "weight", _summed_weight)
        dealt = enumerate(deal(lengths.tolist(), self._lanes))
        each = self._micro_at(step)
        micro = {lane: self._micro_batches([sequences[position] for position in positions], int(lengths[positions].max()), each)
                 for lane, positions in dealt if positions and lane in self._own}  # fmt: skip
        return StepBatch(
            sequences=chosen,
            micro_batches=[batch for batches in micro.values() for batch in batches],
            lane_sizes={lane: len(batches) for lane, batches in micro.items()},
            lanes_used=min(len(sequences), self._lanes),
            weight=float(sum(float(counts(rows)) for rows in sequences)),
            tokens=int(lengths.sum()),
            loss_tokens=sum(int(np.count_nonzero(weight)) for weight in weights),
            replay_tokens=int(lengths[self.selection.replay[chosen]].sum()),
        )

    def _micro_at(self, step: int) -> int:
        """Sequences in a micro-batch of a step: of a curriculum's shorter ones more, which take the same memory."""
        return self.selection.scaled(self._micro_sequences, self.selection.stage_of_step(step, self._batch_sequences))

    def _micro_batches(self, sequences: list[list[Row]], longest: int, each: int) -> list[Batch]:
        """Sequences of about equal length together, `each` of them; documents apart never take more positions than whole ones."""
        if getattr(self._objective, "GROUPED", False):
            # Alike in length together, as below; an example is never divided.
            by_longest = sorted(sequences, key=lambda rows: max(len(row[0]) for row in rows))
            return [in_groups(by_longest[start : start + each]) for start in range(0, len(by_longest), each)]
        if self.selection.shares and not self._apart:
            by_length = sorted(sequences, key=lambda rows: sum(len(row[0]) for row in rows))
            return [side_by_side([row for rows in by_length[start : start + each] for row in rows])
                    for start in range(0, len(by_length), each)]  # fmt: skip
        alone = sorted((row for rows in sequences for row in rows), key=lambda row: len(row[0]))
        batches, start = [], 0
        while start < len(alone):
            end = min(start + each, len(alone))
            while self.selection.shares and end < len(alone) and (end + 1 - start) * len(alone[end][0]) <= each * longest:
                end += 1
            batches.append(pad(alone[start:end]))
            start = end
        return batches

    def rows(self, sequence: int) -> list[Row]:
        """Inputs, targets and weights of each document of a sequence."""
        return [self._objective.rows(tokens, mask) for tokens, mask in self.documents(sequence)]

    def documents(self, sequence: int) -> list[Document]:
        """The ids [n] of each document of a sequence and, when masks count, its loss mask [n]."""
        first, end = (int(edge) for edge in self.selection.sequences[sequence])
        if self.selection.documents is None:
            return [self._read(first, end)]
        numbers = self.selection.documents[first:end]
        edges = [first, *(first + 1 + np.flatnonzero(np.diff(numbers))).tolist(), end]
        return [self._read(*pair) for pair in itertools.pairwise(edges)]

    def _read(self, first: int, end: int) -> Document:
        """Ids and mask of the ranges of one document."""
        tokens, masks = [], []
        for source, start, length in self.selection.ranges[first:end]:
            split = self.datasets[int(source)].train
            tokens.append(split.tokens(int(start), int(length)))
            if self._use_mask or (int(source) > 0 and self.datasets[int(source)].stage == "sft"):
                # Replayed conversations train their answers only, whatever the job itself trains.
                masks.append(split.mask(int(start), int(length)))
        return np.concatenate(tokens), np.concatenate(masks) if masks else None
