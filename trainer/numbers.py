"""The numbers of a job: threads, dtype, micro-batch, compiling, device. Frozen into its plan, never chosen anew.

They come from a table over the model's shape, the processor's flags and the planned length of the job, or from what
`heirloom doctor --probe` once measured and a person kept (`trainer/machine.py`); never from a timing of the moment, so
that the same plan on the same machine gives the same bits (law 7). Torch-free. Not here: what the numbers do
(`trainer/stepper.py`), and how long a job takes (`trainer/estimate.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.estimate import table_speed
from trainer.hardware import hardware_facts, has_compiler, has_cuda
from trainer.machine import Machine
from trainer.model_config import ModelConfig

__all__ = ["Numbers", "choose_device", "choose_numbers", "resolve_numbers"]

# bf16 matrix units pay only where the matrices are wide enough to hide the conversions around them.
_BF16_MIN_WIDTH = {"amx_bf16": 256, "avx512_bf16": 512}
# Below a million parameters a bf16 working copy costs more in conversions than its products save, on any processor.
_BF16_MIN_PARAMETERS = 1_000_000
# Below this the operators are too short to be worth waking a second thread for.
_SMALL_PARAMETERS = 500_000
# Tokens in one forward and backward pass: enough to fill matrix products, few enough to stay near the cache.
_MICRO_TOKENS = ((256, 4096), (1024, 2048))
_MICRO_TOKENS_WIDE = 1024
# A GPU has no cache to stay near; what does not fit its memory is halved when the data is prepared (trainer/device.py).
_MICRO_TOKENS_CUDA = 65_536

# Seconds that compiling takes before the first step. Not known of a machine that was never probed: there nothing is compiled.
# 14 to 160 s were measured on two machines, which is too wide for a table.
_COMPILE_WARMUP_SECONDS = math.inf
# Compiled over eager speed. Only what a probe measured changes it.
_COMPILE_GAIN = 1.3
# What compiling saves must be so many times its warm-up: the job's length is an estimate, and every resume compiles anew.
_COMPILE_MARGIN = 3.0


@dataclass(frozen=True)
class Numbers:
    """What the bits of a job depend on besides data and recipe."""

    threads: int
    """CPU threads of one operator."""
    dtype: str
    """`float32`, or `bfloat16`: a bf16 working copy; the weights that are kept and the optimiser stay fp32 either way."""
    micro_sequences: int
    """Sequences in one forward and backward pass."""
    compile: bool = False
    """Whether `torch.compile` makes the model's kernels."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    numbers_from: str = "table"
    """`table`, or `machine.yaml` with the beginning of its hash."""


def choose_numbers(
    model: ModelConfig, batch_sequences: int, flags: list[str], cores: int, threads: int = 0, *,
    tokens: int = 0, compiler: bool = False, device: str = "cpu", machine: Machine | None = None,
) -> Numbers:  # fmt: skip
    """The table. `threads` 0 means all `cores`, or one for a very small model.

    `tokens`: planned input tokens of the whole job, 0 when it is no training. `compiler`: whether one is there.
    `machine`: what a probe measured on this very machine; it takes the table's place where it says something.
    """
    if machine is not None and machine.threads:
        cores = machine.threads
    if model.parameter_count() < _SMALL_PARAMETERS:
        cores = 1
    dtype = "bfloat16" if _wants_bfloat16(model, flags, device, machine) else "float32"
    most = next((count for width, count in _MICRO_TOKENS if model.width <= width), _MICRO_TOKENS_WIDE)
    micro = (_MICRO_TOKENS_CUDA if device == "cuda" else most) // model.block_size
    seconds = tokens / table_speed(model, flags, threads or cores, dtype=dtype, device=device)
    return Numbers(
        threads=threads or cores, dtype=dtype, micro_sequences=max(1, min(batch_sequences, micro)),
        compile=compiler and _repays(seconds, machine, device), device=device,
        numbers_from=f"machine.yaml {machine.sha256[:12]}" if machine else "table",
    )  # fmt: skip


def _wants_bfloat16(model: ModelConfig, flags: list[str], device: str, machine: Machine | None) -> bool:
    if device == "cuda":
        return True  # every card that torch 2.13 supports has bf16 matrix units or computes it as fast as fp32
    if model.parameter_count() < _BF16_MIN_PARAMETERS:
        return False
    if machine is not None:
        return machine.bfloat16_from_width is not None and model.width >= machine.bfloat16_from_width
    return any(flag in flags and model.width >= width for flag, width in _BF16_MIN_WIDTH.items())


def _repays(seconds: float, machine: Machine | None, device: str) -> bool:
    """Whether what compiling saves on so many seconds of eager work on the device is well above what it costs there."""
    warmup, gain = _COMPILE_WARMUP_SECONDS, _COMPILE_GAIN
    if machine is not None and device == "cuda":
        warmup, gain = machine.gpu_compile_warmup_seconds, machine.gpu_compile_gain
    elif machine is not None:
        warmup, gain = machine.compile_warmup_seconds, machine.compile_gain
    return gain > 1.0 and seconds * (1.0 - 1.0 / gain) > _COMPILE_MARGIN * warmup


def choose_device(asked: str, *, cuda: bool | None = None) -> str:
    """`cpu` or `cuda` for the setting `training.device`: `auto` takes a GPU where driver and torch have one.

    What was named outright is planned even where it is missing: preflight then holds the job and says why.
    """
    if asked != "auto":
        return asked
    return "cuda" if (has_cuda() if cuda is None else cuda) else "cpu"


def resolve_numbers(
    recipe: Any, settings: Any, model: Mapping[str, Any] | ModelConfig | None = None, *, tokens: int = 0,
    machine: Machine | None = None,
) -> Numbers:  # fmt: skip
    """The numbers of one job on this machine, to be frozen into its plan.

    `recipe` is a Recipe or its resolved dict; `settings` the home's Settings (`training.threads` and `.device` are used).
    A recipe without a model section (fine-tuning) needs the base's shape in `model`: a ModelConfig or its `config.json`.
    `tokens`: planned input tokens of the job. `machine`: from `trainer.machine.machine_here`.
    """
    resolved = recipe if isinstance(recipe, Mapping) else recipe.model_dump()
    facts = hardware_facts()
    return choose_numbers(
        _shape(resolved, model), int(resolved["training"]["batch_sequences"]), facts["cpu_flags"], facts["cores"],
        int(settings.training.threads), tokens=tokens,
        compiler=has_compiler() and not resolved.get("lora"),  # adapters are called as modules, which is not compiled
        device=choose_device(str(settings.training.device)), machine=machine,
    )  # fmt: skip


def _shape(recipe: Mapping[str, Any], model: Mapping[str, Any] | ModelConfig | None) -> ModelConfig:
    if isinstance(model, ModelConfig):
        return model
    if model is not None:
        return ModelConfig.from_hf(model) if "model_type" in model else ModelConfig.from_recipe(model)
    return ModelConfig.from_recipe(recipe["model"])
