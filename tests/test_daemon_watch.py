"""The watcher: it only says "look", and it is itself looked after. Real events, waited for at most two seconds each."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import watch
from daemon.watch import Watcher, file_system_of


class Woken:
    """Counts hints; `wait` is bounded."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self) -> None:
        self.event.set()

    def within(self, seconds: float) -> bool:
        came = self.event.wait(seconds)
        self.event.clear()
        return came


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def watcher(inbox: Path, woken: Woken) -> Iterator[Watcher]:
    made = Watcher(inbox, woken)
    made.check()
    assert woken.within(2), "a new observer asks for a look: what came before it is not told"
    yield made
    made.stop()


def ended(thing: object) -> bool:
    thing.join(2)  # type: ignore[attr-defined]
    return not thing.is_alive()  # type: ignore[attr-defined]


def test_what_stirs_wakes_and_our_own_reading_does_not(inbox: Path, watcher: Watcher, woken: Woken) -> None:
    (inbox / "sub").mkdir()
    (inbox / "sub" / "a.jsonl").write_text("x")
    assert woken.within(2)
    while woken.within(0.2):  # the rest of the burst
        pass
    for _ in range(3):
        (inbox / "sub" / "a.jsonl").read_text()
        list((inbox / "sub").iterdir())
    assert not woken.within(0.3)
    assert watcher.problem == ""


def test_a_living_observer_is_kept(watcher: Watcher) -> None:
    before = watcher._observer
    watcher.check()
    assert watcher._observer is before


def test_a_dead_observer_is_replaced_and_asks_for_a_look(inbox: Path, watcher: Watcher, woken: Woken) -> None:
    dead = watcher._observer
    dead.stop()  # type: ignore[attr-defined]
    assert ended(dead)
    woken.event.clear()
    watcher.check()
    assert watcher._observer is not dead and woken.within(2)
    (inbox / "a.jsonl").write_text("x")
    assert woken.within(2)


def test_an_observer_whose_emitter_died_is_replaced_too(watcher: Watcher) -> None:
    """The thread that reads the kernel's events may die alone; the observer still says it lives."""
    half = watcher._observer
    for emitter in half.emitters:  # type: ignore[attr-defined]
        emitter.stop()
        assert ended(emitter)
    watcher.check()
    assert watcher._observer is not half


@pytest.mark.parametrize("how", ["deleted", "renamed away"])
def test_an_inbox_that_was_made_again_is_watched_again(inbox: Path, watcher: Watcher, woken: Woken, how: str) -> None:
    if how == "deleted":
        inbox.rmdir()
    else:
        inbox.rename(inbox.with_name("old"))
    watcher.check()
    assert "cannot be watched" in watcher.problem
    inbox.mkdir()
    while woken.within(0.1):
        pass
    watcher.check()
    assert watcher.problem == "" and woken.within(2)
    while woken.within(0.1):
        pass
    (inbox / "a.jsonl").write_text("x")
    assert woken.within(2)


def test_an_inbox_missing_at_the_start_is_waited_for(tmp_path: Path, woken: Woken) -> None:
    watcher = Watcher(tmp_path / "later", woken)
    watcher.check()
    assert "cannot be watched" in watcher.problem and not woken.within(0)
    (tmp_path / "later").mkdir()
    watcher.check()
    assert watcher.problem == "" and woken.within(2)
    watcher.stop()


def test_exhausted_watches_are_told_and_tried_again(inbox: Path, woken: Woken, monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted:
        def schedule(self, *_arguments: object, **_more: object) -> None:
            raise OSError(errno.ENOSPC, "inotify watch limit reached")

    watcher = Watcher(inbox, woken)
    with monkeypatch.context() as patch:
        patch.setattr(watch, "Observer", Exhausted)
        watcher.check()
        assert "inotify watch limit reached" in watcher.problem and "swept instead" in watcher.problem
    watcher.check()
    assert watcher.problem == ""
    watcher.stop()
    watcher.stop()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "fuse", "9p"])
def test_a_network_folder_is_swept_and_says_so(inbox: Path, woken: Woken, kind: str) -> None:
    """A34"""
    watcher = Watcher(inbox, woken)
    watcher.kind_of = lambda _device: kind
    watcher.check()
    assert kind in watcher.problem and "swept instead" in watcher.problem and watcher._observer is None
    watcher.kind_of = lambda _device: "fuseblk"
    watcher.check()
    assert watcher.problem == "" and woken.within(2)
    watcher.stop()


def test_the_file_system_is_the_one_that_is_mounted_there(tmp_path: Path) -> None:
    """A34"""
    mounts = tmp_path / "mountinfo"
    mounts.write_text("36 35 98:0 /m1 /mnt/a\\040b rw master:1 - ext4 /dev/root rw\n40 35 0:52 / /mnt/n rw - nfs4 host:/x rw\n")
    assert file_system_of(os.makedev(98, 0), mounts) == "ext4" and file_system_of(os.makedev(0, 52), mounts) == "nfs4"
    assert file_system_of(os.makedev(9, 9), mounts) == "" == file_system_of(os.makedev(0, 52), tmp_path / "none")
    assert file_system_of(os.stat("/proc").st_dev) == "proc"


def test_a_handler_that_raises_ends_an_observer_which_is_replaced_and_told(
    inbox: Path, watcher: Watcher, woken: Woken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A33"""
    def broken(*_arguments: object) -> None:
        raise RuntimeError("a handler that raises")

    monkeypatch.setattr(threading, "excepthook", lambda _arguments: None)
    with monkeypatch.context() as patch:
        patch.setattr(watch._Hint, "on_any_event", broken)
        (inbox / "a.jsonl").write_text("x")
        assert ended(watcher._observer)
    watcher.check()
    assert "had died and was replaced" in watcher.problem and woken.within(2)
    (inbox / "b.jsonl").write_text("x")
    assert woken.within(2)
    watcher.check()
    assert watcher.problem == ""
