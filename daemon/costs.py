"""Costs of a job before it starts: tokens, steps, seconds, bytes. Estimates for people and for the disk check.

Not here: the formulas of time and memory (`trainer/estimate.py`) and the judgement (`guard/checks/preflight.py`).
"""

from __future__ import annotations

from typing import Any

from daemon.targets import Target, numbers_of, shape_of
from guard.store.keeper import Keeper
from guard.store.vault_state import other_device, vault_of
from trainer.estimate import Estimate, estimate_job
from trainer.hardware import Numbers, hardware_facts
from trainer.model_config import ModelConfig
from trainer.recipe import Recipe

__all__ = ["backup_bytes", "cost_of", "estimate", "needed_bytes", "tokens_approx"]


def cost_of(
    recipe: Recipe, shape: ModelConfig, numbers: Numbers, tokens: int, *, examples: int, iterations: int | None,
    measured: float | None,
) -> tuple[int, Estimate]:  # fmt: skip
    """(steps, estimate) of so many first-pass tokens in so many examples on a model of that shape; `iterations`: exactly so
    many steps."""
    per_step = recipe.training.batch_sequences * shape.block_size
    sequences = -(-tokens // shape.block_size)
    if recipe.stage == "sft" and recipe.training.packing != "bestfit":
        sequences = max(sequences, examples)  # each conversation has one of its own
    steps = int(iterations or max(1, -(-sequences * recipe.training.epochs // recipe.training.batch_sequences)))
    work = steps * per_step if iterations else tokens * recipe.training.epochs
    return steps, estimate_job(shape, tokens=work, steps=steps, micro_sequences=numbers.micro_sequences,
                               flags=hardware_facts()["cpu_flags"], cores=numbers.threads, measured=measured,
                               seal_optimizer=recipe.training.seal_optimizer)  # fmt: skip


def _cost(keeper: Keeper, target: Target, tokens: int) -> tuple[int, Estimate]:
    """(steps, estimate) of training so many first-pass tokens with the target's recipe."""
    return cost_of(target.recipe, shape_of(keeper, target.base), numbers_of(keeper, target), tokens,
                   examples=sum(file.examples for file in target.files), iterations=target.job.request.get("iterations"),
                   measured=target.base.record.get("metrics", {}).get("tokens_per_second"))  # fmt: skip


def tokens_approx(target: Target) -> int:
    """Intake counts four bytes a token, as GPT-2 does on English; `char` has one for every byte."""
    factor = 4 if target.base.record["tokenization"] == "char" else 1
    return factor * sum(file.tokens_approx for file in target.files if not file.record.get("prepared")) + sum(
        file.tokens_approx for file in target.files if file.record.get("prepared"))  # fmt: skip


def needed_bytes(keeper: Keeper, target: Target, tokens: int) -> int:
    """Room beside the models for shards (3 bytes a token at most, 5 where ids may need uint32), snapshots, the new version,
    and its backup where the vault lies on the same device."""
    _steps, cost = _cost(keeper, target, tokens)
    per_token = 5 if target.base.record["tokenization"] == "hf" else 3
    shared = keeper.settings.backup.auto and not other_device(keeper, vault_of(keeper))
    return cost.staging_bytes + cost.version_bytes + per_token * tokens + (backup_bytes(keeper, target, tokens) if shared else 0)


def backup_bytes(keeper: Keeper, target: Target, tokens: int) -> int:
    """Room in the vault for the backup after the job: the version (a frame is never larger), its originals, and a ledger."""
    _steps, cost = _cost(keeper, target, tokens)
    return cost.version_bytes + sum(file.size_bytes for file in target.files) + keeper.home.ledger.stat().st_size


def estimate(keeper: Keeper, target: Target) -> dict[str, Any]:
    """Tokens, steps, seconds and bytes a job will take, from sizes and the last measured speed."""
    tokens = tokens_approx(target)
    steps, cost = _cost(keeper, target, tokens)
    return {"tokens": tokens, "steps": steps, "seconds": cost.seconds, "bytes": needed_bytes(keeper, target, tokens)}
