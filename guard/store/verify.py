"""Is everything still what it was? Versions, ledger, views, originals, datasets, indexes and the vault, all read.

Verification reads only: it moves nothing, mends nothing and trusts nothing that is not hashed in the ledger. Each
damage names the file, what is wrong with it and which versions were grown from it. A version that the daemon is moving
at this very moment is looked at twice before anything is said about where it lies.
Not here: making a version again to compare bits (`verify --rebuild`), or what to do about damage (`restore.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import orjson

from guard.errors import CheckFailed, EnvironmentFault, HeirloomError, UsageError
from guard.seal import IMMUTABLE, not_immutable
from guard.store import views
from guard.store.findings import Finding, Findings, Report
from guard.store.intents import open_intents
from guard.store.keeper import Keeper
from guard.store.lineage import descendants
from guard.store.sums import Problem, problem_steps, read_sums, unsealed
from guard.store.trash import is_folder, trash_folder
from guard.store.verify_data import check_datasets, check_evaluation, check_indexes, check_originals
from guard.store.verify_events import check_export
from guard.store.verify_vault import check_archived, check_backups
from guard.store.versions import Version, all_versions, find_version, named_version, tips, version_states
from guard.weights import ADAPTER_NOTE, FULL, adapter_base

__all__ = ["Report", "verify"]

_IN_MODELS = ("sealed", "quarantined")
_OURS_IN_MODELS = {"README.md", "registry.json"}


def verify(
    keeper: Keeper, *, versions: Sequence[str] | None = None, everything: bool = False, backup: bool = False,
    sample: float | None = None,
) -> Report:  # fmt: skip
    """Check and report. By default every version, the ledger, the views and the indexes.

    `versions`: only these, with where they lie. `everything`: also originals, datasets and the trash. `backup`: read
    the vault back (alone, unless versions or everything are asked for too). `sample`: the share of files whose content
    is read, drawn anew by the clock; presence, modes and lists are always checked in full.
    Raises NotFound for an unknown version, UsageError for a sample outside 0 to 1, and the vault's own refusals.
    """
    if sample is not None and not 0.0 < sample <= 1.0:
        raise UsageError(f"a sample of {sample} is not between 0 and 1", hint="--sample 5%")
    findings = Findings(1.0 if sample is None else sample, keeper.clock.utc())
    wanted = None if versions is None else [named_version(keeper.ledger, text) for text in versions]
    whole_home = wanted is None and (everything or not backup)
    if wanted is not None or whole_home:
        _check_home(keeper, findings, wanted, everything)
        if (everything or wanted is not None) and not backup:
            check_archived(keeper, findings, wanted)
    if backup:
        try:
            check_backups(keeper, findings, None if wanted is None else [item.name for item in wanted])
        except (CheckFailed, EnvironmentFault) as error:
            if not whole_home:
                raise  # only the vault was asked about, and this is the answer
            findings.add("backup", "the vault", "", error.message)
    return findings.report()


def _check_home(keeper: Keeper, findings: Findings, wanted: list[Version] | None, everything: bool) -> None:
    chosen = wanted if wanted is not None else all_versions(keeper.ledger)
    names = None if wanted is None else {version.name for version in wanted}
    before = _misplaced(keeper, names)
    states = (*_IN_MODELS, "trashed") if everything or wanted is not None else _IN_MODELS
    for version in chosen:
        if version.state in states:
            _check_version(keeper, findings, version)
    if wanted is None:
        _check_ledger(keeper, findings)
        check_indexes(keeper, findings)
        check_evaluation(keeper, findings)
        if everything:
            check_originals(keeper, findings)
            check_datasets(keeper, findings)
        _check_views(keeper, findings)
    # A birth, a deletion or a restore may be between two steps: what is true then is true only once.
    findings.damage += [item for item in _misplaced(keeper, names) if item in before]


# --- one version ---------------------------------------------------------------------------------------------------


def _place(keeper: Keeper, version: Version) -> Path:
    if version.state == "trashed":
        return keeper.home.trash / (trash_folder(keeper, version.name) or version.name)
    return keeper.home.models / version.name


def _check_version(keeper: Keeper, findings: Findings, version: Version) -> None:
    """Content against SHA256SUMS against the ledger; version.json against the ledger's record."""
    folder = _place(keeper, version)
    if not is_folder(folder):
        return  # `_misplaced` tells it
    findings.checked.versions += 1
    findings.count_files(folder)
    problems = findings.run(problem_steps(folder, version.sums_sha256, hash_it=findings.picker(version.name)))
    if not problems and _record_differs(folder, version):
        problems = [("version.json", "differs from the ledger's record")]
    if not problems and version.state != "trashed":
        problems = _base_problems(keeper, version)
    if problems and _moved_meanwhile(keeper, version):
        return _check_version(keeper, findings, find_version(keeper.ledger, version.name))
    below = descendants(keeper.ledger, version.id) if problems else []
    for name, problem in problems:
        findings.add("version", version.name, name, problem, below)


def _base_problems(keeper: Keeper, version: Version) -> list[Problem]:
    """An adapter is loaded on one base only: is that there, with the weights it was trained on? Its bytes are its own check."""
    under = adapter_base(version.record.get("inputs") or ())
    if under is None:
        return []
    try:
        found = read_sums(keeper.home.models / under["name"]).get(FULL)
    except (OSError, ValueError):
        return [(ADAPTER_NOTE, f"cannot be loaded: its base {under['name']} is not in models/"
                               f" (heirloom restore {under['name']})")]
    if found == under["sha256"]:
        return []
    return [(ADAPTER_NOTE, f"cannot be loaded: the weights of {under['name']} are not those it was trained on"
                           f" (heirloom restore {under['name']})")]


def _record_differs(folder: Path, version: Version) -> bool:
    try:
        return orjson.loads((folder / "version.json").read_bytes()) != version.record
    except (OSError, ValueError):
        return True


def _moved_meanwhile(keeper: Keeper, version: Version) -> bool:
    return find_version(keeper.ledger, version.name).state != version.state


# --- where everything lies -----------------------------------------------------------------------------------------


def _misplaced(keeper: Keeper, names: set[str] | None) -> list[Finding]:
    """Folders without a version, versions without a folder, unsealed ones, and tips that cannot be one."""
    found = Findings()
    moving = {item["version"] for word in ("delete", "restore", "archive", "purge") for item in open_intents(keeper.ledger, word)}
    chosen = all_versions(keeper.ledger) if names is None else [find_version(keeper.ledger, name) for name in sorted(names)]
    for version in chosen:
        problems = _place_problems(keeper, version, moving)
        below = descendants(keeper.ledger, version.id) if problems else []
        for name, problem in problems:
            found.add("archived" if version.state == "archived" else "version", version.name, name, problem, below)
    if names is None:
        _check_strangers(keeper, found)
        for line, tip in tips(keeper.ledger).items():
            if tip.state != "sealed":
                found.add("ledger", line, "", f"its active version {tip.name} is {tip.state}")
    return found.damage


def _place_problems(keeper: Keeper, version: Version, moving: set[str]) -> list[Problem]:
    """What is wrong with where one version lies and how it is sealed, by file."""
    folder = _place(keeper, version)
    if version.name in moving:
        return [("", "moving it is unfinished; the next start ends it")]
    if version.state in (*_IN_MODELS, "trashed") and not is_folder(folder):
        return [("", f"its folder {folder} is missing")]
    if version.state in _IN_MODELS:
        open_to_hands = [(name, "may be written to: it is not sealed") for name in unsealed(folder)]
        wanted = keeper.settings.storage.seal == IMMUTABLE
        plain = [(name, "is not immutable, though storage.seal says so") for name in (not_immutable(folder) if wanted else [])]
        return open_to_hands + plain
    if version.state == "archived" and not _vouched(keeper, version):
        return [("", "is archived, and no vault is recorded to hold it")]
    return []


def _vouched(keeper: Keeper, version: Version) -> bool:
    """Whether some vault is recorded to hold this very version; `--backup` reads it there."""
    return bool(keeper.ledger.row("SELECT 1 FROM backups WHERE what = 'version' AND name = ? AND sums_sha256 = ?",
                                  (version.name, version.sums_sha256)))  # fmt: skip


def _check_strangers(keeper: Keeper, found: Findings) -> None:
    """Everything in models/ that no version accounts for."""
    known = {name for name, state in version_states(keeper.ledger).items() if state in _IN_MODELS}
    try:
        entries = sorted(os.listdir(keeper.home.models))
    except OSError as error:
        found.add("folder", "models", "", f"cannot be read: {error}")
        return
    for name in entries:
        if name not in known and name not in _OURS_IN_MODELS and not name.startswith("."):
            found.add("folder", name, "", "lies in models/ and the ledger knows no such version there")


# --- ledger and views ----------------------------------------------------------------------------------------------


def _check_ledger(keeper: Keeper, findings: Findings) -> None:
    ledger, name = keeper.ledger, keeper.home.ledger.name
    try:
        for row in ledger.rows("PRAGMA integrity_check"):
            if row[0] != "ok":
                findings.add("ledger", name, "", f"SQLite: {row[0]}")
        for row in ledger.rows("PRAGMA foreign_key_check"):
            findings.add("ledger", name, "", f"a row of {row[0]} points at nothing")
        for problem in [*ledger.broken_events(), *filter(None, [ledger.mark_problem()])]:
            findings.add("ledger", name, "", problem)
        for table in ledger.changed_tables():
            findings.add("ledger", name, table, f"rows of {table} are not what was written")
    except HeirloomError as error:
        findings.add("ledger", name, "", error.message)
        return
    _check_numbers(keeper, findings)
    check_export(keeper, findings)


def _check_numbers(keeper: Keeper, findings: Findings) -> None:
    """Neither copy of a high-water mark may be below a number that was given."""
    for what, table, path, key in (
        ("version", "versions", keeper.home.high_water_file, "version_high_water"),
        ("index", "indexes", keeper.home.index_high_water_file, "index_high_water"),
    ):
        highest, noted = keeper.ledger.value(f"SELECT coalesce(max(id), 0) FROM {table}"), keeper.ledger.meta(key)
        if noted is None and what == "index":
            continue  # a home of an earlier release: its next start takes the mark
        try:
            in_file = int(path.read_text("ascii"))
        except (OSError, ValueError) as error:
            findings.add("ledger", path.name, path.name, f"cannot be read: {error}")
        else:
            if in_file < highest:
                findings.add("ledger", path.name, path.name, f"says {in_file}, {what} {highest} exists")
        if int(noted or 0) < highest:
            findings.add("ledger", path.name, "", f"the ledger says {noted or 0}, {what} {highest} exists")


def _check_views(keeper: Keeper, findings: Findings) -> None:
    """The registry, the manifest and the README show what the ledger says."""
    sequence = keeper.ledger.sequence()
    problems = views.stale(keeper)
    if problems and keeper.ledger.sequence() != sequence:
        problems = views.stale(keeper)
    for problem in problems:
        findings.add("view", problem.split(" ", 1)[0], "", problem)
