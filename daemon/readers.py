"""The reader pool: limited processes that read dropped files, one file at a time each.

The daemon's own process parses no dropped file (law 12). A reader that is at a tiny file has the next ones on its desk
already: in a burst neither it nor the daemon's loop waits for the other. Whatever it dies over is the first of them.
A reader that takes too long or too much memory is ended; what that costs the file is decided by `verdicts.py`.
Not here: the reading itself (`guard/identify_child.py`), other children.
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
from guard.checks.kinds import container_of, packing_of

__all__ = ["ReaderPool", "one_reader"]

# A second reader takes only files up to this size, so that one giant never starves the small ones.
SMALL_BYTES = 32 << 20
# So many files up to this size lie on a reader's desk at most; their requests fit into a pipe, which holds 64 KiB.
DESK, TINY_BYTES, DESK_BYTES = 16, 1 << 20, 32 << 10
BASE_SECONDS = 60.0
# Healthy files of very short rows are read at 0.5 to 1.7 MB/s; see DECISIONS.md.
BYTES_PER_SECOND = 5e5
# What is packed, or stored in columns, is read as if it were so many times larger: text packs to a third or an eighth.
PACKED_TIMES = 8


@dataclass
class _Request:
    line: bytes
    size: int
    done: Callable[[dict[str, Any]], None]

    @property
    def is_tiny(self) -> bool:
        return self.size <= TINY_BYTES and len(self.line) <= DESK_BYTES // DESK


@dataclass
class _Reader:
    """One reader process and what it works on."""

    small_only: bool
    process: subprocess.Popen[bytes] | None = None
    requests: deque[_Request] = field(default_factory=deque)
    """What it works on, and what lies on its desk behind that."""
    deadline: float | None = None
    """When the request in front has taken too long; None until its clock runs."""
    watched: int = -1
    buffer: bytes = b""
    served: int = 0
    ended_because: str = ""

    def may_take(self, request: _Request) -> bool:
        """Whether a request may be laid on the desk now."""
        if self.small_only and request.size > SMALL_BYTES:
            return False
        return not self.requests or (len(self.requests) < DESK and request.is_tiny and self.requests[0].is_tiny)


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
        container = container_of(str(body.get("name") or ""))
        times = PACKED_TIMES if packing_of(container) or container == "parquet" else 1
        self.queue.append(_Request(json.dumps(dict(body)).encode() + b"\n", size * times, done))

    @property
    def busy(self) -> bool:
        return bool(self.queue) or any(reader.requests for reader in self.readers)

    @property
    def full(self) -> bool:
        """Whether the readers have enough waiting for them."""
        return len(self.queue) >= DESK * len(self.readers)

    def tick(self, now: float) -> None:
        """Hand out work, and end readers that take too long or too much."""
        for reader in self.readers:
            if reader.requests and reader.deadline is None:
                reader.deadline = now + BASE_SECONDS + reader.requests[0].size / BYTES_PER_SECOND
            if reader.requests and reader.served == reader.watched:
                self._watch(reader, now)  # whoever answers round after round is well
            reader.watched = reader.served
            while not reader.ended_because and self._feed(reader, now):
                pass

    def _feed(self, reader: _Reader, now: float) -> bool:
        """Lay one more request on a reader's desk; False when there is none for it, or no room."""
        for place, request in enumerate(self.queue):
            if reader.may_take(request):
                del self.queue[place]
                break
            if not reader.small_only:
                return False  # whatever comes first is next: a large file waits for no burst of tiny ones
        else:
            return False
        if not reader.requests and not self._revived(reader, request):
            return True
        assert reader.process is not None and reader.process.stdin is not None
        reader.requests.append(request)
        if len(reader.requests) == 1:
            reader.deadline = now + BASE_SECONDS + request.size / BYTES_PER_SECOND
        try:
            reader.process.stdin.write(request.line)
            reader.process.stdin.flush()
        except BrokenPipeError:
            return False  # it has died; the reactor hears of it, and what it had not begun is read by the next
        return True

    def _revived(self, reader: _Reader, request: _Request) -> bool:
        """Whether an idle reader lives, or another could be started; else the request is told so."""
        if reader.process is not None and reader.process.poll() is not None:
            self._retire(reader)  # it died idle, and the reactor has not heard of it yet
        if reader.process is None:
            try:
                self._start(reader)
            except OSError as error:
                # Out of descriptors or memory: the file is told so and tried again later, never forgotten.
                request.done({"fault": "environment", "message": f"no reader could be started: {error.strerror}"})
                return False
        return True

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
        request = reader.requests.popleft() if reader.requests else None
        reader.served += 1
        reader.deadline = None
        if request is not None:
            request.done(answer)

    def _ended(self, reader: _Reader) -> None:
        """The reader died over its file: the file's attempt is reported, and the next file gets a new reader."""
        status, because = self._retire(reader), reader.ended_because
        reader.ended_because, reader.deadline = "", None
        if not reader.requests:
            return
        first = reader.requests.popleft()
        self.queue.extendleft(reversed(reader.requests))  # it had not come to these
        reader.requests.clear()
        reader.served += 1
        if status == -signal.SIGKILL and not because:
            first.done({"fault": "killed", "message": "the reader was killed from outside (is memory short?)"})
            return
        first.done({"fault": "crash", "message": because or f"the reader ended with status {status}"})

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
        if reader.deadline is not None and now > reader.deadline:
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
