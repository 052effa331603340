"""The only place that makes finished files: written beside the target, synced, renamed, and the folder synced.

Law 1: nothing is reported done before its bytes and its folder entries are on disk. A failed fsync is a failure of
that file: the temporary is abandoned and the error goes up; the fsync is never tried again, because after a failed
one the kernel may have dropped the dirty pages (PostgreSQL's "fsyncgate", 2018).
Pattern learnt from restic's local backend. This file knows nothing of versions, ledgers or homes. Copies that are read
back stand in `copies.py`, folders that are synced together in `folders.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import orjson

if TYPE_CHECKING:
    from guard.folders import Folders

__all__ = [
    "FILE_MODE", "append_to", "clear_temporaries", "cut_file", "fsync_dir", "fsync_file", "fsync_tree", "json_bytes",
    "make_dir", "open_new", "publish", "remove_file", "remove_tree", "rename_new", "replace_link", "seal_file", "seal_tree",
    "sha256_bytes", "sha256_file", "sync_file_system", "sync_so_far", "unseal_tree",
    "write_bytes", "write_json", "write_text",
]  # fmt: skip

FILE_MODE = 0o644
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_TEMPORARY = re.compile(r"\..+\.\d+(-[0-9a-f]{8})?\.tmp")


def _fsync(descriptor: int) -> None:
    os.fsync(descriptor)


def fsync_dir(path: Path | str) -> None:
    """Make the folder's entries durable. Raises OSError when the disk says no."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_new(
    path: Path | str, mode: int = FILE_MODE, check: Callable[[Path], None] | None = None, *, synced: bool = True
) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and leaves no trace when it does not.

    `check` looks at the synced file before it takes its name; when it raises, `path` keeps its old bytes. A file that is
    not `synced` is a draft: whoever builds upon it makes it durable first.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fchmod(handle.fileno(), mode)
            if synced:
                _fsync(handle.fileno())
        if check is not None:
            check(temporary)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if synced:
        fsync_dir(path.parent)


def sync_so_far(handle: BinaryIO) -> None:
    """Make durable what was written to a file of `open_new` until now, so that its end has little left to sync.

    For large files that are written in slices. Raises OSError; the block must end with it, and the file is abandoned.
    """
    handle.flush()
    _fsync(handle.fileno())


def clear_temporaries(folder: Path | str) -> list[str]:
    """Remove what a sudden death left half written directly in a folder; returns the names. Nobody else may write there.

    Only names of the very form that `open_new`, `replace_link` and `publish` give; they never held finished bytes.
    """
    names = sorted(name for name in os.listdir(folder) if _TEMPORARY.fullmatch(name)) if os.path.isdir(folder) else []
    for name in names:
        os.unlink(os.path.join(folder, name))
    return names


def write_bytes(path: Path | str, data: bytes, mode: int = FILE_MODE, *, synced: bool = True) -> None:
    """Replace `path` by `data` in one step, and durably if `synced`."""
    with open_new(path, mode, synced=synced) as handle:
        handle.write(data)


def write_text(path: Path | str, text: str, mode: int = FILE_MODE) -> None:
    """Replace `path` by `text` in UTF-8 (bytes that came from odd file names survive)."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"), mode)


def json_bytes(value: object) -> bytes:
    """Indented JSON with sorted keys and a final newline: the form of every finished JSON file."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def write_json(path: Path | str, value: object, mode: int = FILE_MODE) -> None:
    """Replace `path` by `value` as JSON."""
    write_bytes(path, json_bytes(value), mode)


def publish(path: Path | str, data: bytes) -> None:
    """Replace `path` in one step WITHOUT syncing: for hints such as progress that may be lost with the power."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_to(path: Path | str, data: bytes) -> None:
    """Append to a file that only grows WITHOUT syncing; `fsync_file` makes it durable. A new file's entry is synced.

    Not for finished files: a reader must be able to tell a line that was cut off.
    """
    new = not os.path.lexists(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(descriptor, "wb", buffering=0) as handle:
        written = 0
        while written < len(data):
            written += handle.write(data[written:]) or 0
    if new:
        fsync_dir(Path(path).parent)


def cut_file(path: Path | str, size: int) -> None:
    """Cut what follows the first `size` bytes off a growing file, durably: the half line of a sudden death."""
    with open(path, "r+b") as handle:
        handle.truncate(size)
        _fsync(handle.fileno())


def remove_file(path: Path | str) -> None:
    """Remove a small file of ours, durably; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        fsync_dir(Path(path).parent)


def make_dir(path: Path | str, later: Folders | None = None) -> None:
    """Make a folder and its missing parents, each entry durable. Raises FileExistsError over what is no folder."""
    path = Path(path)
    if path.is_dir():
        return
    make_dir(path.parent)
    path.mkdir(exist_ok=True)
    if later is None:
        fsync_dir(path.parent)
    else:
        later.gained(path.parent)


def fsync_file(path: Path | str) -> None:
    """Make one file's bytes and mode durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise(error: OSError) -> None:
    raise error


def fsync_tree(path: Path | str) -> None:
    """Sync every file below `path`, then every folder from the bottom up, `path` itself last. Raises OSError."""
    for folder, _names, files in os.walk(path, topdown=False, onerror=_raise):
        for name in files:
            if not os.path.islink(os.path.join(folder, name)):
                fsync_file(os.path.join(folder, name))
        fsync_dir(folder)


def sync_file_system(path: Path | str) -> None:
    """Make everything durable that any process ever wrote to the file system of `path`. Raises OSError.

    Whoever finds the work of an earlier life sees the page cache, not the disk: before it is built upon, it is synced.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc().syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(path))
    finally:
        os.close(descriptor)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _rename_noreplace(source: Path, target: Path) -> None:
    done = _libc().renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    if done == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), os.fspath(source), None, os.fspath(target))
    # Some file systems know no RENAME_NOREPLACE. We hold the home lock, so looking first is safe against ourselves.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
    os.rename(source, target)


def rename_new(source: Path | str, target: Path | str, later: Folders | None = None) -> None:
    """Move to a name that must not exist yet and sync both parents. Raises FileExistsError, OSError(EXDEV)."""
    source, target = Path(source), Path(target)
    _rename_noreplace(source, target)
    if later is not None:
        later.gained(target.parent)
        later.lost(source.parent)
        return
    fsync_dir(target.parent)
    if source.parent != target.parent:
        fsync_dir(source.parent)


def replace_link(path: Path | str, target: str) -> None:
    """Point the symbolic link `path` at `target` in one step."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    os.symlink(target, temporary)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    fsync_dir(path.parent)


def sha256_bytes(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes in hex; never follows a symbolic link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seal_file(path: Path | str) -> None:
    """Make a file 0444 and durable, bytes and mode. Raises OSError."""
    os.chmod(path, 0o444)
    fsync_file(path)


def seal_tree(path: Path | str) -> None:
    """Make files 0444 and folders 0555 (law 2), durably; symbolic links are not followed.

    From the bottom up, each synced before the next: a top folder that is sealed on disk tells for the whole.
    """
    for folder, _names, files in os.walk(path, topdown=False):
        for name in files:
            full = os.path.join(folder, name)
            if not os.path.islink(full) and os.stat(full).st_mode & 0o7777 != 0o444:
                seal_file(full)
        os.chmod(folder, 0o555)
        fsync_dir(folder)


def unseal_tree(path: Path | str) -> None:
    """Make folders writable again; the files stay read-only. Only delete and restore transactions may call this."""
    os.chmod(path, 0o755)
    for folder, names, _files in os.walk(path):
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):  # chmod would change the link's target
                os.chmod(os.path.join(folder, name), 0o755)


def remove_tree(path: Path | str, later: Folders | None = None) -> None:
    """Remove a staging or derived tree, sealed or not. Never to be called on versions or originals (law 3)."""
    path = Path(path)
    if not path.is_symlink() and path.is_dir():
        unseal_tree(path)
        shutil.rmtree(path)
    elif os.path.lexists(path):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            raise OSError(errno.EISDIR, "a folder appeared", os.fspath(path))
        os.unlink(path)
    if later is not None:
        later.lost(path.parent)
    elif path.parent.is_dir():
        fsync_dir(path.parent)
