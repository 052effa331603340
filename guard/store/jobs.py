"""The durable queue, as the ledger knows it: jobs, their states, and the order in which they run.

`request` is what a person or a drop asked for; `plan` is frozen when the job starts and never changes afterwards.
Not here: when a job may run (`guard/checks/preflight.py`) or running it (`daemon/runner.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from guard.errors import NotFound
from guard.names import index_name, version_name
from guard.store.ledger import Ledger

__all__ = [
    "RUNNING",
    "UNFINISHED",
    "Job",
    "add_job",
    "counts",
    "each_queued",
    "find_job",
    "jobs_in",
    "jobs_told",
    "next_queued",
    "queued_with_file",
    "set_job",
]

RUNNING = ("preparing", "training", "committing")
UNFINISHED = ("queued", "held", *RUNNING)
FINAL = ("done", "failed", "cancelled", "quarantined")


@dataclass(frozen=True)
class Job:
    """One row of `jobs` with the hashes of its files."""

    id: int
    kind: str
    state: str
    position: int
    stage: str
    line: str
    base_id: int | None
    slug: str
    wanted_id: int | None
    output_id: int | None
    request: dict[str, Any]
    plan: dict[str, Any]
    reason: str
    attempts: int
    progress: int
    created: str
    updated: str
    files: tuple[str, ...]


def _job(ledger: Ledger, row: sqlite3.Row) -> Job:
    files = ledger.rows("SELECT sha256 FROM job_files WHERE job_id = ? ORDER BY ordinal", (row["id"],))
    return Job(
        row["id"], row["kind"], row["state"], row["position"], row["stage"], row["line"], row["base_id"], row["slug"],
        row["wanted_id"], row["output_id"], orjson.loads(row["request"]), orjson.loads(row["plan"]), row["reason"],
        row["attempts"], row["progress"], row["created"], row["updated"], tuple(item[0] for item in files),
    )  # fmt: skip


def find_job(ledger: Ledger, number: int) -> Job:
    """The job of that id. Raises NotFound."""
    row = ledger.row("SELECT * FROM jobs WHERE id = ?", (number,))
    if row is None:
        raise _unknown(number)
    return _job(ledger, row)


def jobs_in(ledger: Ledger, *states: str) -> list[Job]:
    """Jobs in the given states in the order they run (all jobs when no state is named)."""
    marks = ", ".join("?" * len(states))
    where = f"WHERE state IN ({marks})" if states else ""
    return [_job(ledger, row) for row in ledger.rows(f"SELECT * FROM jobs {where} ORDER BY position, id", states)]


def each_queued(ledger: Ledger) -> Iterator[Job]:
    """The queued jobs in the order they run, each read when it is come to: after a burst fifty thousand wait."""
    for row in ledger.rows("SELECT id FROM jobs WHERE state = 'queued' ORDER BY position, id"):
        yield find_job(ledger, row[0])


def jobs_told(ledger: Ledger, number: int | None = None) -> list[dict[str, Any]]:
    """All jobs, or the one of that id, in the shape of `queue --json` and in the order they run.

    Two queries however many there are, and no plan is read: a finished one holds a whole version.json. Raises NotFound.
    """
    which, values = ("", ()) if number is None else ("WHERE j.id = ?", (number,))
    files: dict[int, list[str]] = {}
    for row in ledger.rows("SELECT j.id, f.name FROM jobs j JOIN job_files i ON i.job_id = j.id LEFT JOIN files f ON "
                           f"f.sha256 = i.sha256 {which} ORDER BY j.id, i.ordinal", values):  # fmt: skip
        files.setdefault(row[0], []).append(row[1])
    rows = ledger.rows(
        "SELECT j.id, j.state, j.kind, v.name AS base, j.output_id, j.wanted_id, j.slug, j.reason, j.line, j.stage, j.created, "
        f"j.updated, j.attempts FROM jobs j LEFT JOIN versions v ON v.id = j.base_id {which} ORDER BY j.position, j.id", values)
    if number is not None and not rows:
        raise _unknown(number)
    plain = ("reason", "line", "stage", "created", "updated", "attempts")
    return [{"id": row["id"], "state": row["state"], "kind": row["kind"], "files": files.get(row["id"], []),
             "base": row["base"], "output": _output(row), **{key: row[key] for key in plain}} for row in rows]  # fmt: skip


def _output(row: sqlite3.Row) -> str | None:
    """What a job makes, by name; None while it has no number."""
    if row["kind"] == "index":
        return index_name(row["output_id"]) if row["output_id"] else None
    number = row["output_id"] or row["wanted_id"]
    return version_name(number, row["slug"]) if number else None


def _unknown(number: int) -> NotFound:
    return NotFound(f"no job {number}", subject=str(number), hint="heirloom queue lists them")


def next_queued(ledger: Ledger, kinds: Sequence[str]) -> Job | None:
    """The first queued job of one of the kinds."""
    marks = ", ".join("?" * len(kinds))
    row = ledger.row(f"SELECT * FROM jobs WHERE state = 'queued' AND kind IN ({marks}) ORDER BY position, id LIMIT 1",
                     tuple(kinds))  # fmt: skip
    return _job(ledger, row) if row else None


def queued_with_file(ledger: Ledger, sha256: str) -> Job | None:
    """An unfinished job that will train these bytes."""
    row = ledger.row(
        "SELECT j.* FROM jobs j JOIN job_files f ON f.job_id = j.id WHERE f.sha256 = ? AND j.state IN "
        "('queued', 'held', 'preparing', 'training', 'committing', 'parked') ORDER BY j.id LIMIT 1", (sha256,))  # fmt: skip
    return _job(ledger, row) if row else None


def counts(ledger: Ledger) -> dict[str, int]:
    """How many jobs are in each state."""
    return {row[0]: row[1] for row in ledger.rows("SELECT state, count(*) FROM jobs GROUP BY state")}


def add_job(
    ledger: Ledger,
    *,
    kind: str,
    stage: str,
    line: str,
    slug: str,
    files: Sequence[str] = (),
    request: Mapping[str, Any] | None = None,
    base_id: int | None = None,
    wanted_id: int | None = None,
    priority: int = 0,
) -> int:
    """Queue a job inside the current transaction; returns its id. Higher priority runs earlier."""
    now = ledger.clock.utc()
    number = ledger.run(
        "INSERT INTO jobs (kind, state, position, stage, line, base_id, slug, wanted_id, request, created, updated) "
        "VALUES (?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (kind, -priority, stage, line, base_id, slug, wanted_id, orjson.dumps(dict(request or {})).decode(), now, now),
    )
    ledger.run_many("INSERT INTO job_files VALUES (?, ?, ?)",
                    [(number, place, sha256) for place, sha256 in enumerate(files)])  # fmt: skip
    # Everything that was asked for: from this the queue is told again when a ledger is lost.
    ledger.event("job.queued", f"job {number}", kind=kind, stage=stage, line=line, files=list(files), slug=slug,
                 request=dict(request or {}), base_id=base_id, wanted_id=wanted_id, priority=priority)  # fmt: skip
    return number


def set_job(ledger: Ledger, number: int, state: str, reason: str = "", **columns: object) -> None:
    """Change a job inside the current transaction, with its event. `plan` and `request` may be dictionaries."""
    values = {key: orjson.dumps(value).decode() if isinstance(value, dict) else value for key, value in columns.items()}
    assert values.keys() <= {"plan", "request", "output_id", "base_id", "attempts", "progress", "position", "line"}
    changes = "".join(f", {key} = ?" for key in values)
    ledger.run(f"UPDATE jobs SET state = ?, reason = ?, updated = ?{changes} WHERE id = ?",
               (state, reason, ledger.clock.utc(), *values.values(), number))  # fmt: skip
    ledger.event(f"job.{state}", f"job {number}", reason=reason)
