"""The disk in the status: what is free, what stays reserved, how many versions still fit and until which day.

Not here: what is done about it. `guard/checks/preflight.py` refuses a job, the runner pauses one, `daemon/alerts.py` tells.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from guard.checks.forecast import Grown, forecast
from guard.clock import utc_seconds, utc_text
from guard.store.keeper import Keeper

__all__ = ["GB", "disk_state", "shares_the_disk"]

GB = 1e9
_RECENT = 20
_LAST_MOMENT = 253_402_300_000.0


def disk_state(keeper: Keeper, tip: Any) -> dict[str, Any]:
    """What is free, what stays reserved, and how long it lasts: `full_on` is a UTC date or null."""
    free, reserve = keeper.home.free_bytes(), int(keeper.settings.disk.reserve_gb * GB)
    vault = keeper.home.vault(keeper.settings.backup.path)
    shared = shares_the_disk(vault, keeper)
    rows = keeper.ledger.rows(
        "SELECT v.created, v.size_bytes, b.size_bytes AS copy_bytes FROM versions v LEFT JOIN backups b ON "
        "b.what = 'version' AND b.name = v.name AND b.vault = ? WHERE v.parent_id IS NOT NULL ORDER BY v.id DESC LIMIT ?",
        (str(vault), _RECENT))  # fmt: skip
    recent = [Grown(utc_seconds(row["created"]), row["size_bytes"] + (_copy_bytes(row) if shared else 0)) for row in rows]
    guess = (2 if shared else 1) * (tip.size_bytes if tip is not None else 0)
    found = forecast(room_bytes=free - reserve, recent=recent, now=utc_seconds(keeper.clock.utc()), guess_bytes=guess)
    return {"free_bytes": free, "reserve_bytes": reserve, "forks_left": found.forks_left, "full_on": _date(found.full_at)}


def _copy_bytes(row: Any) -> int:
    """What its backup takes on the same disk; as much as the version itself until there is one."""
    return row["copy_bytes"] if row["copy_bytes"] is not None else row["size_bytes"]


def _date(moment: float | None) -> str | None:
    """The day of a moment; null beyond the year 9999, which no disk is asked about."""
    return utc_text(moment)[:10] if moment is not None and moment < _LAST_MOMENT else None


def shares_the_disk(vault: Path, keeper: Keeper) -> bool:
    """Whether the vault lies on the disk of the models."""
    with contextlib.suppress(OSError):
        # One that is not there yet would be begun below the nearest folder that is.
        there = next(place for place in (vault, *vault.parents) if place.exists())
        return os.stat(there).st_dev == os.stat(keeper.home.models).st_dev
    return False
