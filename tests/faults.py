"""What a disk may do wrong at one of its durable calls: die, refuse, be full, fall short, lose what it was to sync.

Not here: which call it is, and what is left afterwards (`disk.py`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from guard.failpoints import Crash

__all__ = ["Fault", "crash_at", "fail_at", "full_from", "lie_about_fsync", "short_at"]

Fault = Callable[[int, str], int | None]
"""Told the number and the name of a call about to be made; may raise, or return how many bytes of a write are taken."""


def crash_at(number: int) -> Fault:
    """Sudden death just before the call of that number (1 is the first)."""
    def fault(count: int, _name: str) -> None:
        if count == number:
            raise Crash(f"call {number}")
    return fault  # fmt: skip


def fail_at(number: int, code: int) -> Fault:
    """One call fails with this errno and the next ones succeed."""
    def fault(count: int, name: str) -> None:
        if count == number:
            raise OSError(code, os.strerror(code), name)
    return fault  # fmt: skip


def full_from(number: int) -> Fault:
    """From this call on the disk takes no new bytes and no new names."""
    def fault(count: int, name: str) -> None:
        if count >= number and name in ("write", "mkdir", "link", "symlink", "commit", "create"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    return fault  # fmt: skip


def short_at(number: int) -> Fault:
    """A write of this number takes a single byte and says so."""
    def fault(count: int, name: str) -> int | None:
        return 1 if count == number and name == "write" else None
    return fault  # fmt: skip


def lie_about_fsync(number: int) -> Fault:
    """The first fsync of a file from this call on fails with EIO; its bytes are gone, and nobody is told twice."""
    done: list[int] = []

    def fault(count: int, name: str) -> None:
        if count >= number and name == "fsync file" and not done:
            done.append(count)
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
    return fault  # fmt: skip
