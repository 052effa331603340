"""What descends from what: the lineage as data (`lineage --json`) and as the tree of seed 002.

Everything is computed from the ledger each time; nothing is stored. A version in the trash still links its children
to its ancestors, so it stays in the lineage, and what stands on it counts as standing on its ancestors too.
Not here: colours and widths (`daemon/cli/`), or the registry view (`views.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from guard.checks.deletion import ACTIVE, lock_label
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger
from guard.store.versions import Version, dependants
from guard.weights import ADAPTER_BASE

__all__ = ["descendants", "lineage", "living_dependants", "needed_to_load", "regrown_lines",
           "rollbacks", "tree_lines"]  # fmt: skip

_GONE = ("trashed", "purged")
_STEP = 5
_DEEPEST = 12
_FILES_SHOWN = 4


def living_dependants(ledger: Ledger, number: int) -> list[Version]:
    """Versions that are there and stand on this one, directly or through others that were trashed or purged; by id."""
    found: dict[int, Version] = {}
    seen, waiting = {number}, [number]
    while waiting:
        current = waiting.pop()
        for child in dependants(ledger, current):
            found[child.id] = child
        trashed = ledger.rows(
            "SELECT id FROM versions WHERE state IN ('trashed', 'purged') AND (parent_id = ? OR id IN "
            "(SELECT version_id FROM version_inputs WHERE input_id = ?))", (current, current))  # fmt: skip
        for row in trashed:
            if row[0] not in seen:
                seen.add(row[0])
                waiting.append(row[0])
    return [found[key] for key in sorted(found)]


def needed_to_load(ledger: Ledger, number: int) -> list[str]:
    """Names of the versions that are there and cannot be loaded without this one: adapters on it; by id."""
    return [row[0] for row in ledger.rows(
        "SELECT v.name FROM versions v JOIN version_inputs i ON i.version_id = v.id WHERE i.input_id = ? AND i.role = ? "
        "AND v.state NOT IN ('trashed', 'purged') ORDER BY v.id", (number, ADAPTER_BASE))]  # fmt: skip


def descendants(ledger: Ledger, number: int) -> list[str]:
    """Names of everything that was grown from a version, whatever its state, ascending by id."""
    return [row[0] for row in ledger.rows(
        "WITH RECURSIVE down(id) AS (SELECT ? UNION SELECT v.id FROM versions v JOIN down ON v.parent_id = down.id "
        "UNION SELECT i.version_id FROM version_inputs i JOIN down ON i.input_id = down.id) "
        "SELECT v.name FROM versions v JOIN down ON v.id = down.id WHERE v.id != ? ORDER BY v.id",
        (number, number))]  # fmt: skip


def _depended_on(ledger: Ledger, versions: Sequence[sqlite3.Row]) -> set[int]:
    """Ids of the versions that `living_dependants` is not empty for, found in one pass from the youngest down."""
    inputs: dict[int, list[int]] = {}
    for row in ledger.rows("SELECT version_id, input_id FROM version_inputs"):
        inputs.setdefault(row[0], []).append(row[1])
    needed: set[int] = set()
    for version in reversed(versions):
        if version["state"] not in _GONE or version["id"] in needed:
            needed.update(inputs.get(version["id"], []))
            if version["parent_id"] is not None:
                needed.add(version["parent_id"])
    return needed


def lineage(keeper: Keeper, *, newest: int | None = None) -> list[dict[str, Any]]:
    """Every version ever sealed (or only the `newest` so many), ascending by id, in the shape of `lineage --json`.

    `locked` is the label of `guard/checks/deletion.py` or "". `training_data`: file, hash, tokens, examples, kind.
    """
    # What stands on a version is younger than it: the newest ones tell everything about themselves. Of ten thousand
    # records of some kilobytes only the two parts that are told are taken out of the ledger and parsed.
    rows = keeper.ledger.rows(
        "SELECT id, name, parent_id, line, state, created, json_extract(record, '$.data') AS data, "
        "json_extract(record, '$.metrics') AS metrics FROM versions ORDER BY id DESC LIMIT ?",
        (-1 if newest is None else newest,))  # fmt: skip
    rows.reverse()
    names = {row[0]: row[1] for row in keeper.ledger.rows("SELECT id, name FROM versions")}
    active = {row[0] for row in keeper.ledger.rows("SELECT tip_id FROM lines")}
    needed = _depended_on(keeper.ledger, rows)
    return [
        {
            "name": row["name"],
            "id": row["id"],
            "parent": names.get(row["parent_id"]),
            "line": row["line"],
            "active": row["id"] in active,
            "locked": "" if row["state"] in _GONE else lock_label(
                has_parent=row["parent_id"] is not None, active=row["id"] in active, has_dependants=row["id"] in needed),
            "training_data": [_data(item) for item in orjson.loads(row["data"] or "[]")],
            "metrics": orjson.loads(row["metrics"] or "{}"),
            "created": row["created"],
            "state": row["state"],
        }
        for row in rows
    ]  # fmt: skip


def rollbacks(ledger: Ledger) -> list[dict[str, Any]]:
    """Every rollback there ever was, oldest first: utc, actor (who), line, from, to, why, parked_job."""
    rows = ledger.rows("SELECT utc, actor, subject, payload FROM events WHERE verb = 'line.rolled_back' ORDER BY seq")
    told = [(row, orjson.loads(row["payload"])) for row in rows]
    return [{"utc": row["utc"], "actor": row["actor"], "line": row["subject"], "from": facts["before"], "to": facts["after"],
             "why": facts["why"], "parked_job": facts.get("parked_job")} for row, facts in told]  # fmt: skip


def regrown_lines(ledger: Ledger) -> list[dict[str, str]]:
    """Lines that were grown again without a file: line, of (the line before), base, file, without (its SHA-256)."""
    rows = ledger.rows("SELECT key, value FROM meta WHERE key >= 'regrown:' AND key < 'regrown;' ORDER BY key")
    return [{"line": row["key"].removeprefix("regrown:"), **orjson.loads(row["value"])} for row in rows]


def _data(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"file": item.get("file", ""), "hash": item.get("sha256", ""), "tokens": item.get("tokens", 0),
            "examples": item.get("examples", 0), "kind": item.get("kind", "")}  # fmt: skip


def tree_lines(versions: Sequence[Mapping[str, Any]], *, newest: int | None = None, total: int = 0) -> list[str]:
    """The tree of seed 002: each version under its parent, with the files it learnt on the way there.

    `versions` is what `lineage` returns; `newest` keeps only so many, and those whose parent is left out say so. `total`:
    how many there are, when older ones were left out before.
    Deeper than a dozen generations the indentation stands still and each version names its parent.
    """
    shown = list(versions)[-newest:] if newest else list(versions)
    names = {item["name"] for item in shown}
    children: dict[str | None, list[Mapping[str, Any]]] = {}
    for item in shown:
        children.setdefault(item["parent"] if item["parent"] in names else None, []).append(item)
    older = max(total, len(versions)) - len(shown)
    lines = [f"({older} older versions: --all)"] if older else []
    # A stack and not recursion: a line of 50,000 versions is deeper than Python's own stack.
    waiting = [(item, 0) for item in reversed(children.get(None, []))]
    while waiting:
        item, depth = waiting.pop()
        lines += _branch(item, depth)
        waiting += [(child, depth + 1) for child in reversed(children.get(item["name"], []))]
    return lines


def _branch(item: Mapping[str, Any], depth: int) -> list[str]:
    tail = "".join(f"  {word}" for word in _labels(item))
    outside = f"  (from {item['parent']})" if item["parent"] and (depth == 0 or depth > _DEEPEST) else ""
    if depth == 0 and not item["parent"]:
        return [f"{item['name']}{tail}"]
    indent = 2 + 2 * _STEP * (min(max(depth, 1), _DEEPEST) - 1)
    files = _file_lines(item["training_data"])
    lines = [" " * indent + ("└─> " if place == 0 else "    ") + text for place, text in enumerate(files)]
    own = indent + (_STEP if files else 0)
    return [*lines, f"{' ' * own}└─> {item['name']}{tail}{outside}"]


def _file_lines(data: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"+ {_printable(item['file'])} (hash: {str(item['hash'])[:12]}...)" for item in data[:_FILES_SHOWN]]
    return lines if len(data) <= _FILES_SHOWN else [*lines, f"+ {len(data) - _FILES_SHOWN} more files"]


def _printable(name: str) -> str:
    """A dropped name may hold line breaks and terminal commands; a tree shows neither."""
    return "".join(char if char.isprintable() else "?" for char in name)


def _labels(item: Mapping[str, Any]) -> list[str]:
    words = [item["locked"]] if item["locked"] else []
    if item["active"] and ACTIVE not in words:
        words.append(ACTIVE)
    if skipped := (item.get("metrics") or {}).get("steps_skipped"):
        words.append(f"{skipped} STEP{'S' if skipped > 1 else ''} SKIPPED")
    if item["state"] != "sealed":
        words.append(str(item["state"]).upper())
    return words
