"""What a job will cost, told before it starts: parameters, bytes on disk, memory, tokens per second. Torch-free.

Estimates are for preflight and for people; no bit of a version depends on them. Disk figures err on the high side,
because a plan that runs out of space is worse than one that waits. Time and memory come from a table that was fitted to
steps of eight shapes, times what finished jobs of the same shape on the same machine needed of it (`correct`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.model_config import ModelConfig

__all__ = ["Correction", "Estimate", "correct", "estimate_job", "flops_per_token", "shape_key", "table_speed", "version_bytes"]

_BYTES_FP32, _BYTES_BF16 = 4, 2
# config, generation config, tokenizer files (GPT-2's tokenizer.json is 3.6 MB), lineage, checksums
_FIXED_VERSION_BYTES = 6_000_000
_METRICS_BYTES_PER_STEP = 220
_SNAPSHOTS_KEPT = 2
_WEIGHTS_PER_SNAPSHOT = 3  # weights and AdamW's two moments
_HEAD_CHUNK_TOKENS = 128  # as in trainer/loss.py, which cannot be imported here: it imports torch
_PROCESS_BYTES = 400_000_000  # torch, the trainer and the interpreter; most of it shared with the server it was forked from

# Floating point operations per second and core of the matrix products in a training step. AVX-512: fitted to steps of seven
# shapes on a 2.5 GHz Skylake (docs/PERFORMANCE.md); the others are that figure scaled by the width of their units.
_FLOPS_PER_CORE = {"amx_bf16": 3.0e11, "avx512_bf16": 1.4e11, "avx512f": 7.0e10, "avx2": 3.5e10}
_FP32_FLAGS = ("avx512f", "avx2")
_FLOPS_PER_CORE_OTHER = 8.0e9
_FLOPS_CUDA = 1.0e14  # a guess that the first job of a shape corrects
# Everything but the products: seconds of one core for one float of an activation (forward, backward, norms, exp), for one
# parameter in an optimiser step, and for starting the operators of one layer forward and backward.
_SECONDS_PER_FLOAT = 3.0e-9
_SECONDS_PER_PARAMETER = 2.0e-9
_SECONDS_PER_LAYER = 6.0e-3
_LAYERS_OF_HEAD = 0.7

_REMEMBERED = 9
"""So many finished jobs of a shape count, the newest: their median forgets a single one that ran on a busy machine."""
_SPEED_BOUNDS = (0.02, 50.0)
_MEMORY_BOUNDS = (0.5, 3.0)
"""A ratio outside of these is a figure gone wrong, and would make every later plan wrong with it. At a load of ten on two
cores steps took 28 times as long as on an idle machine."""


@dataclass(frozen=True)
class Estimate:
    """Figures of one planned job."""

    parameters: int
    version_bytes: int
    """One finished version folder."""
    staging_bytes: int
    """Most that lies in staging at once: snapshots, the one being written, and the future version."""
    memory_bytes: int
    """Resident memory of the training child at its peak."""
    tokens_per_second: float
    seconds: float
    """Of the training steps; judging parent and child comes on top."""
    table_seconds: float = 0.0
    """What the table alone says."""
    table_memory_bytes: int = 0
    corrected_by: int = 0
    """Finished jobs whose figures corrected the table."""


@dataclass(frozen=True)
class Correction:
    """What finished jobs needed, as a multiple of what the table said."""

    seconds: float = 1.0
    memory: float = 1.0
    jobs: int = 0


def version_bytes(model: ModelConfig, steps: int = 0) -> int:
    """Bytes on disk of one version of this shape after a job of `steps`."""
    return model.parameter_count() * _BYTES_FP32 + _FIXED_VERSION_BYTES + steps * _METRICS_BYTES_PER_STEP


def flops_per_token(model: ModelConfig) -> float:
    """Forward and backward work per trained token: 6 per matrix weight (the tied head counts once), plus attention."""
    matrices = model.parameter_count() - (0 if model.tie_embeddings else model.vocab_size * model.width)
    return 6.0 * matrices + 12.0 * model.layers * model.heads * model.head_dim * model.block_size / 2


def _floats_per_token(model: ModelConfig) -> int:
    """Activations that one token leaves for the backward pass, the head's left out: that one works in chunks."""
    return model.layers * (14 * model.width + 5 * model.hidden) + 6 * model.width


def table_speed(
    model: ModelConfig, flags: list[str], cores: int, *, dtype: str = "float32", device: str = "cpu",
    micro_tokens: int = 2048, step_tokens: int = 8192,
) -> float:  # fmt: skip
    """Tokens per second by the table: products, what is done float by float, the optimiser, and the operators' own cost."""
    if device == "cuda":
        return _FLOPS_CUDA / flops_per_token(model)
    usable = [flag for flag in flags if dtype == "bfloat16" or flag in _FP32_FLAGS]
    flops = next((speed for flag, speed in _FLOPS_PER_CORE.items() if flag in usable), _FLOPS_PER_CORE_OTHER)
    floats = _floats_per_token(model) + model.vocab_size
    per_token = (flops_per_token(model) / flops + floats * _SECONDS_PER_FLOAT) / cores
    per_pass = (model.layers + _LAYERS_OF_HEAD) * _SECONDS_PER_LAYER  # starting operators takes one core, however many there are
    per_step = model.parameter_count() * _SECONDS_PER_PARAMETER / cores
    return 1.0 / (per_token + per_pass / max(1, micro_tokens) + per_step / max(1, step_tokens))


def _table_memory(model: ModelConfig, micro_tokens: int, *, dtype: str, accumulates: bool, lanes: int) -> int:
    """Resident bytes of one process at the peak: itself, weights, gradients, two moments, activations, the head's chunk and
    gradient, and the gradients of lanes that wait to be added in pairs."""
    parameters, head = model.parameter_count(), model.vocab_size * model.width
    # weights, gradients, two moments, and a copy of weights and moments for the snapshot that is being written
    kept = 7 * parameters * _BYTES_FP32 + head * _BYTES_FP32
    size = _BYTES_FP32
    if dtype == "bfloat16":
        kept, size = kept + 2 * parameters * _BYTES_BF16, _BYTES_BF16
    if accumulates:  # the gradients of one pass beside those of the passes before
        kept += (parameters + head) * _BYTES_FP32
    kept += (lanes - 1).bit_length() * parameters * _BYTES_FP32
    activations = micro_tokens * _floats_per_token(model) * size
    return _PROCESS_BYTES + kept + activations + _HEAD_CHUNK_TOKENS * model.vocab_size * _BYTES_FP32


def estimate_job(
    model: ModelConfig, *, tokens: int, steps: int, micro_sequences: int, flags: list[str], cores: int,
    measured: float | None = None, batch_sequences: int = 0, dtype: str = "float32", device: str = "cpu",
    correction: Correction = Correction(), adapter_parameters: int | None = None,
    seal_optimizer: bool = False, lanes: int = 1, processes: int = 1,
) -> Estimate:  # fmt: skip
    """All figures for training `tokens` input tokens in `steps` steps; `adapter_parameters`: only so many are trained.

    `seal_optimizer`: the version keeps two moments. `cores` of each of the `processes`, which share the `lanes` and hold
    everything each.

    `measured`: tokens per second of the parent's own training, which stands in while no job of the shape has been corrected by.
    """
    parameters = model.parameter_count()
    trained = parameters if adapter_parameters is None else adapter_parameters
    finished = version_bytes(model, steps) - (parameters - trained) * _BYTES_FP32
    finished += 2 * trained * _BYTES_FP32 if seal_optimizer else 0
    snapshots = (_SNAPSHOTS_KEPT + 1) * _WEIGHTS_PER_SNAPSHOT * trained * _BYTES_FP32
    micro_tokens = micro_sequences * model.block_size
    memory = _table_memory(model, micro_tokens, dtype=dtype, accumulates=batch_sequences > micro_sequences,
                           lanes=max(lanes, processes))  # fmt: skip
    memory -= 6 * (parameters - trained) * _BYTES_FP32  # a frozen weight has no gradient, no moments, and no copies of them
    step_tokens = tokens / max(1, steps)
    speed = table_speed(model, flags, cores, dtype=dtype, device=device, step_tokens=int(step_tokens),
                        micro_tokens=int(min(micro_tokens, step_tokens)))  # fmt: skip
    by_table = tokens / (speed * processes)
    seconds = by_table * correction.seconds
    if measured and not correction.jobs:
        seconds = tokens / measured
    return Estimate(
        parameters=model.parameter_count(), version_bytes=finished, staging_bytes=finished + snapshots,
        memory_bytes=int(memory * correction.memory) * processes,
        tokens_per_second=tokens / seconds if seconds else speed, seconds=seconds,
        table_seconds=by_table, table_memory_bytes=memory, corrected_by=correction.jobs,
    )  # fmt: skip


def shape_key(model: ModelConfig, numbers: Mapping[str, Any], stage: str) -> str:
    """What two jobs must have in common for the one to tell something of the other's speed and memory."""
    return (f"{stage} {model.layers}x{model.width}x{model.hidden} heads {model.heads}/{model.kv_heads} block {model.block_size} "
            f"vocabulary {model.vocab_size} micro {numbers['micro_sequences']} threads {numbers['threads']} {numbers['dtype']}"
            f"{' compiled' if numbers.get('compile') else ''} {numbers.get('device', 'cpu')}"
            + "".join(f" {numbers[name]} {name}" for name in ("lanes", "processes") if numbers.get(name, 1) > 1))  # fmt: skip


def correct(past: Iterable[Mapping[str, Any]], key: str, cpu: str) -> Correction:
    """The median of what finished jobs of this shape on this processor needed of the table's figures, within bounds.

    `past`: newest first, each {estimate, actual, cpu} as in version.json; those that say less are passed over.
    """
    seconds: list[float] = []
    memory: list[float] = []
    for job in past:
        told, found = job.get("estimate") or {}, job.get("actual") or {}
        if len(seconds) == _REMEMBERED or told.get("shape") != key or job.get("cpu") != cpu:
            continue
        if told.get("table_seconds") and found.get("seconds"):
            seconds.append(found["seconds"] / told["table_seconds"])
            if told.get("table_memory_bytes") and found.get("memory_bytes"):
                memory.append(found["memory_bytes"] / told["table_memory_bytes"])
    if not seconds:
        return Correction()
    return Correction(_within(statistics.median(seconds), _SPEED_BOUNDS),
                      _within(statistics.median(memory), _MEMORY_BOUNDS) if memory else 1.0, len(seconds))  # fmt: skip


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
