"""Folders on their way: taken as one drop, copied where they cannot be moved, given back whole, let go when they are stored.

A claimed folder is `content` of its drop; beside it lies `packed.tar`, what it becomes as one file (`guard/tars.py`). The
folder is let go only when that file is an original and recorded: until then every refusal gives back the folder itself.
User bytes are never deleted: a repository's history (`.git`), which is left out of the tar, goes to `inbox/rejected/`.
Not here: the acts of intake (`intake.py`, `placing.py`, `returning.py`), which files make a data set (`guard/checks/folders.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from guard.checks.folders import is_junk, shown_name
from guard.copies import copy_verified
from guard.durable import fsync_dir, make_dir, remove_tree, rename_new, sha256_file, write_text
from guard.failpoints import point
from guard.folder_tree import Entry, list_tree
from guard.folders import Folders, sync_parents
from guard.names import first_free

__all__ = ["PACKED", "bytes_of", "finish_folder_copy", "move_folder", "spare_histories", "take_folder"]

PACKED = "packed.tar"
_COPYING = "copying"
_STAYS = (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
_HISTORY = "this is the history of a folder that was dropped ({name}): it is no data, so it is not stored with it.\n"


def bytes_of(folder: Path) -> Path:
    """The claimed bytes of the drop in `folder` as one file: its content, or what a folder was packed into."""
    content = folder / "content"
    return folder / PACKED if content.is_dir() else content


def take_folder(source: Path, content: Path, move: bool, later: Folders | None = None) -> str:
    """Bring a folder under our roof; returns how: "move", or "copy" when it had to stay where it is. Raises OSError.

    As with a file: what somebody else owns, or holds under a second name, is copied and verified and never shared.
    """
    entries = list_tree(source)
    owners = {os.lstat(source).st_uid, *(facts.st_uid for _name, facts in entries)}
    alone = all(facts.st_nlink == 1 for _name, facts in entries)
    if move and alone and owners == {os.geteuid()}:
        try:
            rename_new(source, content, later)
        except OSError as error:
            if error.errno not in _STAYS:
                raise
        else:
            return "move"
    point("copy.intended")
    _copy(source, content, entries if move else [entry for entry in entries if not is_junk(entry[0])])
    point("copy.copied")
    if move and _removed(source, entries):
        point("copy.unlinked")
        return "move"
    return "copy"


def _copy(source: Path, target: Path, entries: Sequence[Entry]) -> None:
    """Copy and verify every file into `copying` beside the target, which takes the name when it is whole."""
    partial = target.with_name(_COPYING)
    remove_tree(partial)  # what an earlier attempt left
    make_dir(partial)
    for name, facts in entries:
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, f"{shown_name(name)} in it is not a regular file", os.fspath(source / name))
        make_dir((partial / name).parent)
        copy_verified(source / name, partial / name)
    rename_new(partial, target)
    sync_parents(target.parent)


def finish_folder_copy(source: Path, content: Path) -> str:
    """A death between copying a folder and taking the source away: the very same bytes are not taken twice."""
    if not stat.S_ISDIR(os.lstat(source).st_mode):
        return "move"
    theirs, ours = list_tree(source), {name: facts.st_size for name, facts in list_tree(content)}
    same = all(stat.S_ISREG(facts.st_mode) and ours.get(name) == facts.st_size for name, facts in theirs)
    if not same or any(sha256_file(source / name) != sha256_file(content / name) for name, _facts in theirs):
        return "move"
    if _removed(source, theirs):
        return "move"
    return "copy" if len(theirs) == len(ours) else "move"  # some of it went already: ours is the whole one


def _removed(source: Path, entries: Sequence[Entry]) -> bool:
    """Take a folder away whose copy was verified: all of it or nothing, and never a file that changed meanwhile."""

    def told(items: Sequence[Entry]) -> list[tuple[object, ...]]:
        return [(name, item.st_dev, item.st_ino, item.st_size, item.st_mtime_ns) for name, item in items]

    folders = [Path(place) for place, _names, _files in os.walk(source)]
    writable = all(os.access(path, os.W_OK | os.X_OK) for path in (source.parent, *folders))
    if not writable or told(list_tree(source)) != told(entries):
        return False
    for place, (name, _facts) in enumerate(entries):
        try:
            os.unlink(source / name)
        except OSError as error:
            if error.errno not in _STAYS:
                raise
            if not place:
                return False
    for path in reversed(folders):
        with contextlib.suppress(OSError):  # something new lies in it: that stays, and is a drop of its own
            os.rmdir(path)
    fsync_dir(source.parent)
    return True


def move_folder(source: Path, target: Path) -> None:
    """Give a folder another name, on another device too: copied and verified there before it goes here. Raises OSError."""
    try:
        rename_new(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target, list_tree(source))
        remove_tree(source)


def spare_histories(folder: Path, name: str, rejected: Path) -> None:
    """Before a stored folder goes: what was left out of the tar and may be somebody's work is put where people look for it.

    Every step may be repeated. Raises OSError.
    """
    for history in _histories(folder / "content"):
        make_dir(rejected)
        # Not ".git" by itself: a folder of that name would make a repository of the inbox.
        def spot(number: int) -> Path:
            return rejected / (f"{name}.git" if number == 1 else f"{name} ({number}).git")

        target = spot(first_free(lambda number: os.path.lexists(spot(number))))
        write_text(target.with_name(f"{target.name}.why.txt"), _HISTORY.format(name=name))
        move_folder(history, target)
        point("admit.spared")


def _histories(folder: Path) -> list[Path]:
    """Every `.git` below a folder; one inside another goes with it."""
    found: list[Path] = []
    for place, names, files in os.walk(folder):
        found += [Path(place) / own for own in (*names, *files) if own == ".git"]
        names[:] = [own for own in names if own != ".git"]
    return found
