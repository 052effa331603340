"""Cross entropy over the vocabulary, in chunks of tokens, with the gradients computed on the way forward.

The naive head keeps tokens x vocabulary logits in fp32 three times over (logits, log-softmax, their gradient): 400 MB
each for 2,048 tokens and GPT-2's vocabulary. Here one chunk of logits exists at a time, stays in the processor's
cache, and becomes its own gradient in place. Positions without weight never reach the head at all, which is what
makes masked conversation data cheap. It sums; dividing by the number of trained tokens is the loop's business.
Same idea as Liger Kernel's fused linear cross entropy (arXiv 2410.10989).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trainer.batches import Batch
    from trainer.model import Decoder

__all__ = ["CHUNK_TOKENS", "chunked_cross_entropy", "next_token_loss"]

CHUNK_TOKENS = 128


def chunked_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, chunk_tokens: int = CHUNK_TOKENS
) -> Tensor:
    """Sum over positions of weight * -log softmax(hidden @ head.T)[target], an fp32 scalar.

    hidden [n, width] (fp32 or bf16), head [vocabulary, width], targets int64 [n], weights float [n].
    Gradients reach `hidden` and `head`; they are computed here, in fp32 sums, when somebody will need them.
    """
    trained = torch.nonzero(weights, as_tuple=True)[0]
    if trained.numel() < weights.numel():
        hidden, targets, weights = hidden[trained], targets[trained], weights[trained]
    result: Tensor = _ChunkedCrossEntropy.apply(hidden, head, targets, weights.float(), chunk_tokens)
    return result


def next_token_loss(model: Decoder, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Weighted sum of the next-token losses of one micro-batch: what every next-token objective trains on."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        hidden = model(batch.inputs)
    flat = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
    return chunked_cross_entropy(flat, model.head_weight, batch.targets.reshape(-1), batch.weights.reshape(-1))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, chunk: int) -> Tensor:
        wants_gradients = hidden.requires_grad or head.requires_grad
        matrix = head.to(hidden.dtype)
        hidden_gradient = torch.empty_like(hidden) if wants_gradients else None
        head_gradient = torch.zeros_like(head, dtype=torch.float32) if wants_gradients else None
        buffer = torch.empty(min(chunk, hidden.shape[0]), head.shape[0], dtype=hidden.dtype)
        total = torch.zeros((), dtype=torch.float32)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            states, aims, weight = hidden[part], targets[part, None], weights[part, None]
            logits = torch.mm(states, matrix.t(), out=buffer[: states.shape[0]]).float()
            losses, scale = _exponentials_in_place(logits, aims)
            total += (losses * weight).sum()
            if hidden_gradient is not None and head_gradient is not None:
                # logits now hold scale * (softmax - one_hot): the row factor is cheaper on [n, width] than here
                factor = weight / scale
                logits = logits.to(hidden.dtype)
                torch.mm(logits, matrix, out=hidden_gradient[part]).mul_(factor)
                _accumulate(head_gradient, logits, states * factor.to(states.dtype))
        if wants_gradients:
            ctx.save_for_backward(hidden_gradient, head_gradient)
        ctx.head_dtype = head.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, head_gradient = ctx.saved_tensors
        # In place: these buffers were made for this one backward pass.
        return hidden_gradient.mul_(outputs[0]), head_gradient.mul_(outputs[0]).to(ctx.head_dtype), None, None, None


def _exponentials_in_place(logits: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
    """Turn fp32 logits [n, v] into sum * (softmax - one_hot); returns losses [n, 1] and the sums [n, 1]."""
    highest = logits.amax(1, keepdim=True)
    aimed = logits.gather(1, aims)
    logits.sub_(highest).exp_()
    sums = logits.sum(1, keepdim=True)
    losses = sums.log() + highest - aimed
    # One column per row, so nothing is added twice and the order cannot matter.
    logits.scatter_(1, aims, logits.gather(1, aims) - sums)
    return losses, sums


def _accumulate(head_gradient: Tensor, logits: Tensor, states: Tensor) -> None:
    if logits.dtype == head_gradient.dtype:
        head_gradient.addmm_(logits.t(), states)
    else:
        head_gradient.add_(torch.mm(logits.t(), states))
