"""The reader pool: limited processes that read dropped files, one file at a time each.

The daemon's own process parses no dropped file (law 12). A reader that takes too long or too much memory is ended; what
that costs the file is decided by `intake.py`. Not here: the reading itself (`guard/identify_child.py`), other children.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from daemon.children import child_environment
from daemon.reactor import Reactor
from daemon.vigil import own_mb

__all__ = ["ReaderPool", "one_reader"]

# A second reader takes only files up to this size, so that one giant never starves the small ones.
SMALL_BYTES = 32 << 20
BASE_SECONDS = 60.0
# Healthy files of very short rows are read at 0.5 to 1.7 MB/s; see DECISIONS.md.
BYTES_PER_SECOND = 5e5


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
        """Have a file read; `done` gets the answer, or {"fault", "message"} when the reader ended over it.

        The fault is `crash`, or `killed` when somebody else ended it: the kernel short of memory, or a person.
        """
        self.queue.append(_Request(dict(body), size, done))

    @property
    def busy(self) -> bool:
        return bool(self.queue) or any(reader.request for reader in self.readers)

    @property
    def full(self) -> bool:
        """Whether the readers have enough waiting for them."""
        return len(self.queue) >= 2 * len(self.readers)

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
            if status == -signal.SIGKILL and not reader.ended_because:
                self._answer(reader, {"fault": "killed", "message": "the reader was killed from outside (is memory short?)"})
                return
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
        # Not what is mapped: the index that near-duplicates are looked for in may be larger than the limit.
        memory = own_mb(reader.process.pid)
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


def one_reader() -> list[_Reader]:
    """The reader of a pool for work that may take its time."""
    return [_Reader(small_only=False)]


def _close_quietly(pipe: Any) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        return  # what we could not send belonged to the dead reader; its file is read again
