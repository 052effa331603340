"""A plan that a person asked for: which line it goes on with, how it is judged, and how it is queued.

Not here: the words on the screen (`daemon/cli/plans.py`), advice on numbers (`daemon/plan_advice.py`), nor what the runner
makes of a queued job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.costs import estimate
from daemon.engine import Engine
from daemon.facts import fact_steps
from daemon.plan_advice import plan_warnings
from daemon.targets import Target, asked_packing, fork_recipe, recipe_for, shape_of
from guard.checks.kinds import registered_reason, stage_of
from guard.checks.preflight import preflight
from guard.errors import CheckFailed, Duplicate, UsageError
from guard.names import slugify, split_output
from guard.steps import Steps
from guard.store.files import StoredFile, find_file
from guard.store.jobs import Job, add_job, queued_with_file
from guard.store.keeper import Keeper
from guard.store.versions import Version, line_tip, named_version, tips

__all__ = ["plan"]


def _line_of_plan(keeper: Keeper, base: Version, asked: str | None, slug: str) -> str:
    """A plan on a tip goes on with its line; on anything else it gets a line of its own."""
    active: dict[int, str] = {}
    for name, version in tips(keeper.ledger).items():
        if version.id not in active or name in (version.line, "policy"):
            active[version.id] = name
    if asked:
        tip = line_tip(keeper.ledger, asked)
        if tip is not None and tip.id != base.id:
            raise CheckFailed(f"the tip of {asked} is {tip.name}, not {base.name}", subject=asked,
                              hint=f"--base {tip.name}, or another --line")  # fmt: skip
        return slugify(asked)
    if base.id in active:
        return active[base.id]
    free, number = slug, 1
    while line_tip(keeper.ledger, free) is not None:
        number += 1
        free = f"{slug}_{number}"
    return free


def _one_stage(files: list[StoredFile]) -> str:
    stages = {stage_of(file.kind) for file in files}
    if not files or len(stages) > 1 or not all(stages):
        shown = ", ".join(f"{file.name} ({file.kind})" for file in files) or "nothing"
        kept = next((reason for file in files if (reason := registered_reason(file.kind))), "")
        raise UsageError(f"one plan trains files of one stage, pretrain or sft; given: {shown}",
                         hint=kept or "plan each kind by itself")  # fmt: skip
    return stages.pop()


def plan(engine: Engine, arguments: Mapping[str, Any]) -> Steps[dict[str, Any]]:
    """Judge a plan and, unless `dry_run`, queue it. Nothing is queued while a check fails."""
    keeper = engine.keeper
    base = named_version(keeper.ledger, str(arguments["base"]))
    files = [find_file(keeper.ledger, str(item)) for item in arguments["files"]]
    stage = _one_stage(files)
    wanted, slug = split_output(str(arguments["output"]))
    line = _line_of_plan(keeper, base, arguments.get("line"), slug)
    request = {key: arguments[key] for key in ("allow_repeat", "iterations") if arguments.get(key)}
    request |= {"recipe": str(arguments.get("recipe") or ""), "origin": "plan", **asked_packing(arguments)}
    draft = Job(0, "train", "planned", 0, stage, line, base.id, slug, wanted, None, request, {}, "", 0, 0, "", "",
                tuple(file.sha256 for file in files))  # fmt: skip
    recipe = recipe_for(keeper, stage, request["recipe"], base, request.get("overrides") or {})
    target = Target(draft, base, fork_recipe(recipe), tuple(files))
    verdict = preflight((yield from fact_steps(keeper, target, wanted=wanted)))
    queued = [job for file in files if (job := queued_with_file(keeper.ledger, file.sha256)) is not None]
    result = {
        "base": base.name, "output": arguments["output"], "line": line, "recipe": recipe.name,
        "data": [{"file": file.name, "sha256": file.sha256, "examples": file.examples, "tokens": file.tokens_approx}
                 for file in files],
        "estimate": (cost := estimate(keeper, target)), "checks": verdict.as_list(), "ok": verdict.ok, "job": None,
        "warnings": plan_warnings(recipe, shape_of(keeper, base), int(cost["steps"]), named=bool(request["recipe"])),
    }  # fmt: skip
    if arguments.get("dry_run") or not verdict.ok:
        return result
    if queued and not arguments.get("allow_repeat"):
        raise Duplicate(f"these bytes are already in job {queued[0].id} ({queued[0].state})", subject=files[0].name,
                        hint=f"heirloom queue; heirloom queue cancel {queued[0].id}")  # fmt: skip
    with keeper.ledger.transaction():
        result["job"] = add_job(keeper.ledger, kind="train", stage=stage, line=line, slug=slug, wanted_id=wanted,
                                files=[file.sha256 for file in files], request=request, base_id=base.id)  # fmt: skip
    return result
