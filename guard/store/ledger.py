"""The ledger: one SQLite file that is the one truth about what can change.

WAL and synchronous=FULL: a committed transaction survives a power cut. Every change of state is written together
with its event, in one transaction, and every event carries the hash of the one before it, so that a changed or
missing event is found. After a commit the new events are appended to the export (`event_export.py`), and every table
carries a digest of its rows (`row_digests.py`). Tables are described in `schema.py`; who may write is decided by
`guard/lock.py`. Not here: opening, migrating and copying the file (`ledger_file.py`), and what the rows mean (`files.py`,
`jobs.py`, `versions.py`, `intake.py`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from guard.clock import SYSTEM_CLOCK, Clock
from guard.errors import Damage
from guard.failpoints import point
from guard.home import boot_id
from guard.store.closed_mark import clear_mark, is_marked, mark_problem, write_mark
from guard.store.event_export import EVENT_KEYS, GENESIS, EventExport, event_hash
from guard.store.ledger_file import REBUILD, bring_up_to_date, connect, copy_database, translate
from guard.store.ledger_text import clean_text, payload_text, text_only
from guard.store.row_digests import RowDigests, changed_tables

__all__ = ["GENESIS", "Ledger", "event_hash"]


class Ledger:
    """A connection to the ledger. Use `with ledger.transaction():` around every change."""

    def __init__(self, path: Path, *, clock: Clock = SYSTEM_CLOCK, actor: str = "cli", read_only: bool = False) -> None:
        self.path, self.clock, self.actor, self.read_only = path, clock, actor, read_only
        self._depth = 0
        self.export = EventExport(path.parent / "events")
        self.export_problem = ""
        """Why the export lags behind; told in the alerts, and tried again with every transaction."""
        self._marked = True
        self._new_events: list[dict[str, Any]] = []
        self._newest: tuple[int, str] | None = None
        if not path.exists():
            raise Damage(f"{path} is missing", subject=str(path), hint=REBUILD)
        try:
            self._db = connect(path, read_only=read_only)
            self._take_up()
        except sqlite3.DatabaseError as error:
            raise translate(error, path) from error

    def _take_up(self) -> None:
        """Check what was opened; a ledger that is refused is not left open."""
        try:
            if not self.read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
            bring_up_to_date(self._db, self.path, read_only=self.read_only)
            if not self.read_only:
                self._open_for_writing()
        except BaseException:
            # The error's traceback holds this object, and three descriptors with it, for as long as somebody keeps it.
            self._db.close()
            raise

    def _open_for_writing(self) -> None:
        """Refuse a ledger that is older than its own export; then follow its rows and bring the export up to date."""
        found, digest = self.export.head()
        row = self.row("SELECT hash FROM events WHERE seq = ?", (found,))
        if found and (row is None or row["hash"] != digest):
            newest = self.sequence()
            raise Damage(f"{self.path} ends with event {newest} and the export knows event {found}" if newest < found else
                         f"{self.path} and the export tell two different stories of event {found}",
                         subject=str(self.path), hint=f"it is an old copy, or was changed; {REBUILD}")  # fmt: skip
        self._digests = RowDigests(self._db)
        if not self._digests.known:
            clear_mark(self.path)
            self._digests.take_over()
        self._marked = is_marked(self.path)
        self._open_export()

    def _open_export(self) -> None:
        """Append what a sudden death, or a full disk, kept from the export; a failure is told and tried again later."""
        try:
            self.export.open()
            self.export.append(self.events_after(self.export.newest))
            self.export_problem = ""
        except OSError as error:
            self.export_problem = f"the event export lags behind: {error}"

    @classmethod
    def create(cls, path: Path, *, clock: Clock = SYSTEM_CLOCK, actor: str = "cli") -> Ledger:
        """Make an empty ledger at a path where none may be."""
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644))
        return cls(path, clock=clock, actor=actor)

    def close(self) -> None:
        """Close the connection; the WAL is folded in by SQLite, and the closed file is marked (`closed_mark.py`)."""
        if not self.read_only:
            self.sync_export()
        self._db.close()
        if not self.read_only and not self._marked:
            self._marked = True
            # Without a mark nothing is claimed about the closed file; closing never fails over one.
            with contextlib.suppress(OSError):
                write_mark(self.path)

    def copy_to(self, target: Path) -> None:
        """Copy the ledger with SQLite's backup interface, check it, and make it durable.

        Raises Damage, or EnvironmentFault when there is no room; what then lies at `target` is not to be believed.
        """
        copy_database(self._db, target)

    # --- reading -------------------------------------------------------------------------------------------------

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """Every row of a query. Raises Damage or EnvironmentFault."""
        try:
            return self._db.execute(sql, text_only(values)).fetchall()
        except sqlite3.DatabaseError as error:
            raise translate(error, self.path) from error

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

    # --- is it what it was? --------------------------------------------------------------------------------------

    def mark_problem(self) -> str:
        """What is wrong with the file as a whole; "" when it is as its last writer left it, or one has it open."""
        return mark_problem(self.path)

    def changed_tables(self) -> list[str]:
        """Tables whose rows are not what was written; reads everything. Raises Damage."""
        try:
            with self.snapshot():
                return changed_tables(self._db)
        except sqlite3.DatabaseError as error:
            raise translate(error, self.path) from error

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read in the block belongs to one moment, whatever is written meanwhile."""
        if self._db.in_transaction:
            yield
            return
        self.rows("BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def sync_export(self) -> None:
        """Make the export durable as far as it goes; a failure is told in `export_problem` and tried again."""
        try:
            if self.export_problem:
                self._open_export()
            self.export.sync()
        except OSError as error:
            self.export_problem = f"the event export lags behind: {error}"

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
        self._begin()
        try:
            yield
            if self._newest:
                # Kept apart from the chain so that a chain cut short at its end is noticed too.
                self.set_meta("events_written", str(self._newest[0]))
            try:
                self._digests.write()
            except sqlite3.DatabaseError as error:
                raise translate(error, self.path) from error
            self.run("COMMIT")
            self._export_new()
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        finally:
            self._depth = 0

    def _begin(self) -> None:
        if self._marked and not self.read_only:
            # Before the first change, so that no mark ever stands beside a file it does not describe.
            clear_mark(self.path)
            self._marked = False
        if not self.read_only:
            self._follow_rows()
        self.run("BEGIN IMMEDIATE")
        self._depth = 1
        self._new_events = []
        self._newest = None
        if not self.read_only:
            self._digests.begin()

    def _follow_rows(self) -> None:
        try:
            self._digests.follow()
        except sqlite3.DatabaseError as error:
            raise translate(error, self.path) from error

    def _export_new(self) -> None:
        """Tell the export what was just committed. The commit stands, whatever becomes of it."""
        if not self._new_events:
            return
        point("events.committed")
        try:
            if self.export_problem or self._new_events[0]["seq"] != self.export.newest + 1:
                self._open_export()
            else:
                self.export.append(self._new_events)
            point("events.exported")
        except OSError as error:
            self.export_problem = f"the event export lags behind: {error}"

    def run(self, sql: str, values: Sequence[object] = ()) -> int:
        """One changing statement; returns the id of an inserted row."""
        assert self._depth or sql == "BEGIN IMMEDIATE", "changes need a transaction"
        try:
            return self._db.execute(sql, text_only(values)).lastrowid or 0
        except sqlite3.DatabaseError as error:
            raise translate(error, self.path) from error

    def run_many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """One changing statement for many rows."""
        assert self._depth, "changes need a transaction"
        try:
            self._db.executemany(sql, rows)
        except sqlite3.DatabaseError as error:
            raise translate(error, self.path) from error

    def set_meta(self, key: str, value: str) -> None:
        self.run("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))

    def event(self, verb: str, subject: str, **payload: object) -> int:
        """Append to the audit trail inside the current transaction; returns its sequence number."""
        last = self._newest or self.row("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1") or (0, GENESIS)
        sequence, previous = last[0] + 1, last[1]
        body = payload_text(payload)
        fields = [sequence, self.clock.utc(), boot_id(), self.actor, verb, clean_text(subject), body]
        whole = (*fields, previous, event_hash(previous, fields))
        self.run("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", whole)
        self._new_events.append(dict(zip(EVENT_KEYS, whole, strict=True)))
        self._newest = sequence, str(whole[-1])
        return sequence

    def events_after(self, sequence: int) -> list[dict[str, Any]]:
        """Whole events after one, oldest first, as the export holds them (`payload` is text)."""
        rows = self.rows(f"SELECT {', '.join(EVENT_KEYS)} FROM events WHERE seq > ? ORDER BY seq", (sequence,))
        return [dict(row) for row in rows]

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
