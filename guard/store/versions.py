"""Versions, lines and what was learnt, as the ledger knows them: look-ups and the one place numbers are taken.

Ancestry is computed here and nowhere stored twice. Not here: making a version (`birth.py`), moving one to the trash
(`trash.py`), or what its files hold (`verify.py`).
"""

from __future__ import annotations

import functools
import sqlite3
from dataclasses import dataclass, field
from typing import Any

import orjson

from guard.durable import write_text
from guard.errors import NotFound
from guard.failpoints import point
from guard.home import Home
from guard.names import parse_version_number
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger

__all__ = [
    "GONE",
    "LEARNING_STATES",
    "Version",
    "all_versions",
    "ancestors",
    "dependants",
    "find_version",
    "high_water",
    "intend_number",
    "learnt_by",
    "learnt_rows",
    "line_tip",
    "named_version",
    "number_is_free",
    "reserve_number",
    "tips",
    "tokens_trained",
    "version_by_id",
    "version_states",
]

# Trashed and purged versions still count as ancestors of what was born from them: their lessons are in the children's weights.
GONE = ("trashed", "archived", "purged")
"""States of a version that is not in models/."""
LEARNING_STATES = ("sealed", "quarantined", "trashed", "archived", "purged")
DEFAULT_LINE = "policy"


@dataclass(frozen=True)
class Version:
    """One row of `versions`."""

    id: int
    name: str
    parent_id: int | None
    line: str
    state: str
    created: str
    tokens: int
    size_bytes: int
    sums_sha256: str
    record_text: str = field(repr=False)

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """The sealed version.json. Parsed when it is asked for: most who look at ten thousand versions never do."""
        found: dict[str, Any] = orjson.loads(self.record_text)
        return found


def _version(row: sqlite3.Row) -> Version:
    return Version(
        row["id"], row["name"], row["parent_id"], row["line"], row["state"], row["created"], row["tokens"],
        row["size_bytes"], row["sums_sha256"], row["record"],
    )  # fmt: skip


def all_versions(ledger: Ledger, *states: str, newest: int | None = None) -> list[Version]:
    """Every version ever sealed, or those in the given states, or the `newest` so many; ascending by id."""
    where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
    rows = ledger.rows(f"SELECT * FROM versions {where} ORDER BY id DESC LIMIT ?", (*states, -1 if newest is None else newest))
    return [_version(row) for row in reversed(rows)]


def version_states(ledger: Ledger) -> dict[str, str]:
    """Name -> state of every version; reads none of the records."""
    return {row[0]: row[1] for row in ledger.rows("SELECT name, state FROM versions ORDER BY id")}


def version_by_id(ledger: Ledger, number: int) -> Version:
    """The version of that number. Raises NotFound."""
    row = ledger.row("SELECT * FROM versions WHERE id = ?", (number,))
    if row is None:
        raise NotFound(f"no version {number}", subject=str(number), hint="heirloom lineage")
    return _version(row)


def find_version(ledger: Ledger, text: str) -> Version:
    """The version called `v003` or by its full name; never by a prefix of a name. Raises NotFound."""
    number = parse_version_number(text)
    row = ledger.row("SELECT * FROM versions WHERE name = ?", (text,))
    if row is None and number is not None and "_" not in text:
        row = ledger.row("SELECT * FROM versions WHERE id = ?", (number,))
    if row is None:
        raise NotFound(f"no version {text!r} in this home", subject=text, hint="heirloom lineage lists them")
    return _version(row)


def named_version(ledger: Ledger, text: str) -> Version:
    """`find_version` where a person only looks or builds on: `latest` is the active version of the default line.

    Not for what moves or erases a version: there `latest` could be another by the time it is done. Raises NotFound.
    """
    if text != "latest":
        return find_version(ledger, text)
    found = line_tip(ledger, DEFAULT_LINE) or next(iter(tips(ledger).values()), None)
    if found is None:
        raise NotFound("this home has no version yet", subject=text, hint="heirloom init makes the first one")
    return found


def ancestors(ledger: Ledger, number: int) -> list[int]:
    """The version itself and everything it descends from, newest first."""
    # The index holds both columns; following the rows themselves reads every version.json of the ancestry.
    parents = {row[0]: row[1] for row in ledger.rows("SELECT id, parent_id FROM versions INDEXED BY versions_by_parent")}
    found: dict[int, None] = {}
    current: int | None = number
    while current is not None and current not in found:
        found[current] = None
        current = parents.get(current)
    return sorted(found, reverse=True)


def dependants(ledger: Ledger, number: int) -> list[Version]:
    """Versions that stand on this one, as a parent or as another input, and are neither trashed nor purged."""
    return [_version(row) for row in ledger.rows(
        "SELECT * FROM versions WHERE state NOT IN ('trashed', 'purged') AND (parent_id = ? OR id IN "
        "(SELECT version_id FROM version_inputs WHERE input_id = ?)) ORDER BY id", (number, number))]  # fmt: skip


def tips(ledger: Ledger) -> dict[str, Version]:
    """The active version of every line."""
    rows = ledger.rows("SELECT v.*, l.name AS line_name FROM lines l JOIN versions v ON v.id = l.tip_id ORDER BY l.name")
    return {row["line_name"]: _version(row) for row in rows}


def line_tip(ledger: Ledger, line: str) -> Version | None:
    """The active version of a line, None for a line that does not exist."""
    row = ledger.row("SELECT v.* FROM lines l JOIN versions v ON v.id = l.tip_id WHERE l.name = ?", (line,))
    return _version(row) if row else None


def learnt_by(ledger: Ledger, number: int, objective: str, *, after: int = 0) -> list[sqlite3.Row]:
    """What a version and its ancestors (of a number above `after`) learnt under an objective: rows of version_id, sha256,
    count, bitmap."""
    return ledger.rows(
        "WITH RECURSIVE up(id) AS (SELECT ? UNION SELECT v.parent_id FROM versions v JOIN up ON v.id = up.id "
        "WHERE v.parent_id IS NOT NULL) SELECT l.version_id, l.sha256, l.count, l.bitmap FROM learnt l "
        "JOIN up ON up.id = l.version_id WHERE l.objective = ? AND l.version_id > ? ORDER BY l.version_id, l.sha256",
        (number, objective, after))  # fmt: skip


def learnt_rows(ledger: Ledger, version_id: int) -> list[sqlite3.Row]:
    """What one version itself learnt: rows of sha256, objective, count, bitmap."""
    return ledger.rows("SELECT * FROM learnt WHERE version_id = ? ORDER BY sha256", (version_id,))


def tokens_trained(ledger: Ledger, number: int) -> int:
    """First-pass input tokens of the examples newly learnt by a version and its ancestors."""
    return ledger.value(
        "WITH RECURSIVE up(id) AS (SELECT ? UNION SELECT v.parent_id FROM versions v JOIN up ON v.id = up.id "
        "WHERE v.parent_id IS NOT NULL) SELECT coalesce(sum(v.tokens), 0) FROM versions v JOIN up ON v.id = up.id",
        (number,))  # fmt: skip


def _number_on_disk(home: Home) -> int:
    places = [place for place in (home.models, home.trash) if place.is_dir()]
    found = [parse_version_number(path.name) or 0 for place in places for path in place.iterdir()]
    return max(found, default=0)


def high_water(keeper: Keeper) -> int:
    """The highest number ever given, from every place that knows one; an unreadable place is no excuse for reuse."""
    try:
        in_file = int(keeper.home.high_water_file.read_text("ascii"))
    except (OSError, ValueError):
        in_file = 0
    return max(in_file, int(keeper.ledger.meta("version_high_water") or 0), _number_on_disk(keeper.home))


def number_is_free(keeper: Keeper, wanted: int, job: int | None = None) -> bool:
    """Whether a number was never given to a version; or only to this `job`, by a taking that was interrupted.

    The newest number of all, noted for the job by `intend_number`, is still the job's while nothing carries it.
    """
    mark = high_water(keeper)
    if wanted > mark:
        return True
    return wanted == mark and job is not None and _intended(keeper, job) == wanted and not _carried(keeper, wanted)


def _intended(keeper: Keeper, job: int) -> int | None:
    noted = keeper.ledger.meta(f"reserved:{job}")
    return int(noted) if noted else None


def _carried(keeper: Keeper, number: int) -> bool:
    """Whether a version, a job or a folder has the number."""
    given = keeper.ledger.value("SELECT (SELECT count(*) FROM versions WHERE id = ?1) + "
                                "(SELECT count(*) FROM jobs WHERE output_id = ?1)", (number,))  # fmt: skip
    return bool(given) or _number_on_disk(keeper.home) >= number


def intend_number(keeper: Keeper, job: int, wanted: int | None) -> None:
    """Note, in a transaction of its own before `reserve_number`, that a job is about to take the number it asked for.

    A crash between the high-water file and the ledger then leaves a number that the job still may take, and no other.
    """
    if wanted is not None and number_is_free(keeper, wanted, job):
        with keeper.ledger.transaction():
            keeper.ledger.set_meta(f"reserved:{job}", str(wanted))
        point("start.intended")


def reserve_number(keeper: Keeper, wanted: int | None = None, job: int | None = None) -> int:
    """Take a version number inside the current transaction; it is never given again, whatever becomes of the job.

    The file is written first: a crash in between costs a number and never repeats one. `job`: whose note of
    `intend_number` is used up by this.
    """
    before = high_water(keeper)
    number = wanted if wanted is not None else before + 1
    write_text(keeper.home.high_water_file, f"{max(number, before)}\n")
    point("start.marked")
    keeper.ledger.set_meta("version_high_water", str(max(number, before)))
    if job is not None:
        keeper.ledger.run("DELETE FROM meta WHERE key = ?", (f"reserved:{job}",))
    return number
