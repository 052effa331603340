"""Before step 1 of a packed job: do documents that share a sequence really not see one another, in this very model?

Two questions, asked of a few documents of the job's own data, in fp32 and without changing anything:
- does the loss of one document depend on what stands in another? Its gradient at every other document's embeddings
  must be zero, exactly zero: what was never looked at has no gradient, whatever the rounding.
- is a document trained in company what it is trained alone? Loss and gradient at its own embeddings are compared; other
  positions, or a mask that hides too much, show here.
A difference is a fault of the program and never of the data, so the job is refused before anything is trained: a model that
learns from leaks looks better than it is, and nothing after it can tell. Not here: who packs (`trainer/packing.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from guard.errors import CheckFailed
from trainer.batches import Batch, Feed, Row, pad, side_by_side

__all__ = ["asked", "require_no_leak", "rows_that_share", "takes_documents"]

MOST_DOCUMENTS = 3
MOST_TOKENS = 32
"""Of each document. Attention is the same at any length, and the check has to cost little: most of it is the vocabulary."""
TOLERANCE = 1e-3
"""Of the loss and of the gradient's norm. Our decoder gives the very same bits, rounding elsewhere makes 1e-6 to 1e-5 in fp32;
positions or masks that are wrong move the gradient by 1e-2 and more."""


def takes_documents(model: nn.Module) -> bool:
    """Can the model be told which positions belong together?"""
    return "documents" in inspect.signature(model.forward).parameters


def rows_that_share(feed: Feed) -> list[Row]:
    """The first documents of the first sequence that holds several, each shortened; [] when none does."""
    selection = feed.selection
    if selection.documents is None or not selection.shares:
        return []
    several = np.flatnonzero(selection.documents[selection.sequences[:, 1] - 1] > 0)
    rows = feed.rows(int(several[0]))[:MOST_DOCUMENTS]
    return [(inputs[:MOST_TOKENS], targets[:MOST_TOKENS], weights[:MOST_TOKENS]) for inputs, targets, weights in rows]


def require_no_leak(model: nn.Module, objective: ModuleType, rows: Sequence[Row]) -> None:
    """Raise CheckFailed when documents leak into one another in `model`; `rows`: two or more, as an objective makes them.

    `model.get_input_embeddings()` must give the module that embeds tokens, as in `transformers`.
    """
    # Every position bears loss here: a leak into a masked position is one all the same.
    rows = [(inputs, targets, np.ones_like(weights)) for inputs, targets, weights in rows]
    lengths = [len(inputs) for inputs, _targets, _weights in rows]
    together = side_by_side(rows)
    ends = np.cumsum(lengths).tolist()
    for number, (row, end) in enumerate(zip(rows, ends, strict=True)):
        mine = slice(end - lengths[number], end)
        weights = torch.zeros_like(together.weights)
        weights[:, mine] = 1.0
        loss, gradient = asked(model, objective, Batch(together.inputs, together.targets, weights, together.documents))
        own = gradient[0, mine].clone()
        gradient[0, mine] = 0.0
        if not bool((gradient == 0).all()):
            where = int(torch.nonzero(gradient[0].abs().sum(-1))[0])
            raise _leak(f"document {number + 1} of a sequence depends on the token at position {where + 1} of another one")
        alone_loss, alone = asked(model, objective, pad([row]))
        apart = abs(loss - alone_loss) / max(abs(alone_loss), 1e-6)
        turned = float((own - alone[0]).norm() / alone[0].norm().clamp_min(1e-12))
        if not max(apart, turned) <= TOLERANCE:
            raise _leak(f"document {number + 1} of a sequence is not trained as it is alone: its loss differs by"
                        f" {apart:.1e} and its gradient by {turned:.1e}, rounding makes less than {TOLERANCE:.0e}")  # fmt: skip


def asked(model: nn.Module, objective: ModuleType, batch: Batch) -> tuple[float, Tensor]:
    """The loss of a batch, and its gradient at what the embedding gave out [1, T, width]."""
    given: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        given.append(output.detach().requires_grad_())
        return given[0]

    hook = model.get_input_embeddings().register_forward_hook(keep)  # type: ignore[operator]
    try:
        with torch.enable_grad():
            loss = objective.loss(model, batch, torch.float32)
            (gradient,) = torch.autograd.grad(loss, given[:1])
    finally:
        hook.remove()
    return float(loss.detach()), gradient


def _leak(what: str) -> CheckFailed:
    return CheckFailed(f"packing leak: {what}", subject="packing",
                       hint="nothing was trained; --packing off trains one document per sequence; please report this")
