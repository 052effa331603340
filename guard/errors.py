"""The family of errors, and the one place where an error gets its exit code.

    HeirloomError                 1  unexpected
    |-- UsageError                2  the command's words are off
    |-- CheckFailed               3  a check said no; nothing changed
    |   |-- DataFault             3  the data itself is at fault
    |   `-- EnvironmentFault      3  disk full, device busy, out of memory: held and retried
    |-- NotFound                  4
    |-- Protected                 5  may not be deleted or changed
    |-- NotConfirmed              6
    |-- Duplicate                 7  already known or already learnt
    |-- Damage                    8  bytes are not what they were
    |-- DaemonNotRunning         10
    |-- Busy                     11  somebody else holds the lock
    `-- Interrupted             130

Each error says what happened (message), to what (subject), why (cause) and what to type (hint).
This file prints nothing and exits nowhere: `daemon/cli/main.py` turns errors into words and codes.
"""

from __future__ import annotations

import errno

__all__ = [
    "Busy",
    "CheckFailed",
    "DaemonNotRunning",
    "Damage",
    "DataFault",
    "Duplicate",
    "EnvironmentFault",
    "HeirloomError",
    "Interrupted",
    "NotConfirmed",
    "NotFound",
    "Protected",
    "UsageError",
    "is_environment",
]


class HeirloomError(Exception):
    """Something Heirloom refuses or could not do, told so that a person can act on it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", subject: str = "", cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.subject = subject
        if cause is not None:
            self.__cause__ = cause

    def as_dict(self) -> dict[str, object]:
        """The error as it appears in `--json` output and on the control socket."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "subject": self.subject,
            "exit_code": self.exit_code,
        }


class UsageError(HeirloomError):
    """The words of a command or a setting are wrong."""

    exit_code = 2


class CheckFailed(HeirloomError):
    """A guard said no; nothing was changed."""

    exit_code = 3


class DataFault(CheckFailed):
    """The dropped data itself is at fault; trying again would not help."""


class EnvironmentFault(CheckFailed):
    """The machine could not do it now (disk full, busy, out of memory): hold and retry, never blame the data."""


class NotFound(HeirloomError):
    """A version, file or job of that name does not exist."""

    exit_code = 4


class Protected(HeirloomError):
    """A rule protects it: base, active, has children, or no --force."""

    exit_code = 5


class NotConfirmed(HeirloomError):
    """A person did not confirm, or typed another name."""

    exit_code = 6


class Duplicate(HeirloomError):
    """The bytes, or everything trainable in them, are already known."""

    exit_code = 7


class Damage(HeirloomError):
    """Bytes on disk are not what was recorded."""

    exit_code = 8


class DaemonNotRunning(HeirloomError):
    """The command needs a running daemon."""

    exit_code = 10


class Busy(HeirloomError):
    """Another process holds the lock, or a job is in the way."""

    exit_code = 11


class Interrupted(HeirloomError):
    """A person or the system asked to stop."""

    exit_code = 130


_ENVIRONMENT_ERRNOS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.ESTALE,
        errno.ENOMEM, errno.EAGAIN, errno.EROFS, errno.EINTR, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO,
    }
)  # fmt: skip


def is_environment(error: BaseException) -> bool:
    """True when the machine is at fault and not the data: such work is held and retried (law 10)."""
    if isinstance(error, EnvironmentFault | MemoryError):
        return True
    return isinstance(error, OSError) and error.errno in _ENVIRONMENT_ERRNOS
