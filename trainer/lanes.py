"""The gradients of a step's lanes, added in an order that never depends on how many processes there are.

Lanes are added in pairs, neighbours first: ((0 + 1) + (2 + 3)) + ((4 + 5) + 6). Each process adds up the branch that is
its own; the branches are then exchanged and added, everywhere alike, along the same tree. Floating point addition is
not associative, so the tree is what makes two processes end in the very bits of one. With a single lane nothing here
touches a gradient. Not here: dealing (`dealing.py`), talking to other processes (`distributed.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainer.dealing import own_lanes

__all__ = ["Alone", "LaneSum", "Team"]

EXCHANGED_AT_ONCE = 1 << 22
"""Elements in one exchange: 16 MB in fp32, of which every process holds a copy per process."""


class Team(Protocol):
    """The processes that train together. Every method but `close` is called by all of them, in the same order."""

    rank: int
    size: int

    def gather(self, values: Tensor) -> Tensor:
        """The `values` [n] of every process: [size, n], by rank. Raises EnvironmentFault when one of them is gone."""
        ...

    def agree(self, stop: bool, step: int, norm: float) -> bool:
        """Whether rank 0 wants to stop. Raises Damage where step or gradient norm are not the same everywhere."""
        ...

    def close(self) -> None:
        """Leave; the others may go on until they leave too."""
        ...


class Alone:
    """The team of one process."""

    rank, size = 0, 1

    def gather(self, values: Tensor) -> Tensor:
        """Its own values [1, n]."""
        return values[None]

    def agree(self, stop: bool, step: int, norm: float) -> bool:
        """Nobody else is asked."""
        return stop

    def close(self) -> None:
        """Nobody is left behind."""


class LaneSum:
    """Adds up gradients and losses of one step after another."""

    def __init__(self, lanes: int = 1, team: Team | None = None) -> None:
        """Raises UsageError when `lanes` cannot be shared by the processes of `team`."""
        self.lanes, self.team = lanes, team or Alone()
        self.own = own_lanes(lanes, self.team.size, self.team.rank)
        self._branches = _Tree()
        self._losses: dict[int, float] = {}
        self._told: dict[int, Mapping[str, float]] = {}
        self.metrics: dict[str, float] = {}
        """What the objective told beside the loss, summed over all lanes of the newest step."""

    def add(self, lane: int, loss: float, parameters: Sequence[Tensor], told: Mapping[str, float] | None = None) -> None:
        """A lane is through: keep its summed loss, and take its gradients away so that the next lane starts from none.

        `told`: other sums of the lane, by name.
        """
        self._losses[lane] = loss
        if told:
            self._told[lane] = told
        if self.lanes > 1:
            self._branches.add(_taken(parameters))

    def finish(self, parameters: Sequence[Tensor], used: int) -> float:
        """Put the sum over all lanes into the gradients; returns the summed loss of the step.

        `used`: the first so many lanes had sequences, in whatever process; the others are left out of the sum.
        """
        losses = torch.zeros(self.lanes + 1, dtype=torch.float64)
        for lane, loss in self._losses.items():
            losses[lane] = loss
        text = json.dumps(list(self._told.items())).encode() if self._told else b""
        losses[-1] = len(text)
        told, self._losses, self._told = list(self._told.items()), {}, {}
        if self.lanes > 1:
            mine = self._branches.total()
            for parameter, gradient in zip(parameters, mine or map(torch.zeros_like, parameters), strict=True):
                parameter.grad = gradient
        if self.team.size > 1:
            rows = self.team.gather(losses)
            losses = rows.sum(0)  # each is zero but in the process whose lane it is
            told = self._exchange_told(text, [int(length) for length in rows[:, -1].tolist()])
            busy = sum(own_lanes(self.lanes, self.team.size, rank).start < used for rank in range(self.team.size))
            self._exchange([parameter.grad for parameter in parameters if parameter.grad is not None], busy)
        self.metrics = {}
        for _lane, sums in told:
            for name, value in sums.items():
                self.metrics[name] = self.metrics.get(name, 0.0) + value
        return float(sum(losses[:-1].tolist()))

    def _exchange_told(self, text: bytes, lengths: list[int]) -> list[tuple[int, Mapping[str, float]]]:
        """What was told of all lanes, in their order; nothing is sent where no process has anything to tell."""
        if not any(lengths):
            return []
        own = torch.frombuffer(bytearray(text.ljust(max(lengths))), dtype=torch.uint8)
        rows = self.team.gather(own)
        return [(int(lane), sums) for row, length in zip(rows, lengths, strict=True) if length
                for lane, sums in json.loads(bytes(row[:length].tolist()))]  # fmt: skip

    def _exchange(self, gradients: list[Tensor], busy: int) -> None:
        """Replace each gradient by the sum of those of the first `busy` processes."""
        for some in _buckets(gradients):
            rows = self.team.gather(torch.cat([gradient.reshape(-1) for gradient in some]))
            tree = _Tree()
            for row in rows[:busy]:
                tree.add([row])
            total = tree.total()
            assert total is not None, "a step without sequences was never planned"
            parts = total[0].split([gradient.numel() for gradient in some])
            for gradient, part in zip(some, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


class _Tree:
    """A sum in pairs, as terms come: branches of the same height are joined, the older one first."""

    def __init__(self) -> None:
        self._open: list[tuple[int, list[Tensor]]] = []

    def add(self, term: list[Tensor]) -> None:
        height = 0
        while self._open and self._open[-1][0] == height:
            older = self._open.pop()[1]
            torch._foreach_add_(older, term)
            term, height = older, height + 1
        self._open.append((height, term))

    def total(self) -> list[Tensor] | None:
        """The sum of all terms, which are forgotten; None when there was none."""
        if not self._open:
            return None
        total = self._open.pop()[1]
        while self._open:
            older = self._open.pop()[1]
            torch._foreach_add_(older, total)
            total = older
        return total


def _taken(parameters: Sequence[Tensor]) -> list[Tensor]:
    taken = []
    for parameter in parameters:
        taken.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None
    return taken


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours together, as long as there is room and their kind is the same."""
    some: list[Tensor] = []
    for gradient in gradients:
        full = sum(item.numel() for item in some) + gradient.numel() > EXCHANGED_AT_ONCE
        if some and (full or gradient.dtype != some[0].dtype):
            yield some
            some = []
        some.append(gradient)
    if some:
        yield some
