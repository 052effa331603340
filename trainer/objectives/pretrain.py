"""Pretraining: every token is predicted from those before it, document separators included.

A mask comes only with replayed conversations: of those the answers alone are trained here too, so that a question is
never learnt by way of replay. The contract stands in `trainer/objectives/__init__.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.loss import next_token_loss as loss

__all__ = ["NEXT_TOKEN", "loss", "rows"]

NEXT_TOKEN = True


def rows(
    tokens: NDArray[np.integer], mask: NDArray[np.uint8] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Inputs, targets and weights (all one without a mask) of one sequence of n >= 2 tokens; each [n-1]."""
    ids = tokens.astype(np.int64)
    weights = np.ones(len(ids) - 1, dtype=np.float32) if mask is None else mask[1:].astype(np.float32)
    return ids[:-1], ids[1:], weights
