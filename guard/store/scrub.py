"""The scrub: a daemon reads a share of everything it keeps every day, so that rot is found while a copy is still good.

Versions, archived ones where the vault holds them, originals, datasets and indexes stand in one fixed order; a day's share
is 1/`scrub.days` of all bytes, from where the day before ended (`scrub:cursor` in the ledger). Work is a generator of
steps of at most 8 MiB, so that a daemon's loop goes on in between. What is found stands as an alert (`scrub:damage`)
until the same thing reads well again; both are events.
Not here: reading everything now (`verify.py`), the vault's other copies (`verify_vault.py`), repairing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from guard.names import index_name
from guard.store.datasets import recorded_heads
from guard.store.files import SIDECARS, get_file, original_hashes
from guard.store.keeper import Keeper
from guard.store.standing import note_damage, standing_damage
from guard.store.sums import Problem, listed_problem_steps, problem_steps
from guard.store.vault_archived import archived_problem_steps, archived_versions
from guard.store.verify_data import dataset_hashes, read_metadata
from guard.store.versions import find_version

__all__ = ["Unit", "scrub_due", "scrub_steps"]

_CURSOR, _DAY = "scrub:cursor", "scrub:day"


@dataclass(frozen=True)
class Unit:
    """One thing that is read as a whole."""

    what: str
    name: str
    size: int

    @property
    def key(self) -> str:
        return f"{self.what} {self.name}"


def scrub_due(keeper: Keeper) -> bool:
    """Whether today's share (UTC) is still to be read. `scrub.days` 0 switches it off."""
    return keeper.settings.scrub.days > 0 and keeper.ledger.meta(_DAY) != keeper.clock.utc()[:10]


def _units(keeper: Keeper) -> list[Unit]:
    """Everything to be read, in an order that stays: a new thing comes where it belongs and nothing is skipped."""
    rows = keeper.ledger.rows
    found = [Unit("version", row[0], row[1]) for row in rows(
        "SELECT name, size_bytes FROM versions WHERE state IN ('sealed', 'quarantined') ORDER BY id")]  # fmt: skip
    found += [Unit("archived", version.name, version.size_bytes) for version in archived_versions(keeper)]
    found += [Unit("original", row[0], row[1]) for row in rows("SELECT sha256, size_bytes FROM files ORDER BY sha256")]
    for path in sorted(keeper.home.shards.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            found.append(Unit("dataset", path.name, _size(path)))
    for row in rows("SELECT id FROM indexes WHERE state IN ('active', 'kept') ORDER BY id"):
        found.append(Unit("index", index_name(row[0]), _size(keeper.home.indexes / index_name(row[0]))))
    return found


def _size(folder: Any) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _from(units: list[Unit], cursor: str | None) -> Iterator[Unit]:
    """The units behind the cursor, then those before it: once around."""
    keys = [unit.key for unit in units]
    start = keys.index(cursor) + 1 if cursor in keys else 0
    yield from units[start:]
    yield from units[:start]


def scrub_steps(keeper: Keeper) -> Generator[int, None, dict[str, Any]]:
    """Read today's share; yields bytes, returns {units, bytes, damage: {thing: problem}}. Raises OSError."""
    units = _units(keeper)
    quota = -(-sum(unit.size for unit in units) // max(1, keeper.settings.scrub.days))
    done = read = covered = 0
    damage: dict[str, str] = {}
    for unit in _from(units, keeper.ledger.meta(_CURSOR)):
        if done and covered >= quota:
            break
        problems, steps = [], _unit_steps(keeper, unit)
        while True:
            try:
                size = next(steps)
            except StopIteration as end:
                problems = end.value
                break
            read += size
            yield size
        if problems and _gone(keeper, unit):
            problems = []
        done, covered = done + 1, covered + unit.size
        text = "; ".join(" ".join(filter(None, problem)) for problem in problems[:3])
        damage |= {unit.key: text} if text else {}
        _note(keeper, unit, text)
    with keeper.ledger.transaction():
        keeper.ledger.set_meta(_DAY, keeper.clock.utc()[:10])
        keeper.ledger.event("scrub.done", "scrub", units=done, bytes=read, of=len(units), damaged=sorted(damage))
    return {"units": done, "bytes": read, "damage": damage}


def _note(keeper: Keeper, unit: Unit, problem: str) -> None:
    """Move the cursor; a new damage, and one that is mended, is an event."""
    ledger, standing = keeper.ledger, standing_damage(keeper)
    with ledger.transaction():
        ledger.set_meta(_CURSOR, unit.key)
        if problem and standing.get(unit.key) != problem:
            standing[unit.key] = problem
            ledger.event("scrub.damage", unit.key, problem=problem)
        elif not problem and unit.key in standing:
            del standing[unit.key]
            ledger.event("scrub.mended", unit.key)
        note_damage(ledger, standing)


def _gone(keeper: Keeper, unit: Unit) -> bool:
    """A person, or a job, took it away while it was read."""
    if unit.what == "version":
        return find_version(keeper.ledger, unit.name).state not in ("sealed", "quarantined")
    if unit.what == "archived":
        return find_version(keeper.ledger, unit.name).state != "archived"
    if unit.what == "index":
        return not keeper.ledger.value("SELECT count(*) FROM indexes WHERE id = ?", (int(unit.name[1:]),))
    return unit.what == "dataset" and not (keeper.home.shards / unit.name).exists()


def _unit_steps(keeper: Keeper, unit: Unit) -> Generator[int, None, list[Problem]]:
    home = keeper.home
    if unit.what == "version":
        return (yield from problem_steps(home.models / unit.name, find_version(keeper.ledger, unit.name).sums_sha256))
    if unit.what == "archived":
        return (yield from archived_problem_steps(keeper, find_version(keeper.ledger, unit.name)))
    if unit.what == "original":
        file = get_file(keeper.ledger, unit.name)
        assert file is not None, "files are never taken out of the ledger"
        wanted = {**original_hashes(file), **(file.record.get("sidecars") or {})}
        return (yield from listed_problem_steps(home.files / unit.name, wanted, frozenset(SIDECARS)))
    if unit.what == "dataset":
        folder = home.shards / unit.name
        wanted = {**dataset_hashes(read_metadata(folder) or {}), **recorded_heads(keeper, unit.name)}
        present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
        return (yield from listed_problem_steps(folder, wanted, present - wanted.keys()))
    record = keeper.ledger.value("SELECT record FROM indexes WHERE id = ?", (int(unit.name[1:]),))
    wanted = orjson.loads(record).get("files", {}) if record else {}  # pruned since the list was made
    return (yield from listed_problem_steps(home.indexes / unit.name, wanted, {"SHA256SUMS"}))
