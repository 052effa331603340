"""What a glance shows to be gone: folders of versions, originals and the active index, marks, and the vault.

One listing of each place and never a hash, so that `heirloom status` may look every time, at ten thousand versions too.
What lies there and is damaged is found by `verify` and the scrub. Reads only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from guard.names import index_name, parse_version_number
from guard.store.derived import misplaced
from guard.store.keeper import Keeper

__all__ = ["Lost", "lost_things"]

_SHOWN = 3


@dataclass(frozen=True)
class Lost:
    """One kind of thing that is gone, and what to type. `damage`: bytes are gone, and not only a disk away."""

    what: str
    remedy: str
    damage: bool = True


def lost_things(keeper: Keeper) -> list[Lost]:
    """Everything that is plainly not there, in sentences with a remedy each; empty when all is in its place."""
    return [*_folders(keeper), *_marks(keeper), *_derived(keeper), *_vault(keeper)]


def _folders(keeper: Keeper) -> list[Lost]:
    """What was found last time, while neither ledger nor places changed: a daemon asks every second."""
    home = keeper.home
    stamp = (keeper.ledger.sequence(), *(_stamp(place) for place in (home.models, home.files, home.indexes)))
    if keeper.glance.get("stamp") != stamp:
        found = [*_versions(keeper), *_originals(keeper), *_indexes(keeper)]
        keeper.glance.update(stamp=stamp, found=found)
    return list(keeper.glance["found"])


def _stamp(place: Path) -> tuple[int, ...]:
    try:
        facts = os.stat(place)
    except OSError:
        return ()
    # Two changes within a tick of the kernel's clock have one time; the count of folders in it tells them apart.
    return facts.st_mtime_ns, facts.st_nlink, facts.st_size


def _listed(place: Path) -> set[str]:
    try:
        return set(os.listdir(place))
    except OSError:
        return set()


def _column(keeper: Keeper, query: str) -> list[str]:
    """A column of names as SQLite joins it: fifty thousand rows one by one would take a sixth of a second."""
    joined = keeper.ledger.value(query)
    return str(joined).split(",") if joined else []


def _some(names: Iterable[str], total: int) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown if total <= _SHOWN else f"{shown} and {total - _SHOWN:,} more"


def _versions(keeper: Keeper) -> list[Lost]:
    """Versions whose folder is missing; one that a running operation is moving has announced it."""
    here = _listed(keeper.home.models)
    known = _column(keeper, "SELECT group_concat(name) FROM versions WHERE state IN ('sealed', 'quarantined')")
    gone = sorted(set(known) - here, key=lambda name: parse_version_number(name) or 0)
    if not gone:
        return []
    intents = keeper.ledger.rows("SELECT key FROM meta WHERE key >= 'intent:' AND key < 'intent;'")
    moving = {row[0].rpartition(":")[2] for row in intents}
    tips = keeper.ledger.rows("SELECT v.name, l.name FROM lines l JOIN versions v ON v.id = l.tip_id")
    active = {row[0]: row[1] for row in tips}
    found = [Lost(f"{name} is active on {active[name]} and its folder is missing", f"heirloom restore {name}")
             for name in gone if name in active]  # fmt: skip
    others = [name for name in gone if name not in active and name not in moving]
    if others:
        word = "1 version is" if len(others) == 1 else f"{len(others):,} versions are"
        found.append(Lost(f"{word} missing in models/: {_some(others, len(others))}", f"heirloom restore {others[0]}"))
    return found


def _originals(keeper: Keeper) -> list[Lost]:
    known = _column(keeper, "SELECT group_concat(sha256) FROM files")  # out of the key's index, not the rows
    gone = sorted(set(known) - _listed(keeper.home.files))
    if not gone:
        return []
    names = [keeper.ledger.value("SELECT name FROM files WHERE sha256 = ?", (sha256,)) for sha256 in gone[:_SHOWN]]
    word = "1 original is" if len(gone) == 1 else f"{len(gone):,} originals are"
    return [Lost(f"{word} missing in data/files/: {_some(names, len(gone))}",
                 "drop the same file again, or copy it back from the vault: backups/files/")]  # fmt: skip


def _indexes(keeper: Keeper) -> list[Lost]:
    here = _listed(keeper.home.indexes)
    rows = keeper.ledger.rows("SELECT id, state FROM indexes ORDER BY id")
    gone = {index_name(row["id"]): row["state"] for row in rows if index_name(row["id"]) not in here}
    return [Lost(f"the index {name} is {'active and ' if state == 'active' else ''}missing in data/index/",
                 "heirloom index build" if state == "active" else f"heirloom index prune {name}")
            for name, state in gone.items()]  # fmt: skip


def _marks(keeper: Keeper) -> list[Lost]:
    paths = [path for path in (keeper.home.high_water_file, keeper.home.events) if not path.exists()]
    remedy = "heirloom doctor --rebuild makes it again"
    return [Lost(f"{path.relative_to(keeper.home.root)} is missing", remedy) for path in paths]


def _derived(keeper: Keeper) -> list[Lost]:
    """Places of derived data that are none, or are gone; a start makes them again, and nothing is lost with them."""
    remedy, near = "heirloom run makes it again (or run --once)", keeper.settings.near.policy != "off"
    found = [Lost(f"{name} is no folder", f"{remedy}; what lies there is moved aside", damage=False)
             for name in misplaced(keeper.home) if near or name == "data/known"]  # fmt: skip
    if near and not found and not os.path.lexists(keeper.home.data / "near" / "signatures"):
        made = keeper.ledger.value("SELECT count(*) FROM (SELECT record FROM files ORDER BY rowid LIMIT 100) "
                                   "WHERE json_extract(record, '$.near.version') IS NOT NULL")  # fmt: skip
        found += [Lost("data/near is missing: what resembles what cannot be told", remedy, damage=False)] if made else []
    return found


def _vault(keeper: Keeper) -> list[Lost]:
    """Whether a vault that held copies still shows its mark; all of the judgement is in `vault_state.py`, and slow to load."""
    vault = keeper.home.vault(keeper.settings.backup.path)
    if (vault / "store-id").exists():
        return []
    held = keeper.ledger.value("SELECT count(*) FROM backups WHERE vault = ?", (str(vault),))
    if not held:
        return []
    return [Lost(f"the vault {vault} held {held} copies and is not there now, or has no store-id",
                 "is its disk mounted? heirloom backup status says what to do", damage=False)]  # fmt: skip
