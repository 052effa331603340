"""Held-out losses: the mean loss per bearing token of a model over one split of a prepared dataset, in fp32.

Which examples are taken when there are more than `max_tokens` is decided by their fingerprints, so parent, child and
every later version are judged on the same ones whatever the order of files. Judging is the gate's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.batches import Row, pad
from trainer.dataset import CUT_LENGTH, CUT_START, LENGTH, START, Split
from trainer.loop import StopRequested
from trainer.model import Decoder
from trainer.windows import grouped, windows

__all__ = ["Evaluation", "choose_examples", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """The loss on one set. `loss` is None when the set has no token that bears loss."""

    loss: float | None
    """Nats per bearing token."""
    tokens: int
    """Input tokens read."""
    loss_tokens: int
    examples: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def choose_examples(split: Split, max_tokens: int) -> NDArray[np.int64]:
    """Indexes of the examples to judge, in the order of their fingerprints, holding at most `max_tokens` tokens.

    At least one example when there is any, however long.
    """
    by_fingerprint = np.argsort(split.fingerprints, kind="stable")
    ends = np.cumsum(split.examples[by_fingerprint, LENGTH])
    count = int(np.searchsorted(ends, max_tokens, side="right"))
    return by_fingerprint[: max(count, 1)]


@torch.no_grad()
def evaluate(
    model: Decoder, split: Split, objective: ModuleType, *, max_tokens: int, use_mask: bool,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:  # fmt: skip
    """Mean loss of `model` over at most `max_tokens` tokens of the split. Raises StopRequested when asked to stop."""
    chosen = choose_examples(split, max_tokens)
    block = model.config.block_size
    total, weight, tokens, loss_tokens = 0.0, 0.0, 0, 0
    found = (row for index in chosen for row in _rows(split, int(index), objective, block, use_mask))
    for rows in grouped(found, lambda row: len(row[0])):
        if stop():
            raise StopRequested("stopped while judging a held-out set")
        batch = pad(rows)
        total += float(objective.loss(model, batch, torch.float32))
        weight += float(batch.weights.double().sum())
        tokens += sum(len(row[0]) for row in rows)
        loss_tokens += int(torch.count_nonzero(batch.weights))
    return Evaluation(total / weight if weight > 0 else None, tokens, loss_tokens, len(chosen))


def _rows(split: Split, index: int, objective: ModuleType, block: int, use_mask: bool) -> Iterator[Row]:
    """One example as rows of at most `block` positions (`trainer/windows.py`)."""
    start, length = int(split.examples[index, START]), int(split.examples[index, LENGTH])
    mask = split.mask(start, length) if use_mask else None
    cut = int(split.examples[index, CUT_START]), int(split.examples[index, CUT_LENGTH])
    return (objective.rows(*window) for window in windows(split.tokens(start, length), mask, cut, block))
