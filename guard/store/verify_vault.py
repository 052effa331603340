"""Reading the vault back: every copy that a `backups` row vouches for is read and hashed again.

Size and count prove nothing (a backup was once called verified on file count and size within 1 %): only bytes do.
Frames are decoded and what comes out is hashed. Reads only. Not here: making copies (`vault.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from pathlib import Path

from guard.durable import sha256_bytes
from guard.steps import drain
from guard.store.copying import folder_digest, listing
from guard.store.findings import Findings
from guard.store.indexes import index_high_water
from guard.store.keeper import Keeper
from guard.store.lineage import descendants
from guard.store.marks import noted_mark
from guard.store.sums import SUMS, Problem, hash_steps
from guard.store.vault_archived import archived_problem_steps, archived_versions
from guard.store.vault_events import event_problems
from guard.store.vault_frames import frame_name, needed_by, stored_problem_steps
from guard.store.vault_ledger import ledger_problem_steps
from guard.store.vault_state import check_vault, config_files
from guard.store.versions import Version, find_version, high_water

__all__ = ["backup_check_steps", "check_archived", "check_backups"]

_Steps = Generator[int, None, list[Problem]]


def check_backups(keeper: Keeper, findings: Findings, versions: list[str] | None) -> None:
    """Read back what the vault holds (only these versions, when named). Raises what `check_vault` raises."""
    drain(backup_check_steps(keeper, findings, versions))


def backup_check_steps(keeper: Keeper, findings: Findings, versions: list[str] | None) -> Generator[int, None, None]:
    """`check_backups` in slices."""
    vault = check_vault(keeper)
    rows = _rows(keeper, vault, versions)
    wanted = [version.name for version in archived_versions(keeper)] if versions is None else versions
    for name in sorted(set(wanted) - {row["name"] for row in rows if row["what"] == "version"}):
        findings.add(_what(keeper, name), name, "", "the vault holds no copy that was read back")
    needed: dict[str, list[str]] | None = None
    for row in rows:
        problems = yield from findings.counted(_row_steps(keeper, vault, row, findings))
        if not problems:
            continue
        version = find_version(keeper.ledger, row["name"]) if row["what"] == "version" else None
        below = descendants(keeper.ledger, version.id) if version else []
        if version and needed is None:
            needed = needed_by(vault / "versions")  # reads a header of every frame there: only over damage
        for file, problem in problems:
            others = (needed or {}).get(row["name"], []) if version and _stood_on(file) else []
            what = _what(keeper, row["name"]) if version else "backup"
            findings.add(what, row["name"], file, problem + _who_needs(others), below)
    if versions is None:
        _check_mark(keeper, findings, vault)


def check_archived(keeper: Keeper, findings: Findings, versions: list[Version] | None) -> None:
    """Read archived versions (only these, when named) where their only copy lies. A vault that is not there is damage."""
    for version in archived_versions(keeper):
        if versions is not None and version not in versions:
            continue
        findings.checked.versions += 1
        picked = findings.picker(f"vault/{version.name}")
        for file, problem in findings.run(archived_problem_steps(keeper, version, picked)):
            findings.add("archived", version.name, file, problem, descendants(keeper.ledger, version.id))


def _what(keeper: Keeper, name: str) -> str:
    """A copy that is the only one cannot be made again by a backup."""
    return "archived" if find_version(keeper.ledger, name).state in ("archived", "purged") else "backup"


def _rows(keeper: Keeper, vault: Path, versions: list[str] | None) -> list[sqlite3.Row]:
    """What vouches for copies in this vault: everything, or these versions.

    A home that was moved or copied finds its vault at another path than its rows name; the store id says that it is the
    same vault, and what its copies have to hash to is as good as it was.
    """
    rows = keeper.ledger.rows("SELECT * FROM backups WHERE vault = ? ORDER BY what, name", (str(vault),))
    if not rows:
        rows = keeper.ledger.rows("SELECT *, max(verified) FROM backups GROUP BY what, name ORDER BY what, name")
    return rows if versions is None else [row for row in rows if row["what"] == "version" and row["name"] in versions]


def _stood_on(file: str) -> bool:
    """Whether damage to this file of a copy is damage to weights that others are the difference from."""
    return file in ("", SUMS) or file.endswith(".frame") or frame_name(file) is not None


def _who_needs(others: list[str]) -> str:
    """Which copies cannot be given back either while this one is damaged: their frames stand on it."""
    return f"; the frames of {', '.join(others)} stand on it" if others else ""


def _row_steps(keeper: Keeper, vault: Path, row: sqlite3.Row, findings: Findings) -> _Steps:
    """What is wrong with the copy that one row vouches for."""
    if row["what"] == "version":
        folder = vault / "versions" / row["name"]
        findings.checked.versions += 1
        findings.count_files(folder)
        picked = findings.picker(f"vault/{row['name']}")
        return (yield from stored_problem_steps(folder, row["sums_sha256"], hash_it=picked))
    if row["what"] == "original":
        folder = vault / "files" / row["name"]
        findings.count_files(folder)
        return (yield from _original_steps(folder, row)) if findings.hash_it(f"vault/{row['name']}") else []
    if row["what"] == "ledger":
        findings.checked.files += 1
        return (yield from ledger_problem_steps(vault / "ledger" / row["name"], row["sums_sha256"]))
    if row["what"] == "events":
        findings.checked.files += 1
        return event_problems(vault / "events" / row["name"], row["sums_sha256"], row["size_bytes"])
    return _config_problems(keeper, vault, row)


def _original_steps(folder: Path, row: sqlite3.Row) -> _Steps:
    if not folder.is_dir():
        return [("", "the copy is missing")]
    hashes = {}
    for name in listing(folder):
        try:
            hashes[name] = yield from hash_steps(folder / name)
        except OSError as error:
            return [(name, f"cannot be read: {error.strerror or error}")]
    if folder_digest(hashes) == row["sums_sha256"]:
        return []
    return [("" if row["name"] in hashes.values() else "content", "is not what was read back when it was copied")]


def _config_problems(keeper: Keeper, vault: Path, row: sqlite3.Row) -> list[Problem]:
    """Configs change by a person's hand; the copies can be judged only while the originals are as they were copied."""
    hashes = {name: sha256_bytes(data) for name, data in config_files(keeper.home).items()}
    if folder_digest(hashes) != row["sums_sha256"]:
        return []
    there = set(listing(vault / "configs"))
    missing = [(name, "is missing") for name in hashes if name not in there]
    return missing + [(name, "differs from what was copied") for name, digest in hashes.items()
                      if name in there and drain(hash_steps(vault / "configs" / name)) != digest]  # fmt: skip


def _check_mark(keeper: Keeper, findings: Findings, vault: Path) -> None:
    """A mark in the vault above ours means that this ledger is an old one: numbers would be given twice."""
    try:
        mark = int((vault / "high-water").read_text("ascii"))
    except (OSError, ValueError) as error:
        findings.add("backup", "high-water", "high-water", f"cannot be read: {error}")
        return
    if mark > high_water(keeper):
        findings.add("backup", "high-water", "high-water", f"says {mark}, this home knows only {high_water(keeper)}")
    known = index_high_water(keeper)
    if (mark := noted_mark([vault / "index-high-water"])) > known:
        findings.add("backup", "index-high-water", "index-high-water", f"says {mark}, this home knows only {known}")
