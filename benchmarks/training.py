"""Training speed: our decoder and head beside `transformers`, same shape, same batches, same optimiser, one machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.measure import Figure, compare

__all__ = ["head_against_naive", "micro_against_transformers"]

BATCH, BLOCK, WIDTH, LAYERS, HEADS, VOCABULARY = 4, 512, 128, 4, 4, 50304


def _config() -> Any:
    from trainer.model_config import ModelConfig

    return ModelConfig(layers=LAYERS, heads=HEADS, width=WIDTH, hidden=384, block_size=BLOCK, vocab_size=VOCABULARY)


def _stepper(model: Any, loss_of: Callable[[Any], Any]) -> Callable[[], None]:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def micro_against_transformers(runs: int) -> Figure:
    """Tokens per second of whole training steps of the micro shape, eager, fp32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from trainer.loss import chunked_cross_entropy
    from trainer.model import new_model

    torch.manual_seed(0)
    config = _config()
    ids = torch.randint(0, VOCABULARY, (BATCH, BLOCK + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    weights = torch.ones(BATCH, BLOCK)
    peer = Qwen3ForCausalLM(Qwen3Config(**{key: value for key, value in config.to_hf().items() if key != "architectures"}))

    def ours_loss(model: Any) -> Any:
        hidden = model(inputs).flatten(0, 1)
        return chunked_cross_entropy(hidden, model.head_weight, targets.flatten(), weights.flatten()) / weights.sum()

    return compare("training", "tokens/s", BATCH * BLOCK, _stepper(new_model(config, 1), ours_loss), "transformers Qwen3",
                   _stepper(peer, lambda model: model(input_ids=inputs, labels=inputs).loss), runs)  # fmt: skip


def head_against_naive(runs: int) -> Figure:
    """Tokens per second of the head alone: loss and gradients over 50,304 words, against logits and cross entropy."""
    import torch
    from torch.nn import functional

    from trainer.loss import chunked_cross_entropy

    torch.manual_seed(0)
    hidden = torch.randn(BATCH * BLOCK, WIDTH, requires_grad=True)
    matrix = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (BATCH * BLOCK,))
    weights = torch.ones(BATCH * BLOCK)

    def clear() -> None:
        hidden.grad = matrix.grad = None

    def ours() -> None:
        clear()
        chunked_cross_entropy(hidden, matrix, targets, weights).backward()

    def naive() -> None:
        clear()
        functional.cross_entropy(hidden @ matrix.T, targets, reduction="sum").backward()

    return compare("head", "tokens/s", BATCH * BLOCK, ours, "logits + cross_entropy", naive, runs)
