"""A lost store id: who else knows which home this is, for `doctor --rebuild` to write it again.

The id stands in the ledger, in the first event of its export, and in the vault. Witnesses must agree; nothing is made up,
for an id that was guessed would let two homes into one vault. Not here: a home that never had one (`create.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from guard.durable import make_dir, write_text
from guard.errors import Damage
from guard.home import Home
from guard.store.event_export import read_events
from guard.store.rebuild_facts import elders, rows_of

__all__ = ["id_is_lost", "id_of_ledger", "known_id", "write_id"]


def id_is_lost(home: Home) -> bool:
    """Whether the file is missing or empty; one that cannot be read for another reason is no business of ours."""
    try:
        return not home.store_id_file.read_bytes().strip()
    except (FileNotFoundError, NotADirectoryError):
        return True


def id_of_ledger(path: Path) -> str:
    """The store id that a ledger, or a copy of one, carries; "" when it cannot be read."""
    rows = rows_of(path, "SELECT value FROM meta WHERE key = 'store_id'")
    return str(rows[0][0]) if rows else ""


def _witnesses(home: Home, vault: Path) -> Iterator[tuple[str, str]]:
    """Who says so, and what: the ledger and its copies, the first event of the export, the vault."""
    for path in elders(home, vault):
        yield path.name, id_of_ledger(path)
    for _name, event in read_events(home.events) if home.events.is_dir() else ():
        if event is not None and event["verb"] == "home.created":
            yield "the event export", str(orjson.loads(event["payload"]).get("store_id") or "")
        break
    try:
        yield f"the vault {vault}", (vault / "store-id").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return


def known_id(home: Home, vault: Path) -> tuple[str, str]:
    """(store id, who says so). Raises Damage when nobody knows it, or when two tell of different homes."""
    found = {who: told for who, told in _witnesses(home, vault) if told}
    if not found:
        raise Damage("nothing is left that says which home this is", subject=str(home.root),
                     hint="bring back data/, or mount the vault's disk; then heirloom doctor --rebuild")  # fmt: skip
    if len(set(found.values())) > 1:
        told = ", ".join(f"{who} says {text[:8]}..." for who, text in found.items())
        raise Damage(f"the store id is lost, and two homes are mixed up here: {told}", subject=str(home.root),
                     hint="put the right data/ back, or set backup.path to this home's own vault")  # fmt: skip
    who, text = next(iter(found.items()))
    return text, who


def write_id(home: Home, vault: Path) -> str:
    """Write a lost store id again; returns what to tell. Raises what `known_id` raises."""
    text, who = known_id(home, vault)
    make_dir(home.state)
    write_text(home.store_id_file, f"{text}\n")
    return f".heirloom/store-id was missing and was written again, as {who} has it"
