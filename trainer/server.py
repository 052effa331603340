"""The torch server: imports torch and the trainer, then forks one child per job. It does nothing else.

A fork costs milliseconds where an import costs seconds, and nothing leaks from job to job. No tensor operation ever
runs here: OpenMP's threads would not survive the fork. Started as `python -m trainer.server --fd N --parent PID` with one
end of an AF_UNIX stream pair; lines of JSON go both ways:

    to it     {"spawn": JOB_FOLDER, "id": 12}  (optional: "nice": 5, "oom_score_adj": 500, "lock_wait_seconds": 5)
              {"signal": 12, "number": 15}
    from it   {"ready": true, "pid": n}   {"started": 12, "pid": n}
              {"exited": 12, "pid": n, "status": exit code or -signal}
              {"error": what was wrong with a line, "id": 12 or null}

When the other end closes it kills its children and ends. Children die with it, and it with its parent (PR_SET_PDEATHSIG): one
that was stopped would not see that the other end closed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from guard.parent_death import die_with
from trainer.hardware import set_environment

__all__ = ["Server", "main"]

_RECEIVE_BYTES = 65536
_EXIT_CRASH = 70  # the child failed outside its job: no error.json could be left


@dataclass(frozen=True)
class _Child:
    number: int
    pid: int
    descriptor: int
    """Its pidfd: becomes readable when it ends, and names no other process when its pid is used again."""


class Server:
    """Forks on request and reports ends. `serve` returns when the other end of `channel` closes."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}
        self._unread = b""

    def serve(self) -> None:
        """Work until the other end closes; then end all children and wait for them."""
        self._selector.register(self._channel, selectors.EVENT_READ)
        try:
            # Whatever was still to be told when the other end closed: nobody is there to hear it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._send({"ready": True, "pid": os.getpid()})
                while self._turn():
                    pass
        finally:
            for child in list(self._children.values()):
                signal.pidfd_send_signal(child.descriptor, signal.SIGKILL)
                os.waitpid(child.pid, 0)

    def _turn(self) -> bool:
        """Wait for one round of events; False when the other end is gone."""
        for key, _events in self._selector.select():
            if key.fileobj is not self._channel:
                self._bury(key.data)
                continue
            data = self._channel.recv(_RECEIVE_BYTES)
            if not data:
                return False
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                self._obey(line)
        return True

    def _send(self, message: dict[str, Any]) -> None:
        self._channel.sendall(orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE))

    def _obey(self, line: bytes) -> None:
        message = _loads(line)
        try:
            if not isinstance(message, dict):
                raise ValueError("expected one JSON object per line")
            if "spawn" in message:
                self._spawn(message)
            else:
                self._signal(int(message["signal"]), int(message["number"]))
        except (ValueError, KeyError, TypeError, OSError) as error:
            number = message.get("id") if isinstance(message, dict) else None
            self._send({"error": f"{type(error).__name__}: {error}", "id": number})

    def _signal(self, number: int, signal_number: int) -> None:
        """Nothing to do for a child that has ended: the report of its end is on the way."""
        if number in self._children:
            signal.pidfd_send_signal(self._children[number].descriptor, signal_number)

    def _spawn(self, message: dict[str, Any]) -> None:
        folder, number = Path(message["spawn"]), int(message["id"])
        if number in self._children:
            raise ValueError(f"job {number} is running already")
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(folder, message, server)
        descriptor = os.pidfd_open(pid)
        self._children[number] = child = _Child(number, pid, descriptor)
        self._selector.register(descriptor, selectors.EVENT_READ, child)
        self._send({"started": number, "pid": pid})

    def _bury(self, child: _Child) -> None:
        _pid, status = os.waitpid(child.pid, 0)
        self._selector.unregister(child.descriptor)
        os.close(child.descriptor)
        del self._children[child.number]
        self._send({"exited": child.number, "pid": child.pid, "status": os.waitstatus_to_exitcode(status)})

    def _become_child(self, folder: Path, message: dict[str, Any], server: int) -> None:
        """In the forked process: cut every tie to the server, do the job, and leave without running exit handlers."""
        status = _EXIT_CRASH
        try:
            die_with(server, _EXIT_CRASH)
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            self._let_go()
            _redirect_output(folder / "child.log")
            _be_modest(int(message.get("nice", 0)), message.get("oom_score_adj"))
            from trainer import child

            wait = float(message.get("lock_wait_seconds", child.LOCK_WAIT_SECONDS))
            status = child.main(folder, wait)
        except BaseException:  # noqa: BLE001 (told in child.log or on the server's stderr; this process ends here)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _let_go(self) -> None:
        """Close the channel, the selector and the other children's descriptors."""
        self._selector.close()
        self._channel.close()
        for other in self._children.values():
            os.close(other.descriptor)


def _loads(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except ValueError:
        return None


def _redirect_output(log: Path) -> None:
    """Read from nothing; write to the end of child.log."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(written)


def _be_modest(nice: int, oom_score_adj: int | None) -> None:
    """Politeness towards the rest of the machine; it changes the speed and never the bits."""
    if nice:
        os.nice(nice)
        # With autogroups the nice value counts only among processes of one session, and this one is alone in its own.
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice), "ascii")
    if oom_score_adj is not None:
        Path("/proc/self/oom_score_adj").write_text(str(int(oom_score_adj)), "ascii")


def _import_everything() -> None:
    """What children need, once. Importing starts no thread; using any of it might."""
    from trainer.child import preload_tasks

    preload_tasks()


def main(arguments: list[str] | None = None) -> int:
    """Serve on the inherited descriptor until its other end closes."""
    parser = argparse.ArgumentParser(prog="trainer.server", description="forks training children")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of an AF_UNIX stream socket")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    asked = parser.parse_args(arguments)
    die_with(asked.parent, _EXIT_CRASH)
    set_environment()
    # Ctrl-C goes to the whole group of processes; whoever holds the other end decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_everything()
    channel = socket.socket(fileno=asked.fd)
    channel.set_inheritable(False)
    Server(channel).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
