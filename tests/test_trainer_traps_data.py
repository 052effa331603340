"""Silent-failure traps in what is trained on: wrong tokens, masks, splits and lists are caught before step 1.

Each is set in a real job of a real training child. A trap is a mistake that trains without a complaint; the table of all
of them stands in docs/TRAPS.md. Not here: traps of the model, its loss and the run (`test_trainer_traps_run.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_help  # noqa: F401 (sets the environment before torch is loaded)

pytest.importorskip("torch")

from traps_help import Job, _dataset, _home, _job, _stage, caught, relisted  # noqa: F401 - fixtures

import trainer.train_job
from guard.durable import sha256_file
from guard.errors import Damage
from trainer.dataset import Dataset
from trainer.selection import Selection
from trainer.student import load_student
from trainer.train_job import run_train


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
