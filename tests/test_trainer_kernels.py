"""Norm, rotation and SwiGLU: our few-pass functions give the figures and gradients of the formulas written plainly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from trainer.kernels import _plain_norm, _plain_turn, after_attention, before_attention, normed, rotated, swiglu  # noqa: E402
from trainer.model import Layer, Place  # noqa: E402
from trainer.model_config import ModelConfig  # noqa: E402


def _gradients(function: Callable[..., object], *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The result and the gradient of every input that wants one, for one fixed gradient of the result."""
    leaves = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    result = function(*leaves)
    assert isinstance(result, torch.Tensor)
    result.backward(torch.linspace(-1, 1, result.numel()).view(result.shape))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _random(*shape: int, learns: bool = True) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(learns)


def _same(ours: list[torch.Tensor], plain: list[torch.Tensor]) -> None:
    assert len(ours) == len(plain) >= 2
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_norm_equals_the_formula() -> None:
    x, weight = _random(7, 3, 16), _random(16)
    _same(_gradients(lambda a, w: normed(a, w, 1e-6), x, weight), _gradients(lambda a, w: _plain_norm(a, w, 1e-6), x, weight))


def test_rotation_equals_the_formula_and_keeps_lengths() -> None:
    angles = _random(9, 1, 8, learns=False)
    x = _random(9, 4, 16)
    ours = _gradients(lambda a: rotated(a, angles.cos(), angles.sin()), x)
    _same(ours, _gradients(lambda a: _plain_turn(a, angles.cos(), angles.sin()), x))
    torch.testing.assert_close(ours[0].norm(dim=-1), x.detach().norm(dim=-1))


def test_swiglu_equals_the_formula() -> None:
    gate, up = _random(5, 12), _random(5, 12) + 1
    _same(_gradients(swiglu, gate, up), _gradients(lambda g, u: F.silu(g) * u, gate, up))


def test_where_nothing_is_learnt_the_figures_are_the_same_to_the_bit() -> None:
    x, weight, angles = _random(9, 4, 16), _random(16), _random(9, 1, 8, learns=False)
    for function in (lambda: normed(x, weight, 1e-6), lambda: rotated(x, angles.cos(), angles.sin()), lambda: swiglu(x, x + 1)):
        learning = function()
        with torch.no_grad():
            assert torch.equal(function(), learning) and learning.requires_grad


def test_in_bf16_the_norm_is_computed_in_fp32() -> None:
    x = (_random(4, 64, learns=False) * 300).bfloat16()
    assert normed(x, torch.ones(64), 1e-6).dtype is torch.bfloat16
    torch.testing.assert_close(normed(x, torch.ones(64), 1e-6), _plain_norm(x.float(), torch.ones(64), 1e-6).bfloat16())


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_the_two_halves_written_for_the_compiler_are_the_layer(architecture: str) -> None:
    config = ModelConfig(layers=1, heads=4, kv_heads=2, width=32, hidden=48, block_size=8, vocab_size=11,
                         architecture=architecture, qk_norm=architecture == "qwen3")  # fmt: skip
    layer, angles = Layer(config), _random(16, 1, 4, learns=False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    place = Place(angles.cos(), angles.sin(), 2, None, None, None)
    attention, mlp = layer.self_attn, layer.mlp

    def plainly(x: torch.Tensor) -> torch.Tensor:
        norms = (attention.q_norm.weight, attention.k_norm.weight) if attention.qk_norm else (None, None)
        turned = before_attention(x, layer.input_layernorm.weight, attention.q_proj.weight, attention.k_proj.weight,
                                  attention.v_proj.weight, *norms, place.cos, place.sin, config.norm_eps)  # fmt: skip
        mixed = attention.mix(*turned, place, 0)
        return after_attention(x, mixed, attention.o_proj.weight, layer.post_attention_layernorm.weight, mlp.gate_proj.weight,
                               mlp.up_proj.weight, mlp.down_proj.weight, config.norm_eps)  # fmt: skip

    x = _random(16, 32)
    _same(_gradients(lambda a: layer(a, place, 0), x), _gradients(plainly, x))
