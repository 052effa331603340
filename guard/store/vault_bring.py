"""Bringing one folder into the vault so that it counts: copied, framed, decoded again, read back, renamed, recorded.

Everything grows in `.incoming-<name>`; whatever an earlier attempt left there whole is used again. Not here: which
folders are brought (`vault.py`), and which parent a frame takes (`vault_versions.py`).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from guard.durable import open_new, remove_tree, rename_new
from guard.errors import Damage, EnvironmentFault
from guard.failpoints import point
from guard.frames import FrameHeader, FrameReader, FrameStats, decode_steps, encode_steps, frame_hash_steps
from guard.store.copying import Incoming, copy_folder_steps, seal_quietly, set_aside
from guard.store.intents import put_intent
from guard.store.vault_frames import frame_name, open_stored, stored_bytes
from guard.store.vault_run import BackupRun, Steps, named
from guard.tensors import FileBytes, Readable

__all__ = ["bring"]

T = TypeVar("T")


class _Source(FileBytes):
    """A file of the home on its way. One that is missing, or that the disk no longer gives, is damage."""

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            raise Damage(f"{path} is missing or no plain file", subject=str(path), cause=error) from error

    def read(self, start: int, length: int) -> bytes:
        try:
            return super().read(start, length)
        except OSError as error:
            raise Damage(f"{self.path} cannot be read: {error}", subject=str(self.path), cause=error) from error


class _ParentDamage(Damage):
    """The vault's copy of the parent cannot be read: the child itself may be sound."""


class _Parent:
    """What a frame is coded against, as the vault gives it back. Whatever goes wrong in it is `_ParentDamage`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._stored: Readable = self._tried(lambda: open_stored(folder, name))
        self.size = self._stored.size

    def read(self, start: int, length: int) -> bytes:
        return self._tried(lambda: self._stored.read(start, length))

    def close(self) -> None:
        self._stored.close()

    def _tried(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except (Damage, OSError) as error:
            raise _ParentDamage(f"{self._folder} cannot be read: {error}", subject=str(self._folder), cause=error) from error


def bring(run: BackupRun, what: str, name: str, incoming: Incoming, digest: str, frames: tuple[FrameHeader, ...] = ()) -> Steps:
    """Copy a folder into the vault, read it back, rename it into place and record it. A step per few MiB.

    `incoming.wanted` are the files that are copied as they are; `frames` tells which others become frames, and how. A copy
    that lies there already was found to be bad, and is moved aside at the end.
    Raises EnvironmentFault without room, Damage when source or copy is not sound.
    """
    size = incoming.size() + sum(header.size for header in frames)
    free = shutil.disk_usage(run.vault).free
    if free <= size:
        raise EnvironmentFault(f"the vault {run.vault} has {free:,} bytes free; {name} needs {size:,}",
                               subject=str(run.vault),
                               hint="free some space there; nothing is deleted to make room")  # fmt: skip
    with run.keeper.ledger.transaction():
        put_intent(run.keeper.ledger, "backup", f"{what}:{name}", {"what": what, "name": name, "vault": str(run.vault)})
    point("backup.intended")
    incoming = replace(incoming, besides=frozenset(str(frame_name(header.file)) for header in frames))
    yield from named(name, copy_folder_steps(incoming))
    point("backup.copied")
    for header in frames:
        yield from named(name, _frame_steps(incoming, header))
    yield from named(name, incoming.check_steps())
    point("backup.checked")
    if os.path.lexists(incoming.target):
        # Only now, with its successor proven: a bad copy may still be all that others stand on.
        set_aside(incoming.target)
        point("backup.aside")
    rename_new(incoming.staged, incoming.target)
    seal_quietly(incoming.target)
    point("backup.renamed")
    stored = stored_bytes(incoming.target) if frames else size
    run.copied.append(name)
    run.size += stored
    run.record(what, name, digest, stored)
    point("backup.recorded")


def _frame_steps(incoming: Incoming, header: FrameHeader) -> Generator[int, None, None]:
    """Make a frame and prove it. A delta that does not prove itself, or saves nothing, gives way to a key frame."""
    path = incoming.staged / str(frame_name(header.file))
    alone = replace(header, depth=0, parent="", parent_sha256="")
    for attempt in dict.fromkeys((header, alone)):
        if path.exists() and not (yield from _proof_steps(incoming, attempt)):
            return  # an earlier attempt was ended after this file was whole
        try:
            stats = yield from _encode(incoming, attempt)
        except _ParentDamage:
            continue  # the parent's copy went bad: that is told where it is read, and no child need wait for its mending
        point("backup.framed")
        if attempt.parent and not stats.from_parent:
            continue
        problem = yield from _proof_steps(incoming, attempt)
        if not problem:
            point("backup.decoded")
            return
        if attempt == alone:
            remove_tree(path)
            raise Damage(f"read back, the frame {path} {problem}", subject=str(path),
                         hint="check the disk it was written to; the source was not touched")  # fmt: skip


def _encode(incoming: Incoming, header: FrameHeader) -> Generator[int, None, FrameStats]:
    source, parent = _Source(incoming.source / header.file), None
    try:
        parent = _parent(incoming, header)
        with open_new(incoming.staged / str(frame_name(header.file))) as handle:
            return (yield from encode_steps(source, handle, header, parent))
    finally:
        source.close()
        if parent is not None:
            parent.close()


def _parent(incoming: Incoming, header: FrameHeader) -> Readable | None:
    """The parent as the vault gives it back: what is coded against is what will be there to decode with."""
    return _Parent(incoming.target.parent / header.parent, header.file) if header.parent else None


def _proof_steps(incoming: Incoming, header: FrameHeader) -> Generator[int, None, str]:
    """Read a frame from the disk, decode it and compare hashes; returns what is wrong, or ""."""
    path = incoming.staged / str(frame_name(header.file))

    def parent(_header: FrameHeader) -> Readable:
        return open_stored(incoming.target.parent / header.parent, header.file)

    try:
        if problem := (yield from frame_hash_steps(path)):
            return problem
        reader = FrameReader(path, parent)
        try:
            if reader.header != header:
                return "is another frame than was wanted"
            digest = yield from decode_steps(reader)
        finally:
            reader.close()
    except Damage as error:
        return error.message
    return "" if digest == header.sha256 else f"does not give back {header.file}"
