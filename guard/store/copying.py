"""Copying one folder into another place so that it counts: in steps, resumable, verified and read back.

Each file is hashed while it is copied and becomes visible only when it is whole; the finished copy is then read from
the disk again. A file that an earlier attempt copied well is kept. The source is only read.
Not here: what is copied and why (`vault.py`).
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from guard.durable import make_dir, open_new, remove_tree, rename_new, seal_tree, sha256_bytes
from guard.errors import Damage
from guard.store.sums import STEP_BYTES, Problem, hash_steps, listed_problem_steps

__all__ = ["Incoming", "copy_file_steps", "copy_folder_steps", "folder_digest", "listing", "seal_quietly", "set_aside"]


def listing(folder: Path) -> list[str]:
    """Relative names of all plain files below a folder, sorted; symbolic links are left out."""
    paths = (Path(place) / name for place, _names, files in os.walk(folder) for name in files)
    return sorted(str(path.relative_to(folder)) for path in paths if path.is_file() and not path.is_symlink())


def folder_digest(hashes: Mapping[str, str]) -> str:
    """One SHA-256 over names and hashes of a folder's files, for folders that carry no SHA256SUMS."""
    return sha256_bytes("".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items())).encode())


@dataclass(frozen=True)
class Incoming:
    """A folder on its way: from where, to which name, and the hash that each file must have."""

    source: Path
    target: Path
    wanted: Mapping[str, str]
    besides: frozenset[str] = frozenset()
    """Files of the copy that somebody else writes and proves: left alone here."""

    @property
    def staged(self) -> Path:
        """Where the copy grows until it is whole."""
        return self.target.with_name(f".incoming-{self.target.name}")

    def size(self) -> int:
        """Bytes of all files at the source. Raises Damage when one is missing."""
        try:
            return sum(os.lstat(self.source / name).st_size for name in self.wanted)
        except FileNotFoundError as error:
            raise Damage(f"{error.filename} is missing", subject=str(self.source), cause=error) from error

    def problem_steps(self, folder: Path) -> Generator[int, None, list[Problem]]:
        """Compare a folder with what is wanted; yields bytes read."""
        return (yield from listed_problem_steps(folder, self.wanted, self.besides))

    def check_steps(self) -> Generator[int, None, None]:
        """Read the whole copy back from the disk. Raises Damage naming the first file that is not as wanted."""
        problems = yield from self.problem_steps(self.staged)
        if problems:
            name, problem = problems[0]
            raise Damage(f"read back, the copy {self.staged / name} {problem}", subject=str(self.staged),
                         hint="check the disk it was copied to; the source was not touched")  # fmt: skip


def copy_folder_steps(incoming: Incoming) -> Generator[int, None, None]:
    """Copy what is not there yet into `incoming.staged`; yields bytes. Raises Damage for a source that is not sound."""
    make_dir(incoming.staged)
    for place, _names, files in os.walk(incoming.staged):
        for name in files:
            # Halves of an earlier attempt: ours, and of no use to anybody.
            relative = os.path.relpath(os.path.join(place, name), incoming.staged)
            if relative not in incoming.wanted and relative not in incoming.besides:
                remove_tree(Path(place) / name)
    for name, expected in incoming.wanted.items():
        target = incoming.staged / name
        make_dir(target.parent)
        if target.exists() and (yield from hash_steps(target)) == expected:
            continue
        yield from copy_file_steps(incoming.source / name, target, expected)


def copy_file_steps(source: Path, target: Path, expected: str) -> Generator[int, None, None]:
    """Copy one file durably, hashed on the way; yields bytes. Raises Damage when it is not `expected` or unreadable."""
    digest = hashlib.sha256()
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        raise Damage(f"{source} is missing or no plain file", subject=str(source), cause=error) from error
    with os.fdopen(descriptor, "rb", buffering=0) as reader, open_new(target) as writer:
        while block := _read(reader, source):
            digest.update(block)
            writer.write(block)
            yield len(block)
        if digest.hexdigest() != expected:
            raise Damage(f"the content of {source} changed", subject=str(source), hint="heirloom verify --all names it")


def _read(reader: io.FileIO, source: Path) -> bytes:
    """The next block. A source that the disk no longer gives is damage, not a reason to try the whole again."""
    try:
        return reader.read(STEP_BYTES)
    except OSError as error:
        raise Damage(f"{source} cannot be read: {error.strerror}", subject=str(source), cause=error) from error


def seal_quietly(path: Path) -> None:
    """Seal a finished copy where the file system knows modes; a vault on one that does not is a vault all the same."""
    try:
        seal_tree(path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS):
            raise


def set_aside(path: Path) -> Path:
    """Move something that is in the way, but may be somebody's last copy, to a hidden name beside it."""
    number = 1
    while os.path.lexists(path.with_name(f".damaged-{path.name}-{number}")):
        number += 1
    target = path.with_name(f".damaged-{path.name}-{number}")
    rename_new(path, target)
    return target
