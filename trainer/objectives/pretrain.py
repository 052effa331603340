"""Pretraining: every token is predicted from those before it, document separators included.

The contract stands in `trainer/objectives/__init__.py`. A mask, should there be one, is not looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.loss import next_token_loss as loss

__all__ = ["loss", "rows"]


def rows(
    tokens: NDArray[np.integer], mask: NDArray[np.uint8] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Inputs, targets and weights (all one) of one sequence of n >= 2 tokens; each [n-1]."""
    ids = tokens.astype(np.int64)
    return ids[:-1], ids[1:], np.ones(len(ids) - 1, dtype=np.float32)
