"""Named fail points: places where a test may kill, fail or stop the process in the middle of a durable operation.

`point("birth.renamed")` costs one dictionary look-up and does nothing unless somebody armed it, in process with
`arm()` or from outside with `HEIRLOOM_FAILPOINT=birth.renamed=kill` (`=kill:3` fires at the third visit).
This file decides nothing and repairs nothing; recovery (`guard/store/recovery.py`) is what the points put to the test.
"""

from __future__ import annotations

import errno
import os
import signal

from guard.errors import UsageError

__all__ = ["POINTS", "Crash", "arm", "arm_from_environment", "disarm", "hits", "point"]

POINTS = (
    "claim.intended", "claim.renamed", "claim.recorded",
    "copy.intended", "copy.copied",
    "verdict.intended", "verdict.moved", "verdict.recorded",
    "admit.intended", "admit.sidecars", "admit.renamed", "admit.recorded", "admit.viewed",
    "prepare.intended", "prepare.renamed",
    "start.numbered", "start.recorded",
    "birth.proven", "birth.intended", "birth.described", "birth.summed", "birth.synced", "birth.checked",
    "birth.renamed", "birth.recorded", "birth.viewed", "birth.sealed", "birth.cleaned",
    "index.intended", "index.renamed", "index.recorded", "index.linked", "index.cleaned",
    "backup.intended", "backup.copied", "backup.checked", "backup.renamed", "backup.recorded",
    "ledger_backup.copied", "ledger_backup.checked", "ledger_backup.renamed",
    "rollback.intended", "rollback.recorded", "rollback.viewed",
    "delete.intended", "delete.unsealed", "delete.moved", "delete.recorded", "delete.viewed",
    "restore.intended", "restore.copied", "restore.checked", "restore.moved", "restore.recorded", "restore.viewed",
    "view.rendered", "view.written", "view.noted",
    "migrate.copied", "migrate.stepped", "migrate.recorded",
    "init.folders", "init.ledger", "init.identified",
    "events.committed", "events.exported",
    "rebuild.read", "rebuild.written", "rebuild.aside", "rebuild.placed", "rebuild.exported", "rebuild.viewed",
)  # fmt: skip

ACTIONS = ("kill", "crash", "enospc", "eio", "stop")


class Crash(BaseException):
    """A simulated sudden death inside one process; a BaseException so that no `except Exception` can swallow it."""


_armed: dict[str, tuple[str, int]] = {}
_visits: dict[str, int] = {}


def arm(name: str, action: str = "crash", at_visit: int = 1) -> None:
    """Make the `at_visit`-th visit of `name` do `action`. Raises UsageError for an unknown name or action."""
    if name not in POINTS:
        raise UsageError(f"unknown fail point {name!r}", hint="the names are listed in guard/failpoints.py")
    if action not in ACTIONS:
        raise UsageError(f"unknown fail point action {action!r}", hint=f"one of {', '.join(ACTIONS)}")
    _armed[name] = (action, at_visit)
    _visits[name] = 0


def disarm() -> None:
    """Forget every armed point and every count."""
    _armed.clear()
    _visits.clear()


def hits(name: str) -> int:
    """How often an armed point was visited: a test asserts that its point was really reached."""
    return _visits.get(name, 0)


def arm_from_environment(environment: dict[str, str] | None = None) -> None:
    """Read `HEIRLOOM_FAILPOINT` (`name=action[:visit]`, several separated by commas). Called once at process start."""
    text = (os.environ if environment is None else environment).get("HEIRLOOM_FAILPOINT", "")
    for item in filter(None, text.split(",")):
        name, _, rest = item.partition("=")
        action, _, visit = rest.partition(":")
        arm(name.strip(), action.strip() or "kill", int(visit or 1))


def point(name: str) -> None:
    """Mark a step of a durable operation. Does nothing unless armed."""
    if not _armed:
        return
    assert name in POINTS, f"fail point {name!r} is not declared"
    if name not in _armed:
        return
    action, at_visit = _armed[name]
    _visits[name] += 1
    if _visits[name] == at_visit:
        _act(name, action)


def _act(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    if action == "enospc":
        raise OSError(errno.ENOSPC, f"no space left (fail point {name})")
    if action == "eio":
        raise OSError(errno.EIO, f"input/output error (fail point {name})")
    raise Crash(name)
