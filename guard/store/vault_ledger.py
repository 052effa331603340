"""Copies of the ledger in the vault, each named by the newest event it holds: `ledger-0000001234.db`.

Made with SQLite's own backup interface, so that a copy is whole whatever is being written meanwhile, checked, and read
back. The newest five are kept. Not here: restoring one, which a person does with the daemon stopped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path

from guard.durable import fsync_dir, rename_new
from guard.errors import Damage
from guard.failpoints import point
from guard.folders import sync_parents
from guard.store.copying import set_aside
from guard.store.sums import Problem, hash_steps
from guard.store.vault_run import BackupRun, Steps, named
from guard.store.vault_state import LEDGER_NAME, ledger_head

__all__ = ["KEPT_LEDGERS", "ledger_problem_steps", "ledger_steps", "recheck_ledger_steps"]

KEPT_LEDGERS = 5


def ledger_steps(run: BackupRun) -> Steps:
    """A copy of the ledger named by its newest event; none when that event is in the vault already."""
    ledger, folder = run.keeper.ledger, run.vault / "ledger"
    newest = ledger.row("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")
    head = tuple(newest) if newest else None
    name = f"ledger-{ledger.sequence():010d}.db"
    target = folder / name
    if target.exists():
        if ledger_head(target) == head:
            if not run.recorded("ledger", name):
                sync_parents(target)
                yield from _record_ledger(run, target)
            return
        # Another history with the same number, or damage: kept, under a name that is never pruned.
        set_aside(target)
    for leftover in folder.glob(".incoming-*"):
        leftover.unlink()
    staged = folder / f".incoming-{name}"
    ledger.copy_to(staged)
    point("ledger_backup.copied")
    if ledger_head(staged) != head:
        raise Damage("the copy of the ledger lacks its newest event", subject=str(staged),
                     hint="check the vault's disk")  # fmt: skip
    point("ledger_backup.checked")
    yield name
    rename_new(staged, target)
    point("ledger_backup.renamed")
    run.copied.append(name)
    run.size += target.stat().st_size
    yield from _record_ledger(run, target)
    _prune_ledgers(run, target)


def recheck_ledger_steps(run: BackupRun) -> Steps:
    """Read every copy again. An old state cannot be made again: a bad copy is moved aside, and nothing vouches for it."""
    rows = run.keeper.ledger.rows("SELECT * FROM backups WHERE what = 'ledger' AND vault = ?", (str(run.vault),))
    for row in rows:
        path = run.vault / "ledger" / row["name"]
        if not (yield from named(row["name"], ledger_problem_steps(path, row["sums_sha256"]))):
            continue
        if os.path.lexists(path):
            set_aside(path)
        point("ledger_backup.aside")
        with run.keeper.ledger.transaction():
            run.keeper.ledger.run("DELETE FROM backups WHERE what = 'ledger' AND name = ? AND vault = ?",
                                  (row["name"], str(run.vault)))  # fmt: skip
            run.keeper.ledger.event("backup.set_aside", row["name"], what="ledger", vault=str(run.vault))


def ledger_problem_steps(path: Path, digest: str) -> Generator[int, None, list[Problem]]:
    """What is wrong with one copy of the ledger; yields bytes read."""
    if not path.is_file():
        return [("", "the copy is missing")]
    try:
        found = yield from hash_steps(path)
    except OSError as error:
        return [("", f"cannot be read: {error.strerror or error}")]
    if found != digest or ledger_head(path) is None:
        return [("", "is not the ledger that was copied")]
    return []


def _record_ledger(run: BackupRun, target: Path) -> Steps:
    digest = yield from named(target.name, hash_steps(target))
    # No event: one would make the copy old the moment it is recorded, and every backup would copy the ledger again.
    run.record("ledger", target.name, digest, target.stat().st_size, told=False)


def _prune_ledgers(run: BackupRun, newest: Path) -> None:
    """Keep the newest five by number; never the one just written, even where older numbers are higher."""
    folder = run.vault / "ledger"
    copies = sorted((path for path in folder.iterdir() if re.fullmatch(LEDGER_NAME, path.name)),
                    key=lambda path: int(path.stem.removeprefix("ledger-")))  # fmt: skip
    old = [path for path in copies[:-KEPT_LEDGERS] if path != newest]
    if not old:
        return
    # The rows go first: a copy that no row vouches for is pruned by the next backup, a row without its copy is damage.
    with run.keeper.ledger.transaction():
        run.keeper.ledger.run_many("DELETE FROM backups WHERE what = 'ledger' AND name = ? AND vault = ?",
                                   [(path.name, str(run.vault)) for path in old])  # fmt: skip
    point("ledger_backup.pruned")
    for path in old:
        path.unlink()
    fsync_dir(folder)
