"""`doctor --rebuild`: the ledger and the views once more, from version folders, stored files and the event export.

    everything read -> a new ledger written in data/.rebuild/ -> the damaged one moved aside (never deleted)
    -> the new one in its place -> a damaged export likewise -> views

A ledger that is sound is never replaced by a poorer one: then only export and views are made again. A crash anywhere
leaves either the old ledger, or none, or the new one; running it again finishes. The caller holds the home lock.
Not here: reading what is left (`rebuild_facts.py`), what the events tell (`rebuild_story.py`), rows (`rebuild_rows.py`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.clock import Clock
from guard.durable import make_dir, remove_tree, rename_new, write_text
from guard.errors import Damage, HeirloomError
from guard.failpoints import point
from guard.home import Home
from guard.settings_read import load_settings
from guard.store.event_export import EVENT_KEYS, EventExport
from guard.store.indexes import index_high_water
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger
from guard.store.marks import noted_mark
from guard.store.rebuild_facts import elders, found_files, found_indexes, found_versions, read_trail, rows_of
from guard.store.rebuild_remains import Marks, Remains
from guard.store.rebuild_rows import write_rows
from guard.store.rebuild_story import tell
from guard.store.versions import high_water
from guard.store.views import refresh

__all__ = ["ledger_problem", "rebuild"]

_PARTS = ("-wal", "-shm", ".closed", "")
"""The file itself goes last: as long as it is there, so is everything that belongs to it."""


@dataclass(frozen=True)
class _Plan:
    problem: str
    remains: Remains
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        left, story = self.remains, self.remains.story
        return {
            "problem": self.problem, "versions": len(left.versions), "files": len(left.files), "jobs": len(story.jobs),
            "drops": len(story.drops), "lines": {line: tip for line, (tip, _since) in left.lines().items()},
            "events": len(left.events), "notes": self.notes,
        }  # fmt: skip


def ledger_problem(home: Home, clock: Clock) -> str:
    """Why the ledger cannot be worked with; "" when it is sound: whole, unchanged, and no older than its export."""
    if not home.ledger.exists():
        return "it is missing"
    try:
        ledger = Ledger(home.ledger, clock=clock, actor="rebuild", read_only=True)
    except HeirloomError as error:
        return error.message
    try:
        problem = ledger.mark_problem()
        checks = [row[0] for row in ledger.rows("PRAGMA integrity_check(1)")]
        problems = [problem] if problem else [text for text in checks if text != "ok"]
        problems += [f"a row of {row[0]} points at nothing" for row in ledger.rows("PRAGMA foreign_key_check")[:1]]
        problems += ledger.broken_events()[:1]
        problems += [f"rows of {', '.join(changed)} changed"] if (changed := ledger.changed_tables()) else []
        newest, digest = ledger.export.head()
        hashes = [row[0] for row in ledger.rows("SELECT hash FROM events WHERE seq = ?", (newest,))]
        if newest and hashes != [digest]:
            problems.append(f"it ends with event {ledger.sequence()} and the export knows event {newest}")
        if ledger.meta("store_id") != home.store_id():
            problems.append("it belongs to another home")
    except HeirloomError as error:
        return error.message
    finally:
        ledger.close()
    return problems[0] if problems else ""


def rebuild(home: Home, *, clock: Clock, actor: str, dry_run: bool = False) -> dict[str, Any]:
    """Make the ledger again when it is not sound, and the views in any case; returns what was found and done.

    Keys: rebuilt, problem, versions, files, jobs, drops, lines {line: tip}, events, notes[], moved_aside[].
    `dry_run` only looks. Raises Damage when nothing is left that says which examples are held out, or whose home it is.
    """
    problem = ledger_problem(home, clock)
    if not problem:
        return _renew_views(home, clock, actor, dry_run)
    plan = _read(home, problem)
    result = {"rebuilt": not dry_run, **plan.as_dict(), "moved_aside": []}
    if dry_run:
        return result
    point("rebuild.read")
    scratch = home.data / ".rebuild"
    remove_tree(scratch)
    make_dir(scratch)
    _write(plan, home, scratch / "ledger.db", clock, actor)
    point("rebuild.written")
    aside = _move_aside(home)
    point("rebuild.aside")
    rename_new(scratch / "ledger.db", home.ledger)
    point("rebuild.placed")
    aside += _renew_export(home, scratch / "events")
    point("rebuild.exported")
    remove_tree(scratch)
    _finish(home, clock, actor)
    point("rebuild.viewed")
    return {**result, "moved_aside": aside}


def _read(home: Home, problem: str) -> _Plan:
    store_id = home.store_id()
    vault = home.vault(load_settings(home.root).backup.path)
    older = elders(home, vault)
    trail = read_trail(home, older)
    story = tell(trail.events)
    versions, version_notes = found_versions(home)
    files, file_notes = found_files(home)
    indexes, index_notes = found_indexes(home)
    notes = [*trail.notes, *version_notes, *file_notes, *index_notes]
    if story.marks.get("store_id", store_id) != store_id:
        raise Damage(f"{home.root} carries store id {store_id} and the events are those of another home",
                     subject=str(home.root), hint="two homes were mixed up; put the right data/ back")  # fmt: skip
    _fill_marks(story.marks, older, notes)
    for path in reversed(older):
        # Registered for ever: a set that any older ledger knows counts, should its events be lost.
        rows = rows_of(path, "SELECT key, value FROM meta WHERE key >= 'evaluation' AND key < 'evaluation;'")
        story.marks |= {row["key"]: row["value"] for row in rows if row["key"] not in story.marks}
    story.marks["store_id"] = store_id
    marks = Marks(noted_mark((home.high_water_file, vault / "high-water")),
                  noted_mark((home.index_high_water_file, vault / "index-high-water")))  # fmt: skip
    remains = Remains(trail.events, story, versions, files, indexes, older, marks)
    notes += remains.notes()
    return _Plan(problem, remains, notes)


def _fill_marks(marks: dict[str, str], older: list[Path], notes: list[str]) -> None:
    """Which examples are held out is no guess: from the events, else from any older ledger, else not at all."""
    for path in older:
        if {"validation_salt", "validation_fraction"} <= marks.keys():
            return
        rows = rows_of(path, "SELECT key, value FROM meta WHERE key IN ('validation_salt', 'validation_fraction')")
        if len(rows) == 2:
            marks |= {row["key"]: row["value"] for row in rows}
            notes.append(f"which examples are held out comes from {path.name}")
    if not {"validation_salt", "validation_fraction"} <= marks.keys():
        raise Damage("nothing is left that says which examples are held out",
                     hint="bring back data/events/, or a copy of the ledger from a vault (backups/ledger/)")  # fmt: skip


def _write(plan: _Plan, home: Home, path: Path, clock: Clock, actor: str) -> None:
    """The whole ledger in one transaction, checked before it counts."""
    ledger = Ledger.create(path, clock=clock, actor=actor)
    try:
        with ledger.transaction():
            for event in plan.remains.events:
                ledger.run(f"INSERT INTO events VALUES ({', '.join('?' * len(EVENT_KEYS))})",
                           [event[key] for key in EVENT_KEYS])  # fmt: skip
            write_rows(ledger, home, plan.remains)
            ledger.event("home.rebuilt", home.root.name, problem=plan.problem, notes=plan.notes)
        wrong = [*ledger.broken_events(), *ledger.changed_tables()]
        wrong += [row[0] for row in ledger.rows("PRAGMA foreign_key_check")]
        if wrong or ledger.export_problem:
            raise Damage(f"the ledger that was made again is not sound: {[*wrong, ledger.export_problem][0]}",
                         subject=str(path), hint="check the disk; nothing was replaced")  # fmt: skip
    finally:
        ledger.close()


def _move_aside(home: Home) -> list[str]:
    """The old ledger with its side files under a name that is never taken again; what a crash left is moved too."""
    number = 1
    while os.path.lexists(home.data / f"ledger.db.damaged-{number}"):
        number += 1
    moved = []
    for part in _PARTS:
        source = home.data / f"ledger.db{part}"
        target = home.data / f"ledger.db.damaged-{number}{part}"
        if os.path.lexists(source):
            # A side file of an attempt that was cut short has the name already: it is the same ledger's, and stays.
            rename_new(source, target if not os.path.lexists(target) else _free(target))
            moved.append(target.name)
    return moved


def _free(path: Path) -> Path:
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}~{number}")):
        number += 1
    return path.with_name(f"{path.name}~{number}")


def _renew_export(home: Home, fresh: Path) -> list[str]:
    """Put the new export into place unless the old one is simply a shorter piece of it: that goes on by itself."""
    if home.events.is_dir():
        old, new = (b"".join(path.read_bytes() for path in sorted(folder.glob("*.jsonl"))) for folder in (home.events, fresh))
        if new.startswith(old):
            return []
        number = 1
        while os.path.lexists(home.data / f"events.damaged-{number}"):
            number += 1
        rename_new(home.events, home.data / f"events.damaged-{number}")
        rename_new(fresh, home.events)
        return [f"events.damaged-{number}"]
    rename_new(fresh, home.events)
    return []


def _keeper(home: Home, clock: Clock, actor: str) -> Keeper:
    return Keeper(home, Ledger(home.ledger, clock=clock, actor=actor), load_settings(home.root), clock)


def _finish(home: Home, clock: Clock, actor: str) -> None:
    keeper = _keeper(home, clock, actor)
    vault = home.vault(keeper.settings.backup.path)
    try:
        write_text(home.high_water_file, f"{max(high_water(keeper), noted_mark([vault / 'high-water']))}\n")
        mark = max(index_high_water(keeper), noted_mark([vault / "index-high-water"]))
        write_text(home.index_high_water_file, f"{mark}\n")
        refresh(keeper)
    finally:
        keeper.ledger.close()


def _renew_views(home: Home, clock: Clock, actor: str, dry_run: bool) -> dict[str, Any]:
    """The ledger is sound: it stays; an export that does not tell the same is replaced, and the views are made again."""
    ledger = Ledger(home.ledger, clock=clock, actor=actor, read_only=True)
    try:
        rows = ledger.events_after(0)
        counts = {key: ledger.value(f"SELECT count(*) FROM {key}") for key in ("versions", "files", "jobs", "drops")}
        lines = {row[0]: row[1] for row in ledger.rows("SELECT l.name, v.name FROM lines l JOIN versions v ON v.id = l.tip_id")}
    finally:
        ledger.close()
    aside: list[str] = []
    if not dry_run:
        scratch = home.data / ".rebuild"
        remove_tree(scratch)
        fresh = EventExport(scratch / "events")
        fresh.open()
        fresh.append(rows)
        fresh.sync()
        aside = _renew_export(home, scratch / "events")
        remove_tree(scratch)
        _finish(home, clock, actor)
    return {"rebuilt": False, "problem": "", **counts, "lines": lines, "events": len(rows), "notes": [], "moved_aside": aside}
