"""Intake on a toy daemon: waiting, other people's files, and a machine that cannot do it now."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import Toy, chat_of

from daemon import endings, freezing, intake
from daemon.notify import Notifier
from daemon.report import live_facts
from daemon.service import HOLD_SECONDS, Service
from guard import copies, durable, failpoints
from guard.copies import copy_verified
from guard.errors import EnvironmentFault, HeirloomError
from guard.failpoints import Crash
from guard.store import intake as acts
from guard.store import views
from guard.store.recovery import recover


@pytest.fixture
def toy(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """A paused home: files are taken in and nothing is trained."""
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    made = Toy(scratch / "home", backup__auto=False)
    made.keeper.ledger._db.execute("INSERT INTO meta VALUES ('paused', '1')")
    yield made
    made.die()


def rounds(toy: Toy, count: int) -> None:
    for _ in range(count):
        toy.step()


def states(toy: Toy) -> list[str]:
    return [state for _name, state, _reason in toy.drops()]


def full(*_arguments: object, **_more: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --- waiting ------------------------------------------------------------------------------------------------------


def test_an_empty_file_waits_without_end_and_is_taken_when_it_is_filled(toy: Toy) -> None:
    path = toy.drop("a.jsonl", "")
    toy.settle()
    assert toy.engine.intake.settler.waiting() == {str(path): "it is empty"} and states(toy) == []
    toy.drop("a.jsonl", chat_of(3))
    toy.settle()
    assert states(toy) == ["admitted"]


def test_a_truncated_last_line_waits_for_its_writer_and_is_told_by_its_number_at_the_end(toy: Toy) -> None:
    path = toy.drop("a.jsonl", chat_of(5)[:-20])
    rounds(toy, 100)
    assert path.exists() and toy.engine.intake.settler.waiting() == {str(path): "its last line is cut off"}
    rounds(toy, 60)
    assert states(toy) == ["rejected"] and "truncated at line 5" in toy.drops()[0][2]


def test_a_writer_that_comes_back_in_time_loses_nothing(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(5)[:-20])
    rounds(toy, 60)
    toy.drop("a.jsonl", chat_of(9))
    toy.settle()
    assert states(toy) == ["admitted"] and toy.keeper.ledger.value("SELECT examples FROM files") == 9


def test_space_that_was_reserved_and_never_written_is_rejected_after_waiting(toy: Toy) -> None:
    toy.drop("a.jsonl", b"\0" * 5000)
    rounds(toy, 60)
    assert states(toy) == []
    rounds(toy, 100)
    assert states(toy) == ["rejected"] and "zero-filled" in toy.drops()[0][2]


def test_a_file_somebody_still_has_open_waits_however_long(toy: Toy) -> None:
    path = toy.drop("a.jsonl", chat_of(3))
    with path.open("ab"):
        rounds(toy, 40)
        assert states(toy) == [] and toy.engine.intake.settler.waiting() == {str(path): "somebody still writes to it"}
    toy.engine.hint()
    toy.settle()
    assert states(toy) == ["admitted"]


def test_a_file_removed_before_it_settled_leaves_nothing_behind(toy: Toy) -> None:
    path = toy.drop("a.jsonl", chat_of(3))
    toy.step()
    toy.step()
    path.unlink()
    toy.settle()
    assert states(toy) == [] and toy.engine.intake.settler.seen == {} and toy.engine.intake._peeked == {}


# --- whose file it is ---------------------------------------------------------------------------------------------


def test_a_second_name_of_the_same_bytes_is_neither_moved_nor_chmodded_nor_shared(toy: Toy, scratch: Path) -> None:
    other = scratch / "mine.jsonl"
    other.write_text(chat_of(3))
    other.chmod(0o640)
    os.link(other, toy.home.inbox / "a.jsonl")
    toy.settle()
    assert states(toy) == ["admitted"] and list(toy.home.inbox.glob("*.jsonl")) == []
    assert other.read_text() == chat_of(3) and stat.S_IMODE(other.stat().st_mode) == 0o640
    stored = next(toy.home.files.glob("*/a.jsonl"))
    assert stored.stat().st_ino != other.stat().st_ino


def test_the_same_name_with_other_bytes_is_another_file(toy: Toy) -> None:
    for seed in (1, 2):
        toy.drop("a.jsonl", chat_of(3, seed))
        toy.settle()
    assert states(toy) == ["admitted", "admitted"] and len(list(toy.home.files.glob("*/a.jsonl"))) == 2


def test_what_comes_back_replaces_no_older_one(toy: Toy) -> None:
    for number in range(3):
        toy.drop("a.jsonl", f'{{"messages": {number}}}\n')
        toy.settle()
    assert sorted(path.name for path in toy.home.rejected.iterdir()) == [
        "a (2).jsonl", "a (2).jsonl.why.txt", "a (3).jsonl", "a (3).jsonl.why.txt", "a.jsonl", "a.jsonl.why.txt"]  # fmt: skip


def test_names_of_any_bytes_are_taken_in_and_come_back_whole(toy: Toy) -> None:
    for place, name in enumerate((b"caf\xe9.jsonl", b"new\nline.jsonl", b"-rf.jsonl", b"n" * 249 + b".jsonl")):
        with open(os.path.join(os.fsencode(toy.home.inbox), name), "wb") as handle:
            handle.write(chat_of(3, seed=place * 10).encode() if place else b'{"messages": 0}\n')
    toy.engine.hint()
    toy.settle()
    assert sorted(states(toy)) == ["admitted", "admitted", "admitted", "rejected"]
    assert len(list(toy.home.rejected.iterdir())) == 2 and views.stale(toy.keeper) == []


# --- the machine --------------------------------------------------------------------------------------------------


def test_a_disk_that_stays_full_while_copying_leaves_one_claim_that_is_finished_later(
    toy: Toy, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toy.drop("a.jsonl", chat_of(3))
    os.link(path, scratch / "second name")
    with monkeypatch.context() as patch:
        patch.setattr(acts, "copy_verified", full)
        rounds(toy, 80)
        assert states(toy) == ["claiming"] and path.exists(), "it is not claimed a second time meanwhile"
        assert "No space left" in toy.engine.intake.problem
    toy.drop("b.jsonl", chat_of(3, seed=5))
    toy.settle()
    assert states(toy) == ["admitted", "admitted"] and toy.engine.intake.problem == ""


def test_a_ledger_without_room_takes_nothing_and_ends_nothing(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_arguments: object, **_more: object) -> int:
        raise EnvironmentFault("the ledger cannot be used now: database or disk is full")

    path = toy.drop("a.jsonl", chat_of(3))
    with monkeypatch.context() as patch:
        patch.setattr(intake, "claim_many", no_room)
        rounds(toy, 20)
        assert path.exists() and "disk is full" in toy.engine.intake.settler.waiting()[str(path)]
    toy.engine.hint()
    toy.settle()
    assert states(toy) == ["admitted"]


def test_a_file_swapped_for_a_link_under_our_eyes_is_not_followed_and_ends_nothing(
    toy: Toy, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = scratch / "secret.jsonl"
    target.write_text(chat_of(3))
    path = toy.drop("a.jsonl", chat_of(3))
    really = intake.has_writer

    def swapped(at: Path) -> bool:
        at.unlink()
        at.symlink_to(target)
        return really(at)

    with monkeypatch.context() as patch:
        patch.setattr(intake, "has_writer", swapped)
        rounds(toy, 10)
    toy.drop("b.jsonl", chat_of(3, seed=5))
    toy.settle()
    assert states(toy) == ["admitted"] and path.is_symlink() and target.read_text() == chat_of(3)


def test_a_claim_that_can_never_be_finished_is_let_go_at_the_next_start(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery must not stop over one file: it is still in the inbox, and is looked at again."""
    path = toy.drop("a.jsonl", chat_of(3))
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run(
            "INSERT INTO drops (name, source, origin, mode, state, seen, updated) VALUES ('a.jsonl', ?, 'inbox', 'copy', "
            "'claiming', 'now', 'now')", (os.fsencode(path),))  # fmt: skip

    def forbidden(*_arguments: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(acts, "copy_verified", forbidden)
        recover(toy.keeper)
    assert toy.drops() == [("a.jsonl", "gone", "it could not be taken: Permission denied")] and path.exists()
    toy.settle()
    assert states(toy) == ["gone", "admitted"]


def test_claimed_bytes_that_vanish_are_told_and_end_nothing(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.drop("a.jsonl", chat_of(3))
    pool = toy.engine.pool

    def only_peek(_now: float) -> None:
        for body, done in list(pool.queue):  # type: ignore[misc]
            if body["task"] == "tails":  # type: ignore[has-type]
                pool.queue.remove((body, done))  # type: ignore[has-type,arg-type]
                done({"tails": [""]})  # type: ignore[has-type]

    monkeypatch.setattr(pool, "tick", only_peek)
    rounds(toy, 10)
    assert states(toy) == ["claimed"] and pool.busy
    shutil.rmtree(toy.home.incoming)
    toy.home.incoming.mkdir()
    toy.again().settle()
    assert toy.drops() == [("a.jsonl", "gone", "its bytes have vanished from data/.incoming")]


@pytest.mark.parametrize("step", ["copy", "hash"])
def test_a_copy_cut_off_by_the_machine_is_never_taken_for_the_file(
    toy: Toy, scratch: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    source = scratch / "source"
    source.write_bytes(b"x" * 100)

    def io_error(*_arguments: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    if step == "hash":
        monkeypatch.setattr(copies, "sha256_file", io_error)
    else:
        monkeypatch.setattr(durable, "_fsync", io_error)
    with pytest.raises(OSError, match="Input/output"):
        copy_verified(source, scratch / "copy")
    assert not (scratch / "copy").exists()


# --- the daemon around it -----------------------------------------------------------------------------------------


def service_of(toy: Toy, *, once: bool) -> Service:
    service = Service(toy.home, toy.keeper, once=once, notifier=Notifier())
    service.watcher.stop()
    return service


def test_a_full_disk_holds_the_daemon_and_does_not_end_it(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(toy, once=False)
    visits: list[float] = []

    def no_room(now: float) -> None:
        visits.append(now)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(service.engine, "loop", no_room)
    monkeypatch.setattr(service.reactor, "poll", lambda _seconds: 0)
    for now in (0.0, 1.0, HOLD_SECONDS - 0.1, HOLD_SECONDS + 0.1):
        service.round(now)
    assert visits == [0.0, HOLD_SECONDS + 0.1]
    assert any("No space left" in problem for problem in live_facts(service.engine)["problems"])
    monkeypatch.setattr(service.engine, "loop", lambda now: None)
    service.round(3 * HOLD_SECONDS)
    assert live_facts(service.engine)["problems"] == []
    service.control.close()
    service.reactor.close()


def test_with_once_a_full_disk_is_the_answer_and_a_mistake_of_ours_is_never_swallowed(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for once, error in ((True, OSError(errno.ENOSPC, "No space left")), (False, HeirloomError("a mistake")),
                        (False, KeyError("a mistake"))):  # fmt: skip
        service = service_of(toy, once=once)

        def fail(_now: float, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(service.engine, "loop", fail)
        with pytest.raises(type(error)):
            service.round(0.0)
        service.control.close()
        service.reactor.close()


def test_a_job_held_by_the_machine_is_not_forgotten_by_the_next_life(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.keeper.ledger._db.execute("UPDATE meta SET value = '0' WHERE key = 'paused'")
    toy.make_base()
    with monkeypatch.context() as patch:
        patch.setattr(freezing, "write_known_steps", full)
        toy.drop("a.jsonl", chat_of(30))
        rounds(toy, 20)
    assert toy.jobs()[-1][2] == "held"
    toy.again()
    toy.clock.advance(endings.HOLD_SECONDS + 1)
    toy.settle()
    assert toy.jobs()[-1][2] == "done"


def test_a_duplicate_comes_back_with_the_mode_it_came_with(toy: Toy) -> None:
    toy.make_base()
    toy.drop("a.jsonl", chat_of(10))
    toy.settle()
    toy.drop("b.jsonl", chat_of(10))
    os.chmod(toy.home.inbox / "b.jsonl", 0o640)
    toy.settle()
    assert (toy.home.duplicates / "b.jsonl").stat().st_mode & 0o7777 == 0o640
    toy.drop("c.jsonl", chat_of(10))
    os.chmod(toy.home.inbox / "c.jsonl", 0o600)
    failpoints.arm("verdict.intended", "crash")
    with pytest.raises(Crash):
        toy.settle()
    failpoints.disarm()
    toy.again()
    toy.settle()
    assert (toy.home.duplicates / "c.jsonl").stat().st_mode & 0o7777 == 0o600
    assert all(path.stat().st_mode & 0o7777 == 0o444 for path in toy.home.files.glob("*/*"))
