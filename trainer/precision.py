"""A working copy of the layers' matrices in bf16, and the fp32 weights it is made from.

What is trained, saved and sealed are the fp32 weights. Forward and backward of the layers read and fill their bf16
copy, which takes half the memory traffic and uses the processor's or the card's bf16 units; after every micro-batch the
gradients are added up in fp32, after every step the copy is made anew. Embedding, head and norms stay fp32: a
table of words gets gradients too small for bf16. Which jobs train so stands in their plan (`trainer/hardware.py`).

Source: mixed precision with master weights, Micikevicius et al., arXiv 1710.03740; bf16 needs no scaling of the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.model import Decoder
from trainer.optimizer import trained_parameters

__all__ = ["WorkingCopy"]


class WorkingCopy:
    """Puts bf16 copies into the model's layers until `remove`."""

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        """(fp32 weight, bf16 copy)"""
        self._places: list[tuple[nn.Module, str]] = []
        self._names: dict[Tensor, nn.Parameter] = {}
        for module in model.model.layers.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.dim() >= 2:
                    copy = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=weight.requires_grad)
                    setattr(module, name, copy)
                    self._places.append((module, name))
                    self._pairs.append((weight, copy))
                    self._names[copy] = weight
        model.compute_dtype = torch.bfloat16

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights by name, the fp32 ones in place of their copies."""
        return {name: self._names.get(held, held) for name, held in trained_parameters(self._model).items()}

    def gather(self) -> None:
        """Add the copies' gradients to those of the weights; to be called after every backward pass."""
        for weight, copy in self._pairs:
            if copy.grad is not None:
                found: Tensor = copy.grad.float()
                weight.grad = found if weight.grad is None else weight.grad.add_(found)
                copy.grad = None

    @torch.no_grad()
    def spread(self) -> None:
        """Make the copies anew; to be called whenever the weights have changed."""
        for weight, copy in self._pairs:
            copy.copy_(weight)

    def remove(self) -> None:
        """Give the model its fp32 weights back."""
        for (weight, _copy), (module, name) in zip(self._pairs, self._places, strict=True):
            setattr(module, name, weight)
        self._model.compute_dtype = torch.float32
