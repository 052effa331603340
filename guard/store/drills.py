"""What is known of restore drills: the last one, the last that passed, when the next is due. Pure but for the ledger.

A drill proves that the vault alone brings the home back and that learning goes on from there. Not here: doing one
(`daemon/drill.py`).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import orjson

from guard.failpoints import point
from guard.store.keeper import Keeper

__all__ = ["STALE_DAYS", "drill_due", "drill_state", "record_drill"]

STALE_DAYS = 14.0
"""A drill that passed longer ago than this is worth an alert."""


def record_drill(keeper: Keeper, result: Mapping[str, Any]) -> dict[str, Any]:
    """Write down how a drill ended, durably and with its event; returns what was written.

    `result` has ok, reason, seconds and, when it passed, versions, originals, bytes, trained, steps.
    """
    told = {**result, "utc": keeper.clock.utc()}
    text = orjson.dumps(told, option=orjson.OPT_SORT_KEYS).decode()
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("drill", text)
        if told["ok"]:
            keeper.ledger.set_meta("drill_passed", text)
        keeper.ledger.event("backup.drilled", "drill", **told)
    point("drill.recorded")
    return told


def _days(since: str, now: str) -> float:
    begun, ended = (datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (since, now))
    return (ended - begun).total_seconds() / 86400


def drill_state(keeper: Keeper) -> dict[str, Any]:
    """last (how the last drill ended, or None), passed (when one last passed, or None), problem ("" or a sentence)."""
    last, passed = (keeper.ledger.meta(key) for key in ("drill", "drill_passed"))
    found: dict[str, Any] = {"last": orjson.loads(last) if last else None,
                             "passed": orjson.loads(passed)["utc"] if passed else None, "problem": ""}  # fmt: skip
    if found["last"] and not found["last"]["ok"]:
        found["problem"] = f"the last restore drill failed: {found['last']['reason']}"
        return found
    since = found["passed"] or _first_copy(keeper)
    days = _days(since, keeper.clock.utc()) if since else 0.0
    if days > STALE_DAYS:
        when = f"passed {days:.0f} days ago" if found["passed"] else f"was never done in {days:.0f} days of backups"
        found["problem"] = f"the restore drill {when}"
    return found


def _first_copy(keeper: Keeper) -> str | None:
    """When the vault first held something: before that there is nothing to drill with."""
    return keeper.ledger.value("SELECT utc FROM events WHERE verb = 'backup.verified' ORDER BY seq LIMIT 1")


def drill_due(keeper: Keeper) -> bool:
    """Whether the daemon should hold a drill now: `backup.drill_days` after the last one, whether it passed or not."""
    every = keeper.settings.backup.drill_days
    last = keeper.ledger.meta("drill")
    since = orjson.loads(last)["utc"] if last else _first_copy(keeper)
    return bool(every and since) and _days(str(since), keeper.clock.utc()) >= every
