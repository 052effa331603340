"""The loop is exact: killed anywhere and resumed, the weights are those of an uninterrupted run, to the bit."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trainer_help
from trainer_help import shared_server, steps_logged, wait_until

torch = pytest.importorskip("torch")

from guard.errors import CheckFailed, Damage, DataFault  # noqa: E402
from trainer.batches import Feed  # noqa: E402
from trainer.child import main  # noqa: E402
from trainer.loop import LoopPlan, StopRequested, train  # noqa: E402
from trainer.model import new_model  # noqa: E402
from trainer.model_config import ModelConfig  # noqa: E402
from trainer.numbers import choose_numbers  # noqa: E402
from trainer.objectives import find_objective  # noqa: E402
from trainer.schedule import learning_rate  # noqa: E402
from trainer.selection import Selection  # noqa: E402
from trainer.train_job import run_base, run_train  # noqa: E402
from trainer.version_files import load_version, write_version_files  # noqa: E402

EVERY_STEP = {"every_steps": 1, "every_seconds": 0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two datasets."""
    folder = tmp_path_factory.mktemp("home")
    run_base(trainer_help.base_job(folder / "base"))
    return folder


@pytest.fixture(scope="module")
def text(home: Path) -> Any:
    return trainer_help.make_dataset(home / "text", amount=1300)


@pytest.fixture(scope="module")
def chat(home: Path) -> Any:
    made = trainer_help.make_dataset(home / "chat", "sft")
    assert len(made.train.examples) and len(made.train.fingerprints)  # mapped now, and not by the first test that asks
    return made


@pytest.fixture(scope="module")
def uninterrupted(home: Path, text: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Result and metrics of a job that nobody disturbed."""
    _text_job(home, text, "uninterrupted")
    assert shared_server().run(home / "uninterrupted") == 0
    return _result(home / "uninterrupted"), _rows(home / "uninterrupted" / "out")


def _text_job(home: Path, text: Any, name: str, **changes: Any) -> dict[str, Any]:
    return trainer_help.train_job(home / name, home / "base" / "out", text, steps=24, **changes)


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def _result(staging: Path) -> dict[str, Any]:
    return json.loads((staging / "result.json").read_text())


def _rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the figures that depend on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("seconds", "tokens_per_second")} for row in rows]


def test_killed_again_and_again_the_weights_are_the_same_to_the_bit(
    home: Path, text: Any, uninterrupted: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    _text_job(home, text, "killed", snapshot={"every_steps": 4, "every_seconds": 0})
    staging, deaths = home / "killed", 0
    for at_step in (2, 9, 17):
        _number, pid = shared_server().spawn(staging)
        gone = functools.partial(_is_gone, pid)
        if not wait_until(lambda at=at_step: steps_logged(staging) >= at, gone):
            break
        os.kill(pid, signal.SIGKILL)
        deaths += shared_server().ended() == -signal.SIGKILL
    assert deaths >= 2
    assert shared_server().run(staging) == 0
    result, (wanted, rows) = _result(staging), uninterrupted
    assert result["weights_sha256"] == wanted["weights_sha256"]
    assert result["consumed_sha256"] == wanted["consumed_sha256"]
    assert (result["exactness"], wanted["exactness"]) == ("RESUMED-EXACT", "EXACT")
    assert result["resumes"] >= 1
    assert _rows(staging / "out") == rows
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert result["evaluation"] == wanted["evaluation"] and result["generation"] == wanted["generation"]


def test_killed_in_the_middle_of_writing_a_snapshot_it_is_the_same_too(
    home: Path, text: Any, uninterrupted: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    _text_job(home, text, "torn", snapshot=EVERY_STEP)
    staging, torn = home / "torn", 0
    for _attempt in range(20):
        seen = steps_logged(staging)
        _number, pid = shared_server().spawn(staging)
        wait_until(lambda seen=seen: steps_logged(staging) > seen and any((staging / "snapshots").glob(".step-*.tmp")))
        os.kill(pid, signal.SIGKILL)
        assert shared_server().ended() == -signal.SIGKILL
        torn += any((staging / "snapshots").glob(".step-*.tmp"))
        if torn >= 2:
            break
    assert torn >= 2, "no kill fell into the writing of a snapshot"
    assert shared_server().run(staging) == 0
    assert _result(staging)["weights_sha256"] == uninterrupted[0]["weights_sha256"]
    assert _rows(staging / "out") == uninterrupted[1]


def test_asked_to_stop_it_saves_at_a_step_boundary_and_goes_on_later(
    home: Path, text: Any, uninterrupted: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    _text_job(home, text, "stopped")
    staging = home / "stopped"
    _number, pid = shared_server().spawn(staging)
    wait_until(lambda: steps_logged(staging) >= 5)
    os.kill(pid, signal.SIGTERM)
    assert shared_server().ended() == 75
    (snapshot,) = (staging / "snapshots").iterdir()
    assert snapshot.name == f"step-{steps_logged(staging):08d}", "not a step was lost"
    assert shared_server().run(staging) == 0
    assert _result(staging)["weights_sha256"] == uninterrupted[0]["weights_sha256"]


def test_the_proof_says_what_was_done(home: Path, uninterrupted: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    job, result = json.loads((home / "uninterrupted" / "job.json").read_text()), uninterrupted[0]
    assert result["steps_executed"] == job["steps"] == 24
    assert result["consumed_sha256"] == job["consumed_sha256"]
    assert result["finite"] and result["weights_changed"] is True
    assert result["parent_weights_sha256"] == _result(home / "base")["weights_sha256"] != result["weights_sha256"]
    assert result["final_loss"] == uninterrupted[1][-1]["loss"] < uninterrupted[1][0]["loss"] - 0.5
    assert result["fed_tokens"] == sum(row["tokens"] for row in uninterrupted[1]) == result["loss_tokens"]
    for row in result["evaluation"]:
        assert row["role"] == "new_held_out" and row["child_loss"] < row["parent_loss"] - 0.5 and row["examples"] > 0
    assert len(result["generation"]) == 2 and all(0 < item["distinct_ratio"] <= 1 for item in result["generation"])
    model, _tokenizer = load_version(home / "uninterrupted" / "out")
    assert not torch.equal(model.head_weight, load_version(home / "base" / "out")[0].head_weight)


def test_conversations_train_their_answers_only(home: Path, chat: Any) -> None:
    staging = home / "sft"
    trainer_help.train_job(staging, home / "base" / "out", chat)
    result = run_train(json.loads((staging / "job.json").read_text()))
    assert 0 < result["loss_tokens"] < result["fed_tokens"]
    assert result["evaluation"][0]["child_loss"] < result["evaluation"][0]["parent_loss"]
    assert result["generation"][0]["prompt"].endswith("<myPT_assistant>")
    whole = trainer_help.train_job(home / "unmasked", home / "base" / "out", chat)
    whole["recipe"]["use_loss_mask"] = False
    unmasked = run_train(whole)
    assert unmasked["loss_tokens"] == unmasked["fed_tokens"] == result["fed_tokens"]


def test_micro_batches_change_the_sum_by_rounding_only(home: Path, chat: Any) -> None:
    weights = []
    for micro in (1, 3, 4):
        staging = home / f"micro{micro}"
        run_train(trainer_help.train_job(staging, home / "base" / "out", chat, micro_sequences=micro, steps=3))
        weights.append(load_version(home / f"micro{micro}" / "out")[0].head_weight)
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-3, atol=2e-5)


def test_a_loss_that_is_not_finite_stops_the_job_before_it_is_used(home: Path, chat: Any) -> None:
    model, tokenizer = load_version(home / "base" / "out")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    write_version_files(home / "sick", model, tokenizer, {}, None)
    trainer_help.train_job(home / "nan", home / "sick", chat, evaluation=[])
    assert main(home / "nan") == 1
    told = json.loads((home / "nan" / "error.json").read_text())
    assert told["fault"] == "data" and "not finite" in told["message"] and "learning_rate" in told["hint"]
    assert not (home / "nan" / "out").exists() and steps_logged(home / "nan") == 0


def _loop(home: Path, chat: Any, name: str, model: Any, **changes: Any) -> Any:
    """The bare loop on a job's files; `changes` replace parts of its plan."""
    job = trainer_help.train_job(home / name, home / "base" / "out", chat)
    objective = find_objective("sft")
    feed = Feed(Selection.load(home / name), objective, seed=1, batch_sequences=4, micro_sequences=2, use_mask=True)
    values = {"steps": 4, "training": job["recipe"]["training"], "dtype": "float32", "staging": home / name,
              "identity": "x", "snapshot_steps": 2, **changes}  # fmt: skip
    stop = values.pop("stop", lambda: False)
    return train(model, feed, values.pop("objective", objective), LoopPlan(**values), stop=stop, clock=lambda: 0.0)


def _tiny() -> Any:
    return new_model(ModelConfig.from_recipe(trainer_help.SHAPE), 1)


def test_an_infinite_gradient_stops_before_the_weights_are_touched(home: Path, chat: Any) -> None:
    class Steep:
        @staticmethod
        def loss(model: Any, batch: Any, dtype: Any) -> Any:
            return (model.head_weight * 0.0).sqrt().sum()  # finite itself; its derivative at 0 is not

    model = _tiny()
    before = model.head_weight.detach().clone()
    with pytest.raises(DataFault, match="gradient of step 1 is not finite"):
        _loop(home, chat, "steep", model, objective=Steep)
    assert torch.equal(before, model.head_weight)


def test_bf16_trains_fp32_weights(home: Path, chat: Any) -> None:
    plain, half = _tiny(), _tiny()
    losses = [_loop(home, chat, name, model, dtype=name).loss
              for name, model in (("float32", plain), ("bfloat16", half))]  # fmt: skip
    assert half.head_weight.dtype is torch.float32 and not torch.equal(plain.head_weight, half.head_weight)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_no_steps_is_not_a_run(home: Path, chat: Any) -> None:
    with pytest.raises(AssertionError, match="without steps"):
        _loop(home, chat, "zero", _tiny(), steps=0)


def test_damaged_snapshots_are_told_and_never_become_a_fresh_start(home: Path, chat: Any) -> None:
    _loop(home, chat, "damaged", _tiny())
    for snapshot in (home / "damaged" / "snapshots").iterdir():
        (snapshot / "model.safetensors").write_bytes(b"")
    with pytest.raises(Damage, match="intact"):
        _loop(home, chat, "damaged", _tiny())


def test_a_damaged_newest_snapshot_is_passed_over_and_noted(home: Path, chat: Any) -> None:
    whole = _tiny()
    _loop(home, chat, "noted", whole)
    (home / "noted" / "snapshots" / "step-00000004" / "state.json").unlink()
    resumed = _tiny()
    run = _loop(home, chat, "noted", resumed)
    assert run.step == 4 and run.resumes == 1 and "step-00000004" in run.notes[0]
    assert torch.equal(whole.head_weight, resumed.head_weight)


def test_logs_shorter_than_the_snapshot_and_snapshots_of_another_plan_are_damage(home: Path, chat: Any) -> None:
    _loop(home, chat, "short", _tiny())
    with pytest.raises(Damage, match="another plan"):
        _loop(home, chat, "short", _tiny(), identity="y")
    consumed = home / "short" / "consumed.bin"
    consumed.write_bytes(consumed.read_bytes()[::-1])
    with pytest.raises(Damage, match="not what was written"):
        _loop(home, chat, "short", _tiny())
    (home / "short" / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(Damage, match="has 0 bytes"):
        _loop(home, chat, "short", _tiny())


def test_other_libraries_on_resume_are_declared(home: Path, chat: Any) -> None:
    with pytest.raises(StopRequested):
        _loop(home, chat, "moved", _tiny(), stop=lambda: True, surroundings={"torch": "1"})
    run = _loop(home, chat, "moved", _tiny(), surroundings={"torch": "2"})
    assert run.resumes == 1 and run.changed_surroundings


def test_another_list_than_the_planned_one_is_refused(home: Path, chat: Any) -> None:
    job = trainer_help.train_job(home / "list", home / "base" / "out", chat, selection_sha256="0" * 64)
    with pytest.raises(Damage, match="not the one that was planned"):
        run_train(job)


def test_data_of_another_tokenizer_is_refused(home: Path, tmp_path: Path) -> None:
    dataset = trainer_help.make_dataset(tmp_path / "d", "sft")
    for name in ("tokenizer_state.json", "dataset_metadata.json"):
        path = dataset.folder / name
        path.write_text(path.read_text().replace(dataset.tokenizer_state["content_hash"], "0" * 64))
    job = trainer_help.train_job(tmp_path / "job", home / "base" / "out", dataset)
    with pytest.raises(CheckFailed, match="tokenizer"):
        run_train(job)


def test_the_parent_is_judged_once_per_job(home: Path, chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = trainer_help.train_job(home / "judged", home / "base" / "out", chat, steps=2)
    first = run_train(job)
    (home / "judged" / "parent_losses.json").write_text(
        (home / "judged" / "parent_losses.json").read_text().replace(str(first["evaluation"][0]["parent_loss"]), "9.75")
    )
    assert run_train(job)["evaluation"][0]["parent_loss"] == 9.75, "taken from the note"
    job["evaluation"][0]["max_tokens"] = 7
    again = run_train(job)["evaluation"][0]
    assert again["parent_loss"] != 9.75 and again["examples"] == 1, "another question is asked anew"


def test_the_rate_warms_up_stays_and_falls_without_ever_being_zero() -> None:
    training = {"learning_rate": 2.0, "min_learning_rate_ratio": 0.0, "warmup_fraction": 0.1, "decay_fraction": 0.2}
    rates = [learning_rate(step, 100, training) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[50] == rates[79] == 2.0
    assert all(math.isclose(a - b, 2.0 / 21) for a, b in itertools.pairwise(rates[79:]))
    assert 0 < rates[99] < 0.1
    assert learning_rate(0, 1, training) > 0
    flat = {**training, "warmup_fraction": 0.0, "decay_fraction": 0.0}
    assert {learning_rate(step, 9, flat) for step in range(9)} == {2.0}


def test_numbers_come_from_a_table() -> None:
    small = ModelConfig(layers=4, heads=4, width=128, hidden=384, block_size=512, vocab_size=50304)
    wide = ModelConfig(layers=12, heads=12, width=768, hidden=2048, block_size=1024, vocab_size=50304)
    assert choose_numbers(small, 16, ["avx512f"], 2) == choose_numbers(small, 16, ["avx512f", "amx_bf16"], 2)
    assert choose_numbers(small, 16, [], 2).micro_sequences == 8
    assert [choose_numbers(small, 4, [], 2, threads=threads).threads for threads in (0, 1)] == [2, 1]
    assert choose_numbers(ModelConfig.from_recipe(trainer_help.SHAPE), 4, [], 2).threads == 1
    assert choose_numbers(wide, 16, ["amx_bf16"], 8).dtype == "bfloat16"
    assert choose_numbers(wide, 16, ["avx512f"], 8).dtype == "float32"
    assert choose_numbers(wide, 16, [], 8).micro_sequences == 2
