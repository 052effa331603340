"""`heirloom doctor --rebuild`: making ledger and views again under the home lock, then recovering as every start does.

The making itself is `guard/store/rebuild.py`. A running daemon has to be stopped first: it holds the lock.
"""

from __future__ import annotations

from typing import Any

from daemon.client import LOCK_SECONDS
from guard.clock import SYSTEM_CLOCK, Clock
from guard.home import Home
from guard.lock import home_lock
from guard.store.keeper import default_actor, open_writer
from guard.store.rebuild import rebuild
from guard.store.recovery import recover

__all__ = ["rebuild_home"]


def rebuild_home(home: Home, *, dry_run: bool, clock: Clock = SYSTEM_CLOCK) -> dict[str, Any]:
    """Make ledger and views again and recover; returns what `rebuild` returns, and `recovered[]`.

    Raises Busy while a daemon or another command works in the home, and what `rebuild` raises.
    """
    home.store_id()
    actor = default_actor("doctor")
    with home_lock(home, command="heirloom doctor --rebuild", since=clock.utc(), timeout=LOCK_SECONDS):
        result = rebuild(home, clock=clock, actor=actor, dry_run=dry_run)
        if dry_run:
            return {**result, "recovered": []}
        keeper = open_writer(home, actor=actor, clock=clock)
        try:
            return {**result, "recovered": recover(keeper)}
        finally:
            keeper.ledger.close()
