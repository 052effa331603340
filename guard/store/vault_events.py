"""The audit trail in the vault as text that needs no SQLite: `events/events-0000000001.jsonl` holds 4,096 events.

One JSON object per line with every column of the event, so that the hash chain can be checked, and the trail read,
without the ledger. A full file never changes again; the newest grows with every backup and is replaced in one step.
Not here: the ledger itself (`vault_ledger.py`), which is what a home is brought back from.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import orjson

from guard.durable import sha256_bytes, sha256_file, write_bytes
from guard.errors import Damage
from guard.failpoints import point
from guard.store.ledger import GENESIS, Ledger, event_hash
from guard.store.sums import Problem
from guard.store.vault_run import BackupRun, Steps

__all__ = ["EVENTS_IN_FILE", "event_problems", "event_steps"]

EVENTS_IN_FILE = 4096
FIELDS = ("seq", "utc", "boot_id", "actor", "verb", "subject", "payload", "previous", "hash")


def event_steps(run: BackupRun) -> Steps:
    """Bring the exported events up to date, a file at a time; each is read back before its row is written."""
    ledger, folder = run.keeper.ledger, run.vault / "events"
    newest = ledger.sequence()
    for first in range(1, newest + 1, EVENTS_IN_FILE):
        name = _file_name(first)
        row = run.recorded("events", name)
        full = bool(run.recorded("events", _file_name(first + EVENTS_IN_FILE)))  # a later file was begun
        sound = row is not None and _is_sound(run, folder / name, row)
        if sound and full:
            continue
        data = _lines(ledger, first)
        digest = sha256_bytes(data)
        same = row is not None and row["sums_sha256"] == digest
        if sound and same:
            continue
        if row and full and not same:
            # Whatever is wrong with the copy: what would take its place is not what was copied then.
            run.problems.append(f"events/{name}: the ledger's own events are not what was copied")
            continue
        write_bytes(folder / name, data)
        point("events_backup.written")
        if sha256_file(folder / name) != digest:
            raise Damage(f"the copy of the events {name} is not what was written", subject=str(folder / name),
                         hint="check the vault's disk")  # fmt: skip
        run.size += len(data)
        # No event: one would make the copy old the moment it is recorded.
        run.record("events", name, digest, len(data), told=False)
        point("events_backup.recorded")
        yield f"events/{name}"


def _is_sound(run: BackupRun, path: Path, row: sqlite3.Row) -> bool:
    """Whether a copy is there; with `recheck`, whether it is what was read back."""
    return path.is_file() and not (run.recheck and event_problems(path, row["sums_sha256"], row["size_bytes"]))


def _file_name(first: int) -> str:
    return f"events-{first:010d}.jsonl"


def _lines(ledger: Ledger, first: int) -> bytes:
    rows = ledger.rows("SELECT * FROM events WHERE seq >= ? AND seq < ? ORDER BY seq", (first, first + EVENTS_IN_FILE))
    return b"".join(orjson.dumps({name: row[name] for name in FIELDS}) + b"\n" for row in rows)


def event_problems(path: Path, digest: str, size: int) -> list[Problem]:
    """What is wrong with one file of exported events: the hash of its first `size` bytes, and the chain inside it.

    It may be longer: grown by a backup that was ended before its row was written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        return [("", f"cannot be read: {error.strerror or error}")]
    if len(data) < size or sha256_bytes(data[:size]) != digest:
        return [("", "its content changed")]
    previous = ""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            event = orjson.loads(line)
        except ValueError:
            return [("", f"line {number} is no event")]
        before = previous or (GENESIS if event["seq"] == 1 else event["previous"])
        if event["previous"] != before or event_hash(before, [event[name] for name in FIELDS[:7]]) != event["hash"]:
            return [("", f"event {event['seq']} breaks the chain")]
        previous = event["hash"]
    return []
