"""Supervised fine-tuning: the model sees the whole conversation and is trained on what the mask marks.

The mask marks the assistant's text and its closing tag (`trainer/template.py`). Without a mask (a recipe with
`use_loss_mask: false`) every token bears loss. The contract stands in `trainer/objectives/__init__.py`.
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
    """Inputs, targets and weights of one sequence of n >= 2 tokens; position i bears loss when token i+1 is marked."""
    ids = tokens.astype(np.int64)
    weights = np.ones(len(ids) - 1, dtype=np.float32) if mask is None else mask[1:].astype(np.float32)
    return ids[:-1], ids[1:], weights
