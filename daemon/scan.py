"""Looking at the inbox: one sweep is the truth about what lies there; events only say "look".

Symbolic links, pipes, sockets and devices are never opened, followed or moved. Not here: when a file is finished
(`settle.py`) and what its content is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from daemon.folder_scan import folder_sighting, grouped, ignored_folder_at
from daemon.settle import Sighting
from guard.checks.folders import ignored_folder, shown_name
from guard.checks.kinds import README_REASON, SIDE_REASON, SIDE_SUFFIXES, ignore_reason
from guard.durable import sha256_bytes
from guard.home import Home

__all__ = ["KIND_FOLDERS", "SHIPPED_READMES", "Sweep", "dropped_as", "forced_kind", "has_writer", "ignored_because",
           "is_shipped_readme", "signature_of", "sweep", "top_folder"]  # fmt: skip

SHIPPED_READMES = frozenset({
    "50b998f98aeae4c5214899f82ab4c4dd2ac4fc6818ae6bf055e1196318648123",
    "bd4101a00132c4e2293d7f7e88783d6e31920dca07fd6ed82bb3ba2c925f8584",
    "eec67d415dd9a93c50261ad5da804dbc74656e4d135f5cafe591059651dccc21",
    "56579de151dad1baf8d5bd92cdeffd6b158669d13ad056658a3a3cf061e99d19",
})  # fmt: skip
"""SHA-256 of every inbox/README.md that a release came with: a checkout may be a home, and its own README is no data."""
_README_BYTES = 8192
KIND_FOLDERS = ("pretrain", "sft", "preference", "task", "mutation", "docs")


@dataclass
class Sweep:
    """What one look found: files to watch, side files by the file they are for, and what is ignored with the reason."""

    files: list[Sighting] = field(default_factory=list)
    sides: dict[Path, list[Sighting]] = field(default_factory=dict)
    ignored: dict[Path, str] = field(default_factory=dict)


def sweep(home: Home, ignore_reason: Callable[[str], str] = ignore_reason) -> Sweep:
    """Walk the inbox. Raises FileNotFoundError when the inbox itself is missing (law 9: that is not "empty")."""
    found = Sweep()
    start = len(os.fspath(home.inbox)) + 1
    for path, facts in _loose(home, found):
        relative = os.fspath(path)[start:]
        reason = ignore_reason(relative)
        if reason == README_REASON and not is_shipped_readme(path):
            reason = ""  # a person's own document: it only has the name
        if reason == SIDE_REASON and path.name.lower().endswith(SIDE_SUFFIXES):
            _add_side(found, path, facts)
        elif reason:
            found.ignored[path] = reason
        elif not stat.S_ISREG(facts.st_mode):
            found.ignored[path] = "not a regular file"
        else:
            found.files.append(_sighting(path, facts))
    return found


def ignored_because(home: Home, path: Path) -> str:
    """Why a path in the inbox is not taken, by its name; "" when it may be data. A README of the user's own may be.

    Of a folder: "" when it is a data set, and so one drop.
    """
    if path.is_dir() and not path.is_symlink():
        return ignored_folder_at(path, os.path.relpath(path, home.inbox))
    reason = ignore_reason(os.path.relpath(path, home.inbox))
    return "" if reason == README_REASON and not is_shipped_readme(path) else reason


def is_shipped_readme(path: Path) -> bool:
    """Whether these are the bytes of an inbox/README.md that came with Heirloom, whatever its line ends."""
    try:
        facts = os.lstat(path)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _README_BYTES:
            return not stat.S_ISREG(facts.st_mode)
        return sha256_bytes(path.read_bytes().replace(b"\r\n", b"\n")) in SHIPPED_READMES
    except OSError:
        return False


def _add_side(found: Sweep, path: Path, facts: os.stat_result) -> None:
    data = path.with_name(path.name[: path.name.rindex(".", 0, path.name.rindex("."))])
    if stat.S_ISREG(facts.st_mode):
        found.sides.setdefault(data, []).append(_sighting(path, facts))
        return
    found.ignored[path] = f"{SIDE_REASON}, and not a regular file"
    found.sides.setdefault(data, []).append(Sighting(path, (0, 0, 0, 0, 0), 0, "it is not a regular file"))


def _loose(home: Home, found: Sweep) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file that is no part of a data set; the data sets are added to what was found, each as one."""
    inside: dict[Path, list[tuple[Path, os.stat_result]]] = {}
    for path, facts in _walk(home.inbox, top=home.inbox, found=found):
        top = top_folder(home, path)
        if top is None:
            yield path, facts
        else:
            inside.setdefault(top, []).append((path, facts))
    for top, items in inside.items():
        cut = len(os.fspath(top)) + 1
        units, rest = grouped(top, [(os.fspath(path)[cut:], facts) for path, facts in items])
        for unit, entries in units.items():
            _add_folder(home, found, unit, entries)
        yield from ((top / name, facts) for name, facts in rest)


def top_folder(home: Home, path: Path) -> Path | None:
    """The folder that was put into the inbox, or into `inbox/<kind>/`, and holds this path; None where it lies there itself.

    Documents are files: no folder in `inbox/docs/` is one drop.
    """
    parts = Path(os.path.relpath(path, home.inbox)).parts
    depth = 2 if parts[0] in KIND_FOLDERS else 1
    return home.inbox.joinpath(*parts[:depth]) if len(parts) > depth and parts[0] != "docs" else None


def _add_folder(home: Home, found: Sweep, unit: Path, entries: list[tuple[str, os.stat_result]]) -> None:
    reason = ignored_folder(os.path.relpath(unit, home.inbox))
    if reason:
        found.ignored[unit] = reason
        return
    closed = next((path.name for path in found.ignored if path.is_relative_to(unit)), "")
    with contextlib.suppress(FileNotFoundError):  # it went between the listing and the look: the next sweep knows
        found.files.append(folder_sighting(unit, entries, f"{shown_name(closed)} in it cannot be read" if closed else ""))


def _walk(folder: Path, *, top: Path, found: Sweep) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if folder == top:
            raise
        found.ignored[folder] = f"this folder cannot be read: {error.strerror}"
        return
    for entry in entries:
        path = Path(entry.path)
        try:
            facts = entry.stat(follow_symlinks=False)
        except OSError:
            continue  # it went between the listing and the look: the next sweep knows
        if stat.S_ISDIR(facts.st_mode):
            if folder == top and entry.name in ("rejected", "duplicates"):
                continue
            yield from _walk(path, top=top, found=found)
        else:
            yield path, facts


def _sighting(path: Path, facts: os.stat_result) -> Sighting:
    signature = signature_of(facts)
    problem = "" if os.access(path, os.R_OK, follow_symlinks=False) and facts.st_mode & 0o444 else "unreadable"
    return Sighting(path, signature, facts.st_size, problem)


def signature_of(facts: os.stat_result) -> tuple[int, int, int, int, int]:
    """What changes whenever a file's bytes do: (device, inode, size, mtime, ctime)."""
    return (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def has_writer(path: Path) -> bool:
    """Whether somebody holds the file open for writing: a read lease is refused then. False where leases are unknown.

    A writer that opens it meanwhile breaks the lease: the process gets SIGIO, which its `main` has to ignore.
    Raises OSError when the file cannot be opened at all.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        # EAGAIN: a writer has it open. Anything else (foreign owner, network file system): leases cannot tell.
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def forced_kind(home: Home, path: Path) -> str | None:
    """The kind that `inbox/<kind>/` forces, or None."""
    parts = Path(os.path.relpath(path, home.inbox)).parts
    return parts[0] if len(parts) > 1 and parts[0] in KIND_FOLDERS else None


def dropped_as(home: Home, path: Path) -> str:
    """The path under which a file was dropped, without the kind folder: what makes a document "the same one"."""
    relative = Path(os.path.relpath(path, home.inbox))
    return str(Path(*relative.parts[1:]) if forced_kind(home, path) else relative)
