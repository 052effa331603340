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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from guard.checks.kinds import SIDE_SUFFIXES
from guard.durable import (
    clear_temporaries,
    copy_verified,
    fsync_dir,
    fsync_tree,
    make_dir,
    remove_tree,
    rename_new,
    sha256_file,
    sync_parents,
    write_text,
)
from guard.errors import EnvironmentFault, HeirloomError, is_environment
from guard.failpoints import point
from guard.home import Home
from guard.names import safe_name
from guard.store.files import SIDECARS, StoredFile, get_file, original_hashes
from guard.store.keeper import Keeper
from guard.store.side_files import keep_recorded, put_back, return_beside, side_source, store_beside, take_side

__all__ = [
    "admit", "claim", "claimed_content", "discard", "drop_folder", "give_back", "original_is_sound", "resume_claim", "set_drop",
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


def claim(
    keeper: Keeper,
    source: Path,
    *,
    origin: str = "inbox",
    move: bool = True,
    forced_kind: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Take a settled file out of the inbox (or copy one, `move=False`) into a folder of its own; returns the drop id.

    Raises FileNotFoundError when the file has gone (its row is closed), OSError for the environment's faults (the row
    stays open and `resume_claim` tries again).
    """
    now = keeper.clock.utc()
    with keeper.ledger.transaction():
        drop = keeper.ledger.run(
            "INSERT INTO drops (name, source, origin, mode, state, forced_kind, options, seen, updated) "
            "VALUES (?, ?, ?, ?, 'claiming', ?, ?, ?, ?)",
            (safe_name(source.name), os.fsencode(source), origin, "move" if move else "copy", forced_kind,
             orjson.dumps(dict(options or {})).decode(), now, now))  # fmt: skip
        keeper.ledger.event("drop.claiming", safe_name(source.name), drop=drop, origin=origin,
                            mode="move" if move else "copy", forced_kind=forced_kind, options=dict(options or {}),
                            source=os.fsencode(source).hex())  # fmt: skip
    point("claim.intended")
    resume_claim(keeper, drop, source, move=move)
    return drop


def resume_claim(keeper: Keeper, drop: int, source: Path, *, move: bool) -> str:
    """Finish a claim from wherever it stopped; returns the drop's state, `claimed` or `gone`."""
    content = claimed_content(keeper, drop)
    make_dir(content.parent)
    point("claim.foldered")
    side, mode = side_source(keeper, drop), "move" if move else "copy"
    if side is not None and not content.exists() and not take_side(side, content.parent, _take, move=move):
        return _let_go(keeper, drop, "its side file went before it could be taken; it is looked at again")
    if content.exists() and move and os.path.lexists(source):
        mode = _finish_copy(source, content)
    elif content.exists():
        sync_parents(content, source)
    if not content.exists():
        try:
            mode = _take(source, content, move)
        except OSError as error:
            if is_environment(error):
                raise
            gone = isinstance(error, FileNotFoundError)
            reason = "it was removed before it could be taken" if gone else f"it could not be taken: {error.strerror}"
            return _let_go(keeper, drop, reason)
    point("claim.renamed")
    with keeper.ledger.transaction():
        set_drop(keeper, drop, "claimed", mode=mode)
    point("claim.recorded")
    return "claimed"


def _let_go(keeper: Keeper, drop: int, reason: str) -> str:
    """Close a claim that cannot be finished; nothing of it is ours any more."""
    put_back(side_source(keeper, drop), drop_folder(keeper, drop), keeper.home.rejected)
    with keeper.ledger.transaction():
        set_drop(keeper, drop, "gone", reason)
    remove_tree(drop_folder(keeper, drop))
    return "gone"


def _take(source: Path, content: Path, move: bool) -> str:
    """Bring the bytes under our roof; returns how: "move", or "copy" when the source had to stay where it is."""
    facts = os.lstat(source)
    if not stat.S_ISREG(facts.st_mode):
        raise FileNotFoundError(errno.ENOENT, "no longer a regular file", os.fspath(source))
    own = facts.st_uid == os.geteuid()
    # A second name of the same bytes may be written to later, and a foreign owner may chmod: neither may share our copy.
    if move and facts.st_nlink == 1 and own and _renamed(source, content):
        return "move"
    point("copy.intended")
    copy_verified(source, content)
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


def _renamed(source: Path, content: Path) -> bool:
    try:
        rename_new(source, content)
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


def admit(keeper: Keeper, drop: int, record: Mapping[str, Any]) -> None:
    """Store the bytes of a claimed drop for ever under their hash; the caller records the file and its job.

    Idempotent: a crash anywhere is finished by calling it again.
    """
    with keeper.ledger.transaction():
        set_drop(keeper, drop, "admitting", sha256=record["sha256"], verdict=dict(record))
    point("admit.intended")
    final = keeper.home.files / str(record["sha256"])
    known = get_file(keeper.ledger, str(record["sha256"]))
    if final.exists() and not original_is_sound(keeper.home, str(record["sha256"]), known):
        _set_aside(final)
        point("admit.aside")
    if not final.exists():
        name = str(known.record["stored_as"]) if known else safe_name(str(record["name"]))
        _store(keeper, drop, final, name)
    elif known is not None and known.kind == "docs" != record["kind"]:
        _replace_sidecars(drop_folder(keeper, drop) / "identity", final)
    else:
        sync_parents(final)
    point("admit.renamed")


def original_is_sound(home: Home, sha256: str, known: StoredFile | None) -> bool:
    """Whether the stored bytes are what they were admitted as; only then may a second copy of them be let go."""
    folder = home.files / sha256
    names = list(original_hashes(known).items()) if known else [
        (path.name, sha256) for path in folder.iterdir() if path.name not in SIDECARS]  # fmt: skip
    return bool(names) and all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in names)


def _set_aside(final: Path) -> None:
    """A damaged original makes room for good bytes; it is kept, hidden beside them, for whoever wants to look."""
    number = 1
    while os.path.lexists(aside := final.with_name(f".damaged-{final.name}-{number}")):
        number += 1
    os.chmod(final, 0o755)
    rename_new(final, aside)


def _replace_sidecars(identity: Path, final: Path) -> None:
    """A document that is now training text as well: its examples become known beside the same bytes."""
    os.chmod(final, 0o755)
    clear_temporaries(final)
    for name in ("examples.fp", "record.json"):
        copy_verified(identity / name, final / name)
        os.chmod(final / name, 0o444)
    os.chmod(final, 0o555)


def _store(keeper: Keeper, drop: int, final: Path, name: str) -> None:
    folder = drop_folder(keeper, drop)
    ready = folder / "store"
    again = ready.is_dir()
    make_dir(ready)
    content = claimed_content(keeper, drop)
    if content.exists():
        rename_new(content, ready / name)
    point("admit.stored")
    # Halves that a death left, here or in the reader's folder, are neither stored for ever nor a reason to refuse.
    clear_temporaries(ready)
    clear_temporaries(folder / "identity")
    for item in sorted((folder / "identity").iterdir()):
        if item.name not in ("examples.fp", "record.json"):
            raise HeirloomError(f"the identify child wrote an unknown file {item.name}", subject=str(item))
        if not (ready / item.name).exists():
            copy_verified(item, ready / item.name)
    store_beside(folder, ready)
    keep_recorded(get_file(keeper.ledger, final.name), final, ready)
    if again:
        # An earlier attempt may have met a failed fsync, after which the kernel calls lost pages clean (law 1): what
        # it left is written once more, into new files, and never synced a second time.
        for item in list(ready.iterdir()):
            copy_verified(item, item)
    for item in ready.iterdir():
        os.chmod(item, 0o444)
    fsync_tree(ready)
    point("admit.sidecars")
    rename_new(ready, final)
    os.chmod(final, 0o555)  # after the move: a read-only folder cannot be moved by an ordinary user


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


def discard(keeper: Keeper, drop: int) -> None:
    """Remove what is left of a drop's folder once its bytes are stored or returned."""
    with contextlib.suppress(FileNotFoundError):
        remove_tree(drop_folder(keeper, drop))
