"""Objectives: what a model is trained to do with its sequences. One small module each, one contract, no base class.

The table below says, without torch, what whoever plans a job has to know of an objective. The module
`trainer/objectives/<name>.py` does the rest. It must offer

    loss(model, batch, dtype) -> Tensor or Loss           fp32 scalar: the weighted SUM over a `trainer.batches.Batch`;
                                                          the stepper divides by the weight of the whole global batch, so
                                                          that how a batch is cut into micro-batches changes nothing.
    rows(tokens, mask) -> (inputs, targets, weights)      numpy: one document's ids [n] and loss mask [n] or None;
                                                          gives int64 [n-1], int64 [n-1], float32 [n-1]. A weight above
                                                          zero means "this position bears loss".

and may offer

    GROUPED = True                                        a sequence of the frozen list is ONE example of several documents
                                                          (chosen and rejected; the answers to one prompt): they stay in one
                                                          micro-batch, a row each, and `batch.groups` [n] numbers the examples.
    weight(rows) -> float                                 what a sequence counts in the mean; left out: the sum of its rows'
                                                          weights, so that each trained token counts the same. Pairs say 1.0.
    NEXT_TOKEN = True                                   its loss is the cross entropy of the next token where the mask says so:
                                                        then rows and loss are checked before step 1 (`trainer/model_check.py`).
    extend(model, seed) -> None                           adds parameters of its own as `model.extra`, a torch.nn.ParameterDict,
                                                          a function of the seed alone. They are trained, snapshotted and
                                                          sealed (`extra.safetensors`) like all others; a child starts from
                                                          its parent's, and a frozen model brings its own along.

An objective that looks at other models is listed with their roles in `About.inputs`; then its loss is called as
`loss(model, batch, dtype, frozen)`, with `frozen[role]` a model that nobody trains, loaded from a version that the plan names
with its hash. `docs/OBJECTIVES.md` adds one step by step. The loop finds a module by the name in the job and knows none.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from guard.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OBJECTIVES", "About", "Bound", "Loss", "about", "bind", "find_objective"]


@dataclass(frozen=True)
class About:
    """What a plan has to know of an objective; torch-free."""

    stage: str
    """Of the prepared data it trains on: `pretrain` (texts) or `sft` (conversations) so far."""
    role: str = "policy"
    """What becomes of the model: a `policy` goes on its line, a `reward` model is for others to look at."""
    replay: bool = True
    """Whether what the ancestors learnt may be mixed in: not where a sequence is a pair, and theirs are none."""
    compiles: bool = False
    """Whether its loss is the model's next-token loss of the micro-batch as it stands, and it adds no weights: only then can
    layers be compiled (`trainer/compiling.py`), which is done for one size of batch and fills nearly full ones up."""
    inputs: tuple[str, ...] = ()
    """Roles of the frozen models it looks at, such as `reference`. One that nobody named is the job's parent."""


OBJECTIVES: dict[str, About] = {"pretrain": About("pretrain", compiles=True), "sft": About("sft", compiles=True)}


class Loss(NamedTuple):
    """A loss with figures beside it, for metrics.jsonl."""

    total: Tensor
    """fp32 scalar, a sum as always."""
    metrics: Mapping[str, float]
    """Sums too, by name: each is divided by the same weight as the loss and stands in the step's row."""


@dataclass(frozen=True)
class Bound:
    """An objective with the models that it looks at: what the feed and the stepper are given."""

    module: Any
    frozen: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        """Everything else the module offers."""
        return getattr(self.module, name)

    def loss(self, model: Any, batch: Any, dtype: Any) -> Tensor | Loss:
        """The module's own, with the frozen models."""
        return self.module.loss(model, batch, dtype, self.frozen)


def about(name: str) -> About:
    """What a plan has to know of an objective. Raises UsageError for an unknown name."""
    if name not in OBJECTIVES:
        raise UsageError(f"unknown objective {name!r}", subject="objective", hint=f"known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def find_objective(name: str) -> ModuleType:
    """The module of that name, imported when first asked for; that imports torch. Raises UsageError for an unknown name."""
    about(name)
    return importlib.import_module(f"trainer.objectives.{name}")


def bind(name: str, frozen: Mapping[str, Any]) -> Any:
    """The objective of that name, ready to train: with its frozen models, where it looks at any.

    Raises UsageError when the models are not those the objective asks for.
    """
    module, wanted = find_objective(name), about(name).inputs
    if set(wanted) != set(frozen):
        raise UsageError(f"the objective {name} looks at {', '.join(wanted) or 'no other model'}, the job has"
                         f" {', '.join(frozen) or 'none'}", subject="objective", hint="plan the job again")  # fmt: skip
    return Bound(module, frozen) if wanted else module
