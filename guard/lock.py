"""The home lock: one process writes a home (law 13), and a refusal says who holds it.

The lock itself is the kernel's (flock through filelock): it goes with its holder, so there is no stale lock to
judge. The text beside it only explains; nothing is ever decided from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from guard.durable import publish
from guard.errors import Busy, is_environment
from guard.home import Home

__all__ = ["holder_of", "home_lock", "is_locked"]


def holder_of(home: Home) -> dict[str, object]:
    """Who holds or last held the lock: host, pid, since, command; empty when nobody ever did."""
    try:
        return json.loads((home.state / "lock.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def is_locked(home: Home) -> bool:
    """Whether some process holds the lock now; asked of the kernel, and let go at once."""
    try:
        descriptor = os.open(home.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _describe(holder: dict[str, object]) -> str:
    if not holder:
        return "another process"
    if holder.get("host") == socket.gethostname() and not _lives(holder.get("pid")):
        return "a process that has just started"  # it holds the lock and has not written its note yet
    return f"{holder.get('command')} (pid {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')})"


def _lives(pid: object) -> bool:
    return isinstance(pid, int) and Path(f"/proc/{pid}").exists()


def _lock(home: Home, timeout: float) -> filelock.FileLock:
    return filelock.FileLock(home.lock_file, timeout=timeout, fallback_to_soft=False, thread_local=False)


def _tell(path: Path, facts: bytes) -> None:
    """Say who holds the home. A full disk keeps nobody from starting: then nothing is said, rather than somebody else's name."""
    try:
        publish(path, facts)
    except OSError as error:
        if not is_environment(error):
            raise
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def home_lock(home: Home, *, command: str, since: str, timeout: float = 0.0) -> Iterator[None]:
    """Hold the home for writing. Raises Busy (exit 11) naming the holder after `timeout` seconds."""
    lock = _lock(home, timeout)
    try:
        lock.acquire()
    except filelock.Timeout:
        # filelock's own text adds nothing to who holds it.
        raise Busy(f"{home.root} is in use by {_describe(holder_of(home))}", subject=str(home.root),
                   hint="wait for it, or stop it; `heirloom status` works meanwhile") from None  # fmt: skip
    try:
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "command": command}
        _tell(home.state / "lock.json", json.dumps(facts).encode())
        yield
    finally:
        lock.release()
