"""Proof of training (law 6): did the child really do what the plan says? Exit code 0 alone proves nothing.

Pure: the plan as frozen in the ledger, the child's result, and the hashes that the caller took itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from guard.checks.verdict import Check, Verdict, verdict_of
from guard.weights import ADAPTER, ADAPTER_NOTE, ADAPTER_SETTINGS, FULL, adapter_base, input_identity

__all__ = ["prove"]


def prove(
    plan: Mapping[str, Any], result: Mapping[str, Any], found: Mapping[str, str], left: str | None = None
) -> Verdict:
    """Judge a finished child. `found` maps each file of the future version to the SHA-256 just read from disk; `left` is
    the hash of the planned ids without those of the steps the child says it skipped, from the frozen list itself."""
    training = plan["task"] == "train"
    questions = [
        ("files", lambda: _files(plan, result, found)),
        ("weights finite", lambda: _true("weights finite", result["finite"], "a weight is NaN or infinite")),
    ]
    if training:
        questions += [
            ("steps", lambda: _equal("steps", plan["steps"] - len(_skipped(result)), result["steps_executed"], at_least=1)),
            ("skipped steps", lambda: _allowed(plan, result)),
            ("examples", lambda: _equal("examples", left if _skipped(result) else plan["consumed_sha256"],
                                        result["consumed_sha256"])),
            ("base weights", lambda: _equal("base weights", plan["base"]["weights_sha256"],
                                            result["parent_weights_sha256"])),
            ("inputs", lambda: _inputs(plan, result)),
            ("optimizer", lambda: _optimizer(plan, result, found)),
            ("weights changed", lambda: _changed(result)),
            ("loss", lambda: _true("loss", math.isfinite(float(result["final_loss"])), "the final loss is not finite")),
        ]  # fmt: skip
    return verdict_of(questions)


def _true(name: str, value: object, problem: str) -> Check:
    return Check(name, True, "yes") if value is True else Check(name, False, problem, "the child is not published")


def _equal(name: str, planned: object, done: object, at_least: int | None = None) -> Check:
    if at_least is not None and (not isinstance(done, int) or done < at_least):
        return Check(name, False, f"{done} executed: nothing was trained", "the child is not published")
    if planned is None or planned != done:
        return Check(name, False, f"planned {planned}, done {done}", "the child is not published")
    return Check(name, True, f"{done}")


def _skipped(result: Mapping[str, Any]) -> list[int]:
    """Steps (from 1) that were passed over; a child of an earlier release skipped none."""
    return list(result.get("steps_skipped") or ())


def _allowed(plan: Mapping[str, Any], result: Mapping[str, Any]) -> Check:
    """Only a recipe lets steps be skipped, each once, each for a finding that is told, and no more than it says."""
    steps = _skipped(result)
    if not steps:
        return Check("skipped steps", None, "none")
    training = plan["recipe"]["training"]
    told = sorted(step for item in result["anomalies"] for step in item["skipped"])
    most = int(training.get("max_skipped_steps", 0)) if training.get("on_anomaly") == "skip" else 0
    sound = steps == sorted(set(steps)) == told and all(1 <= step <= plan["steps"] for step in steps)
    if not sound or len(steps) > most:
        return Check("skipped steps", False, f"{steps} were skipped; {most} may be, each for an anomaly that is told",
                     "the child is not published")  # fmt: skip
    return Check("skipped steps", True, f"{len(steps)} of {plan['steps']} for an anomaly", warning=True)


def _optimizer(plan: Mapping[str, Any], result: Mapping[str, Any], found: Mapping[str, str]) -> Check:
    """It started from the optimiser state the plan names, or from none; and kept its own where the recipe asks for that."""
    sealed = bool(plan["recipe"]["training"].get("seal_optimizer"))
    if sealed != ("optimizer.safetensors" in found):
        return Check("optimizer", False, "its state was to be kept and is missing" if sealed else "its state was not to be kept",
                     "the child is not published")  # fmt: skip
    planned, done = plan["base"].get("optimizer_sha256"), result.get("parent_optimizer_sha256")
    if planned != done:
        return Check("optimizer", False, f"planned to start from {planned or 'none'}, started from {done or 'none'}",
                     "the child is not published")  # fmt: skip
    return Check("optimizer", True, "the parent's" if planned else "fresh")


def _changed(result: Mapping[str, Any]) -> Check:
    same = result["weights_sha256"] == result["parent_weights_sha256"] or result["weights_changed"] is not True
    if same:
        return Check("weights changed", False, "the weights are the parent's: nothing was learnt",
                     "the child is not published")  # fmt: skip
    return Check("weights changed", True, result["weights_sha256"][:12])


def _inputs(plan: Mapping[str, Any], result: Mapping[str, Any]) -> Check:
    """What else was to be loaded, by role, name and the hash that the child took itself."""
    planned, done = input_identity(plan.get("inputs") or ()), input_identity(result.get("inputs") or ())
    if planned != done:
        wrong = next(item for item in [*planned, *done] if item not in planned or item not in done)
        return Check("inputs", False, f"the {wrong['role'].replace('_', ' ')} {wrong['name']} ({wrong['sha256'][:12]}) was"
                     f" {'not loaded' if wrong in planned else 'not planned'}", "the child is not published")  # fmt: skip
    return Check("inputs", True, ", ".join(item["name"] for item in planned) or "none")


def _files(plan: Mapping[str, Any], result: Mapping[str, Any], found: Mapping[str, str]) -> Check:
    promised = result["files"]
    is_adapter = adapter_base(plan.get("inputs") or ()) is not None
    weights, other = (ADAPTER, FULL) if is_adapter else (FULL, ADAPTER)
    settings = (ADAPTER_SETTINGS, ADAPTER_NOTE) if is_adapter else ("config.json",)
    missing = [name for name in (weights, *settings) if name not in found]
    if missing:
        return Check("files", False, f"{' and '.join(missing)} missing", "the child is not published")
    if other in found:
        return Check("files", False, f"{other} is there and was not planned", "the child is not published")
    wrong = sorted(name for name in set(promised) | set(found) if promised.get(name) != found.get(name))
    if wrong:
        return Check("files", False, f"not as the child wrote them: {', '.join(wrong[:5])}", "check the disk")
    if result["weights_sha256"] != found[weights]:
        return Check("files", False, f"{weights} is not the file the child hashed", "check the disk")
    return Check("files", True, f"{len(found)} files re-read and equal")
