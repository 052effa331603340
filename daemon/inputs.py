"""Inputs of a job: the versions it loads besides its parent, each named with its hash in the plan and in the record.

An adapter names its base; an objective may ask for more (a frozen reference, a reward model). What is named here locks
deletion as a parent does, is read and hashed before the job starts, and is hashed once more by the child that loads it.
Not here: what an objective does with them (`trainer/objectives/`).
"""

from __future__ import annotations

from typing import Any

from daemon.targets import Target
from guard.errors import HeirloomError
from guard.store.keeper import Keeper
from guard.store.versions import Version, find_version
from guard.weights import ADAPTER_BASE, adapter_base, weights_sha256
from trainer.adapter_config import AdapterConfig, require_continuable
from trainer.objectives import about

__all__ = ["adapter_base_of", "input_problem", "input_versions", "inputs_of", "objective_of", "placed"]


def objective_of(target: Target) -> str:
    """What a job trains its data for: its stage's own objective, or the one that was asked for."""
    return str(target.job.request.get("objective") or target.job.stage)


def adapter_base_of(keeper: Keeper, version: Version) -> Version | None:
    """The version with the full weights that an adapter stands on; None for one that has its own. Raises NotFound."""
    item = adapter_base(version.record.get("inputs") or ())
    return find_version(keeper.ledger, item["name"]) if item is not None else None


def input_versions(keeper: Keeper, target: Target) -> list[tuple[str, Version]]:
    """(role, version) of everything besides the parent; an adapter's base first. Raises NotFound for a name nobody knows.

    What an objective asks for and nobody named is the parent itself: a reference is where training starts from.
    """
    found = []
    if target.recipe.lora is not None:
        found.append((ADAPTER_BASE, adapter_base_of(keeper, target.base) or target.base))
    named = target.job.request.get("inputs") or {}
    for role in about(objective_of(target)).inputs:
        found.append((role, find_version(keeper.ledger, named[role]) if role in named else target.base))
    return found


def inputs_of(keeper: Keeper, target: Target) -> list[dict[str, Any]]:
    """The plan's `inputs`: role, name, hash of the weights, and where they lie now."""
    return placed(keeper, [{"role": role, "name": version.name, "sha256": weights_sha256(version.record)}
                           for role, version in input_versions(keeper, target)])  # fmt: skip


def placed(keeper: Keeper, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Inputs, as a record keeps them, with their folders."""
    return [{**item, "path": str(keeper.home.models / item["name"])} for item in inputs]


def input_problem(target: Target) -> tuple[str, str]:
    """Why this recipe cannot train this base, and what to do; ("", "") when it can."""
    lora = target.recipe.lora
    if lora is None:
        return "", ""
    try:
        asked = AdapterConfig.from_recipe(lora.model_dump())
        if adapter_base(target.base.record.get("inputs") or ()) is not None:
            there = AdapterConfig.from_recipe(target.base.record["recipe"]["lora"])
            require_continuable(asked, there, target.base.name)
    except HeirloomError as error:
        return error.message, str(error.hint or "")
    return "", ""
