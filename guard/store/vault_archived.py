"""Archived versions: the vault holds their only copy, so it is read wherever the folders in models/ are read.

The vault of the settings comes first; a version that is not there is looked for in every other vault that was recorded
to hold it (an earlier `backup.path`). Reads only, but for the row that says a copy was read back just now.
Not here: archiving (`archive.py`), the other copies (`verify_vault.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

from guard.errors import HeirloomError
from guard.store.keeper import Keeper
from guard.store.sums import Problem
from guard.store.trash import is_folder
from guard.store.vault_frames import stored_bytes, stored_problem_steps
from guard.store.vault_run import BackupRun, Steps, named
from guard.store.vault_state import check_vault, vault_of
from guard.store.versions import Version, all_versions

__all__ = ["archived_in_steps", "archived_problem_steps", "archived_versions"]


def archived_versions(keeper: Keeper) -> list[Version]:
    """All versions whose only copy is the vault's, the oldest first."""
    return all_versions(keeper.ledger, "archived")


def archived_problem_steps(
    keeper: Keeper, version: Version, hash_it: Callable[[str], bool] = lambda _name: True
) -> Generator[int, None, list[Problem]]:
    """Read an archived version where it lies; yields bytes read, returns what is wrong with it by file."""
    problem = ""
    try:
        check_vault(keeper)
    except HeirloomError as error:
        problem = f"; {error.message}"
    there = [place for place in _places(keeper, version) if is_folder(place / "versions" / version.name)]
    if not there:
        return [("", f"is archived, and its copy is not in {vault_of(keeper)}{problem}")]
    first: list[Problem] = []
    for vault in there:
        steps = stored_problem_steps(vault / "versions" / version.name, version.sums_sha256, hash_it=hash_it)
        if not (found := (yield from steps)):
            return []
        first = first or [(name, f"its only copy, in {vault}: {text}") for name, text in found]
    return first


def _places(keeper: Keeper, version: Version) -> list[Path]:
    """Vaults that may hold it: the one of the settings, then those of its rows."""
    rows = keeper.ledger.rows("SELECT vault FROM backups WHERE what = 'version' AND name = ? AND sums_sha256 = ? "
                              "ORDER BY verified DESC", (version.name, version.sums_sha256))  # fmt: skip
    return list(dict.fromkeys([vault_of(keeper), *(Path(row[0]) for row in rows)]))


def archived_in_steps(run: BackupRun) -> Steps:
    """Read the copies that no row vouches for, with `recheck` all of them, and record those that are sound.

    There is nothing to make one again from: what is missing or damaged is told, when a person asked (`recheck`).
    """
    for version in archived_versions(run.keeper):
        row = run.recorded("version", version.name)
        if row and row["sums_sha256"] == version.sums_sha256 and not run.recheck:
            continue
        folder = run.vault / "versions" / version.name
        problems = yield from named(version.name, stored_problem_steps(folder, version.sums_sha256))
        if not problems:
            run.record("version", version.name, version.sums_sha256, stored_bytes(folder))
        elif run.recheck:
            name, problem = problems[0]
            run.problems.append(f"{version.name} is archived and its copy cannot be made again from here: {name} {problem}; "
                                f"heirloom restore {version.name} --from ANOTHER_VAULT")  # fmt: skip
