"""The contract of objectives, kept by one that is more than next-token: pairs, a frozen reference, metrics, own parameters.

The objective of pairs is the one that docs/OBJECTIVES.md spells out; here it is taken from there and really trained.
"""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainer_help
from trainer_help import ROOT, steps_logged

from guard.durable import sha256_file
from guard.errors import Damage, UsageError
from guard.weights import FULL
from trainer import objectives, train_job
from trainer.batches import Feed, pad
from trainer.dataset import LENGTH, START, open_dataset
from trainer.device import fitting_micro
from trainer.extra import EXTRA
from trainer.loop import StopRequested
from trainer.loss import next_token_loss
from trainer.model import new_model
from trainer.model_config import ModelConfig
from trainer.objectives import About, about, bind, find_objective
from trainer.row_losses import row_losses
from trainer.selection import Selection
from trainer.train_job import run_base, run_train
from trainer.version_files import load_version


def documented(name: str) -> str:
    """A code block of the page, by the word behind its language."""
    text = (ROOT / "docs" / "OBJECTIVES.md").read_text("utf-8")
    (block,) = re.findall(rf"^```python {name}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return block


def install(monkeypatch: pytest.MonkeyPatch, name: str, entry: About, code: str = "", **offers: Any) -> types.ModuleType:
    """Put an objective where a new one would stand."""
    module = types.ModuleType(f"trainer.objectives.{name}")
    exec(compile(code, f"{name}.py", "exec"), vars(module))
    vars(module).update(offers)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(objectives.OBJECTIVES, name, entry)
    return module


@pytest.fixture
def margin(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    entry = eval(documented("table"), {"About": About})
    return install(monkeypatch, "margin", entry, documented("module"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("objectives")
    run_base(trainer_help.base_job(root / "base"))
    trainer_help.make_dataset(root / "chat", "sft")
    return root


def pairs_of(folder: Path) -> Selection:
    """Every two neighbouring conversations as one example: the first is chosen, the second rejected."""
    dataset = open_dataset(folder)
    table = np.asarray(dataset.train.examples)
    count = len(table) // 2
    ranges = np.stack([np.zeros(2 * count, dtype=np.int64), table[: 2 * count, START], table[: 2 * count, LENGTH]], axis=1)
    number = np.arange(count, dtype=np.int64)
    return Selection(
        datasets=(str(folder),), dataset_ids=(dataset.id,), ranges=ranges,
        sequences=np.stack([2 * number, 2 * number + 2], axis=1),
        replay=np.zeros(count, dtype=bool), documents=np.tile(np.array([0, 1], dtype=np.int64), count),
        examples=np.stack([number * 0, number, ranges[0::2, 2]], axis=1), touches=np.stack([number, number], axis=1),
    )  # fmt: skip


def pair_job(home: Path, name: str, objective: str = "margin", **changes: Any) -> dict[str, Any]:
    staging, base = home / name, home / "base" / "out"
    staging.mkdir()
    selection, steps = pairs_of(home / "chat" / "shards"), changes.pop("steps", 10)
    training = {**trainer_help.TRAINING, "batch_sequences": 6, "learning_rate": 0.003}
    return trainer_help.write_job(staging, {
        "task": "train", "stage": "sft", "objective": objective, "base": {"name": "base", "path": str(base)},
        "recipe": {"name": "tiny", "stage": "sft", "training": training, "use_loss_mask": True},
        "inputs": [{"role": "reference", "name": "base", "path": str(base), "sha256": sha256_file(base / FULL)}],
        "steps": steps, "selection_sha256": selection.save(staging), "consumed_sha256": selection.consumed_hash(1337, steps, 6),
        "dataset": {"id": "x", "path": str(home / "chat" / "shards")}, "evaluation": [],
        "snapshot": {"every_steps": 0, "every_seconds": 0}, "micro_sequences": 3, **changes})  # fmt: skip


def metrics_of(home: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]


def test_the_objective_of_the_page_trains(home: Path, margin: types.ModuleType) -> None:
    result = run_train(pair_job(home, "trained"))
    rows = metrics_of(home, "trained")
    assert rows[0]["loss"] == pytest.approx(5.0) and rows[0]["lead"] == 0.0, "it starts at the reference itself"
    assert rows[-1]["loss"] < 4.0 and rows[-1]["lead"] > 1.0 and rows[-1]["won"] > 0.6
    assert result["inputs"][0]["role"] == "reference" and result["weights_changed"] is True
    assert "extra.safetensors" not in result["files"]


def test_a_stopped_run_of_pairs_ends_in_the_same_bytes(home: Path, margin: types.ModuleType) -> None:
    whole = run_train(pair_job(home, "whole"))
    job = pair_job(home, "stopped")
    with pytest.raises(StopRequested):
        run_train(job, stop=lambda: steps_logged(home / "stopped") >= 4)
    assert run_train(job)["weights_sha256"] == whole["weights_sha256"]
    assert [row["lead"] for row in metrics_of(home, "stopped")] == [row["lead"] for row in metrics_of(home, "whole")]


def test_pairs_are_never_divided_and_count_once_each(home: Path, margin: types.ModuleType) -> None:
    selection = pairs_of(home / "chat" / "shards")
    for micro in (1, 2, 3, 6):
        feed = Feed(selection, margin, seed=1, batch_sequences=6, micro_sequences=micro, use_mask=True)
        batch = feed.step(0)
        assert batch.weight == 6.0 and len(batch.micro_batches) == -(-6 // micro)
        for part in batch.micro_batches:
            assert part.groups is not None and part.documents is None
            assert part.groups.tolist() == [number for number in range(len(part.inputs) // 2) for _ in range(2)]
    weights = []
    for micro in (1, 6):
        run_train(pair_job(home, f"micro{micro}", micro_sequences=micro, steps=3))
        weights.append(load_version(home / f"micro{micro}" / "out")[0].head_weight)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=2e-5)


def test_adapters_train_with_any_objective(home: Path, margin: types.ModuleType) -> None:
    job = pair_job(home, "lora")
    job["recipe"]["lora"] = {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"]}
    job["inputs"].insert(0, {**job["inputs"][0], "role": "adapter_base"})
    result = run_train(job)
    assert [item["role"] for item in result["inputs"]] == ["adapter_base", "reference"]
    assert "adapter_model.safetensors" in result["files"] and metrics_of(home, "lora")[-1]["lead"] > 0.0


def test_the_models_it_looks_at_lie_where_the_job_computes_and_the_trial_of_memory_counts_them(
    home: Path, margin: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[tuple[Any, str]] = []
    looked_at: list[Any] = []
    really = margin.loss
    monkeypatch.setattr(margin, "loss", lambda model, batch, dtype, frozen: (
        looked_at.append(frozen["reference"]), really(model, batch, dtype, frozen))[1])  # fmt: skip
    monkeypatch.setattr(train_job, "move_model", lambda model, device: placed.append((model, device)))
    run_train(pair_job(home, "placed", steps=1))
    assert len(placed) == 3 and placed[1] == (looked_at[0], "cpu"), "student, reference; and the student back again"
    micro = fitting_micro(home / "base" / "out", "margin", trainer_help.TRAINING, "float32", "cpu", 2)
    assert micro == 2 and looked_at[-1] is not looked_at[0]


def test_another_reference_than_the_planned_one_is_refused(home: Path, margin: types.ModuleType) -> None:
    job = pair_job(home, "other")
    job["inputs"][0]["sha256"] = "0" * 64
    with pytest.raises(Damage, match="reference base is not the one that was planned"):
        run_train(job)
    job["inputs"] = []
    with pytest.raises(UsageError, match="looks at reference, the job has none"):
        run_train(job)


def _reward_loss(model: Any, batch: Any, dtype: Any) -> Any:
    """Bradley-Terry on the last hidden state, as a reward model would have it."""
    last = batch.weights.shape[1] - 1 - batch.weights.flip(1).argmax(1)
    hidden = model(batch.inputs)[torch.arange(len(last)), last].float()
    reward = hidden @ model.extra["head"]
    return torch.nn.functional.softplus(reward[1::2] - reward[0::2]).sum()


def test_parameters_of_an_objective_are_trained_sealed_and_inherited(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install(monkeypatch, "toy_reward", About("sft", role="reward", replay=False),
                     "import torch\n" + documented("extend"), GROUPED=True, weight=lambda rows: 1.0,
                     rows=find_objective("sft").rows, loss=_reward_loss)  # fmt: skip
    job = pair_job(home, "reward", "toy_reward", inputs=[])
    with pytest.raises(StopRequested):
        run_train(job, stop=lambda: steps_logged(home / "reward") >= 4)
    run_train(job)
    out = home / "reward" / "out"
    assert run_train(pair_job(home, "reward2", "toy_reward", inputs=[]))["files"][EXTRA] == sha256_file(out / EXTRA)
    assert metrics_of(home, "reward")[-1]["loss"] < metrics_of(home, "reward")[0]["loss"]
    plain, _tokenizer = load_version(out)
    assert not hasattr(plain, "extra") and plain.config.layers == 2, "the model itself loads as any other"
    # A child begins with its parent's head, and whoever looks at the model has it too.
    job = pair_job(home, "child", "toy_reward", inputs=[], steps=1)
    job["base"]["path"] = str(out)
    monkeypatch.setattr(module, "loss", lambda model, batch, dtype: model.extra["head"].sum())
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(module, "loss", lambda model, batch, dtype: (
        seen.append(model.extra["head"].detach().clone()), _reward_loss(model, batch, dtype))[1])  # fmt: skip
    run_train(job)
    from safetensors.torch import load_file

    assert torch.equal(seen[0], load_file(out / EXTRA)["head"])
    wrong = pair_job(home, "wrong", "toy_reward", inputs=[])
    wrong["base"]["path"] = str(out)
    monkeypatch.setattr(module, "extend", lambda model, seed: setattr(
        model, "extra", torch.nn.ParameterDict({"other": torch.nn.Parameter(torch.zeros(2))})))  # fmt: skip
    with pytest.raises(Damage, match="holds head, the objective asks for other"):
        run_train(wrong)


def test_the_losses_of_rows_add_up_to_the_loss_of_the_batch() -> None:
    model = new_model(ModelConfig.from_recipe(trainer_help.SHAPE), 1)
    dice = np.random.default_rng(1)
    rows = []
    for length in (5, 9, 17):
        ids = dice.integers(0, 300, length)
        rows.append((ids[:-1], ids[1:], (dice.random(length - 1) < 0.7).astype(np.float32)))
    batch = pad(rows)
    each = row_losses(model, batch, torch.float32)
    assert each.shape == (3,) and each.dtype is torch.float32
    torch.testing.assert_close(each.sum(), next_token_loss(model, batch, torch.float32), rtol=1e-5, atol=1e-5)
    alone = [next_token_loss(model, pad([row]), torch.float32) for row in rows]
    torch.testing.assert_close(each, torch.stack(alone), rtol=1e-5, atol=1e-5)


def test_an_unknown_objective_is_told_with_the_known_ones() -> None:
    for ask in (about, find_objective, lambda name: bind(name, {})):
        with pytest.raises(UsageError, match="unknown objective 'dpo'") as refused:
            ask("dpo")
        assert "pretrain, sft" in str(refused.value.hint)
    assert bind("sft", {}) is find_objective("sft"), "without other models the module itself is what is called"
