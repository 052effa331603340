"""Admitted originals and the journeys of drops, as the ledger knows them.

A file is known by the SHA-256 of its bytes; a drop is one arrival of such bytes under a name. Not here: moving
anything (`intake.py`), or judging it (`guard/checks/identify.py`).
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from guard.durable import sha256_file
from guard.errors import NotFound, UsageError
from guard.home import Home
from guard.store.ledger import Ledger

__all__ = [
    "OPEN_DROPS", "SIDECARS", "StoredFile", "find_file", "get_file", "open_drops", "original_hashes", "stored_path", "trained_in",
    "with_sidecars",
]  # fmt: skip

# Drops in these states stand in the middle of a durable operation.
SIDECARS = ("examples.fp", "record.json", "meta.yaml")
OPEN_DROPS = ("claiming", "claimed", "admitting", "returning")


@dataclass(frozen=True)
class StoredFile:
    """One admitted original."""

    sha256: str
    name: str
    kind: str
    size_bytes: int
    examples: int
    tokens_approx: int
    description: str
    first_seen: str
    record: dict[str, Any]


def _file(row: sqlite3.Row) -> StoredFile:
    return StoredFile(
        row["sha256"], row["name"], row["kind"], row["size_bytes"], row["examples"], row["tokens_approx"],
        row["description"], row["first_seen"], orjson.loads(row["record"]),
    )  # fmt: skip


def get_file(ledger: Ledger, sha256: str) -> StoredFile | None:
    """The original with these bytes, or None."""
    row = ledger.row("SELECT * FROM files WHERE sha256 = ?", (sha256,))
    return _file(row) if row else None


def find_file(ledger: Ledger, text: str) -> StoredFile:
    """The original with this name, hash, or unique start of a hash (8 or more digits).

    Raises NotFound, or UsageError when a name or a start fits several.
    """
    rows = ledger.rows("SELECT * FROM files WHERE sha256 = ? OR name = ?", (text, Path(text).name))
    if not rows and len(text) >= 8 and set(text) <= set("0123456789abcdef"):
        rows = ledger.rows("SELECT * FROM files WHERE sha256 >= ? AND sha256 < ?", (text, text + "g"))
    if not rows:
        raise NotFound(f"no file {text!r} is known here", subject=text, hint="heirloom register FILE makes it known")
    if len(rows) > 1:
        hashes = ", ".join(row["sha256"][:12] for row in rows)
        raise UsageError(f"{len(rows)} files are called {text!r}", subject=text, hint=f"name one by its hash: {hashes}")
    return _file(rows[0])


def stored_path(home: Home, file: StoredFile) -> Path:
    """Where the admitted bytes lie."""
    return home.files / file.sha256 / str(file.record.get("stored_as", file.name))


def original_hashes(file: StoredFile) -> dict[str, str]:
    """SHA-256 of every file that makes up an original, by its name in `data/files/<sha256>/`, sidecars left out.

    A prepared dataset is an original of several files; its own hash is that over their sorted hashes.
    """
    stored = str(file.record.get("stored_as", file.name))
    if not file.record.get("prepared"):
        return {stored: file.sha256}
    return {f"{stored}/{name}": str(digest) for name, digest in file.record["parts"].items()}


def with_sidecars(home: Home, record: dict[str, Any]) -> dict[str, Any]:
    """The record of an original whose folder is in its place, with the SHA-256 of its sidecars, read from disk."""
    folder = home.files / str(record["sha256"])
    found = {name: sha256_file(folder / name) for name in SIDECARS if (folder / name).is_file()}
    return {**record, "sidecars": found}


def trained_in(ledger: Ledger, sha256: str) -> list[str]:
    """Names of the versions that learnt from a file, ascending by id."""
    return [row[0] for row in ledger.rows(
        "SELECT DISTINCT v.name FROM learnt l JOIN versions v ON v.id = l.version_id "
        "WHERE l.sha256 = ? AND l.count > 0 ORDER BY v.id", (sha256,))]  # fmt: skip


def open_drops(ledger: Ledger, *states: str) -> list[sqlite3.Row]:
    """Drops in the given states (all open ones when none is named), oldest first."""
    # The words of the index `drops_open`, letter by letter: with marks for them SQLite reads every drop there ever was.
    rows = ledger.rows(f"SELECT * FROM drops WHERE state IN {OPEN_DROPS} ORDER BY id")
    return [row for row in rows if not states or row["state"] in states]
