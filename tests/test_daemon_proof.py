"""Trainers that lie or stop early: none of them gets a version, a tip, or a lesson recorded, and the file keeps its chances.

The lies are told in files a child really leaves, by a stand-in that takes the training child's place; the proof itself,
fact by fact, is tested in `test_guard_proof.py`. What follows after every lie: an honest child learns all of it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from homes import copy_home, read_sidecar
from toy import Toy, chat_of

from guard.durable import sha256_file, write_json
from guard.store.learnt import judge_novelty
from guard.store.verify import verify
from guard.store.versions import high_water

BASE = "v001_baseline"
Request = dict[str, Any]


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    root = shared_scratch / "proof-template"
    Toy(root).make_base().die()
    return root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Iterator[Toy]:
    copy_home(template, scratch / "home")
    toy = Toy(scratch / "home", backup__auto=False)
    yield toy
    toy.die()


def out(job: Request) -> Path:
    return Path(job["staging"]) / "out"


def tell(job: Request, **other: Any) -> None:
    """Change the finished child's result."""
    path = Path(job["staging"]) / "result.json"
    write_json(path, {**json.loads(path.read_text("utf-8")), **other})


def tell_of(job: Request) -> None:
    """Make the result agree with the files, as an honest child's would."""
    files = {path.name: sha256_file(path) for path in sorted(out(job).iterdir())}
    tell(job, files=files, weights_sha256=files["model.safetensors"])


def parents_weights(job: Request) -> None:
    shutil.copyfile(Path(job["base"]["path"]) / "model.safetensors", out(job) / "model.safetensors")
    tell_of(job)


def nothing_at_all(job: Request) -> None:
    for path in list(Path(job["staging"]).iterdir()):
        if path.name != "job.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def no_weights(job: Request) -> None:
    (out(job) / "model.safetensors").unlink()
    tell(job, files={path.name: sha256_file(path) for path in out(job).iterdir()})


def torn_result(job: Request) -> None:
    path = Path(job["staging"]) / "result.json"
    path.write_bytes(path.read_bytes()[:100])


def not_a_number(job: Request) -> None:
    """JSON has no NaN of its own; this one writes Python's."""
    path = Path(job["staging"]) / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "final_loss": math.nan}))


LIES: dict[str, Callable[[Request], None]] = {
    "it did zero steps": lambda job: tell(job, steps_executed=0),
    "it did zero steps and kept the weights": lambda job: (parents_weights(job), tell(job, steps_executed=0))[0],
    "it stopped one step early": lambda job: tell(job, steps_executed=job["steps"] - 1),
    "it skipped examples": lambda job: tell(job, consumed_sha256="5" * 64),
    "its loss is NaN": not_a_number,
    "its loss is null, as orjson writes NaN": lambda job: tell(job, final_loss=None),
    "a weight is NaN": lambda job: tell(job, finite=False),
    "it trained another parent": lambda job: tell(job, parent_weights_sha256="7" * 64),
    "its weights are the parent's": parents_weights,
    "it says itself that nothing changed": lambda job: tell(job, weights_changed=False),
    "it exited 0 and left nothing": nothing_at_all,
    "it exited 0 before its result was whole": torn_result,
    "it exited 0 without weights": no_weights,
}


class Liar:
    """Takes the training child's place: does the work honestly, then lies about it."""

    def __init__(self, toy: Toy, lie: Callable[[Request], None]) -> None:
        self.lie, self.told, self.really = lie, 0, toy.server.spawn
        self.server = toy.server
        toy.server.spawn = self.spawn  # type: ignore[method-assign]

    def spawn(self, job: int, folder: Path, nice: int = 0) -> None:
        self.really(job, folder, nice)
        request = json.loads((folder / "job.json").read_text("utf-8"))
        if request["task"] == "train":
            self.told += 1
            self.lie(request)

    def leave(self) -> None:
        self.server.spawn = self.really  # type: ignore[method-assign]


def drop_and_settle(toy: Toy, name: str, seed: int = 1) -> tuple[int, str]:
    toy.drop(name, chat_of(30, seed=seed))
    toy.settle()
    number, _kind, state, _reason = toy.jobs()[-1]
    return number, state


def trainable(toy: Toy) -> int:
    """What of the only file is still to be learnt by the tip."""
    sha256 = toy.keeper.ledger.value("SELECT sha256 FROM files")
    tip = toy.keeper.ledger.value("SELECT tip_id FROM lines WHERE name = 'policy'")
    return judge_novelty(toy.keeper, read_sidecar(toy.home.files / sha256), tip, "sft").new


@pytest.mark.parametrize("lie", LIES)
def test_a_trainer_that_did_not_train_publishes_nothing_and_the_file_keeps_its_chances(lie: str, toy: Toy) -> None:
    liar = Liar(toy, LIES[lie])
    number, state = drop_and_settle(toy, "a.jsonl")
    assert liar.told >= 1 and state != "done"
    assert toy.versions() == {BASE: "sealed"} and toy.keeper.ledger.rows("SELECT * FROM learnt") == []
    assert [path.name for path in toy.home.models.iterdir() if path.is_dir() and path.name[0] == "v"] == [BASE]
    manifest = orjson.loads(toy.home.manifest.read_bytes())
    assert [item["trained_in"] for item in manifest.values()] == [[]] and trainable(toy) > 20
    assert verify(toy.keeper, everything=True).ok
    wanted, taken = trainable(toy), high_water(toy.keeper)
    liar.leave()
    assert drop_and_settle(toy, "once-more.jsonl")[1] == "done", toy.jobs()
    name = next(name for name in toy.versions() if name != BASE)
    assert int(name[1:4]) > taken, "a number that was given is not given again"
    assert toy.keeper.ledger.value("SELECT sum(count) FROM learnt") == wanted and trainable(toy) == 0
    assert find_state(toy, number) != "done"


def find_state(toy: Toy, number: int) -> str:
    return str(toy.keeper.ledger.value("SELECT state FROM jobs WHERE id = ?", (number,)))


def test_the_result_of_the_file_before_proves_nothing_for_the_next(toy: Toy) -> None:
    """The second file that "completes" at once, with what the first one left (CASES B06)."""
    kept: dict[str, Any] = {}

    def keep(job: Request) -> None:
        kept.update(json.loads((Path(job["staging"]) / "result.json").read_text("utf-8")))
        shutil.copytree(out(job), toy.home.root / "first-out")

    first = Liar(toy, keep)
    assert drop_and_settle(toy, "a.jsonl")[1] == "done"
    first.leave()

    def answer_again(job: Request) -> None:
        shutil.rmtree(out(job))
        shutil.copytree(toy.home.root / "first-out", out(job))
        write_json(Path(job["staging"]) / "result.json", kept)

    second = Liar(toy, answer_again)
    assert drop_and_settle(toy, "b.jsonl", seed=2)[1] != "done" and second.told >= 1
    assert [name.split("_", 1)[1] for name in toy.versions()] == ["baseline", "a"]
    second.leave()
    assert drop_and_settle(toy, "b-again.jsonl", seed=2)[1] == "done"
