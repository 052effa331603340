"""Before step 1: does this model learn what its data says, from what it may see, with all of its weights?

Asked of a few short rows of the job's own data, in fp32, changing nothing: that a row's targets are the tokens behind its
inputs and its weights the mask; that the loss is the cross entropy, computed a second way and summed by the weights the
step divides by; that no position sees a later one; that the model computes the same in training as when it is judged; and
that every weight which is to be trained can be. A mistake in any of these trains without a complaint.
Not here: the data's own soundness (`trainer/data_check.py`), documents that share a sequence (`trainer/leak_check.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from guard.errors import CheckFailed, Damage
from trainer.batches import Batch, Document, Feed, Row, StepBatch, pad
from trainer.leak_check import asked
from trainer.schedule import learning_rate

__all__ = ["require_intended_base", "require_sound_model", "require_sound_rates", "require_whole_model"]

ROWS = 2
TOKENS = 32
TOLERANCE = 1e-3
"""Of the loss computed two ways; in fp32 they differ by 1e-6."""
MARGIN_NATS = 10.0
"""Above ln(vocabulary): a language model may be very wrong about a text that is new to it, but never that wrong."""
_REPORT = "nothing was trained; please report this"


def require_intended_base(job: Mapping[str, Any], found_sha256: str) -> None:
    """Raise Damage when the weights that were loaded are not those of the plan. The proof compares them again at the end."""
    planned = job["base"].get("weights_sha256")
    if planned and planned != found_sha256:
        raise Damage(f"not the base that was planned: {job['base']['name']} had the weights {planned[:12]}, {found_sha256[:12]}"
                     " lie there now", subject=job["base"]["name"],
                     hint=f"nothing was trained; heirloom verify {job['base']['name']}")  # fmt: skip


def require_sound_rates(steps: int, training: Mapping[str, Any], parameters: int) -> None:
    """Raise CheckFailed for a schedule or a clipping that would let no weight move."""
    rates = [learning_rate(step, steps, training) for step in {0, steps // 2, steps - 1}]
    if not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise CheckFailed(f"a learning rate of {min(rates)}: such a step changes nothing", subject="training.learning_rate",
                          hint="raise training.learning_rate or training.min_learning_rate_ratio")  # fmt: skip
    clip = float(training["grad_clip"])
    # AdamW adds 1e-8 to the root of the squared gradients: what lies below that all over moves nothing.
    if clip > 0 and clip / math.sqrt(max(1, parameters)) < 1e-8:
        raise CheckFailed(f"gradients clipped to nothing: a norm of {clip:g} over {parameters:,} weights lies below what AdamW"
                          " can see", subject="training.grad_clip",
                          hint="training.grad_clip: 1.0 is usual, 0 clips nothing")  # fmt: skip


def require_whole_model(model: nn.Module, *, adapter: bool) -> None:
    """Raise CheckFailed when something that is to be trained is frozen, not in fp32, or no longer tied."""
    for name, weight in model.named_parameters():
        beside = "lora_" in name or name.startswith("extra.")
        if weight.requires_grad != (beside or not adapter):
            state = "frozen" if not weight.requires_grad else "trained although only the adapter should be"
            raise CheckFailed(f"a frozen model: {name} is {state}", subject=name, hint=_REPORT)
        if weight.requires_grad and weight.dtype is not torch.float32:
            kind = str(weight.dtype).removeprefix("torch.")
            raise CheckFailed(f"{name} is trained in {kind}: steps smaller than its last digit would vanish", subject=name,
                              hint=_REPORT)  # fmt: skip
    config: Any = getattr(model, "config", None)
    if config is not None and getattr(config, "tie_embeddings", False):
        head: Any = model.head_weight
        if head.data_ptr() != model.get_input_embeddings().weight.data_ptr():  # type: ignore[operator]
            raise CheckFailed("tied head untied: output layer and embedding are one matrix by config.json, and two in memory",
                              subject="lm_head", hint=_REPORT)  # fmt: skip


def require_sound_model(model: nn.Module, objective: ModuleType, feed: Feed) -> None:
    """Raise CheckFailed when rows, loss, sight or gradients are not what next-token training needs.

    For objectives that say `NEXT_TOKEN`; others are left to their own tests. What is not finite is left to the first step.
    """
    if not getattr(objective, "NEXT_TOKEN", False):
        return
    rows = _sample(feed, objective)
    first = feed.step(0)
    _require_sum_of_weights(first)
    batch = pad(rows)
    model.eval()
    loss, gradients = _loss_and_gradients(model, objective, batch)
    if not math.isfinite(loss):
        return
    _require_cross_entropy(model, batch, loss)
    _require_gradients(model, gradients)
    _require_no_later(model, objective, rows[0])
    model.train()
    try:
        with torch.no_grad():
            trained = float(objective.loss(model, batch, torch.float32))
    finally:
        model.eval()
    if trained != loss:
        raise CheckFailed(f"the model computes another loss in training ({trained:.6f}) than when it is judged ({loss:.6f}):"
                          " dropout, or something like it, is on", subject="model", hint=_REPORT)  # fmt: skip


def _sample(feed: Feed, objective: ModuleType) -> list[Row]:
    """A few rows as they will be fed, shortened to a stretch that bears loss; each held against its document."""
    found: list[Row] = []
    count = len(feed.selection.sequences)
    for sequence in np.unique(np.linspace(0, count - 1, num=min(8, count), dtype=np.int64)):
        for document in feed.documents(int(sequence)):
            row = objective.rows(*document)
            _require_row(document, row)
            bearing = np.flatnonzero(row[2])
            if len(bearing) and len(found) < ROWS:
                start = max(0, int(bearing[0]) - TOKENS // 2)
                found.append((row[0][start : start + TOKENS], row[1][start : start + TOKENS], row[2][start : start + TOKENS]))
    if not found:
        raise CheckFailed("nothing would be trained: no token in a sample of the job's sequences bears loss", subject="loss mask",
                          hint="heirloom prepare chat makes the mask; the rows need answers")  # fmt: skip
    return found


def _require_row(document: Document, row: Row) -> None:
    ids, mask = document
    inputs, targets, weights = row
    wanted = np.ones(len(ids) - 1) if mask is None else mask[1:]
    if not (np.array_equal(inputs, ids[:-1]) and np.array_equal(targets, ids[1:])):
        raise CheckFailed("targets shifted: a position is not trained on the token behind it", subject="objective", hint=_REPORT)
    if not np.array_equal(weights > 0, wanted > 0):
        raise CheckFailed("prompts trained: loss falls on other tokens than the mask marks", subject="objective", hint=_REPORT)


def _require_sum_of_weights(step: StepBatch) -> None:
    """What the summed loss is divided by is the number of what bears loss."""
    summed = sum(float(batch.weights.double().sum()) for batch in step.micro_batches)
    if not math.isclose(summed, step.weight, rel_tol=1e-6) or not step.weight > 0:
        raise CheckFailed(f"wrong loss normalisation: the tokens of step 1 weigh {summed:g}, its loss would be divided by"
                          f" {step.weight:g}", subject="objective", hint=_REPORT)  # fmt: skip


def _loss_and_gradients(model: nn.Module, objective: ModuleType, batch: Batch) -> tuple[float, dict[str, torch.Tensor | None]]:
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.enable_grad():
        loss = objective.loss(model, batch, torch.float32)
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return float(loss.detach()), dict(zip(trained, found, strict=True))


def _require_cross_entropy(model: nn.Module, batch: Batch, loss: float) -> None:
    """The plain way: all logits at once, in fp32."""
    with torch.no_grad():
        logits = model.logits(model(batch.inputs))  # type: ignore[operator]
        each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        plain = float((each * batch.weights.flatten()).sum())
    if not math.isclose(plain, loss, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise CheckFailed(f"wrong loss: the objective says {loss:.6f} for rows whose cross entropy is {plain:.6f}",
                          subject="objective", hint=_REPORT)  # fmt: skip
    mean, guess = plain / float(batch.weights.sum()), math.log(logits.shape[-1])
    if mean > guess + MARGIN_NATS:
        raise CheckFailed(f"the base is no model of this data: {mean:.1f} nat per token, guessing blindly costs {guess:.1f}",
                          subject="base", hint="is it the base you meant, with its own tokenizer? heirloom verify BASE")


def _require_gradients(model: nn.Module, gradients: Mapping[str, torch.Tensor | None]) -> None:
    missing = [name for name, gradient in gradients.items() if gradient is None]
    if missing:
        raise CheckFailed(f"no gradient reaches {', '.join(missing[:3])}: it would never be trained", subject=missing[0],
                          hint=_REPORT)  # fmt: skip
    if not any(bool((gradient != 0).any()) for gradient in gradients.values() if gradient is not None):
        raise CheckFailed("no gradient at all: a step would change nothing but by weight decay", subject="model",
                          hint=_REPORT)  # fmt: skip


def _require_no_later(model: nn.Module, objective: ModuleType, row: Row) -> None:
    """The loss of a position has no gradient at any later token."""
    inputs, targets, _weights = row
    if len(inputs) < 2:
        return
    place = (len(inputs) - 1) // 2
    weights = np.zeros(len(inputs), dtype=np.float32)
    weights[place] = 1.0
    _loss, gradient = asked(model, objective, pad([(inputs, targets, weights)]))
    if bool((gradient[0, place + 1 :] != 0).any()):
        raise CheckFailed("a position sees the tokens behind it: what it is to predict among them", subject="model", hint=_REPORT)
