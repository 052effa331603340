"""Seals: what keeps a hand from changing, moving or emptying a version, and the few moments in which a seal is open.

    files 0444 and folders 0555        always; binds everybody but root
    the immutable flag (`chattr +i`)   with `storage.seal: immutable`; binds root too, needs CAP_LINUX_IMMUTABLE
    models/ itself 0555                between two acts of ours: what may not be written to loses no entry

A top folder is sealed last and opened first, so that its own seal tells for the whole. Nothing here decides when a
seal may be opened: only births, deletions, restores, purges, archiving and the views of models/ ask for it.
Numbers of the ioctl: linux/fs.h (FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from guard.durable import fsync_dir, fsync_file, remove_tree
from guard.errors import CheckFailed

__all__ = [
    "IMMUTABLE",
    "close_top",
    "drop_ambient_rights",
    "erase_sealed",
    "is_immutable",
    "loosen",
    "not_immutable",
    "open_shelf",
    "open_top",
    "require_openable",
    "require_seal",
    "seal_folder",
    "shut_shelf",
]

IMMUTABLE = "immutable"
_FLAG = 0x10
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_LONG = struct.calcsize("l")
_GET = (2 << 30) | (_LONG << 16) | (ord("f") << 8) | 1
_SET = (1 << 30) | (_LONG << 16) | (ord("f") << 8) | 2
_NO_SUCH_FLAG = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_CANNOT = _NO_SUCH_FLAG | {errno.EPERM, errno.EACCES, errno.EISDIR}


# --- the immutable flag --------------------------------------------------------------------------------------------


def _flags(descriptor: int) -> int:
    buffer = bytearray(_LONG)
    fcntl.ioctl(descriptor, _GET, buffer)
    return struct.unpack_from("i", buffer)[0]


def _put_flag(descriptor: int, wanted: bool) -> None:
    """Set or clear the one flag and keep the others. Raises OSError where that is not permitted or not known."""
    before = _flags(descriptor)
    after = before | _FLAG if wanted else before & ~_FLAG
    if after != before:
        buffer = bytearray(_LONG)
        struct.pack_into("i", buffer, 0, after)
        fcntl.ioctl(descriptor, _SET, buffer)


def _flag(path: Path | str, wanted: bool) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _put_flag(descriptor, wanted)
    finally:
        os.close(descriptor)


def is_immutable(path: Path | str) -> bool:
    """Whether a file or folder carries the flag; False where the file system knows none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return bool(_flags(descriptor) & _FLAG)
    except OSError as error:
        if error.errno not in _NO_SUCH_FLAG:
            raise
        return False
    finally:
        os.close(descriptor)


def require_seal(seal: str, folder: Path) -> None:
    """Can this process seal in that way on the disk of `folder`? Tried on a file without a name, which leaves no trace.

    Raises CheckFailed saying why not and what to do; the way `mode` always works.
    """
    if seal != IMMUTABLE:
        return
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _put_flag(descriptor, True)
            _put_flag(descriptor, False)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        why = ("this process may not (it needs to be root, or CAP_LINUX_IMMUTABLE)" if error.errno == errno.EPERM
               else f"the file system of {folder} knows no such flag ({error.strerror})")  # fmt: skip
        raise CheckFailed(f"storage.seal is immutable, and {why}", subject=str(folder), cause=error,
                          hint="storage.seal: mode in configs/heirloom.yaml, or run the system service") from error  # fmt: skip


def require_openable(folder: Path) -> None:
    """Can this process open the seal of that folder? Asked before an act begins. Raises CheckFailed."""
    if os.path.lexists(folder) and not folder.is_symlink() and is_immutable(folder):
        require_seal(IMMUTABLE, folder.parent)


def drop_ambient_rights() -> None:
    """Keep what this process may do from every program it starts: readers of dropped files need no right at all.

    The right itself stays with the caller. Where the kernel knows no ambient rights there are none to drop.
    """
    ctypes.CDLL(None).prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


# --- a version's folder --------------------------------------------------------------------------------------------


def _paths(folder: Path | str) -> Iterator[str]:
    """Everything below a folder and the folder itself, each folder after what is in it; links are left out."""
    for place, _names, files in os.walk(folder, topdown=False):
        for name in files:
            if not os.path.islink(os.path.join(place, name)):
                yield os.path.join(place, name)
        yield place


def _set_mode(path: str | Path, mode: int) -> bool:
    """Change a mode that is another; one that is right is left alone, for an immutable file refuses even that.

    Returns whether there was something to change.
    """
    if stat.S_IMODE(os.lstat(path).st_mode) == mode:
        return False
    if is_immutable(path):
        _flag(path, False)
    os.chmod(path, mode)
    return True


def seal_folder(folder: Path | str, seal: str = "mode") -> None:
    """Seal a whole folder, durably: files 0444, folders 0555, and the flag on each with `immutable`. May be repeated.

    From the bottom up, each synced before the next: a top folder that is sealed on disk tells for the whole.
    """
    for path in _paths(folder):
        if os.path.isdir(path):
            _set_mode(path, 0o555)
            fsync_dir(path)
        elif _set_mode(path, 0o444):
            fsync_file(path)
    if seal == IMMUTABLE:
        for path in _paths(folder):
            _flag(path, True)


def open_top(folder: Path) -> None:
    """Open only the folder itself, so that it can be moved; what is in it stays sealed."""
    if is_immutable(folder):
        _flag(folder, False)
    os.chmod(folder, 0o755)


def close_top(folder: Path, seal: str = "mode") -> None:
    """Seal only the folder itself again, after it was moved."""
    _set_mode(folder, 0o555)
    if seal == IMMUTABLE:
        _flag(folder, True)
    fsync_dir(folder)


def not_immutable(folder: Path) -> list[str]:
    """Names below a folder (`.` for itself) without the flag: a version sealed as `immutable` has none."""
    return sorted(os.path.relpath(path, folder) for path in _paths(folder) if not is_immutable(path))


def loosen(folder: Path) -> None:
    """Take the immutable flag from everything below a folder, the folder first. Modes stay as they are."""
    for path in reversed(list(_paths(folder))):
        if is_immutable(path):
            _flag(path, False)


def erase_sealed(folder: Path) -> None:
    """Take a sealed folder off the disk. Only for what `purge` and `retention apply` have proven to be elsewhere.

    Goes on where an earlier attempt was cut short; nothing there is nothing to do.
    """
    if os.path.lexists(folder):
        if folder.is_dir() and not folder.is_symlink():
            loosen(folder)
        remove_tree(folder)


# --- models/ itself ------------------------------------------------------------------------------------------------

_open_shelves: dict[str, int] = {}


def shut_shelf(folder: Path) -> None:
    """Make models/ read-only where it is ours: its entries can then be neither removed nor renamed by an ordinary user.

    A folder of another owner keeps its mode: who may write there is not ours to say.
    """
    facts = os.stat(folder)
    if facts.st_uid == os.geteuid() or os.geteuid() == 0:
        mode = stat.S_IMODE(facts.st_mode)
        if mode & 0o222:
            os.chmod(folder, mode & ~0o222)


@contextlib.contextmanager
def open_shelf(folder: Path) -> Iterator[None]:
    """Open models/ for the time of one act of ours; nested use joins the outer one."""
    key = os.fspath(folder)
    if not _open_shelves.get(key):
        facts = os.stat(folder)
        if facts.st_uid == os.geteuid() or os.geteuid() == 0:
            os.chmod(folder, stat.S_IMODE(facts.st_mode) | 0o200)
    _open_shelves[key] = _open_shelves.get(key, 0) + 1
    try:
        yield
    finally:
        _open_shelves[key] -= 1
        if not _open_shelves[key]:
            with contextlib.suppress(FileNotFoundError):
                shut_shelf(folder)
