"""Silent-failure traps in a whole home: caught by the plan, by the checks of the child over what the plan froze, by the proof.

The child's own traps stand in `test_trainer_traps_data.py` and `test_trainer_traps_run.py`, the table of all in docs/TRAPS.md.
Here the toy trainer asks the very checks of the real one over the real prepared data, so that what the daemon freezes is what
they need.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from homes import copy_home
from toy import Toy, chat_of, text_of

import trainer.prepare_job
from guard.durable import sha256_file
from guard.errors import CheckFailed, Damage
from guard.store.versions import high_water
from trainer.child import EXIT_FAULT, _tell_fault
from trainer.data_check import require_sound_data
from trainer.dataset import open_dataset
from trainer.selection import load_selection
from trainer.templates.find import load_template
from trainer.tokenizer import load_tokenizer

Job = dict[str, Any]


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    root = shared_scratch / "traps-template"
    Toy(root).make_base().die()
    return root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Iterator[Toy]:
    copy_home(template, scratch / "home")
    toy = Toy(scratch / "home", backup__auto=False)
    _checking(toy)
    yield toy
    toy.die()


class _Fed:
    """What the data's checks want of a feed, without torch."""

    def __init__(self, job: Job) -> None:
        self.selection = load_selection(job["staging"])
        self.datasets = [open_dataset(job["dataset"]["path"]), *map(open_dataset, self.selection.datasets[1:])]

    def documents(self, sequence: int) -> list[tuple[Any, Any]]:
        first, end = self.selection.sequences[sequence]
        assert self.selection.documents is not None
        found = []
        for number in np.unique(self.selection.documents[first:end]):
            pieces = self.selection.ranges[first:end][self.selection.documents[first:end] == number]
            split = self.datasets[int(pieces[0, 0])].train
            found.append(tuple(np.concatenate([read(int(start), int(length)) for _source, start, length in pieces])
                               for read in (split.tokens, split.mask)))  # fmt: skip
        return found


def _checking(toy: Toy) -> None:
    """The toy trainer asks what the real one asks before step 1; what it finds is told as the real one tells it."""
    plain, spawn = toy.server._train, toy.server.spawn
    toy.checked = []  # type: ignore[attr-defined]

    def train(job: Job) -> None:
        base = Path(job["base"]["path"])
        require_sound_data(_Fed(job), load_tokenizer(job["tokenization"], base), load_template(base), job["prepared"]["pins"],
                           masked=bool(job["recipe"]["use_loss_mask"]))  # type: ignore[arg-type]  # fmt: skip
        toy.checked.append(job["output"]["id"])  # type: ignore[attr-defined]
        plain(job)

    def start(job: int, folder: Path, nice: int = 0) -> None:
        try:
            spawn(job, folder, nice)
        except (CheckFailed, Damage) as error:
            _tell_fault(folder, error)
            toy.server.finished.append((job, EXIT_FAULT))

    toy.server._train, toy.server.spawn = train, start  # type: ignore[method-assign]


def spoil_between(monkeypatch: pytest.MonkeyPatch, toy: Toy, spoil: Callable[[Path], None]) -> None:
    """Spoil the prepared dataset after it was prepared, checked and planned, and before it is trained."""
    from daemon import publish

    plain = publish.adopt_dataset

    def adopt(keeper: Any, job: Any, prepared: Job) -> Job:
        found = plain(keeper, job, prepared)
        spoil(Path(found["dataset_path"]))
        return found

    monkeypatch.setattr("daemon.runner.adopt_dataset", adopt)


def refused(toy: Toy, words: str) -> str:
    """No version came of it, no number, nothing learnt, and the reason is told."""
    assert list(toy.versions()) == ["v001_baseline"]
    assert toy.keeper.ledger.value("SELECT count(*) FROM learnt") == 0
    reasons = " ".join([row[3] for row in toy.jobs()] + [row[2] for row in toy.drops()])
    assert words in reasons, reasons
    return reasons


def test_sound_homes_pass_every_check_with_replay_and_a_curriculum(toy: Toy) -> None:
    toy.drop("pretrain/a.txt", text_of(1200))
    toy.settle()
    toy.drop("b.jsonl", chat_of(60))
    toy.settle()
    toy.drop("pretrain/c.txt.meta.yaml", "training: {curriculum: [8, 16, 32]}\n")
    toy.drop("pretrain/c.txt", text_of(1200, seed=3))
    toy.settle()
    toy.drop("d.jsonl", chat_of(60, seed=9))
    toy.settle()
    assert toy.checked == [2, 3, 4, 5] and set(toy.versions().values()) == {"sealed"}  # type: ignore[attr-defined]
    selection = toy.keeper.ledger.value("SELECT json_extract(record, '$.replay.tokens') FROM versions WHERE id = 5")
    assert selection is not None


def test_dataset_already_learnt(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    rows = chat_of(40).splitlines()
    toy.drop("again.jsonl", "\n".join(reversed(rows)) + "\n")
    toy.settle()
    assert list(toy.versions()) == ["v001_baseline", "v002_a"] and high_water(toy.keeper) == 2
    assert [(name, state) for name, state, _reason in toy.drops()][-1] == ("again.jsonl", "duplicate")


@pytest.mark.parametrize("name", ["shard_00000.bin", "shard_00000_mask.bin"])
def test_a_shard_swapped_between_plan_and_training(toy: Toy, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def flip(folder: Path) -> None:
        path = folder / "train" / name
        path.chmod(0o644)
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))

    spoil_between(monkeypatch, toy, flip)
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    refused(toy, "is not what was prepared: its bytes changed")


def test_a_dataset_swapped_together_with_its_hashes(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(folder: Path) -> None:
        path = folder / "train" / "shard_00000_mask.bin"
        path.chmod(0o644)
        path.write_bytes(bytes(1 for _byte in path.read_bytes()))
        metadata = json.loads((folder / "dataset_metadata.json").read_text())
        metadata["splits"]["train"]["shards"][0]["mask_sha256"] = sha256_file(path)
        (folder / "dataset_metadata.json").chmod(0o644)
        (folder / "dataset_metadata.json").write_text(json.dumps(metadata))

    spoil_between(monkeypatch, toy, swap)
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    refused(toy, "is not the one that was planned")


@pytest.mark.parametrize(("key", "check"), [("tokenizer_hash", "Tokenizer matches"), ("template_hash", "Template matches")])
def test_data_prepared_for_another_base(toy: Toy, monkeypatch: pytest.MonkeyPatch, key: str, check: str) -> None:
    plain = trainer.prepare_job.write_json

    def lie(path: Path, value: Job, **options: Any) -> None:
        plain(path, {**value, key: "f" * 64} if key in value else value, **options)

    monkeypatch.setattr(trainer.prepare_job, "write_json", lie)
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    assert check in refused(toy, "the data was prepared with ffffffffffff")


@pytest.mark.parametrize(("ratio", "words"), [(0.0, "no token of this data would be trained"),
                                              (1.0, "every token would be trained, questions too")])  # fmt: skip
def test_a_mask_of_one_value_is_refused_by_the_plan(toy: Toy, monkeypatch: pytest.MonkeyPatch, ratio: float, words: str) -> None:
    plain = trainer.prepare_job.write_json

    def lie(path: Path, value: Job, **options: Any) -> None:
        plain(path, {**value, "mask_ratio": ratio} if "mask_ratio" in value else value, **options)

    monkeypatch.setattr(trainer.prepare_job, "write_json", lie)
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    refused(toy, words)


def test_replay_of_another_template_is_left_out_and_told(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(60))
    toy.settle()
    (folder,) = toy.home.shards.iterdir()
    path = folder / "dataset_metadata.json"
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text()), "template": "harmony", "template_hash": "f" * 64}))
    toy.drop("pretrain/b.txt", text_of(1200))
    toy.settle()
    plan = json.loads(toy.keeper.ledger.value("SELECT plan FROM jobs ORDER BY id DESC LIMIT 1"))["train"]
    assert any("no replay from" in text and "wrong template" in text for text in plan["prepared"]["warnings"])
    assert plan["prepared"]["counts"]["replay_tokens"] == 0 and "v003_b" in toy.versions()
