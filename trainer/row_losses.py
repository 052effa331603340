"""How unlikely a model finds each row of a batch: what objectives that compare whole answers are made of.

One forward pass for all rows; the head is the tiled one of `trainer/loss.py`, so that no logits of a batch are ever kept.
Not here: what is compared with what (`trainer/objectives/`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.loss import chunked_cross_entropy

if TYPE_CHECKING:
    from trainer.batches import Batch
    from trainer.model import Decoder

__all__ = ["row_losses"]


def row_losses(model: Decoder, batch: Batch, dtype: torch.dtype) -> Tensor:
    """-log p of each row's weighted targets, given what stands before them: fp32 [n], a sum over positions in nats.

    For rows that are one document each (`batch.documents` is None). Gradients reach the model; call backward once.
    """
    assert batch.documents is None, "a row is one document"
    hidden = model(batch.inputs)
    rows = zip(hidden.to(dtype), batch.targets, batch.weights, strict=True)
    return torch.stack([chunked_cross_entropy(states, model.head_weight, aims, weights) for states, aims, weights in rows])
