"""The vault: copies of versions, originals, configs and the ledger that were read back after they were written.

    store id checked -> for each folder: copied into `.incoming-<name>`, every file verified while it is copied,
    weights as frames that are decoded again, all read back from the disk, renamed, then a `backups` row
    -> configs and marks -> the events as text -> the ledger through SQLite's own backup interface

Work is a generator of small steps, so that a daemon's loop goes on in between. It may be killed anywhere: what was
copied well is found again, and a copy counts only once it was read back. Nothing in the vault is replaced or removed
but our own unfinished copies and ledgers older than the newest five; a damaged copy is moved aside.
Not here: restoring (`restore.py`), the vault's layout and state (`vault_state.py`), versions (`vault_versions.py`),
ledgers (`vault_ledger.py`), events (`vault_events.py`), how a folder is brought (`vault_bring.py`).
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from guard.durable import (
    clear_temporaries,
    make_dir,
    remove_tree,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_text,
)
from guard.errors import Damage
from guard.failpoints import point
from guard.folders import sync_parents
from guard.steps import drain
from guard.store.copying import Incoming, folder_digest, listing, seal_quietly
from guard.store.files import get_file, original_hashes
from guard.store.indexes import index_high_water
from guard.store.keeper import Keeper
from guard.store.marks import noted_mark
from guard.store.sums import hash_steps
from guard.store.vault_archived import archived_in_steps
from guard.store.vault_bring import bring
from guard.store.vault_events import event_steps
from guard.store.vault_ledger import ledger_steps, recheck_ledger_steps
from guard.store.vault_run import BackupRun, Steps, named
from guard.store.vault_state import config_files, find_vault, open_vault, other_device
from guard.store.vault_versions import KEPT_STATES, version_steps
from guard.store.versions import high_water, version_by_id

__all__ = ["backup_steps", "plan_backup", "run_backup"]


def run_backup(keeper: Keeper, *, recheck: bool = False) -> dict[str, Any]:
    """Bring the vault up to date; returns copied and verified (names), vault, other_device, bytes (copied).

    Raises what `backup_steps` raises.
    """
    return drain(backup_steps(keeper, recheck=recheck))


def plan_backup(keeper: Keeper) -> dict[str, Any]:
    """What `run_backup` would copy, or read back where a copy lies already; changes nothing.

    Returns versions (names), originals (sha256, name), bytes (of both), vault, other_device. Raises what `find_vault`
    raises.
    """
    vault, _there = find_vault(keeper)
    run = BackupRun(keeper, vault, other_device(keeper, vault))
    versions = [version_by_id(keeper.ledger, number) for number in _unsafe_versions(run)]
    originals = [file for sha256 in _unsafe_originals(run) if (file := get_file(keeper.ledger, sha256)) is not None]
    return {"versions": [version.name for version in versions],
            "originals": [{"sha256": file.sha256, "name": file.name} for file in originals],
            "bytes": sum(version.size_bytes for version in versions) + sum(file.size_bytes for file in originals),
            "vault": str(vault), "other_device": run.apart}  # fmt: skip


def backup_steps(keeper: Keeper, *, recheck: bool = False) -> Generator[str, None, dict[str, Any]]:
    """The same in steps of at most 8 MiB; each yields what it is busy with, the end returns the report.

    `recheck` reads everything back, also what was read back before: versions, originals, configs, events and ledgers. A copy
    that has gone bad is made again and the bad one moved aside; a bad copy of an older ledger is moved aside only.
    Raises CheckFailed for another home's vault, EnvironmentFault when the vault has vanished or is full, and, after
    everything else was backed up, Damage naming what could not be copied because its source is damaged.
    """
    run = BackupRun(keeper, vault := open_vault(keeper), other_device(keeper, vault), recheck)
    point("backup.opened")
    _clear_leftovers(run)
    if not list((vault / "ledger").glob("ledger-*.db")):
        # A first backup may take hours: the one thing that cannot be made again goes first.
        yield from event_steps(run)
        yield from ledger_steps(run)
    originals = _unsafe_originals(run)
    for number in _unsafe_versions(run):
        # A version and what it was grown from become safe together, the oldest first.
        for sha256 in [item for item in _originals_of(run, number) if item in originals]:
            originals.remove(sha256)
            yield from _guarded(run, sha256, _original_steps(run, sha256))
        version = version_by_id(keeper.ledger, number)
        yield from _guarded(run, version.name, version_steps(run, version))
    for sha256 in originals:
        yield from _guarded(run, sha256, _original_steps(run, sha256))
    yield from archived_in_steps(run)
    yield from _config_steps(run)
    _copy_marks(run)
    if run.recheck:
        yield from recheck_ledger_steps(run)
    yield from event_steps(run)
    yield from ledger_steps(run)
    if run.problems:
        raise Damage(f"not everything could be backed up: {'; '.join(run.problems)}", subject=str(vault),
                     hint="heirloom verify --all; what is sound was backed up")  # fmt: skip
    return run.report()


def _guarded(run: BackupRun, name: str, steps: Steps) -> Steps:
    """One damaged source must not keep the sound ones out of the vault; it is told at the end."""
    try:
        yield from steps
    except Damage as error:
        run.problems.append(f"{name}: {error.message}")


def _clear_leftovers(run: BackupRun) -> None:
    """Unfinished copies of what is no longer wanted; those still wanted are taken up again."""
    wanted = {row[0] for row in run.keeper.ledger.rows("SELECT name FROM versions WHERE state IN (?, ?)", KEPT_STATES)}
    wanted |= {row[0] for row in run.keeper.ledger.rows("SELECT sha256 FROM files")}
    for folder in (run.vault, run.vault / "ledger", run.vault / "events", *(run.vault / "configs").rglob("")):
        clear_temporaries(folder)
    for place in ("versions", "files"):
        for path in (run.vault / place).glob(".incoming-*"):
            if path.name.removeprefix(".incoming-") not in wanted:
                remove_tree(path)


def _unsafe_versions(run: BackupRun) -> list[int]:
    """Ids of the versions in models/ that no row vouches for, or whose copy is not there any more; ascending.

    With `recheck` all of them, and those in the trash whose copy somebody may have to rely on.
    """
    present = _listed(run, "versions")
    rows = run.keeper.ledger.rows(
        "SELECT v.id, v.name, b.sums_sha256 IS v.sums_sha256 AS vouched FROM versions v LEFT JOIN backups b ON "
        "b.what = 'version' AND b.name = v.name AND b.vault = ? WHERE v.state IN (?, ?) "
        "OR (? AND v.state = 'trashed' AND b.name IS NOT NULL) ORDER BY v.id",
        (str(run.vault), *KEPT_STATES, run.recheck))  # fmt: skip
    return [row["id"] for row in rows if run.recheck or not row["vouched"] or row["name"] not in present]


def _unsafe_originals(run: BackupRun) -> list[str]:
    """The same for originals, by SHA-256, in the order they came."""
    present = _listed(run, "files")
    rows = run.keeper.ledger.rows(
        "SELECT f.sha256, b.name IS NOT NULL AS vouched FROM files f LEFT JOIN backups b ON b.what = 'original' "
        "AND b.name = f.sha256 AND b.vault = ? ORDER BY f.first_seen, f.sha256", (str(run.vault),))  # fmt: skip
    return [row["sha256"] for row in rows if run.recheck or not row["vouched"] or row["sha256"] not in present]


def _listed(run: BackupRun, place: str) -> set[str]:
    """Names in a folder of the vault; none while the vault is not begun."""
    folder = run.vault / place
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _originals_of(run: BackupRun, number: int) -> list[str]:
    rows = run.keeper.ledger.rows("SELECT DISTINCT sha256 FROM learnt WHERE version_id = ? ORDER BY sha256", (number,))
    return [row[0] for row in rows]


# --- originals -------------------------------------------------------------------------------------------------------


def _original_steps(run: BackupRun, sha256: str) -> Steps:
    target = run.vault / "files" / sha256
    file = get_file(run.keeper.ledger, sha256)
    assert file is not None, "files are never taken out of the ledger"
    source = run.keeper.home.files / sha256
    try:
        wanted: dict[str, str] = {}
        for name in listing(source):
            wanted[name] = yield from named(sha256, hash_steps(source / name))
    except OSError as error:
        raise Damage(f"the stored original cannot be read: {error}", subject=sha256) from error
    if any(wanted.get(name) != digest for name, digest in original_hashes(file).items()):
        raise Damage(f"the stored bytes of {file.name} are not what was admitted", subject=sha256)
    incoming = Incoming(source, target, wanted)
    if os.path.lexists(target) and not (yield from named(sha256, incoming.problem_steps(target))):
        sync_parents(target)
        seal_quietly(target)
        run.record("original", sha256, folder_digest(wanted), incoming.size())
        return
    yield from bring(run, "original", sha256, incoming, folder_digest(wanted))


# --- configs and marks ------------------------------------------------------------------------------------------------


def _config_steps(run: BackupRun) -> Steps:
    """Settings and recipes as they are now; they are people's files and may change, so each is replaced durably."""
    target = run.vault / "configs"
    texts = config_files(run.keeper.home)
    digest = folder_digest({name: sha256_bytes(data) for name, data in texts.items()})
    row = run.recorded("configs", "configs")
    if row and row["sums_sha256"] == digest and all(_is_copy(run, target / name, data) for name, data in texts.items()):
        return
    for name, data in texts.items():
        make_dir((target / name).parent)
        write_bytes(target / name, data)
        run.size += len(data)
        if sha256_file(target / name) != sha256_bytes(data):
            raise Damage(f"the copy of configs/{name} is not what was written", subject=str(target / name),
                         hint="check the vault's disk")  # fmt: skip
        yield f"configs/{name}"
    point("backup.configured")
    run.copied.append("configs")
    run.record("configs", "configs", digest, sum(len(data) for data in texts.values()))


def _is_copy(run: BackupRun, path: Path, data: bytes) -> bool:
    """Whether a copy is there; with `recheck`, whether it is what it was."""
    try:
        return path.is_file() and (not run.recheck or sha256_file(path) == sha256_bytes(data))
    except OSError:
        return False


def _copy_marks(run: BackupRun) -> None:
    """The high-water marks never fall, in the vault least of all: numbers are not used twice after a disaster."""
    for name, mark in (("high-water", high_water(run.keeper)), ("index-high-water", index_high_water(run.keeper))):
        path = run.vault / name
        if mark > noted_mark([path]) or not path.exists():
            write_text(path, f"{mark}\n")
            point("backup.marked")
