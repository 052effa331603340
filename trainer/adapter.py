"""Low-rank adapters on our decoder: put on, initialised, taken apart, merged (LoRA, Hu et al., arXiv 2106.09685).

An adapted matrix keeps its name and its frozen weight and gains two small matrices beside it, `lora_A.weight` [rank, in] and
`lora_B.weight` [out, rank]; only those require a gradient, so only those are in the optimiser and in snapshots.
Arithmetic and names are those of `peft`. Not here: files (`trainer/adapter_files.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.adapter_config import AdapterConfig
from trainer.model import Decoder

__all__ = ["AdaptedLinear", "adapter_tensors", "freeze", "merged", "new_adapter", "put_on"]

_MARK = ".lora_"


class AdaptedLinear(nn.Linear):
    """A frozen matrix with a low-rank one beside it: W x + scaling * B (A x)."""

    def __init__(self, plain: nn.Linear, config: AdapterConfig) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight = plain.weight
        self.scaling = config.scaling
        self.lora_A = nn.Linear(plain.in_features, config.rank, bias=False)
        self.lora_B = nn.Linear(config.rank, plain.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + self.lora_B(self.lora_A(x)) * self.scaling

    def whole(self) -> Tensor:
        """W + scaling * B A [out, in] in fp32."""
        return self.weight + self.scaling * (self.lora_B.weight @ self.lora_A.weight)


def freeze(model: nn.Module) -> None:
    """No weight of the model is trained."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def put_on(model: Decoder, config: AdapterConfig) -> None:
    """Freeze the model and put an adapter beside each target matrix of every layer; its numbers are still to be set."""
    freeze(model)
    for layer in model.model.layers:
        for part in (layer.get_submodule("self_attn"), layer.get_submodule("mlp")):
            for name, plain in list(part.named_children()):
                if name in config.target_modules:
                    assert isinstance(plain, nn.Linear), "targets are plain matrices"
                    setattr(part, name, AdaptedLinear(plain, config))
    assert len(adapter_tensors(model)) == 2 * len(config.target_modules) * model.config.layers, "every target is adapted"


def new_adapter(model: Decoder, seed: int) -> None:
    """Set a fresh adapter: A uniform within 1/sqrt(in) as in peft, B zero, so that training begins at the base itself.

    A function of the seed and the shapes alone; drawn in the order of the names.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(adapter_tensors(model).items()):
            if name.endswith("lora_B.weight"):
                tensor.zero_()
            else:
                bound = 1.0 / math.sqrt(tensor.shape[1])
                tensor.uniform_(-bound, bound, generator=generator)


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name; {} for a model without one."""
    return {name: parameter for name, parameter in model.named_parameters() if _MARK in name}


def merged(model: Decoder) -> Decoder:
    """A model of full weights that computes the same up to rounding. Takes the other's tensors: use only the new one.

    Deterministic: one product and one sum in fp32 for each matrix.
    """
    whole = Decoder(model.config)
    found: Mapping[str, nn.Module] = dict(model.named_modules())
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            owner = found[name.rpartition(".")[0]]
            parameter.data = owner.whole() if isinstance(owner, AdaptedLinear) else owner.get_parameter("weight").data
    return whole
