"""The element-wise parts of the layers fused by `torch.compile`, so that equal plans still give equal bits.

What the compiler makes depends on the number of tokens it is made for, and with that number left open on the batches
met so far, which are others after a resume. So it is made before step 1 for one number, that of a full micro-batch; a
packed micro-batch that is nearly full is filled up with tokens that bear no loss, any other goes uncompiled, and a
compilation after that is an error. Every layer shares the two compiled functions, which keeps the warm-up to that of
one layer. What was compiled is kept between processes in the person's own cache folder. Whether a job is worth it
stands in its plan (`trainer/numbers.py`). Not here: the formulas (`trainer/kernels.py`); attention, the head and the
optimiser are not compiled.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from guard.errors import CheckFailed, EnvironmentFault
from trainer.batches import Batch
from trainer.kernels import after_attention, before_attention
from trainer.model import Decoder, Halves

__all__ = ["cache_folder", "compile_layers", "fitted"]

_FULL_ENOUGH = 0.75
"""Below this share of a full micro-batch filling it up costs more than compiled layers save."""
BACKEND = "inductor"


def cache_folder() -> Path:
    """Where compiled code is kept: of this user alone, beside what other programs keep."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "heirloom" / "compiled"


def compile_layers(model: Decoder, tokens: int) -> Halves:
    """Compile for training `model` as it is now (dtype, threads) on micro-batches of `tokens`, a multiple of its block.

    Leaves its gradients as they were: none.

    Raises EnvironmentFault when the compiler fails, which is no fault of the data.
    """
    assert all(parameter.grad is None for parameter in model.parameters()), "compile before the first step"
    if any(isinstance(module, nn.Linear) and type(module) is not nn.Linear for module in model.modules()):
        # The halves take weights and call no module: what an adapter adds would be left out without a word.
        raise CheckFailed("a model with an adapter is not compiled", subject="compile",
                          hint="plan the job again: adapters are trained uncompiled")  # fmt: skip
    import torch._dynamo
    import torch._inductor.config  # not with the file: both take seconds, and most jobs compile nothing

    # In this process alone: a pool of compiling processes would outlive the few seconds it is needed for.
    torch._inductor.config.compile_threads = 1
    # It makes one call of a product and the sum after it, and on a CPU that is a copy more than the two apart.
    torch._inductor.config.pattern_matcher = False
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder())
    torch._dynamo.reset()
    torch._dynamo.config.error_on_recompile = False
    wanted: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": BACKEND}
    halves = Halves(torch.compile(before_attention, **wanted), torch.compile(after_attention, **wanted))
    model.halves = halves
    rows = torch.zeros(tokens, dtype=torch.int64, device=model.head_weight.device).view(-1, model.config.block_size)
    try:
        model(rows).float().sum().backward()
    except Exception as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise EnvironmentFault(f"the layers could not be compiled: {told[0]}", subject="compile", cause=error,
                               hint="see child.log; name a working C++ compiler in CXX and look for room in "
                                    f"{cache_folder()}; the job waits") from error  # fmt: skip
    finally:
        model.halves = None
        model.zero_grad(set_to_none=True)
    torch._dynamo.config.error_on_recompile = True
    return halves


def fitted(batch: Batch, tokens: int, block_size: int) -> Batch | None:
    """`batch` as one of exactly `tokens` positions, for which the layers were compiled; None when it is too far from that.

    What is added are documents of their own that bear no loss, so that no other document sees them.
    """
    missing = tokens - batch.inputs.numel()
    if missing == 0:
        return batch
    if missing < 0 or batch.inputs.shape[0] > 1 or missing > (1 - _FULL_ENOUGH) * tokens:
        return None
    documents = torch.zeros_like(batch.inputs) if batch.documents is None else batch.documents
    added = int(documents[0, -1]) + 1 + torch.arange(missing, device=documents.device)[None] // block_size
    return dataclasses.replace(
        batch, inputs=F.pad(batch.inputs, (0, missing)), targets=F.pad(batch.targets, (0, missing)),
        weights=F.pad(batch.weights, (0, missing)), documents=torch.cat((documents, added), dim=1))  # fmt: skip
