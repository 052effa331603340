"""Where a job computes: moving a model and its batches to a device, and finding the micro-batch that fits one.

On the processor nothing here does anything: same tensors, same bits as without it. What runs on a GPU is written after
torch's source and was only ever tried with stand-ins (docs/PERFORMANCE.md says so). Only training moves to the device;
judging, speaking and writing stay on the processor, in fp32. Not here: which device a job gets (`trainer/numbers.py`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guard.errors import EnvironmentFault
from trainer.ahead import Source
from trainer.batches import Batch, StepBatch, in_groups, pad
from trainer.objectives import about, bind, find_objective
from trainer.stepper import Stepper
from trainer.version_files import load_version

__all__ = ["Placed", "Same", "device_facts", "find_micro", "fitting_micro", "move_model", "prepare_device"]


def prepare_device(device: str) -> None:
    """Set a training child up for its device, before it is first used. Raises EnvironmentFault when it is not there."""
    if device == "cpu":
        return
    # cuBLAS reads it with its first handle; without it deterministic algorithms are refused (torch's notes on randomness).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not torch.cuda.is_available():
        raise EnvironmentFault("the plan is for a GPU and torch finds none here", subject=device,
                               hint="nvidia-smi tells more; the job waits until it is back")  # fmt: skip


def device_facts(device: str) -> dict[str, Any]:
    """What of the device the bits depend on, beside the processor: {} for the processor itself."""
    if device == "cpu":
        return {}
    return {"gpu": torch.cuda.get_device_name(0), "cuda": str(torch.version.cuda)}


def move_model(model: nn.Module, device: str) -> None:
    """Move parameters, buffers, and the plain tensors that modules keep as attributes (rotary tables)."""
    model.to(device)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                setattr(module, name, value.to(device))


class Placed:
    """A source whose micro-batches lie on the device. In front of it stands `Ahead`: what is copied there is the next step's."""

    def __init__(self, source: Source, device: str) -> None:
        self._source, self._device = source, device

    def step(self, step: int) -> StepBatch:
        """The batch of step `step`; raises what the source raises."""
        batch = self._source.step(step)
        if self._device == "cpu":
            return batch
        return dataclasses.replace(batch, micro_batches=[self._placed(micro) for micro in batch.micro_batches])

    def _placed(self, batch: Batch) -> Batch:
        """From page-locked memory, so that the copy runs while the processor goes on."""
        moved = {}
        for item in dataclasses.fields(batch):
            value = getattr(batch, item.name)
            if isinstance(value, Tensor):
                value = (value.pin_memory() if self._device == "cuda" else value).to(self._device, non_blocking=True)
            moved[item.name] = value
        return Batch(**moved)


def find_micro(most: int, attempt: Callable[[int], object]) -> int:
    """The largest of most, most/2, most/4 ... sequences with which `attempt` does not run out of memory, at least 1.

    The sequences of a step stay the same: it is only cut into more passes. Raises EnvironmentFault when not even one fits.
    """
    micro = most
    while True:
        try:
            attempt(micro)
        except torch.OutOfMemoryError as error:
            if micro == 1:
                raise EnvironmentFault("not even one sequence fits into the GPU's memory", subject="cuda", cause=error,
                                       hint="plan on a smaller base, or training.device: cpu") from error  # fmt: skip
        else:
            return micro
        torch.cuda.empty_cache()
        micro = max(1, micro // 2)


def fitting_micro(base: Path, objective: str, training: Mapping[str, Any], dtype: str, device: str, most: int) -> int:
    """`find_micro` for the model of a version: whole steps on rows of full length, on weights that are thrown away.

    Two steps of two passes each: the second pass stands beside the gradients of the first, the second step beside the moments.

    Asked once, when a job's data is prepared; its plan keeps the answer. Models that the objective looks at take the memory
    of the base; an example of a grouped objective is taken for two documents.
    """
    prepare_device(device)
    module = find_objective(objective)
    model, *others = (load_version(base)[0] for _ in range(1 + len(about(objective).inputs)))
    if hasattr(module, "extend"):
        module.extend(model, 0)
    for one in (model, *others):
        move_model(one, device)
    stepper = Stepper(model, bind(objective, dict(zip(about(objective).inputs, others, strict=True))), training, dtype)
    ids = np.zeros(model.config.block_size, dtype=np.int64)
    row = (ids, ids, np.ones(len(ids), dtype=np.float32))

    def attempt(micro: int) -> None:
        rows = in_groups([[row, row]] * micro) if getattr(module, "GROUPED", False) else pad([row] * micro)
        tokens = 2 * micro * len(ids)
        batch = StepBatch(np.arange(2 * micro), [rows, rows], float(tokens), tokens, tokens, 0)
        for step in range(2):
            stepper.step(Placed(Same(batch), device).step(step), 0.0, step)

    return find_micro(most, attempt)


@dataclasses.dataclass(frozen=True)
class Same:
    """A source of one batch."""

    batch: StepBatch

    def step(self, step: int) -> StepBatch:
        """The batch, whatever the step."""
        return self.batch
