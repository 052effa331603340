"""The claim of a drop: out of the inbox into a folder of its own, where nobody changes it any more.

Every act of intake writes its intent first, moves bytes second, and records the outcome last; every step may be
repeated, which is all that recovery needs to know. User bytes are never deleted: they are moved, or copied and verified.
Not here: whether a file is settled (`daemon/settle.py`), what it is (`guard/checks/identify.py`), how its bytes are
stored for ever (`placing.py`) or given back (`returning.py`).

A claimed drop lies in `data/.incoming/drop-00000012/`: `content` (the bytes, or a folder), `packed.tar` (that folder as one
file), `identity/` (what the child found).
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

from guard.copies import copy_verified
from guard.durable import fsync_dir, make_dir, remove_tree, rename_new, sha256_file
from guard.errors import HeirloomError, is_environment
from guard.failpoints import point
from guard.folders import Folders, sync_parents
from guard.names import safe_name
from guard.store.folder_drops import bytes_of, finish_folder_copy, spare_histories, take_folder
from guard.store.keeper import Keeper
from guard.store.side_files import put_back, side_source, take_side

__all__ = ["Wish", "claim", "claim_many", "claimed_bytes", "claimed_content", "discard", "drop_folder", "resume_claim",
           "set_drop"]  # fmt: skip


def drop_folder(keeper: Keeper, drop: int) -> Path:
    """Where a claimed drop lies until its verdict."""
    return keeper.home.incoming / f"drop-{drop:08d}"


def claimed_content(keeper: Keeper, drop: int) -> Path:
    """What was claimed of a drop: a file, or a folder."""
    return drop_folder(keeper, drop) / "content"


def claimed_bytes(keeper: Keeper, drop: int) -> Path:
    """The claimed bytes of a drop as the one file that will be stored; of a folder, what it was packed into."""
    return bytes_of(drop_folder(keeper, drop))


def set_drop(keeper: Keeper, drop: int, state: str, reason: str = "", *, name: str = "", **columns: object) -> None:
    """Change a drop inside the current transaction, with its event. `name`: the drop's, for whoever knows it already."""
    values = {key: orjson.dumps(value).decode() if isinstance(value, dict) else value for key, value in columns.items()}
    assert values.keys() <= {"sha256", "verdict", "returned_to", "mode", "attempts", "options"}
    changes = "".join(f", {key} = ?" for key in values)
    ledger = keeper.ledger
    ledger.run(f"UPDATE drops SET state = ?, reason = ?, updated = ?{changes} WHERE id = ?",
               (state, reason, ledger.clock.utc(), *values.values(), drop))  # fmt: skip
    name = name or str(ledger.value("SELECT name FROM drops WHERE id = ?", (drop,)))
    told = {key: columns[key] for key in ("sha256", "returned_to") if columns.get(key)}
    ledger.event(f"drop.{state}", name, drop=drop, reason=reason, **told)


@dataclass(frozen=True)
class Wish:
    """A file to be taken: where it lies, and what goes with it into the drop's row."""

    source: Path
    origin: str = "inbox"
    move: bool = True
    forced_kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    """What the drop is called, where that is not the name its bytes lie under."""


def claim(keeper: Keeper, source: Path, *, origin: str = "inbox", move: bool = True, forced_kind: str | None = None,
          options: Mapping[str, Any] | None = None, name: str = "") -> int:  # fmt: skip
    """Take a settled file out of the inbox (or copy one, `move=False`) into a folder of its own; returns the drop id.

    A file that has gone closes its row. Raises OSError for the environment's faults (the row stays open and
    `resume_claim` tries again).
    """
    drop, problem = claim_many(keeper, [Wish(source, origin, move, forced_kind, dict(options or {}), name)])[0]
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
    now, name, mode = keeper.clock.utc(), safe_name(wish.name or wish.source.name), "move" if wish.move else "copy"
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
    if side is not None and not content.exists() and not take_side(side, content.parent, _take_file, move=move):
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
    """Bring a file or a folder under our roof; returns how: "move", or "copy" when the source had to stay where it is."""
    if stat.S_ISDIR(os.lstat(source).st_mode):
        return take_folder(source, content, move, later)
    return _take_file(source, content, move, later)


def _take_file(source: Path, content: Path, move: bool, later: Folders | None = None) -> str:
    """`_take` for a file; whatever else lies there is not taken.

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
    if content.is_dir():
        return finish_folder_copy(source, content)
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


def discard(keeper: Keeper, drop: int, later: Folders | None = None) -> None:
    """Remove what is left of a drop's folder once its bytes are stored or returned."""
    folder = drop_folder(keeper, drop)
    if (folder / "content").is_dir():
        spare_histories(folder, str(keeper.ledger.value("SELECT name FROM drops WHERE id = ?", (drop,))), keeper.home.rejected)
    with contextlib.suppress(OSError):  # the usual case, and a tenth of the work: nothing is left in it
        os.rmdir(folder)
        if later is not None:
            return later.lost(folder.parent)
    with contextlib.suppress(FileNotFoundError):
        remove_tree(folder, later)
