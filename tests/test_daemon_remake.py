"""`verify VERSION --rebuild`: real training, repeated from the lineage alone, ends in the very same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from toy import Toy, chat_of, text_of
from trainer_help import shared_server

from daemon import freezing
from daemon.remake import remake
from guard.durable import remove_tree
from guard.errors import CheckFailed, Damage
from guard.store.keeper import Keeper
from guard.store.recovery import recover
from guard.store.versions import find_version


class RealServer:
    """Real children in the toy's place of them, one after the other."""

    def __init__(self, exited: Callable[[int, int], None]) -> None:
        self.exited = exited
        self.finished: list[tuple[int, int]] = []

    def spawn(self, job: int, folder: Path, nice: int = 0) -> None:
        self.finished.append((job, shared_server().run(folder)))

    def tick(self, now: float) -> None:
        """Nothing to look after: each is waited for."""

    def warm(self) -> None:
        """It is warm."""

    def signal(self, job: int, number: int = 15) -> None:
        raise AssertionError("nobody stops these jobs")

    def deliver(self) -> None:
        waiting, self.finished = self.finished, []
        for job, status in waiting:
            self.exited(job, status)

    def close(self) -> None:
        self.finished.clear()


class RealToy(Toy):
    def begin(self) -> None:
        super().begin()
        self.server = RealServer(self.engine.runner._exited)  # type: ignore[assignment]
        self.engine.runner.server = self.server  # type: ignore[assignment]


def real_child(folder: Path) -> None:
    assert shared_server().run(folder) == 0, (folder / "error.json").read_text()


@pytest.fixture(scope="module")
def keeper(shared_scratch: Path) -> Iterator[Keeper]:
    """A base, a pretrained version, and a conversational one with replay, all really trained."""
    toy = RealToy(shared_scratch / "remake", gate="warn", training__threads=1).make_base()
    toy.drop("pretrain/b.txt", text_of(1500))
    toy.settle()
    toy.drop("a.jsonl", chat_of(60))
    toy.settle()
    assert [name.split("_")[1] for name in toy.versions()] == ["baseline", "b", "a"]
    yield toy.keeper
    toy.die()


@pytest.mark.parametrize("name", ["v001", "v002", "v003"])
def test_a_version_made_again_is_identical(keeper: Keeper, name: str) -> None:
    made = remake(keeper, name, child=real_child)
    assert made["verdict"] == "identical", made["reason"]
    assert made["files"]["model.safetensors"] and "metrics.jsonl" not in made["files"]
    assert not list(keeper.home.staging.glob("remake-*"))


def test_a_version_of_a_release_without_packing_is_made_again_as_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe says nothing of packing: then text was one stream, and a conversation had a sequence of its own."""
    ask = freezing.prepare_request

    def older(*arguments: Any, **more: Any) -> dict[str, Any]:
        request = ask(*arguments, **more)
        del request["recipe"]["training"]["packing"]
        return request

    monkeypatch.setattr(freezing, "prepare_request", older)
    toy = RealToy(tmp_path / "older", gate="warn", training__threads=1).make_base()
    toy.drop("pretrain/b.txt", text_of(1500))
    toy.settle()
    monkeypatch.undo()
    record = find_version(toy.keeper.ledger, "v002").record
    assert "packing" not in record["recipe"]["training"]
    assert remake(toy.keeper, "v002", child=real_child)["verdict"] == "identical"
    toy.drop("pretrain/c.txt", text_of(1500, seed=2))
    toy.settle()
    assert find_version(toy.keeper.ledger, "v003").record["recipe"]["training"]["packing"] == "bestfit"
    toy.die()


def test_replay_of_pruned_shards_is_prepared_again(keeper: Keeper) -> None:
    record = orjson.loads((next(keeper.home.models.glob("v003*")) / "version.json").read_bytes())
    assert record["replay"]["datasets"] and record["planned"]["replay_sources"] == record["replay"]["datasets"]
    kept = keeper.home.root / "kept"
    shutil.copytree(keeper.home.shards, kept)
    for folder in keeper.home.shards.iterdir():
        remove_tree(folder)
    try:
        assert remake(keeper, "v003", child=real_child)["verdict"] == "identical"
    finally:
        for folder in kept.iterdir():
            shutil.copytree(folder, keeper.home.shards / folder.name)


def changed(folder: Path, values: dict[str, object]) -> None:
    result = orjson.loads((folder / "result.json").read_bytes())
    (folder / "result.json").write_bytes(orjson.dumps({**result, **values}))


@pytest.mark.parametrize("surroundings, verdict", [({}, "different"), ({"library_versions": {"torch": "1.0"}}, "not comparable"),
                                                   ({"hardware": {"cpu": "another"}}, "not comparable")])  # fmt: skip
def test_other_bits_are_damage_only_where_the_same_are_promised(
    keeper: Keeper, surroundings: dict[str, object], verdict: str
) -> None:
    def child(folder: Path) -> None:
        real_child(folder)
        files = orjson.loads((folder / "result.json").read_bytes())["files"]
        changed(folder, {"files": {**files, "model.safetensors": "0" * 64}, **surroundings})

    made = remake(keeper, "v001", child=child)
    assert made["verdict"] == verdict and "model.safetensors" in made["reason"]


def test_nothing_is_trained_on_a_damaged_parent_or_on_damaged_data(keeper: Keeper) -> None:
    def never(_folder: Path) -> None:
        raise AssertionError("a child was started")

    original = next(keeper.home.files.glob("*/a.jsonl"))
    parent = next(keeper.home.models.glob("v002*")) / "config.json"
    for path, told in ((original, "original"), (parent, "parent")):
        sound, mode = path.read_bytes(), path.stat().st_mode
        path.chmod(0o644)
        path.write_bytes(sound[:-1] + b"?")
        with pytest.raises(Damage, match=told):
            remake(keeper, "v003", child=never)
        path.write_bytes(sound)
        path.chmod(mode)


def test_a_scratch_folder_that_a_killed_command_left_is_cleared_by_the_next_start(keeper: Keeper) -> None:
    left, alive = (keeper.home.staging / f"remake-v002_b-{pid}" for pid in (2**22 + 1, os.getpid()))
    for folder in (left, alive):
        folder.mkdir()
    assert f"cleared {left.name}" in recover(keeper)
    assert not left.exists() and alive.exists()
    alive.rmdir()


def test_a_record_that_does_not_say_enough_is_refused(keeper: Keeper) -> None:
    name = keeper.ledger.value("SELECT name FROM versions WHERE id = 2")
    with pytest.raises(CheckFailed, match="earlier release"), keeper.ledger.transaction():
        keeper.ledger.run("UPDATE versions SET record = json_remove(record, '$.planned') WHERE id = 2")
        remake(keeper, name, child=real_child)
