"""`heirloom index prune`: removing retrieval indexes that are not active. They are derived; the number is not given again.

    intent -> renamed to a hidden name beside it -> erased -> one transaction: row gone, event, intent cleared

Every step may be repeated; an intent means that it is finished, for nothing is lost by it that `index build` does not
make again. Only what a person asked for goes: no start, timer or full disk prunes (law 3). Not here: making one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from guard.durable import remove_tree, rename_new
from guard.errors import NotFound, Protected
from guard.failpoints import point
from guard.folders import sync_parents
from guard.names import index_name, parse_version_number
from guard.store.intents import clear_intent, open_intents, put_intent
from guard.store.keeper import Keeper
from guard.store.standing import settle_damage

__all__ = ["finish_prunes", "prune_indexes"]


def prune_indexes(keeper: Keeper, text: str | None = None, *, dry_run: bool = False) -> dict[str, Any]:
    """Remove one index (`v001`), or all but the active one; returns pruned (names) and bytes (that became free).

    Raises NotFound for an index nobody knows, Protected for the active one, OSError when the disk refuses.
    """
    if not dry_run:
        finish_prunes(keeper)
    names = _chosen(keeper, text)
    result = {"pruned": names, "bytes": sum(_size(keeper.home.indexes / name) for name in names)}
    if dry_run:
        return result
    for name in names:
        with keeper.ledger.transaction():
            put_intent(keeper.ledger, "prune", name, {"index": name})
        point("prune.intended")
        _finish(keeper, name)
    return result


def _chosen(keeper: Keeper, text: str | None) -> list[str]:
    states = {index_name(row["id"]): row["state"] for row in keeper.ledger.rows("SELECT id, state FROM indexes ORDER BY id")}
    if text is None:
        return [name for name, state in states.items() if state != "active"]
    number = parse_version_number(text)
    name = index_name(number) if number is not None else text
    if name not in states:
        raise NotFound(f"no index {text!r} in this home", subject=text, hint="heirloom index ls lists them")
    if states[name] == "active":
        raise Protected(f"the index {name} is active", subject=name,
                        hint=f"heirloom index build makes another one active; then heirloom index prune {name}")  # fmt: skip
    return [name]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _finish(keeper: Keeper, name: str) -> None:
    place = keeper.home.indexes
    folder, going = place / name, place / f".pruning-{name}"
    if os.path.lexists(folder) and not os.path.lexists(going):
        if folder.is_dir() and not folder.is_symlink():
            os.chmod(folder, 0o755)  # a read-only folder cannot be moved by an ordinary user
        rename_new(folder, going)
    else:
        sync_parents(going)
    point("prune.moved")
    remove_tree(going)
    point("prune.erased")
    with keeper.ledger.transaction():
        keeper.ledger.run("DELETE FROM indexes WHERE id = ?", (parse_version_number(name),))
        clear_intent(keeper.ledger, "prune", name)
        settle_damage(keeper, f"index {name}")
        keeper.ledger.event("index.pruned", name)
    point("prune.recorded")


def finish_prunes(keeper: Keeper) -> list[str]:
    """Finish every interrupted prune; returns what became of each in words."""
    told = []
    for intent in open_intents(keeper.ledger, "prune"):
        try:
            _finish(keeper, intent["index"])
            told.append(f"the index {intent['index']} was pruned")
        except OSError as error:
            # Something derived never keeps a home from starting.
            told.append(f"pruning the index {intent['index']} is left for later: {error}")
    wanted = {f".pruning-{intent['index']}" for intent in open_intents(keeper.ledger, "prune")}
    for left in keeper.home.indexes.glob(".pruning-*"):
        if left.name not in wanted:  # the ledger was made again meanwhile and knows nothing of it
            remove_tree(left)
            told.append(f"cleared index/{left.name}")
    return told
