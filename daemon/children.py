"""Supervised children: the readers of dropped files, the torch server, and one-shot jobs such as the index builder.

The daemon's own process parses no dropped file and runs no torch (law 12); these do, within limits that are watched
from here: resident memory (never RLIMIT_AS) and time. A child that dies or is ended costs a retry, nothing else.
Not here: what their answers mean (`intake.py`, `runner.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.reactor import Reactor
from guard.durable import write_json

__all__ = ["JobChild", "ReaderPool", "TorchServer", "child_environment", "resident_mb"]

# A second reader takes only files up to this size, so that one giant never starves the small ones.
SMALL_BYTES = 32 << 20
BASE_SECONDS = 60.0
NOT_STARTED = 71  # our own word for a child that the torch server could not fork
# Healthy files of very short rows are read at 0.5 to 1.7 MB/s; see DECISIONS.md.
BYTES_PER_SECOND = 5e5


def child_environment() -> dict[str, str]:
    """The environment of every child: polite OpenMP waiting, no hub, and none of our fail points."""
    environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MiB; 0 when it has gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@dataclass
class _Request:
    body: dict[str, Any]
    size: int
    done: Callable[[dict[str, Any]], None]


@dataclass
class _Reader:
    """One reader process and what it works on."""

    small_only: bool
    process: subprocess.Popen[bytes] | None = None
    request: _Request | None = None
    deadline: float = 0.0
    buffer: bytes = b""
    served: int = 0
    ended_because: str = ""


@dataclass
class ReaderPool:
    """Limited processes that read dropped files, one file at a time each."""

    reactor: Reactor
    memory_mb: int
    module: str = "guard.identify_child"
    queue: deque[_Request] = field(default_factory=deque)
    readers: list[_Reader] = field(default_factory=lambda: [_Reader(small_only=False), _Reader(small_only=True)])

    def submit(self, body: Mapping[str, Any], size: int, done: Callable[[dict[str, Any]], None]) -> None:
        """Have a file read; `done` gets the answer, or {"fault": "crash", "message"} when the reader ended over it."""
        self.queue.append(_Request(dict(body), size, done))

    @property
    def busy(self) -> bool:
        return bool(self.queue) or any(reader.request for reader in self.readers)

    def tick(self, now: float) -> None:
        """Hand out work, and end readers that take too long or too much."""
        for reader in self.readers:
            if reader.request is not None:
                self._watch(reader, now)
            else:
                self._feed(reader, now)

    def _feed(self, reader: _Reader, now: float) -> None:
        for place, request in enumerate(self.queue):
            if not reader.small_only or request.size <= SMALL_BYTES:
                del self.queue[place]
                break
        else:
            return
        if reader.process is not None and reader.process.poll() is not None:
            self._retire(reader)  # it died idle, and the reactor has not heard of it yet
        if reader.process is None:
            try:
                self._start(reader)
            except OSError as error:
                # Out of descriptors or memory: the file is told so and tried again later, never forgotten.
                request.done({"fault": "environment", "message": f"no reader could be started: {error.strerror}"})
                return
        assert reader.process is not None and reader.process.stdin is not None
        reader.request, reader.deadline = request, now + BASE_SECONDS + request.size / BYTES_PER_SECOND
        reader.ended_because = ""
        try:
            reader.process.stdin.write(json.dumps(request.body).encode() + b"\n")
            reader.process.stdin.flush()
        except BrokenPipeError:
            reader.ended_because = "it had died before"

    def _start(self, reader: _Reader) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", self.module], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=child_environment(), start_new_session=True)  # fmt: skip
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        reader.process, reader.buffer = process, b""
        self.reactor.add(process.stdout.fileno(), lambda: self._readable(reader))

    def _readable(self, reader: _Reader) -> None:
        assert reader.process is not None and reader.process.stdout is not None
        data = reader.process.stdout.read()
        if data is None:
            return
        if not data:
            self._ended(reader)
            return
        reader.buffer += data
        while b"\n" in reader.buffer:
            line, reader.buffer = reader.buffer.split(b"\n", 1)
            try:
                answer = json.loads(line)
            except ValueError:
                reader.ended_because = "the reader gave an answer that cannot be read"
                reader.process.kill()
                return
            self._answer(reader, answer)

    def _answer(self, reader: _Reader, answer: dict[str, Any]) -> None:
        request, reader.request = reader.request, None
        reader.served += 1
        if request is not None:
            request.done(answer)

    def _ended(self, reader: _Reader) -> None:
        """The reader died over its file: the file's attempt is reported, and the next file gets a new reader."""
        status = self._retire(reader)
        if reader.request is not None:
            reason = reader.ended_because or f"the reader ended with status {status}"
            self._answer(reader, {"fault": "crash", "message": reason})

    def _retire(self, reader: _Reader) -> int:
        """Give back what a dead reader held; returns its status."""
        assert reader.process is not None and reader.process.stdout is not None
        self.reactor.remove(reader.process.stdout.fileno())
        status = reader.process.wait()
        for pipe in (reader.process.stdout, reader.process.stdin):
            if pipe is not None:
                _close_quietly(pipe)
        reader.process = None
        return status

    def _watch(self, reader: _Reader, now: float) -> None:
        if reader.process is None or reader.ended_because:
            return
        memory = resident_mb(reader.process.pid)
        if now > reader.deadline:
            reader.ended_because = "reading took too long"
        elif memory > self.memory_mb:
            reader.ended_because = f"reading took {memory:.0f} MiB of memory"
        if reader.ended_because:
            reader.process.kill()

    def close(self) -> None:
        """End every reader; unfinished files are read again at the next start."""
        for reader in self.readers:
            if reader.process is not None:
                reader.process.kill()
                self._retire(reader)


def _close_quietly(pipe: Any) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        return  # what we could not send belonged to the dead reader; its file is read again


@dataclass
class TorchServer:
    """The process that has imported torch and forks a child for every job."""

    reactor: Reactor
    exited: Callable[[int, int], None]
    """Called with (job id, exit status; negative: the signal) when a job's child has ended."""
    process: subprocess.Popen[bytes] | None = None
    line: socket.socket | None = None
    buffer: bytes = b""
    pids: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, Path] = field(default_factory=dict)
    """Jobs that were asked for and have not ended, with their staging folders."""

    def spawn(self, job: int, folder: Path, nice: int = 0) -> None:
        """Fork a child for the job in `folder`; starts the server when there is none."""
        if self.process is None:
            self._start()
        self.waiting[job] = folder
        self._send({"spawn": os.fspath(folder), "id": job, "nice": nice})

    def signal(self, job: int, number: int = signal.SIGTERM) -> None:
        """Send a signal to a job's child."""
        self._send({"signal": job, "number": int(number)})

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.server", "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, env=child_environment(), start_new_session=True)  # fmt: skip
        theirs.close()
        ours.setblocking(False)
        self.line, self.buffer = ours, b""
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
        if "started" in message:
            self.pids[message["started"]] = message["pid"]
        elif "exited" in message:
            job = message["exited"]
            self.pids.pop(job, None)
            self.waiting.pop(job, None)
            self.exited(job, message["status"])
        elif "error" in message and message.get("id") in self.waiting:
            # No child could be forked (out of memory or processes): the machine's fault, so the job is held.
            folder = self.waiting.pop(message["id"])
            fault = {"fault": "environment", "message": str(message["error"]), "hint": "it is tried again by itself"}
            with contextlib.suppress(OSError):  # on a full disk the status alone ends the job, as a crash would
                write_json(folder / "error.json", fault)
            self.exited(message["id"], NOT_STARTED)

    def _ended(self) -> None:
        """The server died: every job it had has ended with it, by the kernel's hand if need be."""
        self._shut()
        lost, self.waiting, self.pids = self.waiting, {}, {}
        for job in sorted(lost):
            self.exited(job, -int(signal.SIGKILL))

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
        self.waiting, self.pids = {}, {}


@dataclass
class JobChild:
    """A one-shot process of its own, such as the index builder."""

    reactor: Reactor
    arguments: list[str]
    exited: Callable[[int], None]
    process: subprocess.Popen[bytes] | None = None

    def start(self, log: Path) -> None:
        """Start it; its words go to `log`. The end is noticed through a pipe that closes with the process."""
        self._read, write = os.pipe2(os.O_CLOEXEC)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                pass_fds=[write], env=child_environment(), start_new_session=True)  # fmt: skip
        os.close(write)
        self.reactor.add(self._read, self._readable)

    def _readable(self) -> None:
        assert self.process is not None
        self.reactor.remove(self._read)
        os.close(self._read)
        self.exited(self.process.wait())

    def kill(self) -> None:
        """End it; `exited` is not called."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self.reactor.remove(self._read)
            os.close(self._read)
