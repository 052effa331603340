"""Nothing outlives the process that started it: the kernel is asked to end this one when its parent ends."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["die_with"]

_PR_SET_PDEATHSIG = 1


def die_with(parent: int | None, status: int) -> None:
    """Ask the kernel to kill this process when `parent` dies; leave at once with `status` when it is gone already.

    To be called in the child, with what `os.getpid` said in the parent; None: whoever is the parent now. Raises OSError.
    """
    parent = os.getppid() if parent is None else parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(status)
