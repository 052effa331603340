"""The element-wise parts of the layers fused by `torch.compile`, so that equal plans still give equal bits.

What the compiler makes may depend on the shapes it has met, and a resumed run meets others first. So it is shown one
fixed shape before step 1, with the number of tokens left open, and any compilation after that is an error. Every layer
shares the two compiled functions, which keeps the warm-up to that of one layer. What was compiled is kept between
processes in the person's own cache folder. Whether a job is worth it stands in its plan (`trainer/hardware.py`).
Not here: the formulas (`trainer/kernels.py`); attention, the head and the optimiser are not compiled.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guard.errors import CheckFailed
from trainer.kernels import after_attention, before_attention
from trainer.model import Decoder, Halves

__all__ = ["FEWEST_TOKENS", "cache_folder", "compile_layers"]

FEWEST_TOKENS = 16
"""A batch of fewer tokens is not worth it, and for a single one the compiler would make other code: those go as they are."""
_WARM_UP_ROWS = 2
BACKEND = "inductor"


def cache_folder() -> Path:
    """Where compiled code is kept: of this user alone, beside what other programs keep."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "heirloom" / "compiled"


def compile_layers(model: Decoder) -> Halves:
    """Compile for training `model` as it is now (dtype, threads); leaves its gradients as they were: none.

    Raises what the compiler raises, the lack of a C++ compiler among it.
    """
    assert all(parameter.grad is None for parameter in model.parameters()), "compile before the first step"
    if any(isinstance(module, nn.Linear) and type(module) is not nn.Linear for module in model.modules()):
        # The halves take weights and call no module: what an adapter adds would be left out without a word.
        raise CheckFailed("a model with an adapter is not compiled", subject="compile", hint="plan it without training.compile")
    import torch._dynamo
    import torch._inductor.config  # not with the file: both take seconds, and most jobs compile nothing

    # In this process alone: a pool of compiling processes would outlive the few seconds it is needed for.
    torch._inductor.config.compile_threads = 1
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder())
    torch._dynamo.reset()
    torch._dynamo.config.error_on_recompile = False
    halves = Halves(_open_to_tokens(before_attention, (0, 7, 8)), _open_to_tokens(after_attention, (0, 1)))
    model.halves = halves
    tokens = torch.zeros(_WARM_UP_ROWS, model.config.block_size, dtype=torch.int64, device=model.head_weight.device)
    try:
        model(tokens).float().sum().backward()
    finally:
        model.halves = None
        model.zero_grad(set_to_none=True)
    torch._dynamo.config.error_on_recompile = True
    return halves


def _open_to_tokens(function: Any, places: tuple[int, ...]) -> Any:
    """`function` compiled, its arguments in `places` being of any number of tokens and all else as it is."""
    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=BACKEND)

    @functools.wraps(function)
    def call(*arguments: Tensor) -> Any:
        for place in places:
            torch._dynamo.mark_dynamic(arguments[place], 0)
        return compiled(*arguments)

    return call
