"""The ledger as a file: opened, brought to the newest schema, copied and checked; and what SQLite's errors mean.

An older ledger is copied aside and the copy is checked before the first step changes it. Tables and steps are described
in `schema.py`. Not here: what is read and written in it (`ledger.py`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from guard.durable import fsync_dir, rename_new
from guard.errors import Damage, EnvironmentFault
from guard.failpoints import point
from guard.folders import sync_parents
from guard.store.closed_mark import clear_mark
from guard.store.schema import SCHEMA_VERSION, STEPS

__all__ = ["REBUILD", "bring_up_to_date", "connect", "copy_database", "translate"]

REBUILD = "heirloom doctor --rebuild makes it again from the export, the versions and the stored files"


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection that makes no ledger where none is. Raises sqlite3.DatabaseError."""
    mode = "ro" if read_only else "rw"
    quoted = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    connection = sqlite3.connect(f"file:{quoted}?mode={mode}", uri=True, isolation_level=None, timeout=10.0)
    connection.row_factory = sqlite3.Row
    return connection


def bring_up_to_date(db: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    """Migrate an older ledger, unless it is only read. Raises Damage for one from the future, sqlite3.DatabaseError."""
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found > SCHEMA_VERSION:
        raise Damage(f"{path} has schema {found}; this Heirloom knows up to {SCHEMA_VERSION}",
                     subject=str(path), hint="upgrade Heirloom; nothing was changed")  # fmt: skip
    if found < SCHEMA_VERSION and not read_only:
        _migrate(db, path, found)


def _migrate(db: sqlite3.Connection, path: Path, found: int) -> None:
    """Run the missing steps, one transaction each, after a checked copy of what was there."""
    if found:
        _copy_aside(db, path, found)
    clear_mark(path)
    point("migrate.copied")
    for number in range(found, SCHEMA_VERSION):
        db.executescript(f"BEGIN IMMEDIATE;{STEPS[number]};PRAGMA user_version={number + 1};COMMIT;")
        point("migrate.stepped")
    if found:
        # Rows have another shape now; what they held was checked by nobody but the copy before it.
        db.execute("DELETE FROM meta WHERE key >= 'digest:' AND key < 'digest;'")
    fsync_dir(path.parent)
    point("migrate.recorded")


def _copy_aside(db: sqlite3.Connection, path: Path, found: int) -> None:
    target = path.with_name(f"{path.name}.schema{found}")
    if target.exists():
        sync_parents(target)
        return
    staged = target.with_name(f"{target.name}.tmp")
    staged.unlink(missing_ok=True)
    copy_database(db, staged)
    point("migrate.staged")
    rename_new(staged, target)


def copy_database(db: sqlite3.Connection, target: Path) -> None:
    """Copy a database with SQLite's backup interface, check the copy, and make it durable.

    Raises Damage, or EnvironmentFault when there is no room; what then lies at `target` is not to be believed.
    """
    try:
        with contextlib.closing(sqlite3.connect(target)) as copy:
            db.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
            verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise translate(error, target) from error
    if verdict != "ok":
        raise Damage(f"the ledger copy {target} fails its check: {verdict}", subject=str(target))
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fsync_dir(target.parent)


def translate(error: sqlite3.DatabaseError, path: Path) -> Exception:
    """The error of ours that one of SQLite's is; a mistake in a statement stays what it is."""
    text = str(error)
    if isinstance(error, sqlite3.OperationalError) and any(
        word in text for word in ("disk is full", "locked", "disk I/O", "unable to open", "readonly")
    ):
        return EnvironmentFault(f"the ledger cannot be used now: {text}", subject=str(path), cause=error,
                                hint="free space on its disk, then try again; nothing was lost")  # fmt: skip
    if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError):
        return error
    return Damage(f"the ledger is damaged: {text}", subject=str(path), cause=error,
                  hint=REBUILD)  # fmt: skip
