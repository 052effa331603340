"""What one version hands to the next: the optimiser's state, the schedule's rate, and figures of the gate in fp32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trainer_help

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from guard.durable import sha256_file  # noqa: E402
from guard.errors import Damage, UsageError  # noqa: E402
from trainer.estimate import estimate_job  # noqa: E402
from trainer.evaluate import evaluate  # noqa: E402
from trainer.loop import LoopPlan, StopRequested, _begin  # noqa: E402
from trainer.model_config import ModelConfig  # noqa: E402
from trainer.objectives import find_objective  # noqa: E402
from trainer.recipe import parse_recipe, parse_sealed, recipe_hash  # noqa: E402
from trainer.schedule import learning_rate  # noqa: E402
from trainer.stepper import Stepper  # noqa: E402
from trainer.train_job import run_base, run_train  # noqa: E402
from trainer.version_files import load_version  # noqa: E402

SHAPE = {**trainer_help.SHAPE, "layers": 1, "heads": 2, "kv_heads": 1, "width": 16, "hidden": 32}
SEALING = {"seal_optimizer": True}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    run_base(trainer_help.base_job(folder / "base", SHAPE))
    return folder


@pytest.fixture(scope="module")
def text(home: Path) -> Any:
    made = trainer_help.make_dataset(home / "text", amount=500)
    for split in (made.train, made.val):  # mapped now, and not by the first test that asks
        assert len(split.examples) == len(split.fingerprints) and (not split.count or len(split.tokens(0, 1)))
    return made


@pytest.fixture(scope="module")
def parent(home: Path, text: Any) -> dict[str, Any]:
    """The result of a version that sealed its optimiser."""
    return _child(home, text, "parent", "base", training=SEALING)


def _child(home: Path, text: Any, name: str, base: str, *, moments: bool = False, **changes: Any) -> dict[str, Any]:
    folder = home / base / "out"
    about = {"name": base, "path": str(folder)}
    if moments:
        about["optimizer_sha256"] = sha256_file(folder / "optimizer.safetensors")
    job = trainer_help.train_job(home / name, folder, text, steps=6, **changes)
    job["base"] = about
    (home / name / "job.json").write_text(json.dumps(job))
    return run_train(job)


def test_the_state_is_sealed_beside_the_weights_and_the_version_loads_as_before(home: Path, parent: dict[str, Any]) -> None:
    out = home / "parent" / "out"
    kept = load_file(out / "optimizer.safetensors")
    assert parent["files"]["optimizer.safetensors"] == sha256_file(out / "optimizer.safetensors")
    model, _tokenizer = load_version(out)
    assert set(kept) == {f"{name}.{part}" for name, _ in model.named_parameters() for part in ("step", "exp_avg", "exp_avg_sq")}
    assert all(float(value) == 6 for name, value in kept.items() if name.endswith(".step"))
    assert not (home / "parent" / "optimizer.safetensors").exists(), "moved, not copied"


def test_without_the_recipe_s_word_nothing_is_kept_and_a_child_starts_afresh(home: Path, text: Any) -> None:
    result = _child(home, text, "plain", "base")
    assert "optimizer.safetensors" not in result["files"] and result["parent_optimizer_sha256"] is None


def test_a_child_starts_from_its_parent_s_state_and_only_when_the_plan_names_it(
    home: Path, text: Any, parent: dict[str, Any]
) -> None:
    fresh = _child(home, text, "fresh", "parent", training=SEALING)
    carried = _child(home, text, "carried", "parent", moments=True, training=SEALING)
    assert carried["parent_optimizer_sha256"] == parent["files"]["optimizer.safetensors"]
    assert fresh["parent_optimizer_sha256"] is None and fresh["weights_sha256"] != carried["weights_sha256"]
    steps = {name: float(load_file(home / name / "out" / "optimizer.safetensors")["model.norm.weight.step"])
             for name in ("fresh", "carried")}  # fmt: skip
    assert steps == {"fresh": 6, "carried": 12}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_its_parent_s_state_a_child_starts_from_its_parent_s_very_weights(
    home: Path, parent: dict[str, Any], dtype: str
) -> None:
    """A working copy in bf16 has rounded ones."""
    folder = home / "parent" / "out"
    model = load_version(folder)[0]
    stepper = Stepper(model, find_objective("pretrain"), trainer_help.TRAINING, dtype)
    plan = LoopPlan(steps=1, training=trainer_help.TRAINING, dtype=dtype, staging=home, identity="",
                    moments=lambda: load_file(folder / "optimizer.safetensors"))  # fmt: skip
    _begin(stepper, plan, again=False)
    weights, moments = stepper.tensors()
    for name, tensor in load_version(folder)[0].named_parameters():
        assert torch.equal(weights[name], tensor), name
        assert float(moments[f"{name}.step"]) == 6


def test_a_step_skipped_in_a_bf16_run_with_its_parent_s_state_is_the_same_step_skipped_by_a_later_process(
    home: Path, text: Any, parent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going back to the beginning in the process that met the anomaly, and beginning with it known, end in the same bits."""
    training = {**SEALING, "on_anomaly": "skip", "max_skipped_steps": 1}
    really, met = Stepper.step, []

    def third_is_ruined(self: Stepper, batch: Any, rate: float, step: int, check: Any = None) -> tuple[float, float]:
        if step == 2:
            met.append(step)
            check("loss", float("nan"), step)
        return really(self, batch, rate, step, check)

    monkeypatch.setattr(Stepper, "step", third_is_ruined)
    told = _child(home, text, "went-back", "parent", moments=True, training=training, dtype="bfloat16")
    assert met == [2] and [item["skipped"] for item in told["anomalies"]] == [[3]]
    folder = home / "again"
    folder.mkdir()
    job = json.loads((home / "went-back" / "job.json").read_text()) | {"staging": str(folder)}
    for name in ("selection.json", "selection.npz", "anomalies.json"):
        (folder / name).write_bytes((home / "went-back" / name).read_bytes())
    assert run_train(job)["weights_sha256"] == told["weights_sha256"] and met == [2]


def test_stopped_and_resumed_both_weights_and_state_are_the_same(
    home: Path, text: Any, parent: dict[str, Any]
) -> None:
    whole = _child(home, text, "whole", "parent", moments=True, training=SEALING)
    job = json.loads((home / "whole" / "job.json").read_text()) | {"staging": str(home / "torn")}
    (home / "torn").mkdir()
    for name in ("selection.json", "selection.npz"):
        (home / "torn" / name).write_bytes((home / "whole" / name).read_bytes())
    with pytest.raises(StopRequested):
        run_train(job, stop=lambda: trainer_help.steps_logged(home / "torn") == 3)
    again = run_train(job)
    assert again["resumes"] == 1
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert again["files"][name] == whole["files"][name]


def test_a_state_that_is_not_the_planned_one_is_damage(home: Path, text: Any, parent: dict[str, Any]) -> None:
    job = trainer_help.train_job(home / "other", home / "parent" / "out", text, steps=2)
    job["base"]["optimizer_sha256"] = "0" * 64
    with pytest.raises(Damage, match="not the one that was planned"):
        run_train(job)


def test_the_estimate_counts_two_moments() -> None:
    shape = ModelConfig.from_recipe(SHAPE)
    figures = {"tokens": 10, "steps": 1, "micro_sequences": 1, "flags": [], "cores": 1}
    plain, sealing = (estimate_job(shape, **figures, seal_optimizer=wanted) for wanted in (False, True))  # type: ignore[arg-type]
    assert sealing.version_bytes - plain.version_bytes == 8 * shape.parameter_count()
    assert sealing.staging_bytes - plain.staging_bytes == 8 * shape.parameter_count()


# --- the recipe and the schedule -------------------------------------------------------------------------------------


def test_a_recipe_of_an_earlier_release_keeps_its_hash_and_its_ways() -> None:
    said = {"stage": "pretrain", "training": {"learning_rate": 0.001, "batch_sequences": 4}}
    sealed = parse_sealed(said)
    training = sealed.training
    assert (training.on_anomaly, training.spike_factor, training.seal_optimizer, training.packing) == ("halt", 0.0, False, None)
    now = parse_recipe(said)
    assert (now.training.on_anomaly, now.training.max_skipped_steps) == ("skip", 4) and recipe_hash(now) != recipe_hash(sealed)
    assert parse_sealed(now.as_dict()) == now, "what was sealed since is read as it was written"
    # As earlier releases computed it, key by key.
    assert recipe_hash(sealed) == "528df09f4b761628bcdf0cc68922cc551e5f1e8bd481823d3ce80a2bb2e26839"


@pytest.mark.parametrize("wrong", [{"on_anomaly": "ignore"}, {"spike_factor": -1}, {"max_skipped_steps": -1},
                                   {"warmup_steps": -1}, {"seal_optimizer": "perhaps"}])  # fmt: skip
def test_a_field_with_a_wrong_value_is_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        parse_recipe({"stage": "pretrain", "training": {"learning_rate": 0.001, "batch_sequences": 4, **wrong}})


def test_warm_up_may_be_an_exact_number_of_steps() -> None:
    training = {"learning_rate": 1.0, "min_learning_rate_ratio": 0.0, "warmup_fraction": 0.5, "decay_fraction": 0.1,
                "warmup_steps": 10}  # fmt: skip
    rates = [learning_rate(step, 100, training) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == rates[89] == 1.0 > rates[90]
    assert learning_rate(3, 4, training) <= 0.4, "a run shorter than its warm-up never reaches the peak"
    assert learning_rate(0, 100, {**training, "warmup_steps": 0}) == 1.0
    assert learning_rate(0, 100, {**training, "warmup_steps": None}) == pytest.approx(1 / 50)


def test_after_a_resume_the_rate_is_the_one_of_the_step(home: Path, text: Any) -> None:
    """Logged, step by step, against the schedule itself: the trap of a warm-up that begins anew."""
    training = {**trainer_help.TRAINING, "warmup_steps": 3, "decay_fraction": 0.5}
    job = trainer_help.train_job(home / "rate", home / "base" / "out", text, steps=6, training=training)
    for stop_at in (2, 5):
        with pytest.raises(StopRequested):
            run_train(job, stop=lambda at=stop_at: trainer_help.steps_logged(home / "rate") == at)  # type: ignore[misc]
    assert run_train(job)["resumes"] == 2
    rows = [json.loads(line) for line in (home / "rate" / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == [learning_rate(step, 6, training) for step in range(6)]


def test_the_gate_s_figures_are_fp32_whatever_the_training_computes_in(
    home: Path, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss in bf16 comes in steps of 0.06 and could hide what was forgotten."""
    objective, asked = find_objective("pretrain"), set()
    loss = objective.loss

    def spy(model: Any, batch: Any, dtype: Any) -> Any:
        asked.add((model.training, dtype))
        return loss(model, batch, dtype)

    monkeypatch.setattr(objective, "loss", spy)
    result = _child(home, text, "half", "base", dtype="bfloat16")
    # The checks before step 1 look at the model as it was loaded, before it learns: in fp32 too.
    assert asked == {(True, torch.bfloat16), (False, torch.float32), (True, torch.float32)}
    monkeypatch.undo()
    split = text.val if text.val.count else text.train
    for name, key in (("half", "child_loss"), ("base", "parent_loss")):
        model, _tokenizer = load_version(home / name / "out")
        again = evaluate(model, split, objective, max_tokens=2000, use_mask=False).loss
        assert result["evaluation"][0][key] == again, "the very figure, from the sealed weights"
