"""Micro-batches and lanes are a matter of rounding: the loss and gradient of a step are those of the whole global batch.

Pretraining, and conversations masked, packed and with replay. Each step is divided by the trained tokens of all its
sequences, never by those of a micro-batch, so a micro-batch of short answers counts no more than another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trainer_help
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from guard.bitmap import pack_bitmap  # noqa: E402
from trainer.batches import Feed  # noqa: E402
from trainer.choose import select_new  # noqa: E402
from trainer.dataset import ORDINAL  # noqa: E402
from trainer.lanes import LaneSum  # noqa: E402
from trainer.model import new_model  # noqa: E402
from trainer.model_config import ModelConfig  # noqa: E402
from trainer.objectives import find_objective  # noqa: E402
from trainer.replay import ReplaySource, add_replay  # noqa: E402
from trainer.selection import Selection  # noqa: E402
from trainer.stepper import Stepper  # noqa: E402

BLOCK, BATCH = trainer_help.SHAPE["block_size"], 6


@pytest.fixture(scope="module")
def lists(shared_scratch: Path) -> dict[str, tuple[str, bool, Selection]]:
    """Name -> objective, whether masks count, the frozen list."""
    root = shared_scratch / "invariance"
    text, chat = trainer_help.make_dataset(root / "text", amount=300), trainer_help.make_dataset(root / "chat", "sft", 40)

    def chosen(dataset: Any, packing: str | None) -> Any:
        return select_new(dataset, stage=dataset.stage, known_fps=None, block_size=2 * BLOCK, packing=packing)

    known = ((0, pack_bitmap(text.train.examples[:, ORDINAL].tolist(), int(text.train.examples[:, ORDINAL].max()) + 1)),)
    mixed = add_replay(chosen(chat, "bestfit"), [ReplaySource(text, known)], fraction=0.3, block_size=2 * BLOCK, seed=1,
                       packing="bestfit")  # fmt: skip
    assert mixed.selection.replay.any() and mixed.selection.shares
    return {"pretrain": ("pretrain", False, chosen(text, "bestfit").selection),
            "sft": ("sft", True, chosen(chat, None).selection),
            "sft unmasked": ("sft", False, chosen(chat, "off").selection),
            "sft packed": ("sft", True, chosen(chat, "bestfit").selection),
            "sft packed with replay": ("sft", True, mixed.selection)}  # fmt: skip


def _step(lists: dict[str, tuple[str, bool, Selection]], name: str, step: int, micro: int, lanes: int) -> tuple[float, float]:
    """Loss per trained token, and gradient norm, of one step of a newborn model."""
    objective, masked, selection = lists[name]
    feed = Feed(selection, find_objective(objective), seed=1, batch_sequences=BATCH, micro_sequences=micro, use_mask=masked,
                lanes=lanes)  # fmt: skip
    model = new_model(ModelConfig.from_recipe({**trainer_help.SHAPE, "block_size": 2 * BLOCK}), 1)
    stepper = Stepper(model, find_objective(objective), {**trainer_help.TRAINING, "grad_clip": 0.0}, "float32",
                      lanes=LaneSum(lanes))  # fmt: skip
    return stepper.step(feed.step(step), 1e-3, step)


@pytest.mark.parametrize("name", ["pretrain", "sft", "sft unmasked", "sft packed", "sft packed with replay"])
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(step=st.integers(0, 1), micro=st.integers(1, BATCH), lanes=st.integers(1, BATCH + 1))
def test_a_step_is_the_same_up_to_rounding_however_it_is_cut(
    lists: dict[str, tuple[str, bool, Selection]], name: str, step: int, micro: int, lanes: int
) -> None:
    wanted = _step(lists, name, step, BATCH, 1)
    assert _step(lists, name, step, micro, lanes) == pytest.approx(wanted, rel=2e-5)


def test_the_weight_of_a_step_is_that_of_all_its_sequences(lists: dict[str, tuple[str, bool, Selection]]) -> None:
    """A mean of the micro-batches' means would be another number: the conversations' answers are not equally long."""
    _objective, _masked, selection = lists["sft"]
    feed = Feed(selection, find_objective("sft"), seed=1, batch_sequences=BATCH, micro_sequences=1, use_mask=True, lanes=3)
    batch = feed.step(0)
    parts = [float(micro.weights.sum()) for micro in batch.micro_batches]
    assert batch.weight == sum(parts) == batch.loss_tokens and len(set(parts)) > 1
