"""What once broke and must not again: findings of a hostile reading, each played on a toy daemon."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import copy_home
from toy import Toy, chat_of, text_of

from daemon.children import TorchServer
from daemon.operations import perform
from daemon.reactor import Reactor
from daemon.readers import ReaderPool
from daemon.story import tell_story
from guard import failpoints
from guard.durable import sha256_bytes
from guard.errors import Protected
from guard.failpoints import Crash
from guard.store.verify import verify


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    root = shared_scratch / "repair-template"
    Toy(root).make_base().die()
    return root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Iterator[Toy]:
    copy_home(template, scratch / "home")
    toy = Toy(scratch / "home")
    yield toy
    toy.die()


def rot(path: Path) -> None:
    os.chmod(path, 0o644)
    path.write_bytes(b"rot")


def stored(toy: Toy, content: str) -> Path:
    return toy.home.files / sha256_bytes(content.encode()) / "a.jsonl"


def test_a_good_copy_replaces_a_rotten_original_and_its_parked_job_goes_on(toy: Toy) -> None:
    content = chat_of(40)
    toy.drop("a.jsonl", content)
    while not stored(toy, content).exists():
        toy.step()
    toy.clock.advance(0)
    rot(stored(toy, content))
    toy.again().settle()
    assert [row[2] for row in toy.jobs()][-1] in ("parked", "done")
    toy.drop("again.jsonl", content)
    toy.settle()
    assert stored(toy, content).read_text() == content
    for number, _kind, state, _reason in toy.jobs():
        if state == "parked":
            perform(toy.engine, "queue.retry", {"job": number})
    toy.settle()
    assert "v002_a" in toy.versions() or "v002_again" in toy.versions()


@pytest.mark.parametrize("point", ["birth.recorded", "birth.viewed", "birth.sealed"])
def test_a_full_disk_after_the_record_leaves_the_job_done_and_is_tidied_later(toy: Toy, point: str) -> None:
    failpoints.arm(point, "enospc")
    toy.drop("a.jsonl", chat_of(40))
    for _ in range(40):
        toy.step()
    assert failpoints.hits(point) >= 1
    failpoints.disarm()
    toy.clock.advance(60)
    toy.settle()
    assert toy.versions() == {"v001_baseline": "sealed", "v002_a": "sealed"}
    assert {row[2] for row in toy.jobs()} == {"done"}
    assert verify(toy.keeper, everything=True).damage == ()


def test_one_torn_sidecar_holds_no_other_drop(toy: Toy) -> None:
    content = chat_of(40)
    toy.drop("a.jsonl", content)
    toy.settle()
    sidecar = stored(toy, content).with_name("examples.fp")
    os.chmod(sidecar, 0o644)
    sidecar.write_bytes(sidecar.read_bytes()[:-3])
    toy.drop("b.jsonl", chat_of(40, seed=500))
    toy.settle()
    assert "v003_b" in toy.versions() and not toy.engine.intake.held
    assert "torn" in str(tell_story(toy.keeper, "a.jsonl", toy.home.root)["files"])


def test_a_vanished_inbox_folder_keeps_no_home_from_starting(toy: Toy) -> None:
    failpoints.arm("verdict.intended", "crash")
    toy.drop("bad.jsonl", '{"messages": 3}\n')
    with pytest.raises(Crash):
        toy.settle()
    failpoints.disarm()
    shutil.rmtree(toy.home.inbox)
    toy.again()
    for _ in range(5):
        toy.step()
    assert not toy.home.inbox.exists(), "a missing inbox may be a missing disk: it is not made anew"
    toy.home.inbox.mkdir()
    toy.clock.advance(30)
    toy.settle()
    assert (toy.home.rejected / "bad.jsonl").exists()


def test_a_rollback_first_finishes_the_birth_that_waits_for_the_disk(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    failpoints.arm("birth.renamed", "enospc")
    toy.drop("b.jsonl", chat_of(40, seed=500))
    while not failpoints.hits("birth.renamed"):
        toy.step()
    failpoints.disarm()
    perform(toy.engine, "rollback", {"version": "v002", "line": None, "reason": "", "dry_run": False})
    toy.settle()
    assert toy.versions()["v003_b"] == "sealed"
    assert verify(toy.keeper, everything=True).damage == ()


def test_a_folder_of_a_persons_own_in_models_stops_no_training(toy: Toy) -> None:
    (toy.home.models / "my notes").mkdir()
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    assert "v002_a" in toy.versions()


def test_the_base_of_a_parked_job_cannot_be_deleted(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    toy.drop("b.jsonl", chat_of(40, seed=500))
    while not any(row[2] == "training" for row in toy.jobs()):
        toy.clock.advance(0.5)
        toy.engine.loop(toy.clock.monotonic())
        if any(row[2] == "preparing" for row in toy.jobs()):
            toy.server.deliver()
    perform(toy.engine, "rollback", {"version": "v001", "line": None, "reason": "", "dry_run": False})
    toy.server.finished.clear()
    assert any(row[2] == "parked" for row in toy.jobs())
    with pytest.raises(Protected):
        perform(toy.engine, "delete", {"version": "v002_a", "force": True, "confirm_lineage": True, "confirm": "v002_a"})


def test_bytes_that_were_a_document_can_become_training_text_and_stay_in_the_index(toy: Toy) -> None:
    text = text_of(1500)
    toy.drop("notes.txt", text)
    toy.settle()
    toy.drop("pretrain/notes.txt", text)
    toy.settle()
    assert "v002_notes" in toy.versions()
    assert toy.keeper.ledger.value("SELECT current_doc FROM files WHERE name = 'notes.txt'") == 1
    assert verify(toy.keeper, everything=True).damage == ()


def test_a_document_dropped_under_another_name_is_replaced_under_that_name(toy: Toy) -> None:
    toy.drop("a.md", "# X\n")
    toy.settle()
    toy.drop("a.md", "# Y\n")
    toy.settle()
    toy.drop("b.md", "# X\n")
    toy.settle()
    toy.drop("a.md", "# Z\n")
    toy.settle()
    current = toy.keeper.ledger.rows("SELECT json_extract(record, '$.dropped_as') FROM files WHERE current_doc = 1 ORDER BY 1")
    assert [row[0] for row in current] == ["a.md", "b.md"]


def test_a_reader_that_cannot_be_started_forgets_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    reactor = Reactor()
    pool = ReaderPool(reactor, memory_mb=100)

    def no_more(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("subprocess.Popen", no_more)
    told: list[dict[str, Any]] = []
    pool.submit({"id": 1}, 10, told.append)
    pool.tick(0.0)
    assert told == [{"fault": "environment", "message": "no reader could be started: Too many open files"}]
    reactor.close()


def test_a_child_that_could_not_be_forked_ends_its_job_with_the_machines_fault(tmp_path: Path) -> None:
    ended: list[tuple[int, int]] = []
    reactor = Reactor()
    server = TorchServer(reactor, lambda job, status: ended.append((job, status)))
    server.waiting[7] = tmp_path
    server._message({"error": "fork: Cannot allocate memory", "id": 7})
    assert ended == [(7, 71)] and json.loads((tmp_path / "error.json").read_text())["fault"] == "environment"
    reactor.close()


def test_a_child_that_was_not_measured_as_planned_is_not_published(toy: Toy) -> None:
    toy.server.spoil = lambda job, result: result.get("evaluation", [1]).pop()
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    assert list(toy.versions()) == ["v001_baseline"] and "was not measured on" in toy.jobs()[-1][3]
