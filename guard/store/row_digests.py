"""One digest for every table of the ledger, kept up to date with each transaction: a changed row is found.

SQLite's own check tells whether pages hang together, the events' chain whether the audit trail is whole; neither sees a
bit that fell over inside a row. So each table's rows are hashed, and the sum of the hashes (modulo 2^128: rows have no
order, and a change costs only its own row) stands in `meta` as `digest:<table>`, written in the same transaction.
Temporary triggers on the writer's connection tell of every row that comes or goes; nothing stands in the file.
Not here: the events (they carry their chain), or protection against somebody who forges digests too.
"""

from __future__ import annotations

import hashlib
import sqlite3

__all__ = ["RowDigests", "changed_tables"]

_MODULUS = 1 << 128
_KEY = "digest:"


def _tables(database: sqlite3.Connection) -> dict[str, str]:
    """For each table an expression that is a row's whole content as bytes; `{0}` stands for the row's name."""
    names = [row[0] for row in database.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name != 'events' ORDER BY name")]
    found = {}
    for name in names:
        columns = [row[1] for row in database.execute(f'PRAGMA table_info("{name}")')]
        # As bytes: Python refuses text that is no UTF-8, which is just what a fallen bit makes.
        found[name] = "CAST(" + " || ',' || ".join(f'quote({{0}}."{column}")' for column in columns) + " AS BLOB)"
    return found


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=16).digest(), "big")


def _which(table: str, row: str) -> str:
    """The digests themselves are no content of `meta`."""
    return f"substr({row}.key, 1, {len(_KEY)}) != '{_KEY}'" if table == "meta" else "1"


def _sum(database: sqlite3.Connection, table: str, content: str) -> int:
    query = f'SELECT {content.format(table)} FROM main."{table}" WHERE {_which(table, table)}'
    return sum(_hash(row[0]) for row in database.execute(query)) % _MODULUS


def _stored(database: sqlite3.Connection) -> dict[str, str]:
    rows = database.execute(f"SELECT substr(key, {len(_KEY) + 1}), value FROM meta WHERE key >= '{_KEY}' AND key < 'digest;'")
    return {str(row[0]): str(row[1]) for row in rows}


def _is_digest(text: str) -> bool:
    return len(text) == 32 and set(text) <= set("0123456789abcdef")


def changed_tables(database: sqlite3.Connection) -> list[str]:
    """Tables whose rows are not what was last written, ascending; reads everything. Raises sqlite3.DatabaseError.

    Empty for a ledger that no writer of this release has opened yet.
    """
    stored = _stored(database)
    if not stored:
        return []
    tables = _tables(database)
    wrong = {name for name, content in tables.items() if stored.get(name) != f"{_sum(database, name, content):032x}"}
    return sorted(wrong | (stored.keys() - tables.keys()))


class RowDigests:
    """Follows the rows that one writing connection changes."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._changes: dict[str, int] = {}
        self._following = False

    def follow(self) -> None:
        """Listen to every change from now on; once, before the first transaction. Raises sqlite3.DatabaseError.

        Three triggers a table cost more than all the rest of opening a ledger, and many a writer only looks. Inside a
        transaction a rollback would take them away again.
        """
        if self._following:
            return
        self._database.create_function("heirloom_row", 3, self._note)
        for name, content in _tables(self._database).items():
            for verb, tells in {"INSERT": [(1, "NEW")], "DELETE": [(-1, "OLD")],
                                "UPDATE": [(-1, "OLD"), (1, "NEW")]}.items():  # fmt: skip
                told = "; ".join(f"SELECT heirloom_row('{name}', {sign}, {content.format(row)}) WHERE {_which(name, row)}"
                                 for sign, row in tells)  # fmt: skip
                self._database.execute(f'CREATE TEMP TRIGGER IF NOT EXISTS "row_{name}_{verb}" AFTER {verb} ON main."{name}" '
                                       f"BEGIN {told}; END")  # fmt: skip
        self._following = True

    def _note(self, table: str, sign: int, content: bytes) -> None:
        self._changes[table] = self._changes.get(table, 0) + sign * _hash(content)

    def begin(self) -> None:
        """A transaction begins: what an earlier one that was rolled back told is forgotten."""
        self._changes.clear()

    def write(self) -> None:
        """Write the digests of what changed, inside the transaction."""
        stored = _stored(self._database) if self._changes else {}
        for table, change in self._changes.copy().items():
            # A digest that is not there, or is none, is not made up: the table stays conspicuous.
            if change and _is_digest(stored.get(table, "")):
                value = (int(stored[table], 16) + change) % _MODULUS
                self._database.execute("UPDATE meta SET value = ? WHERE key = ?", (f"{value:032x}", _KEY + table))
        self._changes.clear()

    @property
    def known(self) -> bool:
        """Whether the ledger carries digests at all."""
        return bool(_stored(self._database))

    def take_over(self) -> None:
        """Take the rows as they are as the truth: of a new ledger, and once for one of an earlier release or schema."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.execute(f"DELETE FROM meta WHERE key >= '{_KEY}' AND key < 'digest;'")
            for name, content in _tables(self._database).items():
                value = f"{_sum(self._database, name, content):032x}"
                self._database.execute("INSERT INTO meta VALUES (?, ?)", (_KEY + name, value))
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
