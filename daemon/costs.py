"""Costs of a job before it starts: tokens, steps, seconds, bytes. Estimates for people and for the disk check.

Not here: the formulas of time and memory (`trainer/estimate.py`) and the judgement (`guard/checks/preflight.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson

from daemon.inputs import objective_of
from daemon.targets import Target, numbers_of, shape_of
from guard.store.keeper import Keeper
from guard.store.vault_state import other_device, vault_of
from trainer.adapter_config import AdapterConfig
from trainer.estimate import Correction, Estimate, correct, estimate_job, shape_key
from trainer.hardware import hardware_facts
from trainer.model_config import ModelConfig
from trainer.numbers import Numbers
from trainer.objectives import about
from trainer.recipe import Recipe

__all__ = ["Cost", "Sharing", "alike", "backup_bytes", "correction_for", "cost_kind", "cost_of", "estimate", "job_cost",
           "kept_estimate", "needed_bytes", "past_jobs", "sharing_of", "tokens_approx"]  # fmt: skip

PAST_JOBS = 24
"""So many newest trainings are looked at for some of the same shape: planning costs the same in any home."""


@dataclass(frozen=True)
class Cost:
    """A job with its figures."""

    steps: int
    numbers: Numbers
    estimate: Estimate
    shape: str
    """What it has in common with jobs whose figures count for it."""


@dataclass(frozen=True)
class Sharing:
    """How the settings have a job shared."""

    lanes: int = 1
    processes: int = 1

    def dealt(self, numbers: Numbers, threads: int) -> Numbers:
        """The numbers of each process: the machine's cores are shared where nobody said how many `threads` each has."""
        if self.processes == 1 or threads:
            return numbers
        return replace(numbers, threads=max(1, numbers.threads // self.processes))


def sharing_of(keeper: Keeper, device: str) -> Sharing:
    """Lanes and processes of a job that is planned now; on a GPU it is one process."""
    asked = keeper.settings.training
    return Sharing(max(asked.lanes, asked.processes), asked.processes if device == "cpu" else 1)


def cost_of(
    recipe: Recipe, shape: ModelConfig, numbers: Numbers, tokens: int, *, examples: int, iterations: int | None,
    measured: float | None, correction: Correction = Correction(), steps: int | None = None, fed: int | None = None,
    sharing: Sharing = Sharing(),
) -> tuple[int, Estimate]:  # fmt: skip
    """(steps, estimate) of so many first-pass tokens in so many examples on a model of that shape; `iterations`: exactly so
    many steps. `steps` and `fed` (tokens of all of them): known exactly, of data that is prepared."""
    per_step = recipe.training.batch_sequences * shape.block_size
    if steps is None:
        sequences = -(-tokens // shape.block_size)
        if recipe.stage == "sft" and recipe.training.packing != "bestfit":
            sequences = max(sequences, examples)  # each conversation has one of its own
        steps = int(iterations or max(1, -(-sequences * recipe.training.epochs // recipe.training.batch_sequences)))
    work = fed if fed is not None else steps * per_step if iterations else tokens * recipe.training.epochs
    lora = recipe.lora
    adapter = AdapterConfig(lora.rank, lora.alpha, lora.target_modules).parameter_count(shape) if lora else None
    return steps, estimate_job(
        shape, tokens=work, steps=steps, micro_sequences=numbers.micro_sequences, flags=hardware_facts()["cpu_flags"],
        cores=numbers.threads, measured=measured, batch_sequences=recipe.training.batch_sequences, dtype=numbers.dtype,
        device=numbers.device, correction=correction, adapter_parameters=adapter,
        seal_optimizer=recipe.training.seal_optimizer, lanes=sharing.lanes, processes=sharing.processes)  # fmt: skip


def past_jobs(keeper: Keeper) -> list[dict[str, Any]]:
    """Estimate, actual figures and processor of the newest trainings; versions of earlier releases have none."""
    rows = keeper.ledger.rows(
        "SELECT json_extract(record, '$.estimate'), json_extract(record, '$.actual'), json_extract(record, '$.hardware.cpu') "
        "FROM versions WHERE tokens > 0 ORDER BY id DESC LIMIT ?", (PAST_JOBS,))  # fmt: skip
    return [{"estimate": orjson.loads(told), "actual": orjson.loads(found), "cpu": cpu}
            for told, found, cpu in rows if told and found]  # fmt: skip


def correction_for(keeper: Keeper, key: str) -> Correction:
    """What finished jobs of this home say about the next one of the same `key` (`alike`) on this processor."""
    return correct(past_jobs(keeper), key, hardware_facts()["cpu"])


def alike(shape: ModelConfig, numbers: Numbers, sharing: Sharing, kind: str) -> str:
    """What jobs must have in common for the one to tell something of the other; `kind`: from `cost_kind`."""
    return shape_key(shape, asdict(numbers) | asdict(sharing), kind)


def cost_kind(recipe: Recipe, stage: str) -> str:
    """What jobs of one shape must have in common besides: an adapter takes another time and memory than all weights."""
    return f"{stage} adapter" if recipe.lora else stage


def job_cost(keeper: Keeper, target: Target, tokens: int, prepared: Mapping[str, Any] | None = None) -> Cost:
    """Figures of training so many first-pass tokens with the target's recipe; exact steps and tokens where it is `prepared`."""
    shape = shape_of(keeper, target.base)
    known: dict[str, Any] = {"steps": int(prepared["steps"]), "fed": prepared.get("fed_tokens")} if prepared else {}
    # What is planned to be fed decides about compiling; before preparation it is not known well enough to freeze anything.
    fed = int(known.get("fed") or tokens * target.recipe.training.epochs)
    numbers = numbers_of(keeper, target, tokens=fed)
    numbers = replace(numbers, compile=numbers.compile and about(objective_of(target)).compiles)
    sharing = sharing_of(keeper, numbers.device)
    numbers = sharing.dealt(numbers, keeper.settings.training.threads)
    key = alike(shape, numbers, sharing, cost_kind(target.recipe, target.job.stage))
    steps, figures = cost_of(
        target.recipe, shape, numbers, tokens, examples=sum(file.examples for file in target.files),
        iterations=target.job.request.get("iterations"), correction=correction_for(keeper, key), sharing=sharing,
        measured=target.base.record.get("metrics", {}).get("tokens_per_second"), **known)  # fmt: skip
    return Cost(steps, numbers, figures, key)


def kept_estimate(cost: Cost) -> dict[str, Any]:
    """What a plan and its version keep of an estimate: beside `actual` it tells how wrong it was."""
    told = cost.estimate
    return {
        "seconds": round(told.seconds, 3), "memory_bytes": told.memory_bytes,
        "tokens_per_second": round(told.tokens_per_second, 3), "shape": cost.shape, "corrected_by": told.corrected_by,
        "table_seconds": round(told.table_seconds, 6), "table_memory_bytes": told.table_memory_bytes,
    }  # fmt: skip


def tokens_approx(target: Target) -> int:
    """Intake counts four bytes a token, as GPT-2 does on English; `char` has one for every byte."""
    factor = 4 if target.base.record["tokenization"] == "char" else 1
    return factor * sum(file.tokens_approx for file in target.files if not file.record.get("prepared")) + sum(
        file.tokens_approx for file in target.files if file.record.get("prepared"))  # fmt: skip


def needed_bytes(keeper: Keeper, target: Target, tokens: int) -> int:
    """Room beside the models for shards (3 bytes a token at most, 5 where ids may need uint32), snapshots, the new version,
    and its backup where the vault lies on the same device."""
    cost = job_cost(keeper, target, tokens).estimate
    per_token = 5 if target.base.record["tokenization"] == "hf" else 3
    shared = keeper.settings.backup.auto and not other_device(keeper, vault_of(keeper))
    return cost.staging_bytes + cost.version_bytes + per_token * tokens + (backup_bytes(keeper, target, tokens) if shared else 0)


def backup_bytes(keeper: Keeper, target: Target, tokens: int) -> int:
    """Room in the vault for the backup after the job: the version (a frame is never larger), its originals, and a ledger."""
    cost = job_cost(keeper, target, tokens).estimate
    return cost.version_bytes + sum(file.size_bytes for file in target.files) + keeper.home.ledger.stat().st_size


def estimate(keeper: Keeper, target: Target) -> dict[str, Any]:
    """Tokens, steps, seconds, bytes on disk and memory a job will take, and what the figures rest on."""
    tokens = tokens_approx(target)
    cost = job_cost(keeper, target, tokens)
    told = cost.estimate
    return {"tokens": tokens, "steps": cost.steps, "seconds": told.seconds, "bytes": needed_bytes(keeper, target, tokens),
            "memory_bytes": told.memory_bytes, "tokens_per_second": told.tokens_per_second, "corrected_by": told.corrected_by,
            "numbers": asdict(cost.numbers)}  # fmt: skip
