"""Purging: the one eraser of versions, and only of what a person moved to the trash before (law 3).

    backup read back and hashed now, or `--no-backup` and the full name typed -> intent -> renamed inside the trash
    -> one transaction (state "purged") -> erased -> views

Before the rename a purge that a death interrupted is taken back and the version lies whole in the trash; after it, the
purge is finished. One that an error interrupts is taken back until it is recorded. The number is never given again and
the lineage goes on to show the version.
Beside deleted versions the trash holds what a restore moved out of its way (damaged or unproven copies) and what an
archiving left behind: they go the same way, and the version itself stays. Folders that no note speaks of are left alone.
Not here: moving anything to the trash (`trash.py`), erasing what was archived (`archive.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.clock import utc_before
from guard.durable import rename_new
from guard.errors import CheckFailed, EnvironmentFault, HeirloomError, NotConfirmed, NotFound, Protected, is_environment
from guard.failpoints import point
from guard.seal import erase_sealed, open_top, require_openable
from guard.steps import Steps, drain
from guard.store.archive import copy_problem_steps
from guard.store.intents import clear_intent, open_intents, put_intent
from guard.store.keeper import Keeper
from guard.store.lineage import needed_to_load
from guard.store.sums import problem_steps
from guard.store.trash import finish_deletes, is_folder, move_sealed, seal_top, trash_folder, trash_notes
from guard.store.vault_state import other_device, vault_of
from guard.store.versions import GONE, find_version
from guard.store.views import refresh

__all__ = ["finish_purges", "purge", "purge_plan", "purge_steps"]

_PREFIX = ".purging-"


@dataclass(frozen=True)
class Doomed:
    """One folder of the trash that is asked to be erased."""

    folder: str
    version: str
    why: str
    since: str
    size_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {"folder": self.folder, "version": self.version, "why": self.why, "since": self.since, "bytes": self.size_bytes}


def purge_plan(keeper: Keeper, text: str | None, *, older_than_days: float | None, no_backup: bool) -> list[dict[str, Any]]:
    """`purge_plan_steps` run to its end."""
    return drain(purge_plan_steps(keeper, text, older_than_days=older_than_days, no_backup=no_backup))


def purge_plan_steps(
    keeper: Keeper, text: str | None, *, older_than_days: float | None, no_backup: bool
) -> Steps[list[dict[str, Any]]]:  # fmt: skip
    """What a purge would erase, oldest first, each with `backup`: "" when a sound copy was read back just now, else why
    not; and `copy`: where that is (vault, models, or ""). Changes nothing. With `no_backup` no copy is asked for.

    `text` names one version (then without `older_than_days` its age does not matter); None takes everything that has
    been in the trash for `older_than_days` (30 when None).
    Raises NotFound when a named version is not in the trash, CheckFailed when it has not been there long enough,
    Protected when a living version cannot be loaded without it.
    """
    found = []
    for item in _chosen(keeper, text, older_than_days):
        _refuse_needed(keeper, item)
        copy, problem = ("", "") if no_backup else (yield from _copy_of(keeper, item))
        found.append({**item.as_dict(), "copy": copy, "backup": problem})
    return found


def _chosen(keeper: Keeper, text: str | None, days: float | None) -> list[Doomed]:
    version = find_version(keeper.ledger, text) if text is not None else None
    items = [_doomed(keeper, folder, note) for folder, note in trash_notes(keeper).items()
             if (version is None or note["version"] == version.name) and is_folder(keeper.home.trash / folder)]  # fmt: skip
    if version is not None and not items:
        ways = {"archived": f"its only copy is in the vault: heirloom restore {version.name} brings it back first",
                "purged": f"it was erased before; a vault may hold it: heirloom restore {version.name}"}  # fmt: skip
        raise NotFound(f"{version.name} is not in the trash: it is {version.state}", subject=version.name,
                       hint=ways.get(version.state, f"heirloom delete {version.name} --force moves it there"))  # fmt: skip
    asked = days if days is not None else (None if version is not None else 30.0)
    old = [item for item in items if asked is None or item.since <= utc_before(keeper.clock.utc(), asked * 86400)]
    if version is not None and not old:
        raise CheckFailed(f"{version.name} has been in the trash only since {items[0].since}", subject=version.name,
                          hint="leave --older-than away, or wait")  # fmt: skip
    return sorted(old, key=lambda item: (item.since, item.folder))


def _doomed(keeper: Keeper, folder: str, note: Mapping[str, Any]) -> Doomed:
    paths = (path for path in (keeper.home.trash / folder).rglob("*") if not path.is_symlink())
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return Doomed(folder, note["version"], note["why"], note["utc"], size)


def _refuse_needed(keeper: Keeper, item: Doomed) -> None:
    """An adapter without its base is nothing: such a base stays while a living adapter stands on it."""
    version = find_version(keeper.ledger, item.version)
    users = needed_to_load(keeper.ledger, version.id) if version.state == "trashed" else []
    if users:
        raise Protected(f"{', '.join(users)} cannot be loaded without {item.version}", subject=item.version,
                        hint=f"heirloom restore {item.version} --from trash; or delete and purge {users[0]} first")  # fmt: skip


def _copy_of(keeper: Keeper, item: Doomed) -> Steps[tuple[str, str]]:
    """Where a sound copy was read and hashed at this moment ("models" or "vault"), or why erasing would lose something."""
    version = find_version(keeper.ledger, item.version)
    in_models = keeper.home.models / version.name
    if version.state not in GONE and not (yield from problem_steps(in_models, version.sums_sha256)):
        return "models", ""  # a leftover of a version that is in models/ and intact
    problem = yield from copy_problem_steps(keeper, version.name)
    return ("", problem) if problem else ("vault", "")


def purge(
    keeper: Keeper, text: str | None = None, *, older_than_days: float | None = None, no_backup: bool = False,
    confirm: str | None = None, yes: bool = False, dry_run: bool = False, shown: Collection[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`purge_steps` run to its end."""
    return drain(purge_steps(keeper, text, older_than_days=older_than_days, no_backup=no_backup, confirm=confirm, yes=yes,
                             dry_run=dry_run, shown=shown))  # fmt: skip


def purge_steps(
    keeper: Keeper, text: str | None = None, *, older_than_days: float | None = None, no_backup: bool = False,
    confirm: str | None = None, yes: bool = False, dry_run: bool = False, shown: Collection[str] | None = None,
) -> Steps[dict[str, Any]]:  # fmt: skip
    """Erase from the trash, reading copies back in slices; returns purged (the list of `purge_plan`), bytes, kept (versions
    without a sound copy), unseen, same_device (the copy in the vault lies on the models' own disk).

    `shown`: the folders that the person who confirmed was shown as going; what else might go is left and told as `unseen`.
    None: there was no list, everything is meant.

    With a sound copy in the vault `yes` (a person said so) or the typed name is enough. `no_backup` takes one named
    version and its full name in `confirm`. Without VERSION, what has no sound copy is left where it is and told.
    Raises what `purge_plan` raises, NotConfirmed, CheckFailed when a named version has no sound copy, EnvironmentFault.
    """
    if not dry_run:
        finish_deletes(keeper)
        finish_purges(keeper)
    if no_backup and text is None:
        raise NotConfirmed("--no-backup erases the only copy there may be, so it takes one version and its full name",
                           hint="heirloom purge VERSION --no-backup --confirm FULL_NAME")  # fmt: skip
    plan = yield from purge_plan_steps(keeper, text, older_than_days=older_than_days, no_backup=no_backup)
    may_go = [item for item in plan if not item["backup"]]
    safe = [item for item in may_go if shown is None or item["folder"] in shown]
    kept = [item for item in plan if item["backup"]]
    result = {"purged": safe, "bytes": sum(item["bytes"] for item in safe), "kept": kept,
              "unseen": [item for item in may_go if item not in safe], "same_device": _on_one_disk(keeper, safe)}  # fmt: skip
    if text is not None and kept:
        raise CheckFailed(f"{kept[0]['version']} would be lost: {kept[0]['backup']}", subject=kept[0]["version"],
                          hint=_way_out(kept[0]["version"]))  # fmt: skip
    if dry_run or not safe:
        return result
    _confirmed(keeper, text, no_backup=no_backup, confirm=confirm, yes=yes)
    for item in safe:
        require_openable(keeper.home.trash / item["folder"])
    for item in safe:
        _erase_one(keeper, {**item, "backed_up": not no_backup})
    refresh(keeper)
    point("purge.viewed")
    return result


def _on_one_disk(keeper: Keeper, going: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a copy that something is erased for lies on the very disk of the models: allowed, and told."""
    return any(item["copy"] == "vault" for item in going) and not other_device(keeper, vault_of(keeper))


def _way_out(name: str) -> str:
    return (f"heirloom restore {name} --from trash, then heirloom backup run; "
            f"or heirloom purge {name} --no-backup --confirm {name}")  # fmt: skip


def _confirmed(keeper: Keeper, text: str | None, *, no_backup: bool, confirm: str | None, yes: bool) -> None:
    """Raises NotConfirmed unless a person said it: the full name where it is needed, else the name or a yes."""
    name = find_version(keeper.ledger, text).name if text is not None else None
    if confirm is not None and confirm != name:
        raise NotConfirmed(f"{confirm!r} is not the full name of the version to purge; nothing was erased",
                           subject=name or "", hint=f"type {name or 'one VERSION and its name'} exactly")  # fmt: skip
    if confirm is None and no_backup:
        raise NotConfirmed(f"{name} has no copy that counts. Type model name to confirm:", subject=name or "",
                           hint=f"--confirm {name} confirms it where nobody can type")  # fmt: skip
    if confirm is None and not yes:
        raise NotConfirmed("nobody confirmed, so nothing was erased", subject=name or "", hint="heirloom purge ... --yes")


def _erase_one(keeper: Keeper, intent: dict[str, Any]) -> None:
    with keeper.ledger.transaction():
        put_intent(keeper.ledger, "purge", intent["folder"], intent)
        keeper.ledger.event("version.purging", intent["version"], trash=intent["folder"], backed_up=intent["backed_up"])
    point("purge.intended")
    try:
        source = keeper.home.trash / intent["folder"]
        open_top(source)
        rename_new(source, _erasing(keeper, intent))
        _finish(keeper, intent)
    except (HeirloomError, OSError) as error:
        if keeper.ledger.meta(f"trash:{intent['folder']}") is not None:
            # The note goes before the first byte does, so the folder is whole. The ledger may refuse; the next start
            # closes what is left open.
            with contextlib.suppress(HeirloomError, OSError):
                _take_back(keeper, intent, str(error))
        if isinstance(error, OSError) and is_environment(error):
            name = intent["version"]
            raise EnvironmentFault(f"{name} could not be purged: {error.strerror or error}", subject=name, cause=error,
                                   hint="try again; the next start finishes it") from error  # fmt: skip
        raise


def _erasing(keeper: Keeper, intent: Mapping[str, Any]) -> Path:
    """The name under which a folder is taken apart: who sees it knows that it is not whole any more."""
    return keeper.home.trash / f"{_PREFIX}{intent['folder']}"


def _finish(keeper: Keeper, intent: Mapping[str, Any]) -> None:
    """From the rename on: record, erase, forget the intent. Every step may be repeated."""
    ledger, name = keeper.ledger, intent["version"]
    point("purge.moved")
    if ledger.meta(f"trash:{intent['folder']}") is not None:
        with ledger.transaction():
            was = trash_notes(keeper)[intent["folder"]]["was"]
            ledger.run("DELETE FROM meta WHERE key = ?", (f"trash:{intent['folder']}",))
            if find_version(ledger, name).state == "trashed" and trash_folder(keeper, name) is None:
                ledger.set_meta(f"gone:{name}", str(was))
                ledger.run("UPDATE versions SET state = 'purged' WHERE name = ?", (name,))
            ledger.event("version.purged", name, trash=intent["folder"], why=intent["why"], bytes=intent["bytes"],
                         backed_up=intent["backed_up"])  # fmt: skip
    point("purge.recorded")
    erase_sealed(_erasing(keeper, intent))
    point("purge.erased")
    with ledger.transaction():
        clear_intent(ledger, "purge", intent["folder"])


def _take_back(keeper: Keeper, intent: Mapping[str, Any], why: str) -> None:
    """Nothing was erased yet: the folder lies in the trash as before."""
    place, moved = keeper.home.trash / intent["folder"], _erasing(keeper, intent)
    if os.path.lexists(moved):
        move_sealed(keeper, moved, place)
    else:
        seal_top(keeper, place)
    with keeper.ledger.transaction():
        clear_intent(keeper.ledger, "purge", intent["folder"])
        keeper.ledger.event("purge.abandoned", intent["version"], why=why)


def finish_purges(keeper: Keeper) -> list[str]:
    """Finish every purge that had begun to erase, take the others back; returns what became of each in words."""
    told = []
    for intent in open_intents(keeper.ledger, "purge"):
        begun = os.path.lexists(_erasing(keeper, intent)) or keeper.ledger.meta(f"trash:{intent['folder']}") is None
        try:
            if not begun:
                _take_back(keeper, intent, "it was interrupted before anything was erased")
                told.append(f"purging {intent['version']} was taken back")
                continue
            _finish(keeper, intent)
        except (HeirloomError, OSError) as error:
            # What is left is in the trash and verify names it: it never keeps a home from starting.
            told.append(f"purging {intent['version']} is left for later: {error}")
            continue
        told.append(f"{intent['version']} was purged")
    if told:
        refresh(keeper)
    return told
