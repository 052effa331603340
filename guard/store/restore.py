"""Bringing a version back: out of the trash, out of the vault, or from any folder that holds it.

    source proven -> intent -> (copied into staging, every file verified, the copy read back) -> whatever damaged
    folder is in the way moved aside into the trash -> renamed into models/ -> proven again -> one transaction -> views

Nothing is removed to make room, and the source of a copy is never touched. What counts as proof is the ledger's hash
of SHA256SUMS and the hash of every file; a damaged source is refused.
`finish_restores` finishes an interrupted one, or takes it back. Not here: choosing what to restore after a disaster.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from guard.durable import fsync_dir, remove_tree, rename_new
from guard.errors import CheckFailed, Damage, EnvironmentFault, HeirloomError, NotFound, is_environment
from guard.failpoints import point
from guard.folders import sync_parents
from guard.seal import loosen, open_shelf, open_top, require_openable, seal_folder
from guard.steps import Steps, drain
from guard.store.archive import finish_archives
from guard.store.intents import clear_intent, open_intents, put_intent
from guard.store.keeper import Keeper
from guard.store.purge import finish_purges
from guard.store.sums import SUMS, problem_steps, read_sums
from guard.store.trash import (
    finish_deletes,
    free_trash_name,
    is_folder,
    move_sealed,
    note_trash,
    seal_top,
    trash_folder,
    trash_notes,
)
from guard.store.vault_frames import stored_problem_steps, stored_size, take_out_steps
from guard.store.versions import Version, find_version
from guard.store.views import refresh

__all__ = ["finish_restores", "restore", "restore_steps"]


def restore(keeper: Keeper, text: str, *, source: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """`restore_steps` run to its end."""
    return drain(restore_steps(keeper, text, source=source, dry_run=dry_run))


def restore_steps(
    keeper: Keeper, text: str, *, source: str | None = None, dry_run: bool = False
) -> Steps[dict[str, Any]]:  # fmt: skip
    """Bring a version back into models/, reading and copying in slices; returns version, source (trash, backup or a path)
    and path (where it is).

    `source`: "trash", "backup", a folder, or None (the trash when it lies there, else the vault).
    Raises NotFound when version or source do not exist, CheckFailed (3) when the version is present and intact,
    Damage (8) when the source is not what was sealed, EnvironmentFault when the disk is full or refuses.
    """
    if not dry_run:
        for finish in (finish_deletes, finish_purges, finish_restores, finish_archives):
            finish(keeper)
    version = find_version(keeper.ledger, text)
    target = keeper.home.models / version.name
    there = version.state in ("sealed", "quarantined")
    if there and not (yield from problem_steps(target, version.sums_sha256)):
        raise CheckFailed(f"{version.name} is in models/ and intact: there is nothing to restore", subject=version.name,
                          hint=f"heirloom rollback {version.name} makes it active")  # fmt: skip
    kind, origin = _choose(keeper, version, source)
    hint = f"heirloom restore {version.name} --from {'backup' if kind == 'trash' else 'PATH'}"
    yield from _prove(origin, version, hint, stored=kind != "trash")
    if kind != "trash":
        _refuse_full_disk(keeper, version, origin)
    for folder in (target, origin):
        require_openable(folder)
    result = {"version": version.name, "source": kind, "path": str(target)}
    if dry_run:
        return result
    intent = _intend(keeper, version, kind, origin)
    point("restore.intended")
    yield from _settle(keeper, intent)
    refresh(keeper)
    point("restore.viewed")
    return result


def _choose(keeper: Keeper, version: Version, source: str | None) -> tuple[str, Path]:
    """What to restore from, as ("trash" | "backup" | path, folder). Raises NotFound saying where was looked."""
    folder = trash_folder(keeper, version.name) if version.state == "trashed" else None
    if source == "trash" or (source is None and folder is not None):
        if folder is None or not is_folder(keeper.home.trash / folder):
            raise NotFound(f"{version.name} is not in the trash", subject=version.name,
                           hint=f"heirloom restore {version.name} --from backup")  # fmt: skip
        return "trash", keeper.home.trash / folder
    if source in (None, "backup"):
        vault = keeper.home.vault(keeper.settings.backup.path)
        if not is_folder(vault / "versions" / version.name):
            raise NotFound(f"the vault {vault} holds no {version.name}", subject=version.name,
                           hint="is its disk mounted? --from PATH takes any folder that holds the version")  # fmt: skip
        return "backup", vault / "versions" / version.name
    given = Path(str(source)).expanduser().absolute()
    for folder_path in (given, given / version.name, given / "versions" / version.name):
        if (folder_path / SUMS).is_file():
            return str(given), folder_path
    raise NotFound(f"{given} holds no version (there is no {SUMS})", subject=str(given),
                   hint="name the version's folder, or the vault it lies in")  # fmt: skip


def _prove(folder: Path, version: Version, hint: str, *, stored: bool = False) -> Steps[None]:
    """Read and hash everything; `stored`: as a vault holds it, frames decoded. Raises Damage naming the first file."""
    problems = yield from (stored_problem_steps(folder, version.sums_sha256, whole_chain=True) if stored
                           else problem_steps(folder, version.sums_sha256))  # fmt: skip
    if problems:
        name, problem = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Damage(f"{folder}/{name} {problem}{more}: not the {version.name} that was sealed", subject=version.name,
                     hint=hint)  # fmt: skip


def _refuse_full_disk(keeper: Keeper, version: Version, origin: Path) -> None:
    needed = sum(stored_size(origin, name) for name in (*read_sums(origin), SUMS))
    free = shutil.disk_usage(keeper.home.models).free
    if free <= needed:
        raise EnvironmentFault(f"{version.name} needs {needed:,} bytes and {free:,} are free", subject=version.name,
                               hint="free some space; nothing is deleted to make room")  # fmt: skip


def _was(keeper: Keeper, version: Version) -> str:
    """The state to give back: what it was before the trash; one that failed its gate never comes back as sealed."""
    if version.state in ("sealed", "quarantined"):
        return version.state
    noted = keeper.ledger.meta(f"gone:{version.name}")
    if noted is not None:
        return noted
    for note in trash_notes(keeper).values():
        if note["version"] == version.name and note["why"] == "deleted":
            return str(note["was"])
    job = keeper.ledger.value("SELECT j.state FROM versions v JOIN jobs j ON j.id = v.job_id WHERE v.id = ?",
                              (version.id,))  # fmt: skip
    return "quarantined" if job == "quarantined" else "sealed"


def _intend(keeper: Keeper, version: Version, kind: str, origin: Path) -> dict[str, Any]:
    in_the_way = os.path.lexists(keeper.home.models / version.name)
    intent = {
        "version": version.name, "kind": kind, "origin": str(origin), "was": _was(keeper, version),
        "aside": free_trash_name(keeper, f"{version.name}~damaged") if in_the_way else None,
    }  # fmt: skip
    with keeper.ledger.transaction():
        put_intent(keeper.ledger, "restore", version.name, intent)
        keeper.ledger.event("version.restoring", version.name, source=kind, origin=str(origin), aside=intent["aside"])
    return intent


def _incoming(keeper: Keeper, intent: dict[str, Any]) -> Path:
    """Where the version waits to be renamed into models/: its trash folder, or a staging folder of copies."""
    if intent["kind"] == "trash":
        return Path(intent["origin"])
    return keeper.home.staging / f"restore-{intent['version']}"


def _finish(keeper: Keeper, intent: dict[str, Any]) -> Steps[None]:
    """Bring an announced restore to its end from wherever it stands; every step may be repeated."""
    version = find_version(keeper.ledger, intent["version"])
    target, incoming = keeper.home.models / version.name, _incoming(keeper, intent)
    aside = keeper.home.trash / intent["aside"] if intent["aside"] else None
    placed = os.path.lexists(target) and not os.path.lexists(incoming) and (aside is None or os.path.lexists(aside))
    if not placed:
        if intent["kind"] != "trash":
            yield from _copy(Path(intent["origin"]), incoming, version)
        yield from _prove(incoming, version, "heirloom verify --backup")
        point("restore.checked")
        if aside is not None and not os.path.lexists(aside):
            move_sealed(keeper, target, aside)
            point("restore.aside")
        with open_shelf(keeper.home.models):
            if is_folder(incoming):
                open_top(incoming)
            rename_new(incoming, target)
        point("restore.placed")
    else:
        sync_parents(target, incoming, *([aside] if aside else []))
    seal_folder(target, keeper.settings.storage.seal)
    fsync_dir(target)
    point("restore.moved")
    yield from _prove(target, version, "check the disk: heirloom verify --all")
    _record(keeper, intent)
    point("restore.recorded")


def _copy(origin: Path, incoming: Path, version: Version) -> Steps[None]:
    """Copy into staging; what an earlier attempt copied well is kept."""
    yield from take_out_steps(origin, incoming, version.sums_sha256, lambda: point("restore.copied"))
    for path in [path for path in incoming.rglob(".*.tmp") if path.is_file()]:
        path.unlink()


def _record(keeper: Keeper, intent: dict[str, Any]) -> None:
    ledger, name = keeper.ledger, intent["version"]
    with ledger.transaction():
        ledger.run("UPDATE versions SET state = ? WHERE name = ?", (intent["was"], name))
        if intent["kind"] == "trash":
            ledger.run("DELETE FROM meta WHERE key = ?", (f"trash:{Path(intent['origin']).name}",))
        ledger.run("DELETE FROM meta WHERE key = ?", (f"gone:{name}",))
        if intent["aside"]:
            note_trash(keeper, intent["aside"], name, was=intent["was"], why="damaged")
        clear_intent(ledger, "restore", name)
        ledger.event("version.restored", name, source=intent["kind"], state=intent["was"], aside=intent["aside"])


def _settle(keeper: Keeper, intent: dict[str, Any]) -> Steps[None]:
    """Finish a restore, or take it back and raise what was in the way."""
    try:
        yield from _finish(keeper, intent)
    except (HeirloomError, OSError) as error:
        if intent in open_intents(keeper.ledger, "restore"):
            _take_back(keeper, intent, str(error), proven=not isinstance(error, Damage))
        if isinstance(error, OSError) and is_environment(error):
            name = intent["version"]
            raise EnvironmentFault(f"{name} could not be restored: {error.strerror or error}", subject=name,
                                   cause=error, hint="try again; nothing was lost") from error  # fmt: skip
        raise


def _take_back(keeper: Keeper, intent: dict[str, Any], why: str, *, proven: bool) -> None:
    """Leave everything where it was before: copies are dropped, what was moved aside goes back to its place.

    `proven`: nothing speaks against the bytes, a disk or the ledger refused. Then there is nothing to look at.
    """
    target, incoming = keeper.home.models / intent["version"], _incoming(keeper, intent)
    aside = keeper.home.trash / intent["aside"] if intent["aside"] else None
    unproven = ""
    if not os.path.lexists(incoming) and os.path.lexists(target) and (aside is None or os.path.lexists(aside)):
        # It came and did not prove itself: out of models/ again, kept for a person to look at.
        unproven = "" if intent["kind"] == "trash" or proven else free_trash_name(keeper, f"{intent['version']}~unproven")
        move_sealed(keeper, target, keeper.home.trash / unproven if unproven else incoming)
        point("restore.withdrawn")
    if aside is not None and os.path.lexists(aside) and not os.path.lexists(target):
        move_sealed(keeper, aside, target)
    if intent["kind"] == "trash":
        seal_top(keeper, incoming)
    elif os.path.lexists(incoming):
        loosen(incoming)
        remove_tree(incoming)
    point("restore.abandoned")
    with keeper.ledger.transaction():
        if unproven:
            note_trash(keeper, unproven, intent["version"], was=intent["was"], why="unproven")
        clear_intent(keeper.ledger, "restore", intent["version"])
        keeper.ledger.event("restore.abandoned", intent["version"], why=why)


def finish_restores(keeper: Keeper) -> list[str]:
    """Finish, or take back, every interrupted restore; returns what became of each in words."""
    told = []
    for intent in open_intents(keeper.ledger, "restore"):
        try:
            drain(_settle(keeper, intent))
            told.append(f"{intent['version']} was restored from {intent['kind']}")
        except (HeirloomError, OSError) as error:
            if intent in open_intents(keeper.ledger, "restore"):
                raise
            told.append(f"restoring {intent['version']} was taken back: {error}")
    if told:
        refresh(keeper)
    return told
