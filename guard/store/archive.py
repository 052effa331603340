"""Archiving: a version leaves models/ for its copy in the vault, and comes back with `restore` (law 3).

    the vault is on another device, the copy read back and hashed now -> intent -> renamed out of models/
    -> one transaction (state "archived") -> the folder erased -> views

Before the transaction an interrupted archiving is taken back; after it the rest of the folder is erased, but only
once the copy, still on another device, was read back again. When the version came back by another way meanwhile, that
rest stays in the trash with a note. An archived version stays in the lineage, locks what it stands on, and its children
load alone, for they hold all their weights. Here too: is the copy of a version sound at this moment (`copy_problem`).
Not here: which versions may go (`guard/checks/retention.py`), making copies (`vault.py`), restoring (`restore.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.errors import CheckFailed, Damage, EnvironmentFault, HeirloomError, Protected, is_environment
from guard.failpoints import point
from guard.folders import sync_parents
from guard.seal import erase_sealed, require_openable
from guard.steps import Steps, drain
from guard.store.findings import Findings
from guard.store.intents import clear_intent, open_intents, put_intent
from guard.store.keeper import Keeper
from guard.store.lineage import needed_to_load
from guard.store.sums import folder_problems
from guard.store.trash import free_trash_name, is_folder, move_sealed, note_trash, seal_top
from guard.store.vault_state import check_vault, other_device
from guard.store.verify_vault import backup_check_steps
from guard.store.versions import Version, find_version, tips
from guard.store.views import refresh

__all__ = ["archive", "copy_problem", "finish_archives", "require_apart"]

_PREFIX = ".archiving-"
_IN_MODELS = ("sealed", "quarantined")
_JOBS_ON = ("SELECT id FROM jobs WHERE state IN ('queued', 'held', 'preparing', 'training', 'committing', 'parked') "
            "AND coalesce(base_id, json_extract(plan, '$.train.base.id')) = ? ORDER BY id")  # fmt: skip


def copy_problem(keeper: Keeper, name: str) -> str:
    """Read and hash the vault's copy of a version now; "" when it is what was sealed, else what is wrong with it."""
    return drain(copy_problem_steps(keeper, name))


def copy_problem_steps(keeper: Keeper, name: str) -> Steps[str]:
    """`copy_problem` in slices."""
    findings = Findings()
    try:
        yield from backup_check_steps(keeper, findings, [name])
    except HeirloomError as error:
        return error.message
    if findings.damage:
        first = findings.damage[0]
        return f"its copy in the vault: {f'{first.file} ' if first.file else ''}{first.problem}"
    return ""


def require_apart(keeper: Keeper) -> Path:
    """The vault, when it is ours and lies on another device than the models.

    Raises CheckFailed: a copy on the same disk is lost together with it. EnvironmentFault when there is no vault.
    """
    vault = check_vault(keeper)
    if not other_device(keeper, vault):
        raise CheckFailed(f"the vault {vault} lies on the same device as the models", subject=str(vault),
                          hint="set backup.path to a folder on another disk, then heirloom backup run")  # fmt: skip
    return vault


def archive(keeper: Keeper, name: str) -> int:
    """Take one version out of models/; returns the bytes that became free there. Raises what `archive_steps` raises."""
    return drain(archive_steps(keeper, name))


def archive_steps(keeper: Keeper, name: str) -> Steps[int]:
    """`archive` with the reading back of the copy in slices; from the first change on it is one step.

    Raises CheckFailed when the vault is on the same device or holds no sound copy, Protected for a base, an active
    version or one that others need to load, EnvironmentFault when the disk refuses.
    """
    _refuse(keeper, find_version(keeper.ledger, name))
    require_apart(keeper)
    problem = yield from copy_problem_steps(keeper, name)
    # Again, for time has passed: a tip may have moved onto it, a job may want it as its base, the vault may have gone.
    version = find_version(keeper.ledger, name)
    _refuse(keeper, version)
    vault = require_apart(keeper)
    if problem:
        raise CheckFailed(f"{name} stays in models/: {problem}", subject=name, hint="heirloom backup run, then try again")
    require_openable(keeper.home.models / name)
    intent = {"version": name, "was": version.state, "vault": str(vault), "bytes": version.size_bytes}
    with keeper.ledger.transaction():
        put_intent(keeper.ledger, "archive", name, intent)
        keeper.ledger.event("version.archiving", name, vault=str(vault))
    point("archive.intended")
    try:
        _finish(keeper, intent)
    except (HeirloomError, OSError) as error:
        if find_version(keeper.ledger, name).state != "archived":
            # The folder comes first and the ledger second: what a full disk keeps open, the next start closes.
            with contextlib.suppress(HeirloomError, OSError):
                _take_back(keeper, intent, str(error))
        if isinstance(error, OSError) and is_environment(error):
            raise EnvironmentFault(f"{name} could not be archived: {error.strerror or error}", subject=name, cause=error,
                                   hint="try again; nothing was lost") from error  # fmt: skip
        raise
    return version.size_bytes


def _refuse(keeper: Keeper, version: Version) -> None:
    """Whatever a plan said: these never leave models/."""
    if os.path.lexists(_leaving(keeper, version.name)):
        raise CheckFailed(f"an earlier archiving of {version.name} is unfinished", subject=version.name,
                          hint=f"heirloom verify {version.name}; the next start goes on with it")  # fmt: skip
    if version.state not in _IN_MODELS or not is_folder(keeper.home.models / version.name):
        raise CheckFailed(f"{version.name} is not in models/: it is {version.state}", subject=version.name,
                          hint=f"heirloom verify {version.name}")  # fmt: skip
    lines = [line for line, tip in tips(keeper.ledger).items() if tip.id == version.id]
    users = needed_to_load(keeper.ledger, version.id)
    jobs = [f"job {row[0]}" for row in keeper.ledger.rows(_JOBS_ON, (version.id,))]
    if version.parent_id is None or lines or users or jobs:
        why = ("a base" if version.parent_id is None else f"active on {', '.join(lines)}" if lines else
               f"what {', '.join(users)} cannot be loaded without" if users else f"what {', '.join(jobs)} forks")  # fmt: skip
        raise Protected(f"{version.name} is {why}: it stays in models/", subject=version.name, hint="heirloom retention plan")


def _leaving(keeper: Keeper, name: str) -> Path:
    """Where a version lies between models/ and nowhere: hidden in the trash, which is on the same device."""
    return keeper.home.trash / f"{_PREFIX}{name}"


def _finish(keeper: Keeper, intent: Mapping[str, Any]) -> None:
    name, ledger = intent["version"], keeper.ledger
    move_sealed(keeper, keeper.home.models / name, _leaving(keeper, name))
    point("archive.moved")
    with ledger.transaction():
        ledger.run("UPDATE versions SET state = 'archived' WHERE name = ?", (name,))
        ledger.set_meta(f"gone:{name}", str(intent["was"]))
        ledger.event("version.archived", name, vault=intent["vault"], was=intent["was"], bytes=intent["bytes"])
    point("archive.recorded")
    _erase(keeper, name)
    refresh(keeper)
    point("archive.viewed")


def _erase(keeper: Keeper, name: str) -> None:
    erase_sealed(_leaving(keeper, name))
    point("archive.erased")
    with keeper.ledger.transaction():
        clear_intent(keeper.ledger, "archive", name)


def _take_back(keeper: Keeper, intent: Mapping[str, Any], why: str) -> None:
    """The version lies in models/ as before; nothing of it was erased."""
    name = intent["version"]
    if os.path.lexists(_leaving(keeper, name)):
        move_sealed(keeper, _leaving(keeper, name), keeper.home.models / name)
    else:
        seal_top(keeper, keeper.home.models / name)  # a death may have come when it was open and not yet moved
    with keeper.ledger.transaction():
        clear_intent(keeper.ledger, "archive", name)
        keeper.ledger.event("archive.abandoned", name, why=why)


def _keep_leftover(keeper: Keeper, intent: Mapping[str, Any]) -> str:
    """The version came back by another way before its folder was erased: the folder stays in the trash, with a note.

    Raises Damage while the version in models/ does not prove itself: then the leftover may be the better one.
    """
    name, leaving = intent["version"], _leaving(keeper, intent["version"])
    version = find_version(keeper.ledger, name)
    if version.state in _IN_MODELS and folder_problems(keeper.home.models / name, version.sums_sha256):
        raise Damage(f"{name} is damaged in models/, and {leaving} holds what was to be archived", subject=name,
                     hint=f"heirloom restore {name}")  # fmt: skip
    folder = intent.get("aside")
    if folder is None or (os.path.lexists(leaving) and os.path.lexists(keeper.home.trash / folder)):
        folder = free_trash_name(keeper, f"{name}~leftover")
        with keeper.ledger.transaction():
            put_intent(keeper.ledger, "archive", name, {**intent, "aside": folder})
    if os.path.lexists(leaving):
        move_sealed(keeper, leaving, keeper.home.trash / folder)
    else:
        sync_parents(keeper.home.trash / folder)
    point("archive.aside")
    with keeper.ledger.transaction():
        note_trash(keeper, folder, name, was=str(intent["was"]), why="leftover")
        clear_intent(keeper.ledger, "archive", name)
        keeper.ledger.event("archive.abandoned", name, why="it was brought back by another way", trash=folder)
    return f"what archiving left of {name} lies in the trash as {folder}"


def _end(keeper: Keeper, intent: Mapping[str, Any]) -> str:
    """Bring one interrupted archiving to its end; returns what became of it. Raises what keeps it from that."""
    name = intent["version"]
    state, left = find_version(keeper.ledger, name).state, os.path.lexists(_leaving(keeper, name))
    if state == "archived":
        problem = _unsafe(keeper, name) if left else ""
        if problem:
            # Space is not worth it: what is left of the folder stays until its copy can be read again.
            return f"archiving {name} is left for later: {problem}"
        _erase(keeper, name)
        return f"{name} was archived"
    if intent.get("aside") or (left and (state not in _IN_MODELS or os.path.lexists(keeper.home.models / name))):
        return _keep_leftover(keeper, intent)
    _take_back(keeper, intent, "it was interrupted before it was recorded")
    return f"archiving {name} was taken back"


def _unsafe(keeper: Keeper, name: str) -> str:
    """Why the rest of an archived version may not be erased now; "" when its copy is elsewhere and reads back."""
    try:
        require_apart(keeper)
    except HeirloomError as error:
        return error.message
    return copy_problem(keeper, name)


def finish_archives(keeper: Keeper) -> list[str]:
    """Take back every archiving that was not recorded, finish the others; returns what became of each in words.

    One that cannot go on is left for later and never keeps a home from starting; `verify` names it.
    """
    told = []
    for intent in open_intents(keeper.ledger, "archive"):
        try:
            told.append(_end(keeper, intent))
        except (HeirloomError, OSError) as error:
            told.append(f"archiving {intent['version']} is left for later: {error}")
    if told:
        refresh(keeper)
    return told
