"""AdamW over a model's parameters, and its state as plain tensors for snapshots.

Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101) on matrices only; norms are left alone. The fused
kernel makes one pass over the memory. The learning rate is set by the loop at every step and never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guard.errors import Damage

__all__ = ["load_optimizer", "new_optimizer", "optimizer_tensors", "trained_parameters"]

_PARTS = ("step", "exp_avg", "exp_avg_sq")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name: all weights, or those beside a frozen base."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def new_optimizer(trained: Mapping[str, Tensor], training: Mapping[str, Any]) -> torch.optim.AdamW:
    """AdamW over weights by name, with the recipe's betas and decay, in the order of their names."""
    named = sorted(trained.items())
    groups = [
        {"params": [tensor for _name, tensor in named if tensor.dim() >= 2], "weight_decay": training["weight_decay"]},
        {"params": [tensor for _name, tensor in named if tensor.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (float(training["beta1"]), float(training["beta2"]))
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, fused=True)


def optimizer_tensors(trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>.<part>` -> tensor."""
    return {
        f"{name}.{part}": optimizer.state[parameter][part]
        for name, parameter in trained.items()
        for part in _PARTS
    }


def load_optimizer(
    trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put a saved state back. Raises Damage when a part is missing or has another shape."""
    for name, parameter in trained.items():
        for part in _PARTS:
            saved = tensors.get(f"{name}.{part}")
            if saved is None or (part != "step" and saved.shape != parameter.shape):
                raise Damage(f"the saved optimizer state lacks {name}.{part}", hint="check the disk")
            optimizer.state[parameter][part] = saved.to(parameter.device, copy=True)
