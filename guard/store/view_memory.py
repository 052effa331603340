"""What the views of a home need again and again, kept in the memory of the one process that writes it.

The views are whole files, rewritten at every birth: in a home of 10,000 versions and 50,000 files that was two seconds of
reading, building and encoding what had not changed. So what can never change (a sealed version's record, what it learnt) is
read once; rows that can change are read again when their table's digest in the ledger did; and an entry of a view is
encoded again only when its facts are others. Nothing here is believed across processes, and nothing is written.
Not here: what a view looks like (`views.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from guard.durable import json_bytes
from guard.store.ledger import Ledger

__all__ = ["Remembered", "ViewMemory"]

_FILE_COLUMNS = "sha256, name, kind, size_bytes, examples, tokens_approx, description, first_seen"


class Remembered:
    """The texts of the entries of one view, each made again only when its facts are others."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, bytes]] = {}

    def __len__(self) -> int:
        """How many entries the view had last."""
        return len(self._known)

    def texts(self, facts: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Iterable[bytes]]) -> list[bytes]:
        """One text for each name, in the order given; `make` is asked for all of those whose facts are new or others."""
        known = self._known
        new = {name: told for name, told in facts.items() if (old := known.get(name)) is None or old[0] != told}
        made = dict(zip(new, make(new), strict=True))
        self._known = {name: (told, made[name]) if name in made else known[name] for name, told in facts.items()}
        return [text for _told, text in self._known.values()]

    def json(self, facts: Mapping[str, Any], shape: Callable[[Any], object]) -> bytes:
        """The object in which each name stands with `shape(its facts)`: byte for byte what `json_bytes` makes of it."""
        ordered = {name: facts[name] for name in sorted(facts)}
        texts = self.texts(ordered, lambda new: _entries({name: shape(told) for name, told in new.items()}))
        return b"{\n" + b",\n".join(texts) + b"\n}\n" if texts else json_bytes({})


def _entries(values: Mapping[str, object]) -> list[bytes]:
    """Each entry of an object as it stands in its indented JSON. Only an entry's first line is indented by just two spaces,
    and no text holds a line break, so cutting there is exact; encoding 50,000 one by one took a second."""
    if not values:
        return []
    first, *others = json_bytes(values)[len("{\n") : -len("\n}\n")].split(b',\n  "')
    return [first, *(b'  "' + text for text in others)]


def _part(row: sqlite3.Row) -> dict[str, Any]:
    metrics, data = orjson.loads(row["metrics"] or "{}"), orjson.loads(row["data"] or "[]")
    return {
        "name": row["name"], "parent_id": row["parent_id"], "line": row["line"], "created": row["created"],
        "data": [{"file": item["file"], "hash": item["sha256"], "tokens": item["tokens"]} for item in data],
        "metrics": {"final_loss": metrics.get("final_loss"), "steps": metrics.get("steps")},
        "losses": {item["name"]: item["child_loss"] for item in metrics.get("evaluation") or []
                   if item.get("child_loss") is not None},
        "files": [item["file"] for item in data],
    }  # fmt: skip


@dataclass
class ViewMemory:
    """The memory of one keeper."""

    registry: Remembered = field(default_factory=Remembered)
    manifest: Remembered = field(default_factory=Remembered)
    readme: Remembered = field(default_factory=Remembered)
    _parts: dict[int, dict[str, Any]] = field(default_factory=dict)
    _trained: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _files: dict[str, sqlite3.Row] = field(default_factory=dict)
    _digest: str | None = None

    def sealed(self, ledger: Ledger) -> dict[int, dict[str, Any]]:
        """By id, what is told of each version and never changes: name, parent_id, line, created, data, metrics, files
        (names of what it learnt) and losses (its own, by the name of the evaluation set)."""
        after = (max(self._parts, default=0),)
        for row in ledger.rows(
            "SELECT id, name, parent_id, line, created, json_extract(record, '$.data') AS data, "
            "json_extract(record, '$.metrics') AS metrics FROM versions WHERE id > ? ORDER BY id", after):  # fmt: skip
            self._parts[row["id"]] = _part(row)
        for row in ledger.rows("SELECT DISTINCT version_id, sha256 FROM learnt WHERE version_id > ? AND count > 0 "
                               "ORDER BY version_id", after):  # fmt: skip
            self._trained[row[1]] = (*self._trained.get(row[1], ()), self._parts[row[0]]["name"])
        return self._parts

    def trained(self, ledger: Ledger) -> dict[str, tuple[str, ...]]:
        """Names of the versions that learnt of each file, by its SHA-256, the oldest first."""
        self.sealed(ledger)
        return self._trained

    def files(self, ledger: Ledger) -> dict[str, sqlite3.Row]:
        """Every admitted file by its SHA-256, in the order they came; read again when a row of the table changed."""
        digest = ledger.meta("digest:files")
        if digest is None or digest != self._digest:
            rows = ledger.rows(f"SELECT {_FILE_COLUMNS} FROM files ORDER BY first_seen, sha256")
            self._files, self._digest = {row["sha256"]: row for row in rows}, digest
        return self._files
