"""What this machine is, and the numbers a job gets from it: threads, dtype, micro-batch. Torch-free at import.

The numbers come from a table over the model's shape and the processor's flags, never from a timing of the moment, so
that the same plan on the same machine gives the same bits (law 7). They are frozen into the plan; a training child
only applies them with `apply_numbers`. Facts are read from the kernel's files, which tests pass in.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.model_config import ModelConfig

__all__ = [
    "Numbers",
    "apply_numbers",
    "choose_numbers",
    "hardware_facts",
    "library_versions",
    "resolve_numbers",
    "set_environment",
    "usable_cores",
]

_CPUINFO = Path("/proc/cpuinfo")
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_TOLD_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
_LIBRARIES = ("torch", "numpy", "safetensors", "tiktoken", "transformers")

# bf16 matrix units pay only where the matrices are wide enough to hide the conversions around them.
_BF16_MIN_WIDTH = {"amx_bf16": 256, "avx512_bf16": 512}
# Below this the operators are too short to be worth waking a second thread for.
_SMALL_PARAMETERS = 500_000
# Tokens in one forward and backward pass: enough to fill matrix products, few enough to stay near the cache.
_MICRO_TOKENS = ((256, 4096), (1024, 2048))
_MICRO_TOKENS_WIDE = 1024


@dataclass(frozen=True)
class Numbers:
    """What the bits of a job depend on besides data and recipe."""

    threads: int
    """CPU threads of one operator."""
    dtype: str
    """`float32`, or `bfloat16` for autocast; weights and optimizer stay fp32 either way."""
    micro_sequences: int
    """Sequences in one forward and backward pass."""


def hardware_facts(cpuinfo: Path = _CPUINFO) -> dict[str, Any]:
    """The machine in words: `cpu`, `cpu_flags` (those that change arithmetic), `cores`, `machine`, `system`."""
    fields = _first_processor(cpuinfo)
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.processor() or "unknown"),
        "cpu_flags": [flag for flag in _TOLD_FLAGS if flag in flags],
        "cores": usable_cores(),
        "machine": platform.machine(),
        "system": platform.system(),
    }


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that touch the bits; a library that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def usable_cores(limit_file: Path = _CPU_LIMIT) -> int:
    """Processors this process may use: its affinity, capped by the control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = limit_file.read_text("ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def choose_numbers(model: ModelConfig, batch_sequences: int, flags: list[str], cores: int, threads: int = 0) -> Numbers:
    """The table. `threads` 0 means all `cores`, or one for a very small model."""
    dtype = "float32"
    for flag, width in _BF16_MIN_WIDTH.items():
        if flag in flags and model.width >= width:
            dtype = "bfloat16"
    if model.parameter_count() < _SMALL_PARAMETERS:
        cores = 1
    tokens = next((tokens for width, tokens in _MICRO_TOKENS if model.width <= width), _MICRO_TOKENS_WIDE)
    micro = max(1, min(batch_sequences, tokens // model.block_size))
    return Numbers(threads=threads or cores, dtype=dtype, micro_sequences=micro)


def resolve_numbers(recipe: Any, settings: Any, model: Mapping[str, Any] | ModelConfig | None = None) -> Numbers:
    """The numbers of one job on this machine, to be frozen into its plan.

    `recipe` is a Recipe or its resolved dict; `settings` the home's Settings (`training.threads` is used). A recipe
    without a model section (fine-tuning) needs the base's shape in `model`: a ModelConfig or its `config.json`.
    """
    resolved = recipe if isinstance(recipe, Mapping) else recipe.model_dump()
    facts = hardware_facts()
    return choose_numbers(
        _shape(resolved, model),
        int(resolved["training"]["batch_sequences"]),
        facts["cpu_flags"],
        facts["cores"],
        int(settings.training.threads),
    )


def _shape(recipe: Mapping[str, Any], model: Mapping[str, Any] | ModelConfig | None) -> ModelConfig:
    if isinstance(model, ModelConfig):
        return model
    if model is not None:
        return ModelConfig.from_hf(model) if "model_type" in model else ModelConfig.from_recipe(model)
    return ModelConfig.from_recipe(recipe["model"])


def set_environment() -> None:
    """Settings that the native libraries read when they are loaded: call it before torch or numpy is imported."""
    # Waiting threads sleep instead of spinning: beside other work on the same cores spinning costs a factor of ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Always the threads that were planned, never fewer because MKL thinks so: the bits depend on their number.
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")
    # numpy's OpenBLAS starts its threads when it is loaded, and a process that is going to fork must have none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def apply_numbers(threads: int) -> None:
    """Set torch up for a training child: fixed threads, deterministic kernels. Raises what torch raises."""
    import torch

    torch.set_num_threads(threads)
    # Costs nothing on a CPU once uninitialised memory is left alone; filling it would touch every buffer twice.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    """The first block of /proc/cpuinfo as a dict; empty where there is none."""
    try:
        block = cpuinfo.read_text("utf-8", "replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
