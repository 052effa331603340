"""Silent-failure traps in the model, its loss and the run: caught before step 1, or before publication.

Each is set in a real job of a real training child. A trap is a mistake that trains without a complaint; the table of all
of them stands in docs/TRAPS.md and is held to the code here. Not here: traps of the data (`test_trainer_traps_data.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_help

torch = pytest.importorskip("torch")

from traps_help import Job, _dataset, _home, _job, _stage, caught, relisted  # noqa: E402, F401 - fixtures

import trainer.loop  # noqa: E402
import trainer.model  # noqa: E402
import trainer.objectives.sft  # noqa: E402
import trainer.run_logs  # noqa: E402
import trainer.stepper  # noqa: E402
import trainer.train_job  # noqa: E402
from guard.errors import CheckFailed, Damage  # noqa: E402
from trainer.dataset import open_dataset  # noqa: E402
from trainer.loss import next_token_loss  # noqa: E402
from trainer.schedule import learning_rate  # noqa: E402
from trainer.student import load_student  # noqa: E402
from trainer.train_job import run_train  # noqa: E402

# --- the model and its loss -----------------------------------------------------------------------------------------


def test_base_not_the_intended_one(job: Job) -> None:
    job["base"]["weights_sha256"] = "0" * 64
    caught(job, "not the base that was planned: base had the weights 000000000000", Damage)


def test_a_base_that_is_no_model_of_this_data(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def garbled(asked: Job) -> Any:
        student = load_student(asked)
        with torch.no_grad():
            student.model.model.norm.weight.mul_(500.0)
        return student

    monkeypatch.setattr(trainer.train_job, "load_student", garbled)
    caught(job, "the base is no model of this data")


def rows_of(shift: int = 0, prompts: bool = False) -> Callable[..., Any]:
    def rows(tokens: Any, mask: Any) -> Any:
        ids = tokens.astype(np.int64)
        weights = np.ones(len(ids) - 1, np.float32) if prompts or mask is None else mask[1:].astype(np.float32)
        return ids[:-1], np.roll(ids, -shift)[1:], weights

    return rows


@pytest.mark.parametrize("shift", [-1, 1])
def test_targets_shifted_by_one(job: Job, monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    monkeypatch.setattr(trainer.objectives.sft, "rows", rows_of(shift))
    caught(job, "targets shifted")


def test_an_objective_that_trains_prompts(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.objectives.sft, "rows", rows_of(prompts=True))
    caught(job, "prompts trained: loss falls on other tokens")


def test_a_loss_that_is_a_mean_where_a_sum_is_wanted(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.objectives.sft, "loss",
                        lambda model, batch, dtype: next_token_loss(model, batch, dtype) / batch.weights.sum())  # fmt: skip
    caught(job, "wrong loss: the objective says")


def test_a_loss_divided_by_padding_too(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.objectives.sft, "weight", lambda rows: float(sum(len(row[2]) for row in rows)), raising=False)
    caught(job, "wrong loss normalisation")


def spoilt(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None]) -> None:
    """Every model that a job loads is spoilt on the way."""

    def load(asked: Job) -> Any:
        student = load_student(asked)
        spoil(student.model)
        return student

    monkeypatch.setattr(trainer.train_job, "load_student", load)


def test_a_frozen_layer(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, lambda model: model.model.layers[1].mlp.up_proj.weight.requires_grad_(False))
    caught(job, r"a frozen model: model\.layers\.1\.mlp\.up_proj\.weight is frozen")


def test_weights_in_half_precision(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, lambda model: model.model.norm.to(torch.bfloat16))
    caught(job, r"model\.norm\.weight is trained in bfloat16")


def test_a_tied_head_untied(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = property(lambda self: self.model.embed_tokens.weight.clone())
    spoilt(monkeypatch, lambda _model: monkeypatch.setattr(trainer.model.Decoder, "head_weight", apart))
    caught(job, "tied head untied")


def test_a_layer_that_no_gradient_reaches(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def detach(model: Any) -> None:
        model.model.layers[0].self_attn.register_forward_hook(lambda *_: None)
        plain = model.model.layers[0].mlp.forward
        model.model.layers[0].mlp.forward = lambda x: plain(x).detach()

    spoilt(monkeypatch, detach)
    caught(job, r"no gradient reaches model\.layers\.0\.mlp")


def test_a_position_that_sees_what_comes_after_it(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr("trainer.model.F.scaled_dot_product_attention",
                        lambda *parts, **_options: plain(*parts, is_causal=False))  # fmt: skip
    caught(job, "a position sees the tokens behind it")


def test_dropout_left_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(model: Any) -> None:
        norm = model.model.norm
        norm.register_forward_hook(lambda _module, _given, out: torch.nn.functional.dropout(out, 0.1, norm.training))

    spoilt(monkeypatch, drop)
    caught(job, "another loss in training")


def test_a_packing_leak(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.choose import select_new

    dataset = open_dataset(home / "sft" / "shards")
    chosen = select_new(dataset, stage="sft", known_fps=None, block_size=48, packing="bestfit")
    job = trainer_help.train_job(tmp_path / "job", home / "base" / "out", dataset, steps=1, evaluation=[])
    job = relisted(job, **{name: getattr(chosen.selection, name) for name in ("ranges", "sequences", "documents", "touches",
                                                                               "replay", "examples")})  # fmt: skip
    together = lambda queries, keys, values, lengths: trainer.model._attend_within_plain(  # noqa: E731
        queries, keys, values, [sum(lengths)])  # fmt: skip
    monkeypatch.setattr(trainer.model, "_attend_within_plain", trainer.model._attend_within, raising=False)
    monkeypatch.setattr(trainer.model, "_attend_within", together)
    caught(job, "packing leak")


# --- the run ----------------------------------------------------------------------------------------------------------


def test_a_learning_rate_of_zero(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.model_check.learning_rate", lambda *_: 0.0)
    caught(job, "a learning rate of 0.0: such a step changes nothing")


def test_gradients_clipped_to_nothing(job: Job) -> None:
    job["recipe"]["training"]["grad_clip"] = 1e-9
    caught(job, "gradients clipped to nothing")


def test_learning_rate_off_after_resume(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that counts from the resume: the second life begins with the warm-up again."""
    job["snapshot"] = {"every_steps": 1, "every_seconds": 0}
    from trainer.stopping import StopRequested

    with pytest.raises(StopRequested):
        run_train(job, stop=lambda: trainer_help.steps_logged(Path(job["staging"])) >= 1)
    monkeypatch.setattr(trainer.loop, "learning_rate", lambda step, steps, training: learning_rate(step - 1, steps, training))
    caught(job, "the learning rate of step 2 was .* its schedule says", after=2)


def test_nan_hidden_by_logging(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard that should have stopped it is gone, and JSON writes NaN as null."""
    monkeypatch.setattr(trainer.stepper, "_require_finite", lambda *_: None, raising=False)
    monkeypatch.setattr(trainer.loop, "find_anomaly", lambda *_: None, raising=False)
    plain, calls = trainer.stepper.Stepper.step, []

    def step(self: Any, batch: Any, rate: float, number: int, *rest: Any) -> tuple[float, float]:
        calls.append(number)
        loss, norm = plain(self, batch, rate, number, *rest)
        return (float("nan") if number == 0 else loss), norm

    monkeypatch.setattr(trainer.stepper.Stepper, "step", step)
    caught(job, "the loss of step 1 is not finite, and training went on", after=2)
    assert calls == [0, 1] and b'"loss":null' in (Path(job["staging"]) / "metrics.jsonl").read_bytes()


def test_steps_trained_twice_after_a_resume(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trainer.run_logs.RunLogs.append
    monkeypatch.setattr(trainer.run_logs.RunLogs, "append", lambda self, row, ids: plain(self, {**row, "step": 1}, ids))
    caught(job, "step 1 stands in the log behind step 1: it was trained twice", after=2)


def test_a_step_that_was_passed_over_has_no_figures_and_is_no_trap(tmp_path: Path) -> None:
    from trainer.run_check import require_sound_run

    rate = learning_rate(0, 2, trainer_help.TRAINING)
    rows = [{"step": 1, "loss": 2.0, "grad_norm": 1.0, "learning_rate": rate}, {"step": 2, "skipped": True, "loss": None}]
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    require_sound_run(log, 2, trainer_help.TRAINING)
    with pytest.raises(CheckFailed, match="ends at step 2 of 3"):
        require_sound_run(log, 3, {**trainer_help.TRAINING, "warmup_fraction": 0.2})


def test_the_optimizer_of_another_model(job: Job) -> None:
    """A snapshot that another plan left in the staging folder."""
    job["snapshot"] = {"every_steps": 1, "every_seconds": 0}
    run_train(job)
    staging = Path(job["staging"])
    shutil.rmtree(staging / "out")
    (staging / "result.json").unlink()
    job["recipe"]["training"]["learning_rate"] *= 2
    caught(job, "belongs to another plan", Damage, after=2)


def test_an_optimiser_step_that_changes_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child cannot know; the proof that the daemon asks does."""
    from guard.checks.proof import prove

    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: None)
    result = run_train(job)
    assert result["weights_changed"] is False
    verdict = prove({**job, "task": "train"}, result, result["files"])
    assert not verdict.ok and "nothing was learnt" in verdict.reason


def test_weights_of_another_shape(job: Job, home: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(home / "base" / "out", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").chmod(0o644)
    (base / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    job["base"]["path"] = str(base)
    caught(job, "has shape", Damage)


# --- the table ---------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_of_traps_names_a_test_that_exists() -> None:
    import re

    text = (trainer_help.ROOT / "docs" / "TRAPS.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) >= 30 and len({row.split("|")[1] for row in rows}) == len(rows)
    for row in rows:
        for file, name in re.findall(r"`(test_\w+)::(\w+)`", row):
            source = (trainer_help.ROOT / "tests" / f"{file}.py").read_text("utf-8")
            assert f"def {name}(" in source, f"{file}::{name}"
        assert re.search(r"`test_\w+::\w+`", row), row


def test_the_messages_in_the_table_are_those_of_the_code() -> None:
    """The words in quotes stand in the sources as they stand in the table, up to where a figure comes in."""
    import re

    sources = "".join(path.read_text("utf-8") for folder in ("trainer", "guard", "daemon")
                      for path in sorted((trainer_help.ROOT / folder).rglob("*.py")))  # fmt: skip
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    for row in (trainer_help.ROOT / "docs" / "TRAPS.md").read_text("utf-8").splitlines():
        if row.startswith("| ") and "::" in row:
            words = row.split("|")[3].strip().strip('"').split("...")[0].strip()
            assert words and words in joined, words
