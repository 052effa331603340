"""A curriculum: short sequences first, as one job; every example once, the same tokens in every step, exact to the bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_help
from trainer_data import chat_row, jsonl, make, sentence, store, text_rows

from guard.bitmap import pack_bitmap
from guard.errors import UsageError
from trainer.choose import Chosen, select_new
from trainer.curriculum import Curriculum, curriculum_of, folder_curriculum, pack_stages, stage_table, stage_warnings, stages_of
from trainer.dataset import LENGTH, Dataset
from trainer.prepare_job import run_prepare
from trainer.recipe import parse_recipe, recipe_hash, resolve
from trainer.replay import ReplaySource, add_replay
from trainer.selection import load_selection, training_steps

STAGES = Curriculum((64, 128, 256), (0.25, 0.25, 0.5), 256)
BATCH = 2
TRAINING = {"learning_rate": 1e-3, "batch_sequences": 2, "curriculum": [16, 32, 48]}


def rows_of(count: int) -> list[dict[str, Any]]:
    """Documents of 20 to 300 words' letters, in no order."""
    return [{"text": sentence(number, 3 + (number * 37) % 60)} for number in range(count)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("texts")
    return mapped(make(root / "d", [store(root, "a.jsonl", jsonl(rows_of(150)), "pretrain")]))


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """One plain text of many segments."""
    root = tmp_path_factory.mktemp("book")
    text = "\n".join(sentence(number, 40) for number in range(300))
    return mapped(make(root / "d", [store(root, "book.txt", text.encode(), "pretrain")]))


def mapped(dataset: Dataset) -> Dataset:
    """Its files mapped now, and not by the first test that asks."""
    assert len(dataset.train.examples) == len(dataset.train.fingerprints)
    return dataset


def chosen_of(dataset: Dataset, curriculum: Curriculum | None = STAGES, **changes: Any) -> Chosen:
    return select_new(dataset, **{"stage": dataset.stage, "known_fps": None, "block_size": 256, "packing": "bestfit",
                                  "curriculum": curriculum, **changes})  # fmt: skip


@pytest.mark.parametrize("packing", ["bestfit", "off"])
def test_short_sequences_are_fed_first_and_every_example_is_learnt_once(texts: Dataset, packing: str) -> None:
    selection = chosen_of(texts, packing=packing).selection
    steps = selection.steps_per_epoch(BATCH)
    fed = [selection.batch(7, step, BATCH) for step in range(steps)]
    stages = [set(selection.stages[batch].tolist()) for batch in fed]
    assert all(len(stage) == 1 for stage in stages), "no step feeds from two stages"
    order = [min(stage) for stage in stages]
    assert order == sorted(order) and set(order) == {0, 1, 2}
    assert [selection.stage_of_step(step, BATCH) for step in range(steps)] == order
    assert sorted(np.concatenate(fed).tolist()) == list(range(len(selection.sequences)))
    assert selection.learnt_examples(7, steps, BATCH).all() and len(selection.examples) == 150
    tokens = texts.train.examples[:, LENGTH].sum()
    assert selection.examples[:, 2].sum() == tokens and selection.ranges[:, 2].sum() >= tokens
    documents = [1 + np.diff(selection.documents[first:end]).astype(bool).sum() for first, end in selection.sequences]
    lengths = selection.sequence_lengths() - documents
    assert all((lengths[selection.stages == stage] <= STAGES.lengths[stage]).all() for stage in range(3))


def test_a_step_has_about_the_same_tokens_in_every_stage(texts: Dataset) -> None:
    selection = chosen_of(texts).selection
    table = stage_table(selection, BATCH)["curriculum"]
    assert [(row["length"], row["batch_sequences"]) for row in table] == [(64, 8), (128, 4), (256, 2)]
    fed = selection.sequence_lengths()
    for stage, row in enumerate(table):
        first = sum(item["steps"] for item in table[:stage])
        assert len(selection.batch(7, first, BATCH)) == row["batch_sequences"]
        assert 0.8 * 512 <= fed[selection.batch(7, first, BATCH)].sum() <= 1.2 * 512
    shares = np.array([fed[selection.stages == stage].sum() for stage in range(3)]) / fed.sum()
    assert np.abs(shares - STAGES.shares).max() < 0.05


def test_sequences_are_shuffled_inside_a_stage_and_otherwise_in_every_epoch(texts: Dataset) -> None:
    selection = chosen_of(texts).selection
    orders = [selection.order(seed, epoch).tolist() for seed, epoch in ((7, 0), (7, 1), (8, 0), (7, 0))]
    assert orders[0] == orders[3] and orders[0] != orders[1] != orders[2] and orders[0] != sorted(orders[0])
    steps = selection.steps_per_epoch(BATCH)
    assert selection.batch(7, steps, BATCH).tolist() == orders[1][:8], "the second epoch begins with the short ones again"


def test_what_was_consumed_is_a_function_of_seed_and_steps(texts: Dataset, tmp_path: Path) -> None:
    selection = chosen_of(texts).selection
    steps = selection.steps_per_epoch(BATCH) + 3
    hashes = []
    for count in (1, 5, steps):
        digest = hashlib.sha256()
        for step in range(count):
            digest.update(selection.batch(7, step, BATCH).astype("<i8").tobytes())
        hashes.append(digest.hexdigest())
        assert selection.consumed_hash(7, count, BATCH) == hashes[-1]
    again = load_selection(tmp_path) if selection.save(tmp_path) else None
    assert again is not None and again.content_hash() == selection.content_hash() and again.schema == 3
    assert again.consumed_hash(7, steps, BATCH) == hashes[-1]
    assert dataclasses.replace(selection, stages=1 - selection.stages.clip(0, 1)).content_hash() != selection.content_hash()


def test_a_list_without_a_curriculum_is_the_list_of_earlier_releases(texts: Dataset) -> None:
    selection = chosen_of(texts, None).selection
    assert selection.schema == 2 and stage_table(selection, 4) == {} and stage_warnings(selection, 4, 1) == []
    assert selection.batch(3, 1, 4).tolist() == selection.order(3, 0)[4:8].tolist()
    assert selection.scaled(5, 0) == 5 and selection.stage_of_step(3, 4) == 0


def test_long_documents_are_left_whole_for_the_long_sequences(texts: Dataset) -> None:
    stages = stages_of(texts, np.arange(texts.train.count), STAGES, 0)
    lengths = texts.train.examples[:, LENGTH]
    assert lengths[stages == 0].max() <= lengths[stages == 1].max() <= lengths[stages == 2].min() + lengths.max()
    assert lengths[stages == 0].max() <= lengths[stages == 2].min()


def test_a_plain_text_is_dealt_out_in_stretches_that_lose_nothing(book: Dataset) -> None:
    stages = stages_of(book, np.arange(book.train.count), STAGES, 0)
    assert stages.tolist() == sorted(stages.tolist()) and set(stages.tolist()) == {0, 1, 2}
    chosen = chosen_of(book)
    # One document in three stretches: of each but its very first token is predicted.
    assert chosen.counts["loss_tokens"] == chosen.counts["tokens"] - 3
    assert chosen.selection.learnt_examples(1, chosen.selection.steps_per_epoch(BATCH), BATCH).all()


@pytest.mark.parametrize("cap", [1, 4, 9])
def test_a_step_cap_takes_less_data_through_all_stages(texts: Dataset, cap: int) -> None:
    whole, chosen = chosen_of(texts), chosen_of(texts, at_most=BATCH * cap)
    assert len(chosen.selection.examples) < len(whole.selection.examples) and chosen.counts["new"] == whole.counts["new"]
    steps = training_steps(chosen.selection, BATCH, epochs=1)
    assert steps <= cap + len(STAGES.lengths) - 1
    assert chosen.selection.learnt_examples(7, steps, BATCH).all()
    if cap > 3:
        assert set(chosen.selection.stages.tolist()) == {0, 1, 2}


def test_a_stage_that_is_never_reached_is_told(texts: Dataset) -> None:
    selection = chosen_of(texts).selection
    (told,) = stage_warnings(selection, BATCH, selection.stage_steps(BATCH)[0] + 1)
    assert "sequences of 256 tokens are not reached" in told
    assert stage_warnings(selection, BATCH, selection.steps_per_epoch(BATCH)) == []


def test_replay_has_its_part_in_every_stage_and_no_answer_is_cut(texts: Dataset, tmp_path: Path) -> None:
    rows = [chat_row(number, context_words=number % 70) for number in range(80)]
    chat = make(tmp_path / "d", [store(tmp_path, "c.jsonl", jsonl(rows), "sft")], "sft")
    source = ReplaySource(chat, ((0, pack_bitmap(range(80), 80)),))
    chosen = add_replay(chosen_of(texts), [source], fraction=0.3, block_size=256, seed=3, packing="bestfit", curriculum=STAGES)
    selection = chosen.selection
    del source
    assert len(selection.stages) == len(selection.sequences) and set(selection.stages[selection.replay].tolist()) == {0, 1, 2}
    assert chosen.counts["too_long"] == 0 and max(chat.train.examples[:, LENGTH]) > 257, "some lose context, and only that"
    marked = sum(int(chat.train.mask(int(start), int(length)).sum()) for source, start, length in selection.ranges if source == 1)
    taken = {int(start) for source, start, _length in selection.ranges if source == 1}
    rows_taken = chat.train.examples[np.isin(chat.train.examples[:, 2], sorted(taken))]
    assert len(rows_taken) > 5 and marked == rows_taken[:, 4].sum(), "every answer token of every conversation drawn is there"
    del chat, rows_taken


def test_lengths_above_the_block_are_trained_as_the_block_and_told() -> None:
    found, warnings = curriculum_of({"curriculum": (512, 1024, 2048)}, 1024)
    assert found is not None and found.lengths == (512, 1024) and found.shares == pytest.approx((1 / 3, 2 / 3))
    assert warnings and "2,048 tokens do not fit the base's block of 1,024" in warnings[0]
    assert curriculum_of({"curriculum": (512, 1024)}, 512)[0] is None
    assert curriculum_of({"curriculum": None}, 512) == (None, [])
    weighed, _none = curriculum_of({"curriculum": (16, 32), "curriculum_shares": (3, 1)}, 64)
    assert weighed is not None and weighed.shares == (0.75, 0.25) and weighed.lengths == (16, 32)


@pytest.mark.parametrize(("changes", "words"), [
    ({"curriculum": [32, 16]}, "lengths that grow"), ({"curriculum": []}, "lengths that grow"),
    ({"curriculum_shares": [1.0]}, "one share for each of the 3 lengths"), ({"packing": None}, "needs packing"),
    ({"curriculum": [4]}, "greater than or equal to 8"),
])  # fmt: skip
def test_a_curriculum_that_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_recipe({"stage": "pretrain", "training": {**TRAINING, **changes}})


def test_a_curriculum_of_conversations_is_refused() -> None:
    with pytest.raises(UsageError, match="belongs to the stage pretrain"):
        parse_recipe({"stage": "sft", "training": TRAINING})


def test_recipes_without_a_curriculum_keep_their_hash() -> None:
    plain = parse_recipe({"stage": "pretrain", "training": {"learning_rate": 1e-3, "batch_sequences": 2}})
    assert not {"curriculum", "curriculum_shares"} & set(plain.as_dict()["training"]), "so its hash is what it was before"
    staged = resolve(plain, {"training.curriculum": [16, 32]})
    assert staged.as_dict()["training"]["curriculum"] == [16, 32] and recipe_hash(staged) != recipe_hash(plain)
    assert parse_recipe(staged.as_dict()) == staged


def test_a_packed_folder_tells_its_stages_itself() -> None:
    def splits(*names: str) -> list[dict[str, Any]]:
        return [{"split": "val" if name.startswith("val") else "train", "member": name, "start": 10 * place, "count": 10}
                for place, name in enumerate(names)]  # fmt: skip

    found = folder_curriculum(splits("train_512/a.npy", "train_512/b.npy", "train_2048/a.npy", "val_512/a.npy"), 1024)
    assert found is not None and found.lengths == (512, 1024) and found.given == ((0, 0, 10), (0, 10, 10), (1, 20, 10))
    assert found.shares == (0.5, 0.5)
    both = ("train_512/a.npy", "train_1024/a.npy")
    for names in (both[:1], ("train/a.jsonl", "test/b.jsonl"), (*both, "train/b.npy")):
        assert folder_curriculum(splits(*names), 1024) is None
    assert folder_curriculum(splits(*both), 256) is None, "the block makes them one length"


def test_rows_of_a_packed_folder_stay_in_the_stage_that_they_came_in(texts: Dataset) -> None:
    given = dataclasses.replace(STAGES, given=((2, 0, 50), (0, 50, 40), (1, 90, 60)))
    packed, stages = pack_stages(texts, np.arange(texts.train.count), given, 0, "bestfit")
    ordinals = texts.train.examples[:, 1]
    for ordinal, first, last in zip(ordinals, packed.first, packed.last, strict=True):
        wanted = 2 if ordinal < 50 else 0 if ordinal < 90 else 1
        assert set(stages[packed.place[first : last + 1]].tolist()) == {wanted}


# --- as a job -------------------------------------------------------------------------------------------------------


def _prepared(root: Path, **training: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prepared job on the tiny base: (its request, what prepared.json says)."""
    file = store(root, "a.jsonl", jsonl([*rows_of(60), *text_rows(40, start=900)]), "pretrain")
    recipe = parse_recipe({"stage": "pretrain", "training": {**trainer_help.TRAINING, "curriculum": [16, 32, 48], **training}})
    request = {
        "stage": "pretrain", "staging": str(root / "staging"), "tokenization": "char", "block_size": 48, "seed": 1337,
        "files": [{"sha256": file.sha256, "name": file.name, "path": str(file.path), "sidecar": str(file.sidecar)}],
        "shard_size_tokens": 100_000, "salt": "salt", "validation_fraction": 0.05, "datasets_root": str(root / "shards"),
        "recipe": recipe.as_dict(), "folder_stages": True, "objective": "pretrain", "max_steps": 40,
    }  # fmt: skip
    prepared = run_prepare(request)
    return request, prepared


def test_a_job_with_a_curriculum_stopped_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from trainer.stopping import StopRequested
    from trainer.train_job import run_base, run_train

    run_base(trainer_help.base_job(tmp_path / "base"))
    weights = []
    for name in ("whole", "stopped"):
        request, prepared = _prepared(tmp_path / name)
        assert [row["length"] for row in prepared["packing"]["curriculum"]] == [16, 32, 48]
        assert prepared["steps"] <= 40 and prepared["packing"]["used"] > 0.9
        staging = Path(request["staging"])
        job = trainer_help.write_job(staging, {
            **request, "task": "train", "base": {"name": "base", "path": str(tmp_path / "base" / "out")},
            **{key: prepared[key] for key in ("steps", "selection_sha256", "consumed_sha256")}, "evaluation": [],
            "dataset": {"id": prepared["dataset_id"], "path": prepared["dataset_path"]},
            "snapshot": {"every_steps": 5, "every_seconds": 0}})  # fmt: skip
        if name == "stopped":
            with pytest.raises(StopRequested):
                run_train(job, stop=lambda log=staging / "metrics.jsonl": trainer_help.steps_logged(log.parent) >= 11)
        result = run_train(job)
        assert result["consumed_sha256"] == prepared["consumed_sha256"] and result["steps_executed"] == prepared["steps"]
        assert result["tokens"] == prepared["tokens"]
        weights.append(result["weights_sha256"])
        steps = [json.loads(line)["tokens"] for line in (staging / "metrics.jsonl").read_text().splitlines()]
        assert np.median(steps) * 1.3 > max(steps), "no step takes more memory than another"
    assert weights[0] == weights[1] and result["resumes"] == 1


def test_lengths_above_the_block_are_told_where_the_job_is_prepared(tmp_path: Path) -> None:
    _request, prepared = _prepared(tmp_path, curriculum=[16, 4096])
    assert [row["length"] for row in prepared["packing"]["curriculum"]] == [16, 48]
    assert any("do not fit the base's block of 48" in text for text in prepared["warnings"])
