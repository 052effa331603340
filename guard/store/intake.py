"""The acts of intake: claim a drop out of the inbox, admit its bytes for ever, or give it back with a reason.

Each act writes its intent first, moves bytes second, and records the outcome last; every step may be repeated, which
is all that recovery needs to know. User bytes are never deleted: they are moved, or copied and verified.
Not here: whether a file is settled (`daemon/settle.py`) or what it is (`guard/checks/identify.py`).

A claimed drop lies in `data/.incoming/drop-00000012/`: `content` (the bytes), `identity/` (what the child found).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from guard.checks.kinds import SIDE_SUFFIXES
from guard.durable import (
    Folders,
    clear_temporaries,
    copy_verified,
    fsync_dir,
    fsync_file,
    fsync_tree,
    make_dir,
    remove_tree,
    rename_new,
    seal_tree,
    sha256_file,
    sync_parents,
    write_text,
)
from guard.errors import EnvironmentFault, HeirloomError, is_environment
from guard.failpoints import point
from guard.names import safe_name
from guard.store.files import SIDECARS, StoredFile, get_file
from guard.store.keeper import Keeper
from guard.store.originals import damaged_parts, mendable_parts, stray_is_sound
from guard.store.side_files import SIDE, put_back, return_beside, side_source, store_beside, take_side

__all__ = [
    "REREAD", "Wish", "claim", "claim_many", "claimed_content", "discard", "drop_folder", "give_back", "intend_admission",
    "is_itself", "make_durable", "put_in_place", "resume_claim", "set_aside", "set_drop", "take_back",
]  # fmt: skip


def drop_folder(keeper: Keeper, drop: int) -> Path:
    """Where a claimed drop lies until its verdict."""
    return keeper.home.incoming / f"drop-{drop:08d}"


def claimed_content(keeper: Keeper, drop: int) -> Path:
    """The claimed bytes of a drop."""
    return drop_folder(keeper, drop) / "content"


def set_drop(keeper: Keeper, drop: int, state: str, reason: str = "", **columns: object) -> None:
    """Change a drop inside the current transaction, with its event."""
    values = {key: orjson.dumps(value).decode() if isinstance(value, dict) else value for key, value in columns.items()}
    assert values.keys() <= {"sha256", "verdict", "returned_to", "mode", "attempts", "options"}
    changes = "".join(f", {key} = ?" for key in values)
    ledger = keeper.ledger
    ledger.run(f"UPDATE drops SET state = ?, reason = ?, updated = ?{changes} WHERE id = ?",
               (state, reason, ledger.clock.utc(), *values.values(), drop))  # fmt: skip
    name = ledger.value("SELECT name FROM drops WHERE id = ?", (drop,))
    told = {key: columns[key] for key in ("sha256", "returned_to") if columns.get(key)}
    ledger.event(f"drop.{state}", str(name), drop=drop, reason=reason, **told)


REREAD = "its bytes are not what was read before: it is read again"


@dataclass(frozen=True)
class Wish:
    """A file to be taken: where it lies, and what goes with it into the drop's row."""

    source: Path
    origin: str = "inbox"
    move: bool = True
    forced_kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def claim(keeper: Keeper, source: Path, *, origin: str = "inbox", move: bool = True, forced_kind: str | None = None,
          options: Mapping[str, Any] | None = None) -> int:  # fmt: skip
    """Take a settled file out of the inbox (or copy one, `move=False`) into a folder of its own; returns the drop id.

    A file that has gone closes its row. Raises OSError for the environment's faults (the row stays open and
    `resume_claim` tries again).
    """
    drop, problem = claim_many(keeper, [Wish(source, origin, move, forced_kind, dict(options or {}))])[0]
    if problem is not None:
        raise problem
    return drop


def claim_many(keeper: Keeper, wishes: Sequence[Wish]) -> list[tuple[int, OSError | HeirloomError | None]]:
    """`claim` for several files with two transactions in all; beside each drop id what kept it from being taken."""
    with keeper.ledger.transaction():
        drops = [_open_drop(keeper, wish) for wish in wishes]
    point("claim.intended")
    found: list[tuple[int, OSError | HeirloomError | None]] = []
    modes: dict[int, str] = {}
    later = Folders()
    for drop, wish in zip(drops, wishes, strict=True):
        try:
            mode = _bring_in(keeper, drop, wish.source, move=wish.move, later=later)
        except (OSError, HeirloomError) as error:
            found.append((drop, error))
            continue
        found.append((drop, None))
        if mode:
            modes[drop] = mode
    later.sync()
    _record_claims(keeper, modes)
    return found


def _open_drop(keeper: Keeper, wish: Wish) -> int:
    """The row and the event of an intended claim; inside a transaction."""
    now, name, mode = keeper.clock.utc(), safe_name(wish.source.name), "move" if wish.move else "copy"
    drop = keeper.ledger.run(
        "INSERT INTO drops (name, source, origin, mode, state, forced_kind, options, seen, updated) "
        "VALUES (?, ?, ?, ?, 'claiming', ?, ?, ?, ?)",
        (name, os.fsencode(wish.source), wish.origin, mode, wish.forced_kind, orjson.dumps(dict(wish.options)).decode(),
         now, now))  # fmt: skip
    keeper.ledger.event("drop.claiming", name, drop=drop, origin=wish.origin, mode=mode, forced_kind=wish.forced_kind,
                        options=dict(wish.options), source=os.fsencode(wish.source).hex())  # fmt: skip
    return drop


def _record_claims(keeper: Keeper, modes: Mapping[int, str]) -> None:
    if not modes:
        return
    with keeper.ledger.transaction():
        for drop, mode in modes.items():
            set_drop(keeper, drop, "claimed", mode=mode)
    point("claim.recorded")


def resume_claim(keeper: Keeper, drop: int, source: Path, *, move: bool) -> str:
    """Finish a claim from wherever it stopped; returns the drop's state, `claimed` or `gone`."""
    mode = _bring_in(keeper, drop, source, move=move)
    _record_claims(keeper, {drop: mode} if mode else {})
    return "claimed" if mode else "gone"


def _bring_in(keeper: Keeper, drop: int, source: Path, *, move: bool, later: Folders | None = None) -> str:
    """Bring a drop's bytes under our roof from wherever that stopped; returns how, "" when they have gone."""
    content = claimed_content(keeper, drop)
    side, mode = side_source(keeper, drop), "move" if move else "copy"
    # A side file is moved durably at once: the folder it goes into has to be there for good before.
    make_dir(content.parent, None if side else later)
    point("claim.foldered")
    if side is not None and not content.exists() and not take_side(side, content.parent, _take, move=move):
        return _let_go(keeper, drop, "its side file went before it could be taken; it is looked at again")
    if content.exists() and move and os.path.lexists(source):
        mode = _finish_copy(source, content)
    elif content.exists():
        sync_parents(content.parent, content, source)
    if not content.exists():
        try:
            mode = _take(source, content, move, later)
        except OSError as error:
            if is_environment(error):
                raise
            gone = isinstance(error, FileNotFoundError)
            reason = "it was removed before it could be taken" if gone else f"it could not be taken: {error.strerror}"
            return _let_go(keeper, drop, reason)
    point("claim.renamed")
    return mode


def _let_go(keeper: Keeper, drop: int, reason: str) -> str:
    """Close a claim that cannot be finished; nothing of it is ours any more. Returns ""."""
    put_back(side_source(keeper, drop), drop_folder(keeper, drop), keeper.home.rejected)
    with keeper.ledger.transaction():
        set_drop(keeper, drop, "gone", reason)
    remove_tree(drop_folder(keeper, drop))
    return ""


def _take(source: Path, content: Path, move: bool, later: Folders | None = None) -> str:
    """Bring the bytes under our roof; returns how: "move", or "copy" when the source had to stay where it is.

    A move may be made durable `later`; a copy is durable, with the folder it lies in, before its source goes.
    """
    facts = os.lstat(source)
    if not stat.S_ISREG(facts.st_mode):
        raise FileNotFoundError(errno.ENOENT, "no longer a regular file", os.fspath(source))
    own = facts.st_uid == os.geteuid()
    # A second name of the same bytes may be written to later, and a foreign owner may chmod: neither may share our copy.
    if move and facts.st_nlink == 1 and own and _renamed(source, content, later):
        return "move"
    point("copy.intended")
    copy_verified(source, content)
    sync_parents(content.parent)
    point("copy.copied")
    if move and _unlinked(source, facts):
        point("copy.unlinked")
        return "move"
    return "copy"


def _finish_copy(source: Path, content: Path) -> str:
    """A death between copying and taking the source name away: the very same bytes are not taken twice."""
    facts = os.lstat(source)
    same = stat.S_ISREG(facts.st_mode) and facts.st_size == content.stat().st_size
    if same and sha256_file(source) == sha256_file(content):
        return "move" if _unlinked(source, facts) else "copy"
    return "move"


def _renamed(source: Path, content: Path, later: Folders | None) -> bool:
    try:
        rename_new(source, content, later)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise
    return True


def _unlinked(source: Path, facts: os.stat_result) -> bool:
    """Take the source name away after its bytes were copied and verified; never a file that changed meanwhile."""
    now = os.lstat(source)
    if (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) != (
        facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns,
    ):  # fmt: skip
        return False
    try:
        os.unlink(source)
        fsync_dir(source.parent)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return False
    return True


def intend_admission(keeper: Keeper, drop: int, record: Mapping[str, Any]) -> None:
    """Write down that a drop is about to be stored; inside a transaction."""
    set_drop(keeper, drop, "admitting", sha256=record["sha256"], verdict=dict(record))


def make_durable(keeper: Keeper, drop: int) -> None:
    """Sync the bytes of a drop and what was found in them: the intent to admit stands on both. Raises OSError."""
    folder = drop_folder(keeper, drop)
    for item in (claimed_content(keeper, drop), folder / SIDE):
        if item.exists():
            fsync_file(item)
    if folder.is_dir():
        fsync_dir(folder)


def is_itself(keeper: Keeper, drop: int, sha256: str) -> bool:
    """Whether the bytes of a drop that was about to be stored still have the hash they were judged by; read now.

    True where they are stored already. For whoever finds the drop after a death: a disk may have lost what it promised.
    """
    ready = drop_folder(keeper, drop) / "store"
    parts = [path for path in ready.iterdir() if path.name not in SIDECARS] if ready.is_dir() else []
    found = [path for path in (claimed_content(keeper, drop), *parts) if path.is_file()]
    return all(sha256_file(path) == sha256 for path in found if not path.name.endswith(".tmp"))


def take_back(keeper: Keeper, drop: int, reason: str) -> None:
    """Give up an admission that was intended: the drop is claimed and unread again. Nothing of it was stored."""
    folder = drop_folder(keeper, drop)
    parts = [path for path in (folder / "store").iterdir() if path.name not in SIDECARS] if (folder / "store").is_dir() else []
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
        name = str(known.record["stored_as"]) if known else safe_name(str(record["name"]))
        _store(keeper, drop, final, name, _kept_sidecars(keeper, drop, known, record), later)
    elif known is not None and known.kind == "docs" != record["kind"]:
        _replace_sidecars(drop_folder(keeper, drop) / "identity", final)
    else:
        sync_parents(final)
    seal_tree(final)  # after the move: a read-only folder cannot be moved by an ordinary user
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
    number = 1
    while os.path.lexists(aside := final.with_name(f".damaged-{final.name}-{number}")):
        number += 1
    os.chmod(final, 0o755)
    rename_new(final, aside)
    os.chmod(aside, 0o555)


def _replace_sidecars(identity: Path, final: Path) -> None:
    """A document that is now training text as well: its examples become known beside the same bytes."""
    os.chmod(final, 0o755)
    clear_temporaries(final)
    for name in ("examples.fp", "record.json"):
        copy_verified(identity / name, final / name)
        os.chmod(final / name, 0o444)
    os.chmod(final, 0o555)


def _store(keeper: Keeper, drop: int, final: Path, name: str, kept: Sequence[str] = (), later: Folders | None = None) -> None:
    """Put the bytes and their sidecars into place; a damaged original there is set aside, its sidecars `kept` go on."""
    folder = drop_folder(keeper, drop)
    ready = folder / "store"
    again, fresh = ready.is_dir(), not final.exists()
    # What is moved within the drop's folder is found at its old place after a power cut, or at its new one: `ready` is
    # synced as a whole before it takes its name, and nothing has to be durable before that.
    unsynced = Folders()
    make_dir(ready, unsynced)
    content = claimed_content(keeper, drop)
    if content.exists():
        rename_new(content, ready / name, unsynced)
    point("admit.stored")
    # Halves that a death left, here or in the reader's folder, are neither stored for ever nor a reason to refuse.
    clear_temporaries(ready)
    clear_temporaries(folder / "identity")
    for item in [final / sidecar for sidecar in kept if (final / sidecar).is_file()]:
        copy_verified(item, ready / item.name)
    for item in sorted((folder / "identity").iterdir()):
        if item.name not in ("examples.fp", "record.json"):
            raise HeirloomError(f"the identify child wrote an unknown file {item.name}", subject=str(item))
        if item.name not in kept and not (ready / item.name).exists():
            if fresh:
                rename_new(item, ready / item.name, unsynced)
            else:
                copy_verified(item, ready / item.name)  # how a damaged original is mended is asked of `identity` again
    store_beside(folder, ready)
    if again:
        # An earlier attempt may have met a failed fsync, after which the kernel calls lost pages clean (law 1): what
        # it left is written once more, into new files, and never synced a second time.
        for item in list(ready.iterdir()):
            copy_verified(item, item)
    for item in ready.iterdir():
        os.chmod(item, 0o444)
    fsync_tree(ready)
    point("admit.sidecars")
    if final.exists():
        set_aside(final)
        point("admit.aside")
    rename_new(ready, final, unsynced if later is not None else None)
    if later is not None:
        later.gained(final.parent)


def give_back(keeper: Keeper, drop: int, verdict: str, reason: str, why: str, record: Mapping[str, Any]) -> Path | None:
    """Return a claimed drop to `inbox/rejected/` or `inbox/duplicates/` with `<name>.why.txt` beside it.

    `verdict` is "rejected" or "duplicate". Returns where it lies now; None for a copy whose source never moved.
    """
    row = keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (drop,))
    assert row is not None
    folder = keeper.home.rejected if verdict == "rejected" else keeper.home.duplicates
    _ready_folder(folder)
    content = claimed_content(keeper, drop)
    target = Path(os.fsdecode(row["returned_to"])) if row["returned_to"] else _free_name(folder, row["name"])
    if content.exists() and os.path.lexists(target):
        target = _free_name(folder, row["name"])  # somebody took the name since it was chosen
    with keeper.ledger.transaction():
        set_drop(keeper, drop, "returning", reason, returned_to=str(target), sha256=record.get("sha256"),
                 verdict={**record, "verdict": verdict, "why": why})  # fmt: skip
    point("verdict.intended")
    kept = row["mode"] == "copy"
    if not kept:
        if content.exists():
            _move_out(content, target)
        else:
            sync_parents(target, content)
        point("verdict.returned")
        return_beside(side_source(keeper, drop), drop_folder(keeper, drop), target, _move_out)
        write_text(target.with_name(_why_name(target.name)), why)
    else:
        put_back(side_source(keeper, drop), drop_folder(keeper, drop), folder)
    point("verdict.moved")
    with keeper.ledger.transaction():
        set_drop(keeper, drop, verdict, reason, returned_to=None if kept else str(target))
    point("verdict.recorded")
    remove_tree(drop_folder(keeper, drop))
    point("verdict.cleared")
    return None if kept else target


def _why_name(name: str) -> str:
    """`<name>.why.txt`, shortened so that even a 255-byte name gets one."""
    return f"{safe_name(name)}.why.txt"


def _ready_folder(folder: Path) -> None:
    """`inbox/rejected/` may be made again; the inbox itself never: where it is missing, its disk may be (law 9)."""
    if not folder.parent.is_dir():
        raise EnvironmentFault(f"{folder.parent} has vanished", subject=str(folder.parent),
                               hint="is its disk mounted? nothing is put under a missing one")  # fmt: skip
    make_dir(folder)


def _free_name(folder: Path, name: str) -> Path:
    """A name in the folder that nothing has: `data.jsonl`, then `data (2).jsonl` ... (an older drop is never replaced)."""
    stem, suffix = os.path.splitext(name)
    number = 1
    while True:
        candidate = folder / (name if number == 1 else f"{stem} ({number}){suffix}")
        beside = [candidate.name, _why_name(candidate.name), *(candidate.name + suffix for suffix in SIDE_SUFFIXES)]
        if not any(os.path.lexists(folder / item) for item in beside):
            return candidate
        number += 1


def _move_out(content: Path, target: Path) -> None:
    try:
        rename_new(content, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_verified(content, target)
        os.unlink(content)


def discard(keeper: Keeper, drop: int, later: Folders | None = None) -> None:
    """Remove what is left of a drop's folder once its bytes are stored or returned."""
    with contextlib.suppress(FileNotFoundError):
        remove_tree(drop_folder(keeper, drop), later)
