"""`heirloom doctor --rebuild`: making ledger and views again under the home lock, then recovering as every start does.

The making itself is `guard/store/rebuild.py`. A running daemon has to be stopped first: it holds the lock.
"""

from __future__ import annotations

from typing import Any

from daemon.client import LOCK_SECONDS
from guard.clock import SYSTEM_CLOCK, Clock
from guard.durable import make_dir
from guard.home import Home
from guard.lock import home_lock
from guard.settings_read import load_settings
from guard.store.identity import id_is_lost, known_id, write_id
from guard.store.keeper import default_actor, open_writer
from guard.store.missing import bring_originals_back, make_folders, missing_folders
from guard.store.rebuild import rebuild
from guard.store.recovery import recover

__all__ = ["rebuild_home"]


def rebuild_home(home: Home, *, dry_run: bool, clock: Clock = SYSTEM_CLOCK) -> dict[str, Any]:
    """Make ledger and views again and recover; returns what `rebuild` returns, and `recovered[]`.

    Raises Busy while a daemon or another command works in the home, and what `rebuild` raises.
    """
    lost = id_is_lost(home)
    if lost and dry_run:
        _id, who = known_id(home, home.vault(load_settings(home.root).backup.path))
        note = f".heirloom/store-id is missing and would be written again, as {who} has it"
        return {"rebuilt": False, "problem": "the store id is missing", "notes": [note], "recovered": []}
    if not lost:
        home.store_id()
    make_dir(home.state)
    actor = default_actor("doctor")
    with home_lock(home, command="heirloom doctor --rebuild", since=clock.utc(), timeout=LOCK_SECONDS):
        if dry_run and (gone := missing_folders(home)):
            told = [f"{folder.relative_to(home.root)} is missing and would be made again" for folder in gone]
            return {"rebuilt": False, "problem": "folders are missing", "notes": told, "recovered": []}
        notes = [write_id(home, home.vault(load_settings(home.root).backup.path))] if lost else []
        notes += _bring_back(home) if not dry_run else []
        result = rebuild(home, clock=clock, actor=actor, dry_run=dry_run)
        result["notes"] = [*notes, *result.get("notes", [])]
        if dry_run:
            return {**result, "recovered": []}
        keeper = open_writer(home, actor=actor, clock=clock)
        try:
            return {**result, "recovered": recover(keeper)}
        finally:
            keeper.ledger.close()


def _bring_back(home: Home) -> list[str]:
    """Make what vanished of the home's folders, and fetch originals that only the vault holds; in sentences."""
    made = make_folders(home)
    if not made:
        return []
    brought, damaged = bring_originals_back(home, home.vault(load_settings(home.root).backup.path))
    told = [f"{name} was missing and was made again" for name in made]
    told += [f"{len(brought)} originals came back from the vault"] if brought else []
    told += [f"the vault's copy of {sha256[:12]} is damaged and stayed there: heirloom verify --backup" for sha256 in damaged]
    return [*told, "versions that are missing: heirloom restore VERSION"] if "models" in made else told
