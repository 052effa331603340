"""The control socket: one JSON line in, one JSON line out, for the processes of this home's owner only.

Changing commands reach the running daemon here (law 13). The socket lies in `.heirloom/` with mode 0600. A slow or
broken client costs its own connection. Not here: what an operation does (`operations.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from daemon.reactor import Reactor
from guard.errors import Busy, DaemonNotRunning, EnvironmentFault, HeirloomError, UsageError, is_environment
from guard.steps import SLICE_SECONDS, Steps, advance

__all__ = ["ControlServer", "ask", "is_listening"]

MAX_REQUEST_BYTES = 16 << 20
_PATH_LIMIT = 100


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for the socket that fits into sockaddr_un (108 bytes), however deep the home lies."""
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        yield os.fspath(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


Handler = Callable[[Mapping[str, Any]], Steps[dict[str, Any]]]


def _refusal(error: Exception) -> dict[str, Any]:
    if isinstance(error, HeirloomError):
        return {"ok": False, **error.as_dict()}
    known = isinstance(error, ValueError | KeyError | TypeError | AttributeError | RecursionError)
    told = UsageError(f"bad request: {error!r}") if known else HeirloomError(f"it could not be done: {error}")
    return {"ok": False, **(EnvironmentFault(str(error)) if is_environment(error) else told).as_dict()}


def _reply(client: socket.socket, answer: Mapping[str, Any] | None) -> None:
    """Send the answer; None: a space that says "still at it", which readers of JSON skip."""
    client.settimeout(2.0 if answer else 0.0)
    with contextlib.suppress(OSError):  # a client that went away or does not read costs nobody but itself
        client.sendall(json.dumps(answer).encode() + b"\n" if answer else b" ")


class ControlServer:
    """Answers one request per connection. What takes long is worked on in `tick`, in slices and all in turn, so that a
    `queue pause` does not wait for a backup."""

    def __init__(self, path: Path, reactor: Reactor, handle: Handler) -> None:
        self.path, self.reactor, self.handle = path, reactor, handle
        self._clients: dict[int, tuple[socket.socket, bytes]] = {}
        self._under_way: deque[tuple[socket.socket, Steps[dict[str, Any]]]] = deque()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # we hold the home lock: whoever made it is gone
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        with _reachable(path) as name:
            self._listener.bind(name)
        os.chmod(path, 0o600)
        self._listener.listen(64)
        reactor.add(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _address = self._listener.accept()
        except OSError:
            return  # it gave up before we looked, or we are out of descriptors; the listener stays
        client.setblocking(False)
        self._clients[client.fileno()] = (client, b"")
        number = client.fileno()
        self.reactor.add(number, lambda: self._read(number))

    def _read(self, number: int) -> None:
        client, buffer = self._clients[number]
        try:
            data = client.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        # What is too long is read to its end, so that its sender gets to reading why it is refused.
        buffer = (buffer + data)[: MAX_REQUEST_BYTES + 1]
        if not data:
            self._drop(number)
        elif b"\n" not in data:
            self._clients[number] = (client, buffer)
        elif b"\n" not in buffer:
            told = UsageError(f"a request of more than {MAX_REQUEST_BYTES >> 20} MiB", hint="name fewer files at a time")
            _reply(client, _refusal(told))
            self._drop(number)
        else:
            self._clients.pop(number)
            self.reactor.remove(number)
            self._under_way.append((client, self._do(buffer.split(b"\n", 1)[0])))
            self.tick()

    def _do(self, line: bytes) -> Steps[dict[str, Any]]:
        """One request to its answer, whatever happens."""
        try:
            result = yield from self.handle(json.loads(line))
        except Exception as error:  # noqa: BLE001 - told to whoever asked: no request may end the daemon
            return _refusal(error)
        return {"ok": True, "result": result}

    @property
    def busy(self) -> bool:
        """A request is being worked on."""
        return bool(self._under_way)

    def tick(self) -> None:
        """A slice of every request; the answer of those that are done. Somebody who went away ends nothing half done."""
        for _ in range(len(self._under_way)):
            client, steps = self._under_way.popleft()
            done, answer = advance(steps, time.monotonic, SLICE_SECONDS / (1 + len(self._under_way)))
            if done:
                assert answer is not None
                _reply(client, answer)
                client.close()
            else:
                _reply(client, None)
                self._under_way.append((client, steps))

    def _drop(self, number: int) -> None:
        client, _buffer = self._clients.pop(number)
        self.reactor.remove(number)
        client.close()

    def close(self) -> None:
        """Stop listening and take the socket away."""
        for number in list(self._clients):
            self._drop(number)
        for client, steps in self._under_way:
            steps.close()
            client.close()
        self._under_way.clear()
        self.reactor.remove(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def is_listening(path: Path) -> bool:
    """Whether a daemon answers on this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as line:
        line.settimeout(1.0)
        try:
            with _reachable(path) as name:
                line.connect(name)
        except OSError:
            return False
        return True


def ask(path: Path, request: Mapping[str, Any], timeout: float = 120.0) -> dict[str, Any]:
    """Send one request to the daemon and return its answer. Raises DaemonNotRunning when nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as line:
        line.settimeout(timeout)
        try:
            with _reachable(path) as name:
                line.connect(name)
        except OSError as error:
            raise DaemonNotRunning("no daemon answers for this home", subject=str(path), cause=error,
                                   hint="start it: heirloom run") from error  # fmt: skip
        answer = b""
        try:
            line.sendall(json.dumps(dict(request)).encode() + b"\n")
            while not answer.endswith(b"\n") and (chunk := line.recv(1 << 16)):
                answer += chunk
        except TimeoutError as error:
            raise Busy(f"the daemon did not answer in {timeout:.0f} s", subject=str(path), cause=error,
                       hint="it may still do what was asked: heirloom status") from error  # fmt: skip
        except OSError as error:
            raise HeirloomError(f"the line to the daemon broke: {error}", subject=str(path), cause=error,
                                hint="it may have done what was asked: heirloom status") from error  # fmt: skip
    if not answer.endswith(b"\n"):
        raise HeirloomError("the daemon ended before it answered", subject=str(path),
                            hint="it may have done what was asked: heirloom status")  # fmt: skip
    return json.loads(answer)
