"""The ledger: one SQLite file that is the one truth about what can change.

WAL and synchronous=FULL: a committed transaction survives a power cut. Every change of state is written together
with its event, in one transaction, and every event carries the hash of the one before it, so that a changed or
missing event is found. Tables are described in `schema.py`; who may write is decided by `guard/lock.py`.
Not here: what the rows mean (`files.py`, `jobs.py`, `versions.py`, `drops.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from guard.clock import SYSTEM_CLOCK, Clock
from guard.durable import fsync_dir, rename_new, sync_parents
from guard.errors import Damage, EnvironmentFault
from guard.failpoints import point
from guard.home import boot_id
from guard.store.schema import SCHEMA_VERSION, STEPS

__all__ = ["GENESIS", "Ledger", "event_hash"]

GENESIS = "0" * 64


def event_hash(previous: str, fields: Sequence[object]) -> str:
    """SHA-256 over the previous hash and the event's own fields in canonical JSON."""
    return hashlib.sha256(orjson.dumps([previous, *fields])).hexdigest()


class Ledger:
    """A connection to the ledger. Use `with ledger.transaction():` around every change."""

    def __init__(self, path: Path, *, clock: Clock = SYSTEM_CLOCK, actor: str = "cli", read_only: bool = False) -> None:
        self.path, self.clock, self.actor, self.read_only = path, clock, actor, read_only
        self._depth = 0
        if not path.exists():
            raise Damage(f"{path} is missing", subject=str(path), hint="restore it from the vault: backups/ledger/")
        try:
            self._db = self._connect()
            self._check_schema()
        except sqlite3.DatabaseError as error:
            raise _translate(error, path) from error

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self.read_only else "rw"
        quoted = str(self.path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        connection = sqlite3.connect(f"file:{quoted}?mode={mode}", uri=True, isolation_level=None, timeout=10.0)
        connection.row_factory = sqlite3.Row
        if not self.read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def _check_schema(self) -> None:
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise Damage(f"{self.path} has schema {found}; this Heirloom knows up to {SCHEMA_VERSION}",
                         subject=str(self.path), hint="upgrade Heirloom; nothing was changed")  # fmt: skip
        if found < SCHEMA_VERSION and not self.read_only:
            self._migrate(found)

    def _migrate(self, found: int) -> None:
        """Run the missing steps, one transaction each, after a checked copy of what was there."""
        if found:
            self._copy_aside(found)
        point("migrate.copied")
        for number in range(found, SCHEMA_VERSION):
            self._db.executescript(f"BEGIN IMMEDIATE;{STEPS[number]};PRAGMA user_version={number + 1};COMMIT;")
            point("migrate.stepped")
        fsync_dir(self.path.parent)
        point("migrate.recorded")

    def _copy_aside(self, found: int) -> None:
        target = self.path.with_name(f"{self.path.name}.schema{found}")
        if target.exists():
            sync_parents(target)
            return
        staged = target.with_name(f"{target.name}.tmp")
        staged.unlink(missing_ok=True)
        self.copy_to(staged)
        point("migrate.staged")
        rename_new(staged, target)

    @classmethod
    def create(cls, path: Path, *, clock: Clock = SYSTEM_CLOCK, actor: str = "cli") -> Ledger:
        """Make an empty ledger at a path where none may be."""
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644))
        return cls(path, clock=clock, actor=actor)

    def close(self) -> None:
        """Close the connection; the WAL is folded in by SQLite."""
        self._db.close()

    def copy_to(self, target: Path) -> None:
        """Copy the ledger with SQLite's backup interface, check it, and make it durable.

        Raises Damage, or EnvironmentFault when there is no room; what then lies at `target` is not to be believed.
        """
        try:
            with contextlib.closing(sqlite3.connect(target)) as copy:
                self._db.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")
                verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise _translate(error, target) from error
        if verdict != "ok":
            raise Damage(f"the ledger copy {target} fails its check: {verdict}", subject=str(target))
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fsync_dir(target.parent)

    # --- reading -------------------------------------------------------------------------------------------------

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """Every row of a query. Raises Damage or EnvironmentFault."""
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise _translate(error, self.path) from error

    def row(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        found = self.rows(sql, values)
        return found[0] if found else None

    def value(self, sql: str, values: Sequence[object] = ()) -> Any:
        """The first column of the first row, or None."""
        found = self.row(sql, values)
        return found[0] if found else None

    def meta(self, key: str) -> str | None:
        return self.value("SELECT value FROM meta WHERE key = ?", (key,))

    def sequence(self) -> int:
        """The number of the newest event: views carry it."""
        return self.value("SELECT coalesce(max(seq), 0) FROM events")

    # --- changing ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, durable when the block ends. Nested use joins the outer one."""
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        self.run("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        finally:
            self._depth = 0

    def run(self, sql: str, values: Sequence[object] = ()) -> int:
        """One changing statement; returns the id of an inserted row."""
        assert self._depth or sql == "BEGIN IMMEDIATE", "changes need a transaction"
        try:
            return self._db.execute(sql, _text_only(values)).lastrowid or 0
        except sqlite3.DatabaseError as error:
            raise _translate(error, self.path) from error

    def run_many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """One changing statement for many rows."""
        assert self._depth, "changes need a transaction"
        try:
            self._db.executemany(sql, rows)
        except sqlite3.DatabaseError as error:
            raise _translate(error, self.path) from error

    def set_meta(self, key: str, value: str) -> None:
        self.run("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))

    def event(self, verb: str, subject: str, **payload: object) -> int:
        """Append to the audit trail inside the current transaction; returns its sequence number."""
        last = self.row("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")
        previous = last["hash"] if last else GENESIS
        sequence = (last["seq"] if last else 0) + 1
        body = orjson.dumps(_text_only(payload), option=orjson.OPT_SORT_KEYS, default=str).decode()
        fields = [sequence, self.clock.utc(), boot_id(), self.actor, verb, _clean(subject), body]
        self.run("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                 (*fields, previous, event_hash(previous, fields)))  # fmt: skip
        # Kept apart from the chain so that a chain cut short at its end is noticed too.
        self.set_meta("events_written", str(sequence))
        return sequence

    def broken_events(self) -> list[str]:
        """What is wrong with the chain: changed, missing or re-ordered events; empty when it is whole."""
        problems, previous, expected = [], GENESIS, 1
        for row in self.rows("SELECT * FROM events ORDER BY seq"):
            fields = [row[key] for key in ("seq", "utc", "boot_id", "actor", "verb", "subject", "payload")]
            if row["seq"] != expected:
                problems.append(f"events {expected} to {row['seq'] - 1} are missing")
            elif row["previous"] != previous or event_hash(previous, fields) != row["hash"]:
                problems.append(f"event {row['seq']} was changed")
            previous, expected = row["hash"], row["seq"] + 1
        newest = self.meta("events_written")
        if newest and int(newest) >= expected:
            problems.append(f"events {expected} to {newest} are missing")
        return problems


def _clean(text: str) -> str:
    """Names with bytes that are not UTF-8 are shown escaped: SQLite and JSON hold only real text."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a character, from somebody's JSON
        return text.encode("utf-8", "backslashreplace").decode()


def _text_only(value: Any) -> Any:
    """The value with every text in it cleaned: a message that names an odd file must not stop what it tells of."""
    if isinstance(value, str):
        return value if value.isascii() else _clean(value)
    if isinstance(value, list | tuple):
        return [_text_only(item) for item in value]
    return {key: _text_only(item) for key, item in value.items()} if isinstance(value, dict) else value


def _translate(error: sqlite3.DatabaseError, path: Path) -> Exception:
    text = str(error)
    if isinstance(error, sqlite3.OperationalError) and any(
        word in text for word in ("disk is full", "locked", "disk I/O", "unable to open", "readonly")
    ):
        return EnvironmentFault(f"the ledger cannot be used now: {text}", subject=str(path), cause=error,
                                hint="free space on its disk, then try again; nothing was lost")  # fmt: skip
    if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError):
        return error
    return Damage(f"the ledger is damaged: {text}", subject=str(path), cause=error,
                  hint="restore it from the vault: backups/ledger/")  # fmt: skip
