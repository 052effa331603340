"""The parent's losses: taken from its own sealed record where nothing has changed since, and else measured.

Not here: what the gate makes of them (`test_guard_gate.py`), nor the note of an interrupted run (`test_trainer_loop.py`).
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import trainer_help

from guard.durable import sha256_file
from trainer.hardware import hardware_facts, library_versions
from trainer.judged import sealed_losses
from trainer.surroundings import besides, surroundings
from trainer.train_job import run_base, run_train

ROW = {"name": "a held out", "role": "new_held_out", "split": "val", "stage": "pretrain", "parent_loss": 9.5, "child_loss": 9.25,
       "tokens": 40, "loss_tokens": 39}  # fmt: skip


def record(weights: str, *rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"library_versions": library_versions(), "code_version": version("heirloom"),
            "hardware": hardware_facts() | {"cores": 999}, "surroundings": besides(surroundings()),
            "files": {"model.safetensors": weights}, "metrics": {"evaluation": list(rows)}, **changes}  # fmt: skip


def sealed(folder: Path, told: dict[str, Any], weights: str = "aa") -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "version.json").write_text(json.dumps(told))
    return sealed_losses(folder, weights)


def test_a_version_s_own_record_is_taken_on_the_machine_it_was_measured_on(tmp_path: Path) -> None:
    row = {**ROW, "dataset": "d1", "examples": 3}
    lost = {**row, "dataset": "d2", "child_loss": None}
    assert sealed(tmp_path / "v", record("aa", row, lost)) == {
        ("d1", "val", "pretrain"): {"loss": 9.25, "tokens": 40, "loss_tokens": 39, "examples": 3}}  # fmt: skip
    compiled = record("aa", row, surroundings={**besides(surroundings()), "compiler": {"c++": "g++ 12"}})
    assert sealed(tmp_path / "v", compiled), "judging is never compiled"
    assert sealed_losses(tmp_path / "none", "aa") == {}, "a base from elsewhere has no record"


@pytest.mark.parametrize("changes", [
    {"library_versions": {**library_versions(), "torch": "1.0"}}, {"hardware": {**hardware_facts(), "cpu": "Toy 9000"}},
    {"hardware": {**hardware_facts(), "cpu_flags": []}}, {"surroundings": {}}, {"files": {"model.safetensors": "bb"}},
    {"code_version": "0.0.0"},
    {"surroundings": {**besides(surroundings()), "kernels": "DEFAULT"}}, {"metrics": {}},
])  # fmt: skip
def test_of_another_machine_or_other_weights_nothing_is_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert sealed(tmp_path / "v", record("aa", {**ROW, "dataset": "d1", "examples": 3}, **changes)) == {}


def test_what_was_sealed_on_as_many_examples_is_not_measured_again(tmp_path: Path) -> None:
    run_base(trainer_help.base_job(tmp_path / "base"))
    base, data = tmp_path / "base" / "out", trainer_help.make_dataset(tmp_path / "data", "sft")
    parents = {}
    for more in (0, 1):
        row = {**ROW, "dataset": data.folder.name, "stage": "sft", "examples": data.val.count + more}
        (base / "version.json").write_text(json.dumps(record(sha256_file(base / "model.safetensors"), row)))
        found = run_train(trainer_help.train_job(tmp_path / f"job{more}", base, data, steps=1))["evaluation"][0]
        parents[more] = found["parent_loss"]
        assert 4.0 < found["child_loss"] < 7.0
    assert parents[0] == 9.25 and 4.0 < parents[1] < 7.0
