"""Proof of training: one missing or wrong fact about a finished child, and it is not published."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from guard.checks.proof import prove

PLAN: dict[str, Any] = {"task": "train", "steps": 10, "consumed_sha256": "c0ffee", "base": {"weights_sha256": "old"},
                        "recipe": {"training": {}}}  # fmt: skip
RESULT: dict[str, Any] = {
    "steps_executed": 10, "consumed_sha256": "c0ffee", "parent_weights_sha256": "old", "weights_sha256": "new",
    "weights_changed": True, "finite": True, "final_loss": 2.5, "files": {"model.safetensors": "new", "config.json": "cc"},
}  # fmt: skip
FOUND = {"model.safetensors": "new", "config.json": "cc"}


def failing(change: Callable[[dict[str, Any], dict[str, Any], dict[str, str]], object]) -> list[str]:
    plan, result, found = copy.deepcopy(PLAN), copy.deepcopy(RESULT), dict(FOUND)
    change(plan, result, found)
    verdict = prove(plan, result, found)
    assert verdict.ok == (not verdict.failures)
    return [check.name for check in verdict.failures]


def test_a_child_that_did_what_was_planned_is_proven() -> None:
    assert failing(lambda plan, result, found: None) == []


def test_steps_may_be_skipped_only_by_the_recipe_s_word_and_only_from_the_planned_list() -> None:
    plan, result = copy.deepcopy(PLAN), copy.deepcopy(RESULT)
    result |= {"steps_executed": 9, "steps_skipped": [3], "anomalies": [{"skipped": [3]}], "consumed_sha256": "less"}
    assert [check.name for check in prove(plan, result, FOUND, "less").failures] == ["skipped steps"]
    plan["recipe"]["training"] = {"on_anomaly": "skip", "max_skipped_steps": 1}
    assert prove(plan, result, FOUND, "less").ok
    assert [check.name for check in prove(plan, result, FOUND, "other").failures] == ["examples"]
    assert [check.name for check in prove(plan, result, FOUND).failures] == ["examples"], "nobody reckoned what is left"
    result["steps_skipped"] = [11]
    assert [check.name for check in prove(plan, result, FOUND, "less").failures] == ["skipped steps"]


def both(result: dict[str, Any], found: dict[str, str], digest: str) -> None:
    result["weights_sha256"] = result["files"]["model.safetensors"] = found["model.safetensors"] = digest


@pytest.mark.parametrize("name, change", [
    ("steps", lambda p, r, f: r.update(steps_executed=0)),
    ("steps", lambda p, r, f: (p.update(steps=0), r.update(steps_executed=0))),
    ("steps", lambda p, r, f: r.update(steps_executed=9)),
    ("steps", lambda p, r, f: r.update(steps_executed=11)),
    ("steps", lambda p, r, f: r.update(steps_executed="10")),
    ("steps", lambda p, r, f: r.update(steps_executed=None)),
    ("examples", lambda p, r, f: r.update(consumed_sha256="other")),
    ("examples", lambda p, r, f: (p.update(consumed_sha256=None), r.update(consumed_sha256=None))),
    ("base weights", lambda p, r, f: r.update(parent_weights_sha256="another parent")),
    ("base weights", lambda p, r, f: (p["base"].update(weights_sha256=None), r.update(parent_weights_sha256=None))),
    ("weights changed", lambda p, r, f: both(r, f, "old")),
    ("weights changed", lambda p, r, f: r.update(weights_changed=False)),
    ("weights changed", lambda p, r, f: r.update(weights_changed="yes")),
    ("weights finite", lambda p, r, f: r.update(finite=False)),
    ("weights finite", lambda p, r, f: r.update(finite=1)),
    ("weights finite", lambda p, r, f: r.update(finite=None)),
    ("loss", lambda p, r, f: r.update(final_loss=float("nan"))),
    ("loss", lambda p, r, f: r.update(final_loss=float("inf"))),
    ("loss", lambda p, r, f: r.update(final_loss=None)),
    ("optimizer", lambda p, r, f: p["base"].update(optimizer_sha256="the parent's")),
    ("optimizer", lambda p, r, f: r.update(parent_optimizer_sha256="one nobody planned")),
    ("optimizer", lambda p, r, f: p["recipe"]["training"].update(seal_optimizer=True)),
    ("files", lambda p, r, f: f.update({"config.json": "changed"})),
    ("files", lambda p, r, f: f.update({"model.safetensors": "changed"})),
    ("files", lambda p, r, f: f.update({"extra.py": "ee"})),
    ("files", lambda p, r, f: f.pop("config.json")),
    ("files", lambda p, r, f: (f.pop("config.json"), r["files"].pop("config.json"))),
    ("files", lambda p, r, f: (f.pop("model.safetensors"), r["files"].pop("model.safetensors"))),
    ("files", lambda p, r, f: r["files"].update({"tokenizer.json": "tt"})),
    ("files", lambda p, r, f: r.update(weights_sha256="something else")),
])  # fmt: skip
def test_each_missing_proof_is_refused_alone(name: str, change: Callable[..., object]) -> None:
    assert failing(change) == [name]


@pytest.mark.parametrize("key", sorted(RESULT))
def test_a_result_without_a_figure_is_refused(key: str) -> None:
    assert failing(lambda plan, result, found: result.pop(key))


@pytest.mark.parametrize("key", ["steps", "consumed_sha256", "base"])
def test_a_plan_without_a_figure_is_refused(key: str) -> None:
    assert failing(lambda plan, result, found: plan.pop(key))


BASE = {"role": "adapter_base", "name": "v001_base", "sha256": "old"}
ADAPTER_FILES = {"adapter_model.safetensors": "new", "adapter_config.json": "ac", "adapter_base.json": "ab"}


def adapted(plan: dict[str, Any], result: dict[str, Any], found: dict[str, str]) -> None:
    """The same child as an adapter."""
    plan["inputs"], result["inputs"] = [{**BASE, "path": "/home/models/v001_base"}], [dict(BASE)]
    result["files"] = dict(ADAPTER_FILES)
    found.clear()
    found.update(ADAPTER_FILES)


@pytest.mark.parametrize("name, change", [
    ("", lambda p, r, f: None),
    ("inputs", lambda p, r, f: r.update(inputs=[])),
    ("inputs", lambda p, r, f: r.pop("inputs")),
    ("inputs", lambda p, r, f: r.update(inputs=[{**BASE, "sha256": "another base"}])),
    ("inputs", lambda p, r, f: r.update(inputs=[BASE, {**BASE, "role": "reference"}])),
    ("files", lambda p, r, f: (f.pop("adapter_base.json"), r["files"].pop("adapter_base.json"))),
    ("files", lambda p, r, f: (f.pop("adapter_model.safetensors"), r["files"].pop("adapter_model.safetensors"))),
    ("files", lambda p, r, f: (f.update({"model.safetensors": "x"}), r["files"].update({"model.safetensors": "x"}))),
    ("files", lambda p, r, f: r.update(weights_sha256="something else")),
])  # fmt: skip
def test_an_adapter_is_proven_with_its_base(name: str, change: Callable[..., object]) -> None:
    assert failing(lambda p, r, f: (adapted(p, r, f), change(p, r, f))) == ([name] if name else [])


def test_an_adapter_where_full_weights_were_planned_is_refused() -> None:
    def change(plan: dict[str, Any], result: dict[str, Any], found: dict[str, str]) -> None:
        adapted(plan, result, found)
        plan["inputs"], result["inputs"] = [], []

    assert failing(change) == ["files"]


def test_an_empty_answer_proves_nothing() -> None:
    assert len(prove(PLAN, {}, FOUND).failures) == 7


def test_a_base_has_no_steps_but_its_files_and_weights_are_proven() -> None:
    result = {key: RESULT[key] for key in ("files", "weights_sha256", "finite")}
    assert prove({"task": "base"}, result, FOUND).ok
    assert not prove({"task": "base"}, {**result, "finite": False}, FOUND).ok
    assert not prove({"task": "base"}, result, {**FOUND, "config.json": "x"}).ok
