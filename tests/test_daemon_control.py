"""The control socket: one line in, one line out, for its owner only; a bad client costs only itself."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from daemon import control
from daemon.control import ControlServer, ask, is_listening
from daemon.reactor import Reactor
from guard.errors import Busy, DaemonNotRunning, HeirloomError, Protected, UsageError
from guard.steps import Steps, advance

SLICES = 40


def handle(request: Mapping[str, Any]) -> Steps[dict[str, Any]]:
    """Stands in for the operations; what is asked for decides what goes wrong."""
    if request["operation"] == "protected":
        raise Protected("no", hint="do not", subject="v001")
    if request["operation"] == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if request["operation"] == "broken":
        raise ZeroDivisionError("division by zero")
    for _ in range(SLICES if request["operation"] == "long" else 1):
        yield
    return {"echo": request.get("arguments")}


class Running:
    """A server with its reactor in a thread, as the daemon's loop would run it."""

    def __init__(self, path: Path) -> None:
        self.path, self.reactor, self.stop = path, Reactor(), False
        self.server = ControlServer(path, self.reactor, handle)
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while not self.stop:
                self.server.tick()
                self.reactor.poll(0.0 if self.server.busy else 0.5)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.failure = error

    def close(self) -> None:
        self.stop = True
        self.reactor.wake()
        self.thread.join(2)
        self.server.close()
        self.reactor.close()
        assert self.failure is None, f"a client ended the daemon: {self.failure!r}"


@pytest.fixture
def start() -> Iterator[Callable[[Path], Running]]:
    running: list[Running] = []

    def begin(path: Path) -> Running:
        running.append(Running(path))
        return running[-1]

    yield begin
    for item in running:
        item.close()


@pytest.fixture
def path(tmp_path: Path, start: Callable[[Path], Running]) -> Path:
    return start(tmp_path / "control.sock").path


def raw(path: Path, data: bytes) -> bytes:
    """Send bytes as they are; what comes back until the line is closed."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        line.connect(str(path))
        answer = b""
        try:
            line.sendall(data)
            while block := line.recv(1 << 16):
                answer += block
        except (BrokenPipeError, ConnectionResetError):
            return answer
    return answer


def test_a_question_gets_its_answer_whatever_characters_it_holds(path: Path) -> None:
    arguments = {"paths": ["/a/caf\udce9.jsonl", "new\nline", "\U0001f600"], "n": 1}
    assert ask(path, {"operation": "echo", "arguments": arguments}) == {"ok": True, "result": {"echo": arguments}}


def test_a_refusal_comes_back_as_what_it_was(path: Path) -> None:
    assert ask(path, {"operation": "protected"}) == {
        "ok": False, "error": "Protected", "message": "no", "hint": "do not", "subject": "v001", "exit_code": 5}  # fmt: skip


def test_only_the_owner_may_speak(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize("data", [
    b"not json\n", b"[1, 2]\n", b"null\n", b'"text"\n', b"{}\n", b"\xff\xfe\n", b"\n", b"[" * 200_000 + b"\n",
    b'{"operation": ["a"]}\n{"second": 1}\n',
])  # fmt: skip
def test_a_broken_request_costs_only_itself(path: Path, data: bytes) -> None:
    told = json.loads(raw(path, data))
    if b"second" not in data:
        assert (told["ok"], told["error"], told["exit_code"]) == (False, "UsageError", 2) and "bad request" in told["message"]
    assert ask(path, {"operation": "echo"})["ok"]


def test_a_full_disk_is_the_environment_s_fault_and_the_daemon_lives(path: Path) -> None:
    told = ask(path, {"operation": "full"})
    assert (told["error"], told["exit_code"]) == ("EnvironmentFault", 3) and "No space left" in told["message"]


def test_a_bug_in_an_operation_is_told_and_the_daemon_lives(path: Path) -> None:
    told = ask(path, {"operation": "broken"})
    assert (told["ok"], told["exit_code"]) == (False, 1) and "division by zero" in told["message"]
    assert ask(path, {"operation": "echo"})["ok"]


def test_an_endless_request_takes_no_more_memory_than_the_limit_and_others_are_served(
    start: Callable[[Path], Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_REQUEST_BYTES", 1 << 18)
    running = start(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(running.path))
        line.sendall(b"x" * (1 << 20))
        assert ask(running.path, {"operation": "echo", "arguments": 1})["result"] == {"echo": 1}
        assert [len(buffer) for _client, buffer in running.server._clients.values()] == [(1 << 18) + 1]


def test_clients_that_say_nothing_or_half_a_word_hold_nobody_up(path: Path) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for line in silent:
        line.connect(str(path))
    silent[0].sendall(b'{"operation": "ec')
    assert ask(path, {"operation": "echo"})["ok"]
    silent[0].sendall(b'ho"}\n')
    silent[0].settimeout(2)
    assert json.loads(silent[0].recv(1000))["ok"]
    for line in silent:
        line.close()
    assert ask(path, {"operation": "echo"})["ok"]


def test_a_home_that_lies_very_deep_has_a_socket_too(tmp_path: Path, start: Callable[[Path], Running]) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    running = start(deep / "control.sock")
    assert is_listening(running.path) and ask(running.path, {"operation": "echo"})["ok"]
    assert stat.S_IMODE(running.path.stat().st_mode) == 0o600


def test_the_socket_of_a_dead_daemon_is_replaced_and_our_own_is_taken_away(
    tmp_path: Path, start: Callable[[Path], Running]
) -> None:
    path = tmp_path / "control.sock"
    old = socket.socket(socket.AF_UNIX)
    old.bind(str(path))
    old.close()
    assert path.exists() and not is_listening(path)
    with pytest.raises(DaemonNotRunning) as caught:
        ask(path, {"operation": "echo"})
    assert "heirloom run" in caught.value.hint
    running = start(path)
    assert is_listening(path)
    running.server.close()
    assert not path.exists() and not is_listening(path)
    running.server = ControlServer(path, running.reactor, handle)


def test_nobody_listens_where_there_is_nothing(tmp_path: Path) -> None:
    assert not is_listening(tmp_path / "none.sock") and not is_listening(tmp_path / "no" / "folder" / ("x" * 120) / "s")
    with pytest.raises(DaemonNotRunning):
        ask(tmp_path / "none.sock", {"operation": "echo"})


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    """A listener that answers as the test says."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "deaf.sock"))
    listener.listen(1)
    yield tmp_path / "deaf.sock", listener
    listener.close()


def test_a_daemon_that_does_not_answer_in_time_is_busy(deaf: tuple[Path, socket.socket]) -> None:
    with pytest.raises(Busy, match="did not answer"):
        ask(deaf[0], {"operation": "echo"}, timeout=0.05)


@pytest.mark.parametrize("half", [b"", b'{"ok": tr'])
def test_a_daemon_that_dies_over_a_request_may_have_done_it(deaf: tuple[Path, socket.socket], half: bytes) -> None:
    path, listener = deaf

    def die() -> None:
        line, _address = listener.accept()
        line.recv(1000)
        line.sendall(half)
        line.close()

    thread = threading.Thread(target=die)
    thread.start()
    with pytest.raises(HeirloomError) as caught:
        ask(path, {"operation": "echo"}, timeout=5)
    thread.join()
    assert not isinstance(caught.value, DaemonNotRunning) and "may have done" in caught.value.hint


# --- the reactor --------------------------------------------------------------------------------------------------


def test_a_wake_up_ends_the_wait_from_any_thread_and_many_are_one() -> None:
    reactor = Reactor()

    def wake_often() -> None:
        for _ in range(100_000):
            reactor.wake()

    thread = threading.Thread(target=wake_often)
    thread.start()
    assert reactor.poll(5) == 1 and reactor.woken
    thread.join()
    reactor.poll(0)
    reactor.woken = False
    assert reactor.poll(0) == 0 and not reactor.woken
    reactor.close()


def test_what_is_ready_is_called_until_it_is_removed() -> None:
    reactor = Reactor()
    calls: list[bytes] = []
    read, write = os.pipe()
    reactor.add(read, lambda: calls.append(os.read(read, 10)))
    assert reactor.poll(0) == 0
    os.write(write, b"a")
    reactor.poll(0)
    os.write(write, b"b")
    reactor.remove(read)
    reactor.poll(0)
    assert calls == [b"a"]
    reactor.close()
    os.close(read)
    os.close(write)


def test_a_long_request_is_worked_on_in_slices_and_a_short_one_is_answered_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "advance", lambda steps, clock, _seconds: advance(steps, clock, 0.0))
    reactor = Reactor()
    server = ControlServer(tmp_path / "s", reactor, handle)
    lines = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for line, operation in zip(lines, ("long", "short"), strict=True):
        line.connect(os.fspath(tmp_path / "s"))
        line.sendall(json.dumps({"operation": operation, "arguments": operation}).encode() + b"\n")
    answered: dict[str, int] = {}
    for number in range(10 * SLICES):
        reactor.poll(0)
        server.tick()
        for line in lines:
            if select.select([line], [], [], 0)[0] and (text := line.recv(1 << 16).strip()):
                answered[json.loads(text)["result"]["echo"]] = number
    assert answered["short"] < SLICES - 5 < answered["long"] and not server.busy
    server.close()
    reactor.close()
    for line in lines:
        line.close()


def test_a_client_is_told_that_its_request_is_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_REQUEST_BYTES", 1 << 20)
    answer = ask(path, {"operation": "echo", "arguments": "x" * (1 << 20)})
    assert not answer["ok"] and answer["error"] == UsageError.__name__ and "1 MiB" in answer["message"]
