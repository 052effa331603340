"""Supervised children: the torch server with its jobs, and one-shot jobs such as the index builder.

The daemon's own process runs no torch (law 12); these do, under a vigil over their memory (resident, never RLIMIT_AS)
and their getting on. A child that dies or is ended costs a retry, nothing else. Not here: the readers of dropped files
(`readers.py`), and what an end means (`runner.py`, `index_runner.py`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.reactor import Reactor
from daemon.vigil import Vigil, machine_memory_mb, resident_mb
from guard.durable import write_json
from guard.store.keeper import Keeper

__all__ = ["ChildLimits", "JobChild", "TorchServer", "child_environment", "limits_of"]

NOT_STARTED = 71  # our own word for a child that the torch server could not fork
# A server that does not say that it is ready for so long cannot import torch, or was stopped.
START_SECONDS = 600.0
# One that is ready forks in milliseconds; on a machine that swaps it may take a while.
FORK_SECONDS = 60.0
# After so many forks the server makes way for a new one between two jobs, whether or not anything was seen to leak: its
# memory is copied into every child's page tables. The new one imports for some seconds, once in so many jobs.
MOST_FORKS = 2000
# The same when it has grown by so many MiB since it was ready: it only ever forks, so there is nothing it should grow by.
MOST_GROWTH_MB = 128.0
# How long a child that was told to end by the server may take until the server itself is ended.
KILL_SECONDS = 15.0


def child_environment() -> dict[str, str]:
    """The environment of every child: polite OpenMP waiting, no hub, and none of our fail points."""
    environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


@dataclass(frozen=True)
class ChildLimits:
    """What a working child may take before it is ended and started again."""

    memory_mb: float = 0.0
    """Resident memory in MiB; 0: nine tenths of the machine's."""
    hang_seconds: float = 3600.0
    """Longest time without progress."""

    def vigil(self, pid: int, folder: Path) -> Vigil:
        """A vigil over the child that works in `folder`."""
        return Vigil(pid, folder / "progress.json", self.memory_mb or 0.9 * machine_memory_mb(), self.hang_seconds)


def limits_of(keeper: Keeper) -> ChildLimits:
    """The limits that the settings of a home give its children."""
    training = keeper.settings.training
    return ChildLimits(training.memory_mb, training.hang_seconds)


def _tell_fault(folder: Path, fault: str, message: str) -> None:
    """Leave the reason where a child would have left it."""
    with contextlib.suppress(OSError):  # on a full disk the status alone ends the job, as a crash would
        write_json(folder / "error.json", {"fault": fault, "message": message, "hint": "it is tried again by itself"})


@dataclass
class TorchServer:
    """The process that has imported torch and forks a child for every job."""

    reactor: Reactor
    exited: Callable[[int, int], None]
    """Called with (job id, exit status; negative: the signal) when a job's child has ended."""
    limits: ChildLimits = field(default_factory=ChildLimits)
    process: subprocess.Popen[bytes] | None = None
    line: socket.socket | None = None
    buffer: bytes = b""
    pids: dict[int, int] = field(default_factory=dict)
    vigils: dict[int, Vigil] = field(default_factory=dict)
    overdue: dict[int, float] = field(default_factory=dict)
    """Jobs whose child should have started, or ended, by this moment (monotonic); then the server goes."""
    waiting: dict[int, Path] = field(default_factory=dict)
    """Jobs that were asked for and have not ended, with their staging folders."""
    ready: bool = False
    forks: int = 0
    ready_mb: float = 0.0
    """Its resident memory when it was ready."""
    replaced: int = 0
    """How many servers made way for a new one in this life."""

    def spawn(self, job: int, folder: Path, nice: int = 0) -> None:
        """Fork a child for the job in `folder`; starts the server when there is none."""
        self.warm()
        self.forks += 1
        self.waiting[job] = folder
        self.overdue[job] = math.inf  # until the first look, which knows what time it is
        self._send({"spawn": os.fspath(folder), "id": job, "nice": nice})

    def warm(self) -> None:
        """Have the server started, so that it has imported what it needs when the first job is ready to be forked."""
        if self.process is None:
            self._start()

    def signal(self, job: int, number: int = signal.SIGTERM) -> None:
        """Send a signal to a job's child."""
        self._send({"signal": job, "number": int(number)})

    def tick(self, now: float) -> None:
        """Look after the running children: one that hangs or takes too much memory is ended, with the reason told."""
        for job, folder in list(self.waiting.items()):
            self._look(job, folder, now)
        if not self.waiting and self.process is not None and self.ready and self._worn():
            # Between two jobs, so nobody notices: the next one finds a server that is young again.
            self._shut()
            self.replaced += 1
            self._start()

    def _worn(self) -> bool:
        assert self.process is not None
        return self.forks >= MOST_FORKS or resident_mb(self.process.pid) > self.ready_mb + MOST_GROWTH_MB

    def _look(self, job: int, folder: Path, now: float) -> None:
        if job in self.overdue:
            if self.overdue[job] == math.inf:
                self.overdue[job] = now + (FORK_SECONDS if self.ready else START_SECONDS)
            elif now > self.overdue[job] and self.process is not None:
                # Stopped, or out of its mind: its end is read from the line and reports every job it had.
                self.process.kill()
            return
        fault, reason = self.vigils[job].look(now)
        if fault:
            _tell_fault(folder, fault, f"the child of job {job} was ended: {reason}")
            self.overdue[job] = now + KILL_SECONDS
            self.signal(job, signal.SIGKILL)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.server", "--fd", str(theirs.fileno()), "--parent", str(os.getpid())],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=child_environment(), start_new_session=True)  # fmt: skip
        theirs.close()
        self.take_line(ours)

    def take_line(self, ours: socket.socket) -> None:
        """Our end of the line to a server that was just started."""
        ours.setblocking(False)
        self.line, self.buffer, self.ready, self.forks = ours, b"", False, 0
        self.reactor.add(ours.fileno(), self._readable)

    def _send(self, message: Mapping[str, Any]) -> None:
        if self.line is None:
            return
        try:
            self.line.sendall(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            return  # the end of the line is about to be read, and reports every waiting job as ended

    def _readable(self) -> None:
        assert self.line is not None
        try:
            data = self.line.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._ended()
            return
        self.buffer += data
        while b"\n" in self.buffer:
            text, self.buffer = self.buffer.split(b"\n", 1)
            self._message(json.loads(text))

    def _message(self, message: Mapping[str, Any]) -> None:
        if "ready" in message:
            self.ready, self.ready_mb = True, resident_mb(message["pid"])
        elif "started" in message:
            job = message["started"]
            self.pids[job] = message["pid"]
            self.overdue.pop(job, None)
            if job in self.waiting:
                self.vigils[job] = self.limits.vigil(message["pid"], self.waiting[job])
        elif "exited" in message:
            job = message["exited"]
            self._forget(job)
            self.exited(job, message["status"])
        elif "error" in message and message.get("id") in self.waiting:
            # No child could be forked (out of memory or processes): the machine's fault, so the job is held.
            _tell_fault(self.waiting[message["id"]], "environment", str(message["error"]))
            self._forget(message["id"])
            self.exited(message["id"], NOT_STARTED)

    def _ended(self) -> None:
        """The server died: every job it had has ended with it, by the kernel's hand if need be."""
        self._shut()
        lost = sorted(self.waiting)
        for job in lost:
            self._forget(job)
        for job in lost:
            self.exited(job, -int(signal.SIGKILL))

    def _forget(self, job: int) -> None:
        for kept in (self.pids, self.vigils, self.overdue, self.waiting):
            kept.pop(job, None)

    def _shut(self) -> None:
        if self.line is not None:
            self.reactor.remove(self.line.fileno())
            self.line.close()
            self.line = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """End the server and whatever runs in it."""
        self._shut()
        for job in list(self.waiting):
            self._forget(job)


@dataclass
class JobChild:
    """A one-shot process of its own, such as the index builder."""

    reactor: Reactor
    arguments: list[str]
    folder: Path
    """Where it works: its words go to `child.log` there, and a reason for ending it to `error.json`."""
    exited: Callable[[int], None]
    limits: ChildLimits = field(default_factory=ChildLimits)
    process: subprocess.Popen[bytes] | None = None
    vigil: Vigil | None = None
    _read: int = -1
    """Our end of the pipe that closes with it; -1 while there is none."""

    def start(self) -> None:
        """Start it. The end is noticed through a pipe that closes with the process. Raises OSError."""
        self._read, write = os.pipe2(os.O_CLOEXEC)
        try:
            with (self.folder / "child.log").open("ab") as output:
                self.process = subprocess.Popen(
                    [sys.executable, *self.arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    pass_fds=[write], env=child_environment(), start_new_session=True)  # fmt: skip
        except OSError:
            os.close(self._read)
            self._read = -1
            raise
        finally:
            os.close(write)
        self.vigil = self.limits.vigil(self.process.pid, self.folder)
        self.reactor.add(self._read, self._readable)

    def tick(self, now: float) -> None:
        """End it when it hangs or takes too much memory; the reason lies in `error.json` then."""
        if self.vigil is None or self.process is None:
            return
        fault, reason = self.vigil.look(now)
        if fault:
            _tell_fault(self.folder, fault, f"the child was ended: {reason}")
            self.vigil = None
            self.process.kill()

    def _readable(self) -> None:
        assert self.process is not None
        self._let_go()
        self.exited(self.process.wait())

    def _let_go(self) -> None:
        self.reactor.remove(self._read)
        os.close(self._read)
        self._read = -1

    def kill(self) -> None:
        """End it; `exited` is not called."""
        if self.process is None or self._read < 0:
            return
        self.process.kill()
        self.process.wait()
        self._let_go()  # also of one that ended by itself a moment ago, of which the reactor has not heard yet
