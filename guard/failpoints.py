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
    "claim.intended", "claim.foldered", "claim.sided", "claim.renamed", "claim.recorded",
    "copy.intended", "copy.copied", "copy.unlinked", "pack.written", "pack.compared",
    "verdict.intended", "verdict.returned", "verdict.sided", "verdict.moved", "verdict.recorded", "verdict.cleared",
    "admit.intended", "admit.aside", "admit.stored", "admit.sidecars", "admit.renamed", "admit.recorded",
    "admit.spared", "admit.cleared", "admit.viewed",
    "known.written", "known.published", "known.cleared",
    "near.written", "near.published", "near.recorded",
    "dataset.copied", "dataset.aside", "dataset.renamed", "dataset.recorded",
    "documents.unlinked", "documents.linked",
    "prepare.intended", "prepare.cleared", "prepare.renamed",
    "anomaly.noted", "anomaly.settled",
    "start.intended", "start.marked", "start.numbered", "start.recorded",
    "birth.proven", "birth.intended", "birth.described", "birth.summed", "birth.synced", "birth.checked", "birth.moved",
    "birth.renamed", "birth.recorded", "birth.viewed", "birth.sealed", "birth.cleaned", "birth.aside",
    "index.marked", "index.intended", "index.synced", "index.renamed", "index.recorded", "index.linked", "index.cleaned",
    "backup.opened", "backup.intended", "backup.copied", "backup.framed", "backup.decoded", "backup.checked",
    "backup.renamed", "backup.recorded", "backup.aside", "backup.configured", "backup.marked",
    "adopt.written",
    "ledger_backup.copied", "ledger_backup.checked", "ledger_backup.renamed", "ledger_backup.pruned", "ledger_backup.aside",
    "rollback.intended", "rollback.parked", "rollback.recorded", "rollback.viewed",
    "delete.intended", "delete.unsealed", "delete.moved", "delete.recorded", "delete.viewed", "delete.abandoned",
    "restore.intended", "restore.copied", "restore.checked", "restore.aside", "restore.placed", "restore.moved",
    "restore.recorded", "restore.viewed", "restore.withdrawn", "restore.abandoned",
    "events_backup.written", "events_backup.recorded",
    "drill.ledger", "drill.version", "drill.restored", "drill.verified", "drill.trained", "drill.backed_up",
    "drill.recorded",
    "purge.intended", "purge.moved", "purge.recorded", "purge.erased", "purge.viewed",
    "archive.intended", "archive.moved", "archive.recorded", "archive.erased", "archive.viewed", "archive.aside",
    "prune.intended", "prune.moved", "prune.erased", "prune.recorded",
    "regrow.queueing", "regrow.queued",
    "view.rendered", "view.written", "view.noted",
    "recover.synced", "recover.drops", "recover.jobs", "recover.trash", "recover.numbers", "recover.seals",
    "recover.swept", "recover.linked", "recover.viewed",
    "migrate.staged", "migrate.copied", "migrate.stepped", "migrate.recorded",
    "init.folders", "init.recipes", "init.ledger", "init.identified",
    "events.committed", "events.exported",
    "prefs.appended", "prefs.noted", "prefs.published", "prefs.dropped",
    "snapshot.begun", "snapshot.weights", "snapshot.moments", "snapshot.described", "snapshot.synced", "snapshot.aside",
    "snapshot.renamed", "snapshot.marked", "snapshot.forgotten",
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
