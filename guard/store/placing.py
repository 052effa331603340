"""Placing: the bytes of a drop that was judged sound, from the intent to admit until they lie sealed in `data/files/`.

Every step may be repeated. What is stored is never overwritten: a damaged original is set aside before better bytes of
the same hash take its name. Not here: the claim before it (`intake.py`), what is recorded after it (`admission.py`), or
what becomes of bytes that are refused (`returning.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.copies import copy_verified
from guard.durable import (
    clear_temporaries,
    fsync_dir,
    make_dir,
    remove_tree,
    rename_new,
    seal_file,
    seal_tree,
    sha256_file,
)
from guard.errors import HeirloomError
from guard.failpoints import point
from guard.folders import Folders, sync_parents
from guard.names import first_free, safe_name
from guard.store.files import SIDECARS, StoredFile, get_file
from guard.store.folder_drops import PACKED
from guard.store.intake import claimed_bytes, claimed_content, drop_folder, set_drop
from guard.store.keeper import Keeper
from guard.store.originals import damaged_parts, mendable_parts, stray_is_sound
from guard.store.side_files import SIDE, store_beside

__all__ = ["REREAD", "intend_admission", "is_itself", "make_durable", "not_synced", "put_in_place", "set_aside", "stored_name",
           "take_back"]  # fmt: skip

_FOUND = ("examples.fp", "record.json")
REREAD = "its bytes are not what was read before: it is read again"


def intend_admission(keeper: Keeper, drop: int, record: Mapping[str, Any]) -> None:
    """Write down that a drop is about to be stored; inside a transaction."""
    set_drop(keeper, drop, "admitting", name=str(record["name"]), sha256=record["sha256"], verdict=dict(record))


def stored_name(record: Mapping[str, Any]) -> str:
    """The name under which a drop's bytes are stored: its own, or that of the tar a folder became."""
    name = str(record["name"])
    is_folder = record.get("container") == "tar" and not name.lower().endswith(".tar")
    return safe_name(f"{name}.tar" if is_folder else name)


def not_synced(keeper: Keeper, drop: int) -> None:
    """Remember that a sync of a drop's bytes or findings failed: they are written anew before anything stands on them."""
    keeper.memory["not synced", drop] = True


def make_durable(keeper: Keeper, drop: int, synced: bool | None = None) -> None:
    """Seal and sync the bytes of a drop and what was found in them: the intent to admit stands on both. Raises OSError.

    `synced`: whether the reader could do so already; None when it was not asked to. After a failed fsync the kernel calls
    lost pages clean (law 1): what an attempt could not sync is written once more, into new files, and never synced a
    second time.
    """
    folder = drop_folder(keeper, drop)
    found, content = folder / "identity", claimed_bytes(keeper, drop)
    again = keeper.memory.pop(("not synced", drop), False) or synced is False
    items = [folder / SIDE, *([content, *(found.iterdir() if found.is_dir() else ())] if again or not synced else ())]
    try:
        for item in items:
            if item.is_file():
                if again:
                    copy_verified(item, item)
                seal_file(item)
        for part in (found, folder) if again or not synced else ():
            if part.is_dir():
                fsync_dir(part)
    except OSError:
        not_synced(keeper, drop)
        raise


def is_itself(keeper: Keeper, drop: int, sha256: str) -> bool:
    """Whether the bytes of a drop that was about to be stored still have the hash they were judged by; read now.

    True where they are stored already. For whoever finds the drop after a death: a disk may have lost what it promised.
    """
    ready = drop_folder(keeper, drop) / "store"
    parts = [path for path in ready.iterdir() if path.name not in SIDECARS] if ready.is_dir() else []
    found = [path for path in (claimed_bytes(keeper, drop), *parts) if path.is_file()]
    if not found and claimed_content(keeper, drop).is_dir() and not (keeper.home.files / sha256).exists():
        return False  # the folder is there and what it was packed into is not
    return all(sha256_file(path) == sha256 for path in found if not path.name.endswith(".tmp"))


def take_back(keeper: Keeper, drop: int, reason: str) -> None:
    """Give up an admission that was intended: the drop is claimed and unread again. Nothing of it was stored."""
    folder = drop_folder(keeper, drop)
    parts = [path for path in (folder / "store").iterdir() if path.name not in SIDECARS] if (folder / "store").is_dir() else []
    if claimed_content(keeper, drop).is_dir():
        parts = []  # it is packed again
        remove_tree(folder / PACKED)
    for path in parts:
        if not claimed_content(keeper, drop).exists():
            rename_new(path, claimed_content(keeper, drop))
    remove_tree(folder / "store")
    remove_tree(folder / "identity")
    with keeper.ledger.transaction():
        set_drop(keeper, drop, "claimed", reason)


def put_in_place(keeper: Keeper, drop: int, record: Mapping[str, Any], later: Folders | None = None) -> None:
    """Move the bytes of a drop whose admission was intended into data/files; does nothing where that was done."""
    final = keeper.home.files / str(record["sha256"])
    known = get_file(keeper.ledger, str(record["sha256"]))
    if not final.exists() or not _is_whole(keeper, drop, final, known, record):
        name = str(known.record["stored_as"]) if known else stored_name(record)
        _store(keeper, drop, final, name, _kept_sidecars(keeper, drop, known, record), later)
    elif known is not None and known.kind == "docs" != record["kind"]:
        _replace_sidecars(drop_folder(keeper, drop) / "identity", final)
    else:
        sync_parents(final)
    # After the move: a read-only folder cannot be moved by an ordinary user.
    if later is None or any(item.is_dir() or item.stat().st_mode & 0o7777 != 0o444 for item in final.iterdir()):
        seal_tree(final)
    else:
        os.chmod(final, 0o555)
        later.gained(final)
    point("admit.renamed")


def _is_whole(keeper: Keeper, drop: int, final: Path, known: StoredFile | None, record: Mapping[str, Any]) -> bool:
    """Whether what is stored may stay as it is: sound, or damaged where these bytes cannot put it right."""
    identity = drop_folder(keeper, drop) / "identity"
    if known is None:
        return stray_is_sound(final, final.name, identity)
    return not mendable_parts(damaged_parts(keeper.home, known), known, record, identity)


def _kept_sidecars(keeper: Keeper, drop: int, known: StoredFile | None, record: Mapping[str, Any]) -> list[str]:
    """The sidecars that go on from a stored original that is mended: all but those that are made anew."""
    if known is None or known.kind == "docs" != record["kind"]:
        return []
    damaged = damaged_parts(keeper.home, known)
    mended = mendable_parts(damaged, known, record, drop_folder(keeper, drop) / "identity")
    return [name for name in SIDECARS if name not in mended]


def set_aside(final: Path) -> None:
    """A damaged original in data/files makes room for good bytes; it is kept, hidden beside them, for whoever wants to look."""
    number = first_free(lambda number: os.path.lexists(final.with_name(f".damaged-{final.name}-{number}")))
    aside = final.with_name(f".damaged-{final.name}-{number}")
    os.chmod(final, 0o755)
    rename_new(final, aside)
    os.chmod(aside, 0o555)


def _replace_sidecars(identity: Path, final: Path) -> None:
    """A document that is now training text as well: its examples become known beside the same bytes."""
    os.chmod(final, 0o755)
    clear_temporaries(final)
    for name in _FOUND:
        copy_verified(identity / name, final / name)
        os.chmod(final / name, 0o444)
    os.chmod(final, 0o555)


def _store(keeper: Keeper, drop: int, final: Path, name: str, kept: Sequence[str] = (), later: Folders | None = None) -> None:
    """Put the bytes and their sidecars into place; a damaged original there is set aside, its sidecars `kept` go on."""
    folder = drop_folder(keeper, drop)
    ready, found = folder / "store", folder / "identity"
    again, fresh = ready.is_dir(), not final.exists()
    # What is moved within the drop's folder is found at its old place after a power cut, or at its new one: `ready` is
    # synced as a whole before it takes its name, and nothing has to be durable before that.
    unsynced = Folders()
    # Halves that a death left, here or in the reader's folder, are neither stored for ever nor a reason to refuse.
    clear_temporaries(found)
    for item in sorted(found.iterdir()) if found.is_dir() else ():
        if item.name not in _FOUND:
            raise HeirloomError(f"the identify child wrote an unknown file {item.name}", subject=str(item))
    if fresh and not again and found.is_dir():
        rename_new(found, ready, unsynced)
    make_dir(ready, unsynced)
    clear_temporaries(ready)
    content = claimed_bytes(keeper, drop)
    if content.exists():
        rename_new(content, ready / name, unsynced)
    point("admit.stored")
    for item in [final / sidecar for sidecar in kept if (final / sidecar).is_file()]:
        copy_verified(item, ready / item.name)
    for item in sorted(found.iterdir()) if found.is_dir() else ():
        if item.name not in kept and not (ready / item.name).exists():
            copy_verified(item, ready / item.name)  # how a damaged original is mended is asked of `identity` again
    store_beside(folder, ready)
    if again:
        # An earlier attempt may have met a failed fsync, after which the kernel calls lost pages clean (law 1): what
        # it left is written once more, into new files, and never synced a second time.
        for item in list(ready.iterdir()):
            copy_verified(item, item)
    for item in ready.iterdir():
        if item.stat().st_mode & 0o7777 != 0o444:  # `make_durable` sealed and synced what was not copied since
            seal_file(item)
    fsync_dir(ready)
    point("admit.sidecars")
    if final.exists():
        set_aside(final)
        point("admit.aside")
    rename_new(ready, final, unsynced if later is not None else None)
    if later is not None:
        later.gained(final.parent)
