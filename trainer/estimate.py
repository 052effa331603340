"""What a job will cost, told before it starts: parameters, bytes on disk, memory, tokens per second. Torch-free.

Estimates are for preflight and for people; no bit of a version depends on them. Disk figures err on the high side,
because a plan that runs out of space is worse than one that waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.model_config import ModelConfig

__all__ = ["Estimate", "estimate_job", "tokens_per_second", "version_bytes"]

_BYTES_FP32 = 4
# config, generation config, tokenizer files (GPT-2's tokenizer.json is 3.6 MB), lineage, checksums
_FIXED_VERSION_BYTES = 6_000_000
_METRICS_BYTES_PER_STEP = 220
_SNAPSHOTS_KEPT = 2
_WEIGHTS_PER_SNAPSHOT = 3  # weights and AdamW's two moments
_HEAD_CHUNK_TOKENS = 128  # as in trainer/loss.py, which cannot be imported here: it imports torch
_PROCESS_BYTES = 450_000_000  # torch and the interpreter

# Floating point operations per second and core reached in training (not peak): AVX-512 measured on a 2.5 GHz Skylake.
_FLOPS_PER_CORE = {"amx_bf16": 3.0e11, "avx512_bf16": 9.0e10, "avx512f": 4.5e10, "avx2": 2.5e10}
_FLOPS_PER_CORE_OTHER = 8.0e9


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


def version_bytes(model: ModelConfig, steps: int = 0) -> int:
    """Bytes on disk of one version of this shape after a job of `steps`."""
    return model.parameter_count() * _BYTES_FP32 + _FIXED_VERSION_BYTES + steps * _METRICS_BYTES_PER_STEP


def flops_per_token(model: ModelConfig) -> float:
    """Forward and backward work per trained token: 6 per matrix weight (the tied head counts once), plus attention."""
    matrices = model.parameter_count() - (0 if model.tie_embeddings else model.vocab_size * model.width)
    return 6.0 * matrices + 12.0 * model.layers * model.heads * model.head_dim * model.block_size / 2


def tokens_per_second(model: ModelConfig, flags: list[str], cores: int, measured: float | None = None) -> float:
    """Speed to expect: the last figure measured for this shape on this machine when there is one, else the table."""
    if measured is not None and measured > 0:
        return measured
    per_core = next((speed for flag, speed in _FLOPS_PER_CORE.items() if flag in flags), _FLOPS_PER_CORE_OTHER)
    return per_core * cores / flops_per_token(model)


def estimate_job(
    model: ModelConfig, *, tokens: int, steps: int, micro_sequences: int, flags: list[str], cores: int,
    measured: float | None = None,
) -> Estimate:  # fmt: skip
    """All figures for training `tokens` input tokens in `steps` steps."""
    parameters = model.parameter_count()
    finished = version_bytes(model, steps)
    snapshots = (_SNAPSHOTS_KEPT + 1) * _WEIGHTS_PER_SNAPSHOT * parameters * _BYTES_FP32
    per_token = model.layers * (14 * model.width + 5 * model.hidden) + 6 * model.width
    activations = micro_sequences * model.block_size * per_token * _BYTES_FP32
    head_chunk = _HEAD_CHUNK_TOKENS * model.vocab_size * _BYTES_FP32
    # weights, gradients, two moments, the head's own gradient, and a copy of weights and moments while a snapshot is written
    memory = 7 * parameters * _BYTES_FP32 + model.vocab_size * model.width * _BYTES_FP32
    speed = tokens_per_second(model, flags, cores, measured)
    return Estimate(
        parameters=parameters, version_bytes=finished, staging_bytes=finished + snapshots,
        memory_bytes=_PROCESS_BYTES + memory + activations + head_chunk, tokens_per_second=speed,
        seconds=tokens / speed if speed else 0.0,
    )  # fmt: skip
