"""Objectives: what a model is trained to do with its sequences. One small module each, one contract, no base class.

A module `trainer/objectives/<name>.py` offers

    rows(tokens, mask) -> (inputs, targets, weights)     numpy: one sequence's ids [n] and loss mask [n] or None;
                                                          gives int64 [n-1], int64 [n-1], float32 [n-1]. A weight above
                                                          zero means "this position bears loss".
    loss(model, batch, dtype) -> Tensor                   fp32 scalar: the weighted sum over a `trainer.batches.Batch`;
                                                          the loop divides by the weight of the whole global batch.

The loop finds a module by the name in the job and knows none of them. Looking one up imports torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from guard.errors import UsageError

__all__ = ["OBJECTIVES", "find_objective"]

OBJECTIVES = ("pretrain", "sft")


def find_objective(name: str) -> ModuleType:
    """The module of that name, imported when first asked for. Raises UsageError for an unknown name."""
    if name not in OBJECTIVES:
        raise UsageError(f"unknown objective {name!r}", subject="objective", hint=f"known: {', '.join(OBJECTIVES)}")
    return importlib.import_module(f"trainer.objectives.{name}")
