"""The child task "prepare": what it leaves in staging, what it reuses, and what it says was learnt."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_data import chat_row, jsonl, make, sentence, store, text_rows

from guard.bitmap import pack_bitmap, unpack_bitmap
from guard.checks.rows import iter_examples
from guard.durable import rename_new, sha256_file
from guard.errors import CheckFailed, Damage, DataFault, UsageError
from guard.heldout import is_held_out
from trainer import child
from trainer.barred import REPLAY_RULES
from trainer.dataset import open_dataset
from trainer.prepare import SourceFile
from trainer.prepare_job import run_prepare
from trainer.selection import load_selection
from trainer.stopping import StopRequested

RECIPE = {"stage": "pretrain", "training": {"learning_rate": 0.001, "batch_sequences": 4}}


def entry(file: SourceFile, kind: str) -> dict[str, Any]:
    return {"sha256": file.sha256, "name": file.name, "path": str(file.path), "kind": kind,
            "sidecar": str(file.sidecar)}  # fmt: skip


def job_of(root: Path, files: list[SourceFile], stage: str = "pretrain", **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1, "job": 12, "task": "prepare", "stage": stage, "objective": stage,
        "staging": str(root / "staging"), "tokenization": "char", "files": [entry(file, stage) for file in files],
        "known_fps": None, "salt": "salt", "validation_fraction": 0.1, "shard_size_tokens": 500, "block_size": 48,
        "datasets_root": str(root / "shards"), "replay": {"fraction": 0.1, "datasets": []}, "allow_repeat": False,
        "recipe": RECIPE | {"stage": stage}, "seed": 7, "max_steps": None, "iterations": None, **changes,
    }  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> SourceFile:
    return store(tmp_path / "files", "a.jsonl", jsonl(text_rows(60)), "pretrain")


def test_a_job_leaves_dataset_selection_and_a_report(tmp_path: Path, file: SourceFile) -> None:
    said = run_prepare(job_of(tmp_path, [file]))
    staging = tmp_path / "staging"
    assert json.loads((staging / "prepared.json").read_bytes()) == said
    assert said["dataset_made"] and said["dataset_path"] == str(staging / "prepare") and not said["dataset_damaged"]
    assert open_dataset(staging / "prepare").id == said["dataset_id"]
    selection = load_selection(staging)
    assert selection.content_hash() == said["selection_sha256"] and len(selection.sequences) == said["sequences"]
    # The selection names the place the dataset is moved to, not the place it was made in.
    assert selection.datasets == (str(tmp_path / "shards" / said["dataset_id"]),)
    assert said["steps"] == -(-said["sequences"] // 4) == selection.steps_per_epoch(4)
    assert said["consumed_sha256"] == selection.consumed_hash(7, said["steps"], 4)
    assert said["tokens"] == said["counts"]["tokens"] and said["loss_tokens"] == said["tokens"] - 1


def test_learnt_are_exactly_the_examples_that_are_not_held_out(tmp_path: Path, file: SourceFile) -> None:
    said = run_prepare(job_of(tmp_path, [file]))
    [learnt] = said["learnt"]
    expected = [example.ordinal for example in iter_examples(file.path, "pretrain")
                if not is_held_out(example.fingerprint, "salt", 0.1)]  # fmt: skip
    assert unpack_bitmap(learnt["bitmap"]) == expected and learnt["count"] == len(expected) < 60
    assert (learnt["sha256"], learnt["tokens"]) == (file.sha256, said["tokens"])


def test_a_step_cap_leaves_the_rest_trainable_for_the_next_job(tmp_path: Path, file: SourceFile) -> None:
    whole = run_prepare(job_of(tmp_path / "w", [file]))
    capped = run_prepare(job_of(tmp_path / "1", [file], max_steps=5))
    first = unpack_bitmap(capped["learnt"][0]["bitmap"])
    assert capped["steps"] == 5 and 0 < len(first) < whole["learnt"][0]["count"]
    assert any("not reached in 5 steps" in warning for warning in capped["warnings"])
    assert capped["tokens"] < whole["tokens"] and capped["counts"]["new"] == whole["counts"]["new"]
    # A cap trains the beginning of the file and leaves its end whole, not a random part of every example.
    assert capped["sequences"] == 20 and first == unpack_bitmap(whole["learnt"][0]["bitmap"])[: len(first)]
    assert file.sidecar
    keys = (file.sidecar / "examples.fp").read_bytes()
    (tmp_path / "known.fp").write_bytes(b"".join(keys[16 * number : 16 * number + 16] for number in first))
    second = run_prepare(job_of(tmp_path / "2", [file], known_fps=str(tmp_path / "known.fp")))
    rest = unpack_bitmap(second["learnt"][0]["bitmap"])
    assert set(first).isdisjoint(rest) and sorted(first + rest) == unpack_bitmap(whole["learnt"][0]["bitmap"])


def test_an_intact_dataset_is_used_again_and_a_damaged_one_made_anew(tmp_path: Path, file: SourceFile) -> None:
    first = run_prepare(job_of(tmp_path, [file]))
    place = tmp_path / "shards" / first["dataset_id"]
    place.parent.mkdir()
    rename_new(first["dataset_path"], place)
    again = run_prepare(job_of(tmp_path, [file]))
    assert not again["dataset_made"] and again["dataset_path"] == str(place)
    assert again["selection_sha256"] == first["selection_sha256"]
    shard = place / "train" / "shard_00000.bin"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    third = run_prepare(job_of(tmp_path, [file]))
    assert third["dataset_made"] and third["dataset_damaged"] and "damaged" in third["warnings"][0]
    assert third["selection_sha256"] == first["selection_sha256"]
    assert shard.read_bytes().count(0) == shard.stat().st_size  # a child repairs nothing outside its staging


def test_a_job_that_died_in_the_middle_starts_over_with_the_same_bytes(tmp_path: Path, file: SourceFile) -> None:
    first = run_prepare(job_of(tmp_path / "a", [file]))
    staging = tmp_path / "b" / "staging"
    (staging / "prepare" / "train").mkdir(parents=True)
    (staging / "prepare" / "train" / "shard_00000.bin").write_bytes(b"half")
    second = run_prepare(job_of(tmp_path / "b", [file]))
    assert second["selection_sha256"] == first["selection_sha256"]
    for name in ("train/shard_00000.bin", "train/examples.npy", "dataset_metadata.json"):
        assert sha256_file(tmp_path / "a" / "staging" / "prepare" / name) == sha256_file(staging / "prepare" / name)


def test_preparing_stops_between_two_batches_when_asked(
    tmp_path: Path, file: SourceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.source_file._BATCH_EXAMPLES", 10)
    first, asked = run_prepare(job_of(tmp_path / "a", [file])), []
    with pytest.raises(StopRequested):
        run_prepare(job_of(tmp_path / "b", [file]), stop=lambda: bool(asked.append(1)) or len(asked) > 3)
    assert len(asked) == 4 and not (tmp_path / "b" / "staging" / "prepared.json").exists()
    assert run_prepare(job_of(tmp_path / "b", [file]))["selection_sha256"] == first["selection_sha256"]


def test_a_child_that_was_told_to_stop_while_it_prepared_says_so_with_75(
    tmp_path: Path, file: SourceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child.threading.Event, "is_set", lambda _event: True)
    job = job_of(tmp_path, [file])
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "job.json").write_text(json.dumps(job))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert child.main(tmp_path / "staging") == child.EXIT_STOPPED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not (tmp_path / "staging" / "error.json").exists()


def test_nothing_new_is_zero_steps_and_a_reason(tmp_path: Path, file: SourceFile) -> None:
    assert file.sidecar
    known = str(file.sidecar / "examples.fp")
    said = run_prepare(job_of(tmp_path, [file], known_fps=known))
    assert said["steps"] == said["tokens"] == said["sequences"] == said["counts"]["new"] == 0
    assert said["counts"]["known"] + said["counts"]["held_out"] == 60 and said["learnt"][0]["count"] == 0
    asked = run_prepare(job_of(tmp_path, [file], known_fps=known, allow_repeat=True))
    assert asked["steps"] > 0 and asked["tokens"] == 0 and asked["learnt"][0]["count"] == 0
    assert any("as was asked" in warning for warning in asked["warnings"])


def test_rows_that_are_trained_again_are_not_replayed_beside_it(tmp_path: Path, file: SourceFile) -> None:
    """Half of a file was learnt; the whole of it is asked for once more, while replay draws from what was learnt."""
    first = run_prepare(job_of(tmp_path, [file]))
    dataset = tmp_path / "shards" / first["dataset_id"]
    dataset.parent.mkdir()
    (tmp_path / "staging" / "prepare").rename(dataset)
    learnt = {"path": str(dataset), "known": [[0, first["learnt"][0]["bitmap"]]]}
    replay = {"fraction": 0.5, "datasets": [learnt], "originals": str(tmp_path / "files"), "rules": REPLAY_RULES}
    assert file.sidecar
    known = str(file.sidecar / "examples.fp")
    again = run_prepare(job_of(tmp_path, [file], known_fps=known, allow_repeat=True, replay=replay))
    assert again["steps"] > 0 and again["counts"]["replay_tokens"] == 0
    fed = load_selection(tmp_path / "staging").ranges
    fed = fed[np.argsort(fed[:, 1])]
    assert (fed[1:, 1] >= (fed[:, 1] + fed[:, 2] - 1)[:-1]).all(), "no token stands in two sequences"
    more = store(tmp_path / "files", "b.jsonl", jsonl(text_rows(40, start=900)), "pretrain")
    other = run_prepare(job_of(tmp_path, [more], replay=replay))
    assert other["counts"]["replay_tokens"] > 0, "beside other data it is replayed"


@pytest.mark.parametrize("training", [{"packing": "off"}, {"packing": "bestfit"}, {"packing": "bestfit", "curriculum": [16, 48]}])
def test_replay_that_comes_larger_than_wanted_takes_no_step_from_what_is_new(
    tmp_path: Path, file: SourceFile, training: dict[str, Any]
) -> None:
    """One long text is replayed under a step cap: what the cap kept of the new data is learnt whole all the same."""
    book = store(tmp_path / "files", "long.jsonl", jsonl([{"text": sentence(1, 150)}]), "pretrain")
    older = make(tmp_path / "shards" / "old", [book])
    replay = {"fraction": 0.1, "datasets": [{"path": str(older.folder), "known": [[0, pack_bitmap([0], 1)]]}],
              "originals": str(tmp_path / "files")}  # fmt: skip
    recipe = {"stage": "pretrain", "training": {**RECIPE["training"], **training}}  # type: ignore[dict-item]
    learnt = {}
    for rules in (3, REPLAY_RULES):
        said = run_prepare(job_of(tmp_path, [file], recipe=recipe, max_steps=9, replay={**replay, "rules": rules}))
        selection = load_selection(tmp_path / "staging")
        learnt[rules] = said["learnt"][0]["count"], len(selection.examples), said["steps_per_epoch"]
        assert said["steps"] == 9 and said["counts"]["replay_tokens"] == selection.sequence_lengths()[selection.replay].sum() > 0
    assert learnt[3][0] < learnt[3][1] and learnt[3][2] > 9, "as versions were made that are sealed under these rules"
    count, kept, steps = learnt[REPLAY_RULES]
    assert count == kept == learnt[3][1] and steps == 9


def test_several_files_are_one_dataset_and_are_told_apart_in_what_was_learnt(tmp_path: Path, file: SourceFile) -> None:
    # Three rows of the second file stand in the first one too: they are learnt once.
    other = store(tmp_path / "files", "b.jsonl", jsonl([*text_rows(3), *text_rows(20, start=500)]), "pretrain")
    said = run_prepare(job_of(tmp_path, [file, other], validation_fraction=0.0))
    counts = {item["sha256"]: item["count"] for item in said["learnt"]}
    assert said["counts"]["repeated"] == 3 and sum(counts.values()) == 80
    assert counts in ({file.sha256: 60, other.sha256: 20}, {file.sha256: 57, other.sha256: 23})
    assert sum(item["tokens"] for item in said["learnt"]) == said["tokens"]


def test_epochs_and_iterations_decide_the_steps(tmp_path: Path, file: SourceFile) -> None:
    recipe = {"stage": "pretrain", "training": {"learning_rate": 0.001, "batch_sequences": 4, "epochs": 3}}
    said = run_prepare(job_of(tmp_path, [file], recipe=recipe))
    assert said["steps"] == 3 * said["steps_per_epoch"]
    assert run_prepare(job_of(tmp_path, [file], recipe=recipe, iterations=2))["steps"] == 2
    with pytest.raises(UsageError, match="job's recipe"):
        run_prepare(job_of(tmp_path, [file], recipe={"stage": "pretrain"}))


def chats(tmp_path: Path) -> SourceFile:
    rows = [chat_row(number, context_words=5 if number % 2 else 300) for number in range(20)]
    rows.append({"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]})
    return store(tmp_path / "files", "c.jsonl", jsonl(rows), "sft")


def test_conversations_with_replay_of_earlier_text(tmp_path: Path, file: SourceFile) -> None:
    older = make(tmp_path / "shards" / "old", [file])
    replay = {"fraction": 0.3, "datasets": [{"path": str(older.folder), "known": [[0, pack_bitmap(range(10), 60)]]},
                                            {"path": str(older.folder), "known": [[0, pack_bitmap([50], 60)]]},
                                            {"path": str(tmp_path / "gone"), "known": []}]}  # fmt: skip
    job = job_of(tmp_path, [chats(tmp_path)], "sft", block_size=200, replay=replay, validation_fraction=0.0)
    said = run_prepare(job)
    assert said["counts"]["too_long"] == 1 and said["counts"]["new"] == 20 and said["counts"]["replay_tokens"] > 0
    assert said["replay_datasets"] == [older.id] and 0 < said["mask_ratio"] < 1
    assert any("too long" in warning for warning in said["warnings"])
    assert any("no replay from" in warning and "gone" in warning for warning in said["warnings"])
    selection = load_selection(tmp_path / "staging")
    assert selection.replay.any() and (selection.sequence_lengths() <= 201).all()
    assert [item["count"] for item in said["learnt"]] == [20]


def test_a_folder_prepared_elsewhere_is_trained_as_it_is(tmp_path: Path, file: SourceFile) -> None:
    dataset = make(tmp_path / "given", [file], fraction=0.2)
    item = {"sha256": "f" * 64, "name": "given", "path": str(dataset.folder), "kind": "pretrain", "prepared": True}
    job = job_of(tmp_path, []) | {"files": [item]}
    said = run_prepare(job)
    assert not said["dataset_made"] and said["dataset_path"] == str(dataset.folder)
    [learnt] = said["learnt"]
    assert learnt["sha256"] == "f" * 64 and unpack_bitmap(learnt["bitmap"]) == list(range(dataset.train.count))
    with pytest.raises(CheckFailed, match="the dataset given uses char"):
        run_prepare(job | {"tokenization": "gpt2"})
    with pytest.raises(UsageError, match="by itself"):
        run_prepare(job | {"files": [item, entry(file, "pretrain")]})


def test_what_this_home_holds_out_stays_held_out_in_a_folder_split_by_somebody_else(
    tmp_path: Path, file: SourceFile
) -> None:
    dataset = make(tmp_path / "given", [file], fraction=0.0)
    item = {"sha256": "f" * 64, "name": "given", "path": str(dataset.folder), "kind": "pretrain", "prepared": True}
    said = run_prepare(job_of(tmp_path, [], validation_fraction=0.3) | {"files": [item]})
    held = [number for number, key in enumerate(dataset.train.fingerprints)
            if is_held_out(key.ljust(16, b"\0"), "salt", 0.3)]  # fmt: skip
    assert said["counts"]["held_out"] == len(held) > 5
    [learnt] = said["learnt"]
    assert set(held).isdisjoint(unpack_bitmap(learnt["bitmap"])) and learnt["count"] == 60 - len(held)
    assert said["counts"]["examples"] == 60 == said["counts"]["new"] + len(held)


def test_a_stored_file_that_changed_or_went_is_damage(tmp_path: Path, file: SourceFile) -> None:
    data = file.path.read_bytes()
    file.path.write_bytes(data.replace(b"0.", b"1."))
    with pytest.raises(Damage, match="recorded when it was admitted"):
        run_prepare(job_of(tmp_path, [file]))
    file.path.unlink()
    with pytest.raises(Damage, match="is gone"):
        run_prepare(job_of(tmp_path, [file]))
    assert not (tmp_path / "staging" / "prepared.json").exists()


def test_a_text_that_cannot_be_read_is_the_datas_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n\xff\xfe broken")
    with pytest.raises(DataFault, match="UTF-8"):
        run_prepare(job_of(tmp_path, [SourceFile("0" * 64, "a.txt", path)]))
    shutil.rmtree(tmp_path / "staging")


def test_ids_that_another_tokenizer_made_are_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    file = store(tmp_path / "files", "a.jsonl", jsonl([{"input_ids": [index, index + 1]} for index in range(40)]), "pretrain")
    job = job_of(tmp_path, [file])
    job["files"][0] |= {"tokenizer": {"tokenization": "gpt2", "content_hash": "ab" * 32}, "reading": {"rules": 2}}
    with pytest.raises(CheckFailed, match="made with the tokenizer gpt2"):
        run_prepare(job)
    assert not (tmp_path / "staging" / "prepare").exists()
    job["files"][0]["tokenizer"] = {"tokenization": "char", "content_hash": ""}
    assert run_prepare(job)["warnings"] == []
