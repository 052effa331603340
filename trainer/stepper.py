"""One optimiser step: the micro-batches forward and backward, the gradient's norm, clipping, the update.

It owns the model's training state, weights and moments, and hands it out as plain tensors for snapshots. It remembers
nothing else: which batch comes, at which rate and when to save is the loop's business (`trainer/loop.py`). It never
steps on a loss or gradient that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from guard.errors import DataFault
from trainer.batches import Batch, StepBatch
from trainer.compiling import compile_layers, fitted
from trainer.lanes import LaneSum
from trainer.model import Decoder
from trainer.objectives import Loss
from trainer.optimizer import load_optimizer, new_optimizer, optimizer_tensors, trained_parameters
from trainer.precision import WorkingCopy

__all__ = ["Stepper"]


class Stepper:
    """A model in training. Changes it in place."""

    def __init__(
        self, model: Decoder, objective: Any, training: Mapping[str, Any], dtype: str, *, compile_tokens: int = 0,
        lanes: LaneSum | None = None,
    ) -> None:  # fmt: skip
        """`training`: the recipe's section; `dtype`: `float32`, or `bfloat16` for a working copy in it; `lanes`: who adds
        gradients up.

        `compile_tokens`: compile the layers first, for micro-batches of so many; 0: not. Raises what the compiler raises.
        """
        self.model, self._objective, self._lanes = model, objective, lanes or LaneSum()
        self._dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self._copy = WorkingCopy(model) if dtype == "bfloat16" else None
        self._trained = self._copy.trained() if self._copy else trained_parameters(model)
        self._compiled_for = compile_tokens
        self._halves = compile_layers(model, compile_tokens) if compile_tokens else None
        self._optimizer = new_optimizer(self._trained, training)
        self._clip_at = float(training["grad_clip"])
        self.metrics: dict[str, float] = {}
        """What the objective told beside the loss of the newest step, in the mean as the loss is."""

    def step(
        self, batch: StepBatch, rate: float, step: int, check: Callable[[str, float, int], None] | None = None
    ) -> tuple[float, float]:
        """One step at learning rate `rate`; returns loss per trained token and the gradient's norm before clipping.

        `step` (0-based) is only told in errors. `check("loss" or "gradient", value, step)` is asked before the update and
        ends the step by raising; without one a figure that is not finite raises DataFault, as does a batch without loss.
        """
        check = check or _require_finite
        if batch.weight <= 0:
            raise DataFault(f"step {step + 1} has no token that bears loss", hint="check the loss mask of the data")
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(batch) / batch.weight
        check("loss", loss, step)
        norm = self._clip()
        check("gradient", norm, step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._copy:
            self._copy.spread()
        return loss, norm

    def _gradients(self, batch: StepBatch) -> float:
        """Fill the gradients of the mean loss per trained token; returns the summed loss."""
        learning = list(self._trained.values())
        for lane, micro_batches in batch.lanes():
            # Added up where they lie, in fp64: a card need not be waited for after every pass.
            total, told = torch.zeros((), dtype=torch.float64, device=learning[0].device), dict[str, float]()
            for micro in micro_batches:
                found = self._objective.loss(self.model, self._prepared(micro), self._dtype)
                part, metrics = (found.total, found.metrics) if isinstance(found, Loss) else (found, {})
                (part / batch.weight).backward()
                total += part.detach()
                if self._copy:
                    self._copy.gather()
                for name, value in metrics.items():
                    told[name] = told.get(name, 0.0) + float(value)
            self._lanes.add(lane, float(total), learning, told)
        summed = self._lanes.finish(learning, batch.lanes_used)
        self.metrics = {name: value / batch.weight for name, value in self._lanes.metrics.items()}
        return summed

    def _prepared(self, micro: Batch) -> Batch:
        """The micro-batch as the layers were compiled for it, or as it is and the layers as they are."""
        whole = fitted(micro, self._compiled_for, self.model.config.block_size) if self._halves else None
        self.model.halves = None if whole is None else self._halves
        return micro if whole is None else whole

    def _clip(self) -> float:
        """Have the update scale gradients so that their common norm is at most the limit (0: not); returns the norm before.

        The fused kernel divides by the scale as it reads them: a pass over all gradients less.
        """
        norm = float(torch.nn.utils.get_total_norm([weight.grad for weight in self._trained.values() if weight.grad is not None]))
        over = self._clip_at > 0 and norm > self._clip_at
        self._optimizer.grad_scale = torch.tensor(norm / self._clip_at) if over else None  # type: ignore[attr-defined]
        return norm

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(weights, optimiser state) as named tensors: what a snapshot keeps."""
        return dict(self._trained), optimizer_tensors(self._trained, self._optimizer)

    def load(self, weights: Mapping[str, Tensor] | None, moments: Mapping[str, Tensor] | None) -> None:
        """Go on from what `tensors` gave; without weights or moments those stay as they are. What a step that was broken off
        left of gradients is forgotten. Raises Damage when a part is missing or has another shape."""
        self._optimizer.zero_grad(set_to_none=True)
        if weights is not None:
            with torch.no_grad():
                for name, weight in self._trained.items():
                    weight.copy_(weights[name])
        if self._copy:
            self._copy.spread()
        if moments is not None:
            load_optimizer(self._trained, self._optimizer, moments)

    def finish(self) -> None:
        """Leave the model as one that is not in training: its weights in fp32, nothing compiled."""
        self._optimizer.zero_grad(set_to_none=True)
        self.model.halves = None
        if self._copy:
            self._copy.remove()


def _require_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise DataFault(f"the {what} of step {step + 1} is not finite ({value}); training stopped before using it",
                        hint="lower training.learning_rate or look at the data; nothing was published")  # fmt: skip
