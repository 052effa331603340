"""Targets: which version a job forks, with which recipe, on which files.

Answered from the ledger and the home's configs at the moment of asking; a plan freezes the answer. Not here: what the
checks need to know (`facts.py`), the frozen plan itself (`planning.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guard.errors import NotFound, UsageError
from guard.store.files import StoredFile, get_file
from guard.store.jobs import Job
from guard.store.keeper import Keeper
from guard.store.versions import Version, line_tip, version_by_id
from guard.weights import adapter_base
from trainer.machine import machine_here
from trainer.model_config import ModelConfig
from trainer.numbers import Numbers, resolve_numbers
from trainer.recipe import PACKINGS, Recipe, parse_sealed, resolve
from trainer.recipe_files import find_recipe, load_recipe

__all__ = ["Target", "asked_packing", "base_of", "fork_recipe", "numbers_of", "recipe_for", "shape_of", "target_of"]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What a job is about to train on what."""

    job: Job
    base: Version
    recipe: Recipe
    files: tuple[StoredFile, ...]


def base_of(keeper: Keeper, job: Job) -> Version:
    """The version a job forks: the one that was named, or the tip of its line now. Raises NotFound."""
    if job.base_id is not None:
        return version_by_id(keeper.ledger, job.base_id)
    tip = line_tip(keeper.ledger, job.line)
    if tip is None and job.request.get("grown_from") is not None:
        return version_by_id(keeper.ledger, int(job.request["grown_from"]))  # a regrown line before its first version
    if tip is None:
        raise NotFound(f"the line {job.line} has no version yet", subject=job.line,
                       hint="heirloom plan --base VERSION --line NAME starts one")  # fmt: skip
    return tip


def recipe_for(keeper: Keeper, stage: str, named: str, base: Version, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe a person named, else the one of the base's size in the home's configs; with overrides applied."""
    roots = [keeper.home.configs]
    if named:
        recipe = load_recipe(find_recipe(named, roots, stage), stage)
    else:
        size = str(base.record.get("size") or "small")
        try:
            recipe = load_recipe(find_recipe(size, roots, stage))
        except NotFound:
            recipe = load_recipe(find_recipe("small", roots, stage))
    if recipe.stage != stage:
        raise UsageError(f"the recipe {named} is for {recipe.stage}, the data is {stage}", subject=named,
                         hint=f"name a recipe that says `stage: {stage}`, as those of configs/{stage}/ do")  # fmt: skip
    return resolve(recipe, overrides) if overrides else recipe


def asked_packing(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a job's request has to say when a person asked for a packing; {} when nobody did. Raises UsageError."""
    packing = arguments.get("packing")
    if packing is None:
        return {}
    if packing not in PACKINGS:
        raise UsageError(f"--packing {packing}: there is no such packing", subject="packing",
                         hint=f"one of {', '.join(PACKINGS)}")  # fmt: skip
    return {"overrides": {"training": {"packing": packing}}}


def fork_recipe(recipe: Recipe) -> Recipe:
    """A recipe without its model section: a fork has the shape of its parent, whatever the file describes."""
    return recipe.model_copy(update={"model": None})


def target_of(keeper: Keeper, job: Job) -> Target:
    """Everything a job is about. Raises NotFound when a file or the base is not known any more."""
    files = []
    for sha256 in job.files:
        file = get_file(keeper.ledger, sha256)
        if file is None:
            raise NotFound(f"the file {sha256[:12]} of job {job.id} is not known any more", subject=sha256,
                           hint="drop it again")  # fmt: skip
        files.append(file)
    base = base_of(keeper, job)
    sealed = job.request.get("sealed_recipe")
    recipe = parse_sealed(sealed) if sealed else recipe_for(
        keeper, job.stage, str(job.request.get("recipe") or ""), base, job.request.get("overrides") or {})  # fmt: skip
    return Target(job, base, fork_recipe(recipe), tuple(files))


def shape_of(keeper: Keeper, base: Version) -> ModelConfig:
    """The shape of a sealed version, from its config.json; of an adapter, its base's. Raises NotFound when it is not there."""
    under = adapter_base(base.record.get("inputs") or ())
    name = base.name if under is None else str(under["name"])
    try:
        return ModelConfig.from_hf(json.loads((keeper.home.models / name / "config.json").read_text("utf-8")))
    except FileNotFoundError:
        of = f" ({base.name} is an adapter of it)" if under else ""
        raise NotFound(f"{name} is not whole in models/{of}", subject=name, hint=f"heirloom restore {name}") from None


def numbers_of(keeper: Keeper, target: Target, *, tokens: int = 0) -> Numbers:
    """Threads, dtype, micro-batch, compiling and device of a job of so many input tokens. Raises EnvironmentFault when
    `configs/machine.yaml` is not what a probe writes."""
    return resolve_numbers(target.recipe.as_dict(), keeper.settings, shape_of(keeper, target.base), tokens=tokens,
                           machine=machine_here(keeper.home.configs))  # fmt: skip
