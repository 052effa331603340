"""Silent-failure traps in a real training child: each is set in a real job and caught before step 1, or before publication.

A trap is a mistake that trains without a complaint. The table of all of them stands in docs/TRAPS.md.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_help

torch = pytest.importorskip("torch")

import trainer.loop  # noqa: E402
import trainer.model  # noqa: E402
import trainer.objectives.pretrain  # noqa: E402
import trainer.objectives.sft  # noqa: E402
import trainer.run_logs  # noqa: E402
import trainer.stepper  # noqa: E402
import trainer.train_job  # noqa: E402
from guard.durable import sha256_file  # noqa: E402
from guard.errors import CheckFailed, Damage, HeirloomError  # noqa: E402
from trainer.child import fault_of  # noqa: E402
from trainer.dataset import Dataset, open_dataset  # noqa: E402
from trainer.loss import next_token_loss  # noqa: E402
from trainer.schedule import learning_rate  # noqa: E402
from trainer.selection import Selection  # noqa: E402
from trainer.student import load_student  # noqa: E402
from trainer.train_job import run_base, run_train  # noqa: E402

Job = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a text and conversations, prepared."""
    folder = tmp_path_factory.mktemp("traps")
    run_base(trainer_help.base_job(folder / "base"))
    for stage in ("pretrain", "sft"):
        trainer_help.make_dataset(folder / stage, stage, amount=300 if stage == "pretrain" else 24)
    gc.collect()
    return folder


@pytest.fixture
def dataset(home: Path, tmp_path: Path, stage: str) -> Dataset:
    """A copy of its own, to be spoilt."""
    shutil.copytree(home / stage / "shards", tmp_path / "shards")
    return open_dataset(tmp_path / "shards")


@pytest.fixture
def stage() -> str:
    return "sft"


@pytest.fixture
def job(home: Path, tmp_path: Path, dataset: Dataset) -> Job:
    """A sound job of two steps; what a plan freezes is frozen."""
    base = home / "base" / "out"
    made = trainer_help.train_job(tmp_path / "job", base, dataset, steps=2, evaluation=[],
                                  prepared={"pins": {dataset.id: dataset.pin}})  # fmt: skip
    made["base"]["weights_sha256"] = sha256_file(base / "model.safetensors")
    return made


def caught(job: Job, words: str, kind: type[HeirloomError] = CheckFailed, *, after: int = 0) -> HeirloomError:
    """The job is refused with these words and a remedy; nothing was published, and `after` steps were trained."""
    with pytest.raises(kind, match=words) as told:
        run_train(job)
    staging = Path(job["staging"])
    assert told.value.hint and told.value.subject and trainer_help.steps_logged(staging) == after
    assert not (staging / "out").exists() and not (staging / "result.json").exists()
    assert fault_of(told.value) == "bug", "no file of the person is blamed"
    return told.value


def told_again(dataset: Dataset, **changes: Any) -> None:
    """The metadata rewritten so that every hash in it is right: what only somebody who prepared it wrongly could do."""
    path = dataset.folder / "dataset_metadata.json"
    metadata = json.loads(path.read_text())
    split = metadata["splits"]["train"]
    for number, shard in enumerate(split["shards"]):
        for key, name in (("sha256", f"shard_{number:05d}.bin"), ("mask_sha256", f"shard_{number:05d}_mask.bin")):
            file = dataset.folder / "train" / name
            shard[key] = sha256_file(file) if file.exists() else ""
    split["examples_sha256"] = sha256_file(dataset.folder / "train" / "examples.npy")
    path.write_text(json.dumps({**metadata, **changes}))


def masked(dataset: Dataset, spoil: Callable[[Any], Any]) -> None:
    """Spoil the loss mask, and the table of examples with it."""
    path = dataset.folder / "train" / "shard_00000_mask.bin"
    mask = spoil(np.fromfile(path, dtype=np.uint8)).astype(np.uint8)
    mask.tofile(path)
    table = np.load(dataset.folder / "train" / "examples.npy")
    table[:, 4] = [int(mask[start : start + length].sum()) for start, length in table[:, 2:4]]
    np.save(dataset.folder / "train" / "examples.npy", table)
    told_again(dataset)


def unpinned(job: Job) -> Job:
    """As if the data had been prepared so from the first: the pin holds no other."""
    return {**job, "prepared": {}}


def test_a_sound_job_passes_every_check(job: Job) -> None:
    assert run_train(job)["steps_executed"] == 2


@pytest.mark.parametrize("stage", ["pretrain"])
def test_a_sound_text_job_passes_every_check(job: Job) -> None:
    assert run_train(job)["steps_executed"] == 2


# --- data ---------------------------------------------------------------------------------------------------------


def test_wrong_tokenizer(job: Job, dataset: Dataset) -> None:
    for name in ("tokenizer_state.json", "dataset_metadata.json"):
        path = dataset.folder / name
        path.write_text(path.read_text().replace(dataset.tokenizer_state["content_hash"], "0" * 64))
    caught(job, "uses the tokenizer char")


def test_wrong_template_by_its_hash(job: Job, dataset: Dataset) -> None:
    told_again(dataset, template="harmony", template_hash="f" * 64)
    caught(unpinned(job), r"wrong template: the base speaks mypt .* prepared with harmony")


def test_wrong_template_by_what_stands_in_the_data(job: Job, dataset: Dataset) -> None:
    """The metadata lies: the control tokens of user and assistant are exchanged."""
    path = dataset.folder / "train" / "shard_00000.bin"
    ids = np.fromfile(path, dtype="<u2")
    user, assistant = 260, 262
    assert {user, assistant} <= set(ids.tolist())
    swapped = ids.copy()
    swapped[ids == user], swapped[ids == assistant] = assistant, user
    swapped.tofile(path)
    told_again(dataset)
    caught(unpinned(job), "prompts trained: loss begins in .* not behind '<myPT_assistant>'")


@pytest.mark.parametrize("value", [0, 1])
def test_mask_all_0_or_all_1(job: Job, dataset: Dataset, value: int) -> None:
    masked(dataset, lambda mask: np.full_like(mask, value))
    caught(unpinned(job), f"loss mask of shards is all {value}")


@pytest.mark.parametrize("value", [0, 1])
def test_one_conversation_with_a_mask_all_0_or_all_1(job: Job, dataset: Dataset, value: int) -> None:
    start, length = (int(number) for number in dataset.train.examples[0, 2:4])

    def spoil(mask: Any) -> Any:
        mask[start : start + length] = value
        return mask

    masked(dataset, spoil)
    caught(unpinned(job), f"mask all {value}")


def test_prompts_trained(job: Job, dataset: Dataset) -> None:
    masked(dataset, lambda mask: np.where(np.arange(len(mask)) % 20 < 3, mask, 1 - mask))
    caught(unpinned(job), "prompts trained: loss begins in")


def test_a_mask_that_is_one_token_late(job: Job, dataset: Dataset) -> None:
    masked(dataset, lambda mask: np.roll(mask, 1))
    caught(unpinned(job), "prompts trained")


def test_an_answer_that_was_cut(job: Job, dataset: Dataset) -> None:
    def shorten(mask: Any) -> Any:
        ends = np.flatnonzero((mask[:-1] == 1) & (mask[1:] == 0))
        mask[ends] = 0
        return mask

    masked(dataset, shorten)
    caught(unpinned(job), "an answer was cut: its loss ends in")


def test_ids_outside_the_vocabulary(job: Job, dataset: Dataset) -> None:
    path = dataset.folder / "train" / "shard_00000.bin"
    ids = np.fromfile(path, dtype="<u2")
    ids[7] = 9999
    ids.tofile(path)
    told_again(dataset)
    caught(unpinned(job), "holds an id outside the vocabulary of 265", Damage)


@pytest.mark.parametrize("stage", ["pretrain"])
def test_uint16_overflow(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of a large tokenizer that were written in 16 bits are all below 65,536, and mean other tokens."""
    def load(asked: Job) -> Any:
        student = load_student(asked)
        monkeypatch.setattr(type(student.tokenizer), "vocab_size", property(lambda _self: 151_669), raising=False)
        return student

    monkeypatch.setattr(trainer.train_job, "load_student", load)
    caught(job, "uint16 overflow: shards keeps ids in uint16, and the tokenizer has 151,669")


@pytest.mark.parametrize("name", ["shard_00000.bin", "shard_00000_mask.bin"])
def test_bytes_that_changed_since_the_data_was_prepared(job: Job, dataset: Dataset, name: str) -> None:
    path = dataset.folder / "train" / name
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    assert name in str(caught(job, "is not what was prepared: its bytes changed", Damage))


def test_data_prepared_again_in_another_way_since_the_plan(job: Job, dataset: Dataset) -> None:
    masked(dataset, lambda mask: np.where(np.arange(len(mask)) < len(mask) // 2, mask, 0))
    caught(job, "is not the one that was planned", Damage)


def test_held_out_rows_trained(job: Job, dataset: Dataset) -> None:
    keys = (dataset.folder / "train" / "examples.fp").read_bytes()
    path = dataset.folder / "val" / "examples.fp"
    path.write_bytes(keys[: path.stat().st_size])
    caught(job, "held-out rows trained: [0-9]+ examples")


def relisted(job: Job, **changes: Any) -> Job:
    """The job with another frozen list, which agrees with the plan."""
    selection = dataclasses.replace(Selection.load(job["staging"]), **changes)
    for path in Path(job["staging"]).glob("selection.*"):
        path.unlink()
    job["selection_sha256"] = selection.save(job["staging"])
    return job


def test_the_same_tokens_in_two_sequences(job: Job) -> None:
    ranges = Selection.load(job["staging"]).ranges.copy()
    ranges[1] = ranges[0]
    caught(relisted(job, ranges=ranges), "fed twice: token")


def test_replay_counted_as_new(job: Job) -> None:
    replay = Selection.load(job["staging"]).replay.copy()
    replay[0] = True
    caught(relisted(job, replay=replay), "replay counted as new")


def test_zero_steps(job: Job) -> None:
    empty = np.empty((0, 2), dtype=np.int64)
    changes = {"ranges": np.empty((0, 3), dtype=np.int64), "sequences": empty, "touches": empty,
               "examples": np.empty((0, 3), dtype=np.int64), "replay": np.empty(0, dtype=bool)}  # fmt: skip
    caught(relisted(job, **changes), "zero steps: the job's list holds no sequence")


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


# --- no false alarm ----------------------------------------------------------------------------------------------------


def _folders(root: Path) -> dict[str, Path]:
    """A tokenizer folder for every template: those of ours, and chat templates as they come from elsewhere."""
    from hf_help import foreign_folder, trained_folder
    from test_trainer_chat_template import THINKING, THINKING_TOKENS, TRIMMING

    return {
        **{name: trained_folder(root / name, name) for name in ("mypt", "harmony", "harmony_simple")},
        "chatml": foreign_folder(root / "chatml"),
        "thinking": foreign_folder(root / "thinking", THINKING_TOKENS, THINKING),
        "trimming": foreign_folder(root / "trimming", ("<|head|>", "<|mid|>", "<|eot|>"), TRIMMING),
    }  # fmt: skip


TALKS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi.\n\n"}, {"role": "assistant", "content": "\n yo "}]},
    {"messages": [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "so?"},
                  {"role": "assistant", "content": "so."}]},
    {"system": "Be brief.", "context": "[1] x", "messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
    {"messages": [{"role": "user", "content": "Fix it"},
                  {"role": "assistant", "content": "", "thinking": "Let me look.", "tool_calls": [
                      {"id": "1", "name": "run", "arguments": "{\"cmd\": \"test\"}"}]},
                  {"role": "tool", "tool_call_id": "1", "content": "FAILED"}, {"role": "assistant", "content": "There."}]},
]  # fmt: skip


def test_no_template_s_own_conversations_are_taken_for_a_trap(tmp_path: Path) -> None:
    from guard.errors import DataFault
    from trainer.data_check import _frame, _require_frame, _runs
    from trainer.hf_tokenizer import open_tokenizer
    from trainer.template import encode

    framed, looked_at = set(), 0
    for name, folder in _folders(tmp_path).items():
        tokenizer, template = open_tokenizer(folder)
        frame = _frame(tokenizer, template)
        if frame is None:
            continue
        framed.add(name)
        for talk in TALKS:
            try:
                made = encode(talk, tokenizer, template)
            except DataFault:
                continue  # this template has no words for it
            for run in _runs(made.mask):
                _require_frame(0, made.ids, run, frame, tokenizer)
                looked_at += 1
    assert framed >= {"mypt", "harmony", "chatml", "thinking"} and looked_at >= 15


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
