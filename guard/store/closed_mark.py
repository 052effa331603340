"""`ledger.db.closed`: size and SHA-256 of the ledger's file as its last writer left it.

Between two writers nobody may change a byte of it, not even one that no row uses. The mark is taken away, durably,
before a writer's first change, so that no mark can stand beside a file it does not describe. It is written only when
SQLite folded everything into the one file (a reader may keep its WAL alive; then there is no mark, and the chain and
the rows' digests are what tells). Not here: what the rows say.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from guard.durable import remove_file, sha256_file, write_json

__all__ = ["clear_mark", "is_marked", "mark_problem", "write_mark"]


def _mark(ledger: Path) -> Path:
    return ledger.with_name(f"{ledger.name}.closed")


def _wal_is_empty(ledger: Path) -> bool:
    wal = ledger.with_name(f"{ledger.name}-wal")
    return not wal.exists() or wal.stat().st_size == 0


def is_marked(ledger: Path) -> bool:
    """Whether the file stands as its last writer left it, as far as a mark can tell."""
    return _mark(ledger).exists()


def clear_mark(ledger: Path) -> None:
    """Take the mark away before the first change. Raises OSError."""
    remove_file(_mark(ledger))


def write_mark(ledger: Path) -> None:
    """Describe the closed file. Raises OSError."""
    if _wal_is_empty(ledger):
        write_json(_mark(ledger), {"size": ledger.stat().st_size, "sha256": sha256_file(ledger)})


def mark_problem(ledger: Path) -> str:
    """What is wrong with a ledger that nobody has open for writing; "" when it is as it was left, or nothing is known."""
    try:
        mark = orjson.loads(_mark(ledger).read_bytes())
    except FileNotFoundError:
        return ""
    except (OSError, orjson.JSONDecodeError) as error:
        return f"{_mark(ledger).name} cannot be read: {error}"
    if not _wal_is_empty(ledger):
        return ""
    if ledger.stat().st_size != mark.get("size") or sha256_file(ledger) != mark.get("sha256"):
        # A writer may have begun meanwhile: then the mark is gone and tells nothing.
        return "its bytes changed since its last writer closed it" if is_marked(ledger) else ""
    return ""
