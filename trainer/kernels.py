"""The parts of a layer that are bound by memory and not by arithmetic: norm, rotation, SwiGLU.

In eager mode each is an autograd function of its own that makes few passes over memory and keeps few tensors; where
nothing is learnt its formula alone is called, since for one token the function around it takes longer than it. Beside
them stand the same formulas written plainly, as the two halves of a layer around attention: `torch.compile` fuses
those (`trainer/compiling.py`), and a test holds the two to the same figures. Rows are tokens: [tokens, width].
Not here: modules and parameters (`trainer/model.py`), attention itself.

Sources: RMSNorm (arXiv 1910.07467), RoPE (arXiv 2104.09864) in Hugging Face's layout, SwiGLU (arXiv 2002.05202).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["after_attention", "before_attention", "normed", "rotated", "swiglu"]


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in fp32 whatever the dtype of x, which it gives back."""
    if not torch.is_grad_enabled():
        return _scaled(x.float(), eps)[0].mul_(weight).to(x.dtype)
    result: Tensor = _NormRows.apply(x.float(), weight, eps)
    return result.to(x.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pairs (i, i + head_dim/2) of x [tokens, heads, head_dim] turned; cos, sin fp32 [tokens, 1, head_dim/2]."""
    if not torch.is_grad_enabled():
        return _turn(x, cos, sin, 1.0)
    result: Tensor = _Rotate.apply(x, cos, sin)
    return result


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of equal shapes."""
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(up)
    result: Tensor = _SwiGLU.apply(gate, up)
    return result


class _NormRows(torch.autograd.Function):
    """Half the time of torch's own on a CPU (1.0 against 2.0 ms for 2,048 x 128, forward and backward)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows, scale = _scaled(x, eps)
        ctx.save_for_backward(rows, scale, weight)
        return rows * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, scale, weight = ctx.saved_tensors
        product = (gradients[0] * rows).reshape(-1, rows.shape[-1])
        along = torch.mv(product, weight).view(scale.shape).div_(rows.shape[-1])
        return (gradients[0] * weight).addcmul_(rows, along, value=-1.0).mul_(scale), product.sum(0), None


def _scaled(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x), and 1 / rms(x) [..., 1]."""
    scale = torch.rsqrt((x * x).mean(-1, keepdim=True).add_(eps))
    return x * scale, scale


class _Rotate(torch.autograd.Function):
    """Turning back is turning by the negative angle, so nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(gradients[0], cos, sin, -1.0), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """Written into the halves of one new tensor: no copy to join them."""
    turned = torch.empty_like(x, memory_format=torch.contiguous_format)
    first, second = x.chunk(2, dim=-1)
    new_first, new_second = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=new_first)
    new_first.addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=new_second)
    new_second.addcmul_(first, sin, value=sign)
    return turned


class _SwiGLU(torch.autograd.Function):
    """silu(gate) is computed once more on the way back instead of being kept: as many passes, a third less memory."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        to_up = F.silu(gate).mul_(gradients[0])
        to_gate = torch.ops.aten.silu_backward(gradients[0] * up, gate)
        return to_gate, to_up


# --- the same, written plainly for the compiler -------------------------------------------------------------------
# Matrices that are applied to the same rows are put together for one product, forward and back: a copy of the weights
# costs less than two products more. Eager layers call their modules one by one, which an adapter may have replaced.


def _plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = x.float()
    return (rows * torch.rsqrt((rows * rows).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _plain_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def before_attention(
    x: Tensor, norm: Tensor, q_proj: Tensor, k_proj: Tensor, v_proj: Tensor, q_norm: Tensor | None, k_norm: Tensor | None,
    cos: Tensor, sin: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Rotated queries, keys, and values, each [tokens, heads, head_dim], of the residual stream x [tokens, width]."""
    head_dim = 2 * cos.shape[-1]
    rows = _plain_norm(x, norm, eps)
    heads = [matrix.shape[0] // head_dim for matrix in (q_proj, k_proj, v_proj)]
    joined = F.linear(rows, torch.cat((q_proj, k_proj, v_proj))).unflatten(-1, (-1, head_dim))
    queries, keys, values = joined.split(heads, dim=1)
    if q_norm is not None and k_norm is not None:
        queries, keys = _plain_norm(queries, q_norm, eps), _plain_norm(keys, k_norm, eps)
    return _plain_turn(queries, cos, sin), _plain_turn(keys, cos, sin), values


def after_attention(
    x: Tensor, mixed: Tensor, o_proj: Tensor, norm: Tensor, gate_proj: Tensor, up_proj: Tensor, down_proj: Tensor, eps: float
) -> Tensor:
    """The residual stream [tokens, width] behind a layer, from the one before it and the mixed values."""
    x = x + F.linear(mixed, o_proj)
    rows = _plain_norm(x, norm, eps)
    gate, up = F.linear(rows, torch.cat((gate_proj, up_proj))).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, down_proj)
