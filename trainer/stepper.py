"""One optimiser step: the micro-batches forward and backward, the gradient's norm, clipping, the update.

It owns the model's training state, weights and moments, and hands it out as plain tensors for snapshots. It remembers
nothing else: which batch comes, at which rate and when to save is the loop's business (`trainer/loop.py`). It never
steps on a loss or gradient that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from guard.errors import DataFault
from trainer.batches import StepBatch
from trainer.lanes import LaneSum
from trainer.model import Decoder
from trainer.optimizer import load_optimizer, new_optimizer, optimizer_tensors

__all__ = ["Stepper"]


class Stepper:
    """A model in training. Changes it in place."""

    def __init__(
        self, model: Decoder, objective: ModuleType, training: Mapping[str, Any], dtype: str, lanes: LaneSum | None = None
    ) -> None:
        """`training`: the recipe's section; `dtype`: `float32`, or `bfloat16` for autocast; `lanes`: who adds gradients up."""
        self._lanes = lanes or LaneSum()
        self.model, self._objective = model, objective
        self._optimizer = new_optimizer(model, training)
        self._clip_at = float(training["grad_clip"])
        self._dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32

    def step(self, batch: StepBatch, rate: float, step: int) -> tuple[float, float]:
        """One step at learning rate `rate`; returns loss per trained token and the gradient's norm before clipping.

        `step` (0-based) is only told in errors. Raises DataFault when nothing bears loss or something is not finite.
        """
        if batch.weight <= 0:
            raise DataFault(f"step {step + 1} has no token that bears loss", hint="check the loss mask of the data")
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(batch) / batch.weight
        _require_finite("loss", loss, step)
        norm = self._clip()
        _require_finite("gradient", norm, step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _gradients(self, batch: StepBatch) -> float:
        """Fill the gradients of the mean loss per trained token; returns the summed loss."""
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for lane, micro_batches in batch.lanes():
            total = 0.0
            for micro in micro_batches:
                summed = self._objective.loss(self.model, micro, self._dtype)
                (summed / batch.weight).backward()
                total += float(summed.detach())
            self._lanes.add(lane, total, learning)
        return self._lanes.finish(learning, batch.lanes_used)

    def _clip(self) -> float:
        """Scale gradients so that their common norm is at most the limit (0: leave them); returns the norm before."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if self._clip_at > 0 and norm > self._clip_at:
            torch._foreach_mul_(gradients, self._clip_at / norm)
        return norm

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(weights, optimiser state) as named tensors: what a snapshot keeps."""
        return dict(self.model.named_parameters()), optimizer_tensors(self.model, self._optimizer)

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave. Raises Damage when a part is missing or has another shape."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        load_optimizer(self.model, self._optimizer, moments)


def _require_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise DataFault(f"the {what} of step {step + 1} is not finite ({value}); training stopped before using it",
                        hint="lower training.learning_rate or look at the data; nothing was published")  # fmt: skip
