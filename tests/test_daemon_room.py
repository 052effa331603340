"""Room before a job: the backup counts where the vault shares the disk, and a full vault of its own costs no model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from homes import copy_home
from toy import Toy, chat_of

from daemon import costs, engine
from daemon.costs import backup_bytes, needed_bytes
from daemon.facts import gather_facts
from daemon.report import compose
from daemon.targets import target_of
from guard.store.jobs import jobs_in
from guard.store.vault_state import backup_status


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    toy = Toy(shared_scratch / "room", backup__auto=False).make_base()
    toy.die()
    return shared_scratch / "room"


@pytest.fixture
def begin(template: Path, scratch: Path) -> Iterator[Callable[..., Toy]]:
    lives: list[Toy] = []

    def start(**settings: object) -> Toy:
        root = scratch / f"home{len(lives)}"
        copy_home(template, root)
        lives.append(Toy(root, **settings))
        return lives[-1]

    yield start
    for toy in lives:
        toy.die()


def _queued(toy: Toy) -> None:
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.set_meta("paused", "1")
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()


def test_the_backup_counts_where_the_vault_lies_on_the_same_disk(
    begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = begin(backup__auto=True)
    _queued(toy)
    target = target_of(toy.keeper, jobs_in(toy.keeper.ledger, "queued")[0])
    shared = needed_bytes(toy.keeper, target, 1000)
    monkeypatch.setattr(costs, "other_device", lambda *_words: True)
    alone = needed_bytes(toy.keeper, target, 1000)
    copy = backup_bytes(toy.keeper, target, 1000)
    assert shared == alone + copy and copy > target.base.size_bytes // 2 + target.files[0].size_bytes


def test_no_backup_is_counted_where_none_is_made(begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    toy = begin(backup__auto=False)
    _queued(toy)
    target = target_of(toy.keeper, jobs_in(toy.keeper.ledger, "queued")[0])
    shared = needed_bytes(toy.keeper, target, 1000)
    monkeypatch.setattr(costs, "other_device", lambda *_words: True)
    assert needed_bytes(toy.keeper, target, 1000) == shared
    assert gather_facts(toy.keeper, target).vault_free_bytes is None


def test_a_full_vault_costs_no_model_is_told_and_the_backup_is_made_when_there_is_room(
    begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vault = tmp_path / "vault"
    toy = begin(backup__auto=True, backup__path=str(vault))
    monkeypatch.setattr(costs, "other_device", lambda *_words: True)
    real = shutil.disk_usage
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage",
                      lambda path: real(path)._replace(free=100) if Path(path) in (vault, tmp_path) else real(path))
        toy.drop("a.jsonl", chat_of(30))
        toy.settle()
        assert toy.versions()["v002_a"] == "sealed"
        told = compose(toy.keeper, {"problems": [toy.engine.backup_problem]}, running=True)
        alerts = "\n".join(item["what"] for item in told["alerts"])
        assert "backup held: " in alerts and "backups wait until there is room" in alerts
        assert backup_status(toy.keeper)["versions"]["verified"] == 0
    toy.clock.advance(engine.RETRY_BACKUP_SECONDS + 1)
    toy.settle()
    assert toy.engine.backup_problem == ""
    assert backup_status(toy.keeper)["versions"]["missing"] == []
    assert not any("wait until there is room" in item["what"] for item in compose(toy.keeper, {}, running=True)["alerts"])
