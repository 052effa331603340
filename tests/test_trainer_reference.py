"""An independent plain implementation of what the documents say ends in the same weights, step by step.

That steps, micro-batches and packing agree with one another is shown elsewhere; here they agree with somebody else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trainer_help
from plain_trainer import train_plainly
from safetensors.torch import load_file

from guard.bitmap import pack_bitmap
from trainer.choose import select_new
from trainer.curriculum import Curriculum
from trainer.dataset import ORDINAL, Dataset
from trainer.replay import ReplaySource, add_replay
from trainer.train_job import run_base, run_train

UNTIED = {**trainer_help.SHAPE, "architecture": "llama", "tie_embeddings": False, "qk_norm": False, "rope_theta": 5000.0}
STAGES = Curriculum((16, 48), (0.5, 0.5), 48)
BATCH = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases."""
    folder = tmp_path_factory.mktemp("reference")
    run_base(trainer_help.base_job(folder / "qwen3"))
    run_base(trainer_help.base_job(folder / "llama", UNTIED))
    return folder


@pytest.fixture(scope="module")
def text(root: Path) -> Dataset:
    return opened(trainer_help.make_dataset(root / "text", amount=130))


@pytest.fixture(scope="module")
def chat(root: Path) -> Dataset:
    return opened(trainer_help.make_dataset(root / "chat", "sft", 30))


def opened(dataset: Dataset) -> Dataset:
    """Its files mapped now, and not by the first test that asks."""
    assert len(dataset.train.examples) and len(dataset.train.fingerprints)
    return dataset


def learnt(dataset: Dataset) -> ReplaySource:
    """All of it, as what an ancestor learnt."""
    ordinals = dataset.train.examples[:, ORDINAL].tolist()
    return ReplaySource(dataset, ((0, pack_bitmap(ordinals, int(dataset.files[0]["examples"]))),))


def trained(root: Path, name: str, data: Dataset, packing: str | None = "bestfit", base: str = "qwen3", *,
            replay: Dataset | None = None, curriculum: Curriculum | None = None, **changes: Any) -> Path:  # fmt: skip
    """The staging folder of a job of about one and a half epochs that ran to its end."""
    staging = root / name
    training = {"batch_sequences": BATCH, "weight_decay": 0.3, "learning_rate": 2e-3, **changes.pop("training", {})}
    job = trainer_help.train_job(staging, root / base / "out", data, training=training, evaluation=[], **changes)
    chosen = select_new(data, stage=data.stage, known_fps=None, block_size=48, packing=packing, curriculum=curriculum)
    if replay is not None:
        chosen = add_replay(chosen, [learnt(replay)], fraction=0.4, block_size=48, seed=1, packing=packing, curriculum=curriculum)
        assert chosen.selection.replay.any()
    selection = chosen.selection
    assert selection.steps_per_epoch(BATCH) * BATCH > len(selection.sequences), "an epoch's last step is a short one"
    steps = selection.steps_per_epoch(BATCH) * 3 // 2
    job = trainer_help.write_job(staging, {
        **job, "steps": steps, "selection_sha256": selection.save(staging),
        "consumed_sha256": selection.consumed_hash(1337, steps, BATCH)})  # fmt: skip
    assert run_train(job)["steps_executed"] == steps
    return staging


def assert_the_same(staging: Path) -> None:
    """Every logged step, and every tensor's way from the parent's to the child's, are the plain trainer's."""
    rows, before, wanted = train_plainly(staging)
    logged = [json.loads(line) for line in (staging / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(logged) > 3
    for row, ours in zip(rows, logged, strict=True):
        assert {key: ours[key] for key in row} == pytest.approx(row, rel=2e-5), ours["step"]
    child = load_file(staging / "out" / "model.safetensors")
    assert set(child) == set(wanted)
    for name, tensor in child.items():
        way = wanted[name] - before[name]
        assert float((tensor.double() - wanted[name]).norm()) < 1e-3 * float(way.norm()), name


@pytest.mark.parametrize("packing", ["off", "bestfit"])
def test_text_ends_in_the_weights_of_a_plain_trainer(root: Path, text: Dataset, packing: str) -> None:
    assert_the_same(trained(root, f"text-{packing}", text, packing, training={"warmup_steps": 3, "grad_clip": 0.3}))


@pytest.mark.parametrize("packing", [None, "bestfit"])
def test_answers_of_conversations_do_too(root: Path, chat: Dataset, packing: str | None) -> None:
    staging = trained(root, f"chat-{packing}", chat, packing, "llama")
    assert_the_same(staging)
    row = json.loads((staging / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < row["loss_tokens"] < row["tokens"]


def test_replay_micro_batches_and_lanes_change_nothing(root: Path, text: Dataset, chat: Dataset) -> None:
    """Text among conversations is trained whole, conversations among text keep their masks, and each token counts once."""
    assert_the_same(trained(root, "chat-mixed", chat, replay=text, micro_sequences=2))
    staging = trained(root, "text-mixed", text, "off", replay=chat, micro_sequences=1, lanes=3)
    assert_the_same(staging)
    rows = [json.loads(line) for line in (staging / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["loss_tokens"] for row in rows) < sum(row["tokens"] for row in rows)


def test_a_curriculum_does_too(root: Path, text: Dataset) -> None:
    assert_the_same(trained(root, "curriculum", text, curriculum=STAGES, micro_sequences=2))


def test_a_mask_that_is_not_heeded_is_seen(root: Path, chat: Dataset) -> None:
    """The plain trainer is no echo: a job that trains another thing than its files say does not agree with it."""
    staging = trained(root, "unheeded", chat, recipe={
        "name": "tiny", "stage": "sft", "use_loss_mask": False,
        "training": {**trainer_help.TRAINING, "batch_sequences": BATCH}})  # fmt: skip
    with pytest.raises(AssertionError):
        assert_the_same(staging)
