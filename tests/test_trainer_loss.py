"""The tiled cross entropy equals torch's own, in values and in both gradients, whatever the chunk and tile sizes."""

from __future__ import annotations

import pytest
import trainer_help  # noqa: F401 (sets the environment before torch is loaded)

torch = pytest.importorskip("torch")
F = torch.nn.functional

from trainer.loss import chunked_cross_entropy  # noqa: E402


def _case(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator).mul_(scale).to(dtype).requires_grad_()
    head = torch.randn(103, 16, generator=generator).requires_grad_()
    targets = torch.randint(0, 103, (37,), generator=generator)
    weights = (torch.rand(37, generator=generator) > 0.4).float()
    return hidden, head, targets, weights


def _reference(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(hidden.float() @ head.t(), targets, reduction="none")
    return (losses * weights).sum()


@pytest.mark.parametrize(("chunk", "tile"), [(128, 65536), (8, 32), (5, 7), (37, 103), (1, 1)])
def test_value_and_gradients_equal_the_plain_cross_entropy(chunk: int, tile: int) -> None:
    hidden, head, targets, weights = _case()
    (_reference(hidden, head, targets, weights) / 3).backward()
    wanted = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    loss = chunked_cross_entropy(hidden, head, targets, weights, chunk, tile)
    (loss / 3).backward()
    torch.testing.assert_close(loss, _reference(hidden, head, targets, weights), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close((hidden.grad, head.grad), wanted, rtol=1e-5, atol=1e-6)


def test_huge_logits_neither_overflow_nor_vanish() -> None:
    hidden, head, targets, weights = _case(scale=300.0)
    loss = chunked_cross_entropy(hidden, head, targets, weights, 8, 32)
    loss.backward()
    ours = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    reference = _reference(hidden, head, targets, weights)
    reference.backward()
    assert (hidden @ head.t()).abs().max().item() > 1000
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ours, (hidden.grad, head.grad), rtol=1e-4, atol=1e-3)


def test_positions_without_weight_cost_nothing_and_get_no_gradient() -> None:
    hidden, head, targets, weights = _case()
    chunked_cross_entropy(hidden, head, targets, weights).backward()
    assert torch.count_nonzero(hidden.grad[weights == 0]) == 0
    assert torch.count_nonzero(hidden.grad[weights == 1]) > 0
    assert chunked_cross_entropy(hidden, head, targets, torch.zeros(37)).item() == 0.0


def test_without_gradients_the_value_is_the_same() -> None:
    hidden, head, targets, weights = _case()
    with torch.no_grad():
        value = chunked_cross_entropy(hidden, head, targets, weights, 8, 32)
    assert value.item() == chunked_cross_entropy(hidden, head, targets, weights, 8, 32).item()


def test_bf16_stays_near_fp32() -> None:
    hidden, head, targets, weights = _case(dtype=torch.bfloat16)
    loss = chunked_cross_entropy(hidden, head, targets, weights, 8, 32)
    loss.backward()
    assert hidden.grad.dtype is torch.bfloat16 and head.grad.dtype is torch.float32
    torch.testing.assert_close(loss, _reference(hidden, head, targets, weights), rtol=2e-2, atol=0.0)


def test_a_nan_is_not_hidden() -> None:
    hidden, head, targets, weights = _case()
    hidden.data[int(weights.argmax()), 3] = float("nan")
    assert torch.isnan(chunked_cross_entropy(hidden, head, targets, weights))
