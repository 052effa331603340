"""The daemon's side of the torch server: one that dies idle, stands still, or has grown old makes way for another.

A sleeping process takes the server's place, and its messages come from the test. What the server itself does is in
`test_trainer_server.py`; children that stand still or die are in `test_daemon_children.py` and `test_daemon_runner.py`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import children
from daemon.children import FORK_SECONDS, START_SECONDS, TorchServer
from daemon.reactor import Reactor


class Sleeper(TorchServer):
    """A torch server that only sleeps: it holds its end of the line and does nothing."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, int]] = []
        self.started = 0
        super().__init__(Reactor(), lambda job, status: self.ends.append((job, status)))

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[theirs.fileno()])
        theirs.close()
        self.take_line(ours)
        self.started += 1

    def is_ready(self) -> None:
        assert self.process is not None
        self._message({"ready": True, "pid": self.process.pid})

    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid


@pytest.fixture
def server() -> Iterator[Sleeper]:
    made = Sleeper()
    yield made
    made.close()
    made.reactor.close()


def done(server: Sleeper, job: int) -> None:
    server._message({"started": job, "pid": os.getpid()})
    server._message({"exited": job, "status": 0})


def test_a_server_that_dies_while_idle_costs_nothing_and_the_next_job_gets_another(server: Sleeper, tmp_path: Path) -> None:
    server.warm()
    server.is_ready()
    before = len(os.listdir("/proc/self/fd"))
    os.kill(server.pid(), signal.SIGKILL)
    assert server.reactor.poll(10) == 1 and server.process is None and server.ends == []
    server.spawn(3, tmp_path)
    assert server.started == 2 and not server.ready and server.reactor.poll(0) == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_ready_server_that_stands_still_is_ended_in_a_minute_and_its_job_told(server: Sleeper, tmp_path: Path) -> None:
    server.warm()
    server.is_ready()
    os.kill(server.pid(), signal.SIGSTOP)
    server.spawn(3, tmp_path)
    server.tick(0.0)
    server.tick(FORK_SECONDS - 1)
    assert server.process is not None and server.process.poll() is None
    server.tick(FORK_SECONDS + 1)
    assert server.reactor.poll(10) == 1 and server.ends == [(3, -9)] and server.process is None


def test_a_server_that_still_imports_gets_its_time(server: Sleeper, tmp_path: Path) -> None:
    server.spawn(3, tmp_path)
    server.tick(0.0)
    server.tick(START_SECONDS - 1)
    assert server.process is not None and server.process.poll() is None and server.ends == []


def test_after_so_many_forks_the_server_makes_way_between_two_jobs(
    server: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "MOST_FORKS", 3)
    server.spawn(1, tmp_path)
    server.is_ready()
    first = server.pid()
    for job in (1, 2, 3):
        if job > 1:
            server.spawn(job, tmp_path)
        server.tick(0.0)
        assert server.pid() == first, "never while a job runs"
        done(server, job)
    server.tick(1.0)
    assert server.pid() != first and server.replaced == 1 and not Path(f"/proc/{first}").exists()
    server.tick(2.0)
    assert server.started == 2, "once"


def test_a_server_that_grew_makes_way_and_one_that_did_not_stays(server: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = [300.0]
    monkeypatch.setattr(children, "resident_mb", lambda _pid: memory[0])
    server.warm()
    server.is_ready()
    memory[0] += children.MOST_GROWTH_MB - 1
    server.tick(0.0)
    assert server.started == 1
    memory[0] += 2
    server.tick(1.0)
    assert server.started == 2 and server.replaced == 1
