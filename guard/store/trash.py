"""Moving a version to the trash, and what the trash remembers. Nothing is erased here or anywhere near.

    verdict -> intent in the ledger -> the top folder made writable -> rename into models/.trash/ -> sealed again
    -> one ledger transaction -> views

Every step may be repeated: `finish_deletes` brings an interrupted deletion to its end, or takes it back when the
folder is not there to be moved. Nothing in the trash is ever replaced: a taken name gets a number behind it.
Not here: the rules (`guard/checks/deletion.py`), bringing a version back (`restore.py`), erasing (`heirloom purge`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import orjson

from guard.checks.deletion import DeletionFacts, judge_deletion
from guard.durable import rename_new
from guard.errors import Busy, Damage, EnvironmentFault, HeirloomError, NotFound, is_environment
from guard.failpoints import point
from guard.folders import sync_parents
from guard.seal import close_top, open_shelf, open_top, require_openable
from guard.store.intents import clear_intent, open_intents, put_intent
from guard.store.keeper import Keeper
from guard.store.lineage import living_dependants
from guard.store.versions import GONE, Version, find_version, tips
from guard.store.views import refresh

__all__ = [
    "delete",
    "deletion_facts",
    "finish_deletes",
    "free_trash_name",
    "is_folder",
    "move_sealed",
    "note_trash",
    "seal_top",
    "trash_folder",
    "trash_notes",
]

_UNDER_WAY = ("queued", "held", "preparing", "training", "committing")


def is_folder(path: Path) -> bool:
    """True for a real folder; a symbolic link to one is not."""
    return path.is_dir() and not path.is_symlink()


def trash_notes(keeper: Keeper) -> dict[str, dict[str, Any]]:
    """What lies in the trash by folder name: version, was (its state before), why (deleted, damaged), utc."""
    rows = keeper.ledger.rows("SELECT key, value FROM meta WHERE key >= 'trash:' AND key < 'trash;' ORDER BY key")
    return {row[0].removeprefix("trash:"): orjson.loads(row[1]) for row in rows}


def note_trash(keeper: Keeper, folder: str, version: str, *, was: str, why: str) -> None:
    """Remember inside the current transaction what a folder in the trash is."""
    note = {"version": version, "was": was, "why": why, "utc": keeper.clock.utc()}
    keeper.ledger.set_meta(f"trash:{folder}", orjson.dumps(note, option=orjson.OPT_SORT_KEYS).decode())


def trash_folder(keeper: Keeper, name: str) -> str | None:
    """The folder in the trash that a deleted version went to; None when the ledger knows of none."""
    notes = trash_notes(keeper).items()
    found = [folder for folder, note in notes if note["version"] == name and note["why"] == "deleted"]
    return found[-1] if found else None


def free_trash_name(keeper: Keeper, name: str) -> str:
    """A name in the trash that nothing has and no note speaks of: the name itself, then `name~2`, `name~3`."""
    notes = trash_notes(keeper)
    number = 1
    while True:
        candidate = name if number == 1 else f"{name}~{number}"
        if candidate not in notes and not os.path.lexists(keeper.home.trash / candidate):
            return candidate
        number += 1


def move_sealed(keeper: Keeper, source: Path, target: Path, unsealed_point: str | None = None) -> None:
    """Move a sealed folder to a name that nothing has. Only models/ and the folder's top open, and only for the move.

    An ordinary user cannot rename a folder it may not write (its `..` entry changes); the files stay sealed.
    A move that fails leaves the folder sealed under whichever name it has then.
    """
    moves = is_folder(source)
    try:
        with open_shelf(keeper.home.models):
            if moves:
                open_top(source)
            if unsealed_point:
                point(unsealed_point)
            rename_new(source, target)
    except Exception:
        if moves:
            # The disk may refuse this too; what went wrong first is what is told.
            with contextlib.suppress(OSError):
                seal_top(keeper, source if is_folder(source) else target)
        raise
    seal_top(keeper, target)


def seal_top(keeper: Keeper, path: Path) -> None:
    """Seal a folder that was opened to be moved, as the settings say."""
    if is_folder(path):
        close_top(path, keeper.settings.storage.seal)


def deletion_facts(keeper: Keeper, version: Version, *, force: bool, confirm_lineage: bool,
                   confirm: str | None) -> DeletionFacts:  # fmt: skip
    """What the ledger knows that bears on deleting a version."""
    marks = ", ".join("?" * len(_UNDER_WAY))
    # A job that started from a line's tip names its base only in its frozen plan, and a parked one may still go on.
    jobs = keeper.ledger.rows(
        f"SELECT id FROM jobs WHERE (base_id = ? OR json_extract(plan, '$.train.base.id') = ?) "
        f"AND state IN ({marks}, 'parked') ORDER BY id", (version.id, version.id, *_UNDER_WAY))  # fmt: skip
    return DeletionFacts(
        name=version.name,
        has_parent=version.parent_id is not None,
        tip_of=tuple(line for line, tip in tips(keeper.ledger).items() if tip.id == version.id),
        dependants=tuple(item.name for item in living_dependants(keeper.ledger, version.id)),
        jobs=tuple(row[0] for row in jobs),
        force=force, confirm_lineage=confirm_lineage, confirm=confirm,
    )  # fmt: skip


def delete(keeper: Keeper, text: str, *, force: bool = False, confirm_lineage: bool = False,
           confirm: str | None = None, dry_run: bool = False) -> dict[str, Any]:  # fmt: skip
    """Move a version to the trash; returns version, trash (the folder there) and dependants (names now orphaned).

    Raises NotFound, Protected (5), NotConfirmed (6; its message is the question to ask), Damage when the folder is
    not in models/, Busy while a restore of it is unfinished, and EnvironmentFault when the disk refuses.
    """
    if not dry_run:
        finish_deletes(keeper)
    version = find_version(keeper.ledger, text)
    if version.state in GONE:
        raise NotFound(f"{version.name} is not in models/: it is {version.state}", subject=version.name,
                       hint=f"heirloom restore {version.name} brings it back")  # fmt: skip
    facts = deletion_facts(keeper, version, force=force, confirm_lineage=confirm_lineage, confirm=confirm)
    verdict = judge_deletion(facts)
    if not verdict.ok:
        raise verdict.error(version.name)
    _refuse_unfit(keeper, version)
    folder = free_trash_name(keeper, version.name)
    result = {"version": version.name, "trash": str(keeper.home.trash / folder), "dependants": list(facts.dependants)}
    if dry_run:
        return result
    intent = {"version": version.name, "folder": folder, "was": version.state, "orphans": list(facts.dependants)}
    with keeper.ledger.transaction():
        put_intent(keeper.ledger, "delete", version.name, intent)
        keeper.ledger.event("version.deleting", version.name, trash=folder, orphans=list(facts.dependants))
    point("delete.intended")
    _settle(keeper, intent)
    refresh(keeper)
    point("delete.viewed")
    return result


def _refuse_unfit(keeper: Keeper, version: Version) -> None:
    if any(item["version"] == version.name for item in open_intents(keeper.ledger, "restore")):
        raise Busy(f"{version.name} is being restored", subject=version.name, hint="wait for it, then delete again")
    if not is_folder(keeper.home.models / version.name):
        raise Damage(f"{version.name} is not in models/ though the ledger says so", subject=version.name,
                     hint=f"heirloom verify {version.name}; heirloom restore {version.name} --from backup")  # fmt: skip
    require_openable(keeper.home.models / version.name)


def _settle(keeper: Keeper, intent: dict[str, Any]) -> None:
    """Finish a deletion. What cannot go on is taken back, unless the folder has moved: then recovery finishes it."""
    try:
        _finish(keeper, intent)
    except (HeirloomError, OSError) as error:
        name = intent["version"]
        if os.path.lexists(keeper.home.models / name) or not os.path.lexists(keeper.home.trash / intent["folder"]):
            _abandon(keeper, intent, str(error))
        if isinstance(error, OSError) and is_environment(error):
            raise EnvironmentFault(f"{name} could not be moved to the trash: {error.strerror or error}", subject=name,
                                   cause=error, hint="try again; nothing was lost") from error  # fmt: skip
        raise


def _finish(keeper: Keeper, intent: dict[str, Any]) -> None:
    """Bring an announced deletion to its end from wherever it stands. Raises Damage when nothing is there to move."""
    name = intent["version"]
    source, target = keeper.home.models / name, keeper.home.trash / intent["folder"]
    if not os.path.lexists(target):
        if not is_folder(source):
            raise Damage(f"{name} vanished while it was moved to the trash", subject=name, hint="heirloom verify --all")
        move_sealed(keeper, source, target, "delete.unsealed")
    elif os.path.lexists(source):
        raise Damage(f"{name} is in models/ and its place in the trash is taken", subject=name,
                     hint="heirloom verify --all")  # fmt: skip
    else:
        sync_parents(target, source)
    seal_top(keeper, target)
    point("delete.moved")
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE versions SET state = 'trashed' WHERE name = ?", (name,))
        note_trash(keeper, intent["folder"], name, was=intent["was"], why="deleted")
        clear_intent(keeper.ledger, "delete", name)
        keeper.ledger.event("version.trashed", name, trash=intent["folder"], was=intent["was"],
                            orphans=intent["orphans"])  # fmt: skip
    point("delete.recorded")


def _abandon(keeper: Keeper, intent: dict[str, Any], why: str) -> None:
    """Take a deletion back: the version stays what it was, sealed as it was."""
    with contextlib.suppress(FileNotFoundError):
        seal_top(keeper, keeper.home.models / intent["version"])
    point("delete.abandoned")
    with keeper.ledger.transaction():
        clear_intent(keeper.ledger, "delete", intent["version"])
        keeper.ledger.event("delete.abandoned", intent["version"], why=why)


def finish_deletes(keeper: Keeper) -> list[str]:
    """Finish, or take back, every interrupted deletion; returns what became of each in words.

    One that cannot go on is taken back, so that no single version keeps a home from starting; `verify` names it.
    """
    told = []
    for intent in open_intents(keeper.ledger, "delete"):
        try:
            _settle(keeper, intent)
            told.append(f"{intent['version']} was moved to the trash")
        except (HeirloomError, OSError) as error:
            if intent in open_intents(keeper.ledger, "delete"):
                raise
            told.append(f"deleting {intent['version']} was taken back: {error}")
    if told:
        refresh(keeper)
    return told
