"""A folder as one file: an uncompressed tar whose bytes depend on the names and contents of its files and on nothing else.

USTAR headers (PAX where a name does not fit), files alone, sorted by the bytes of their names, mode 0644, owner 0, time 0:
the same folder gives the same SHA-256 on every machine. What was written is read back and compared with the folder before
the file takes its name. Reading goes by offsets and never extracts. Not here: which rows a file in it holds
(`guard/checks/members.py`), when a folder may be packed or let go (`guard/store/folder_drops.py`).
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from guard.checks.folders import is_junk, shown_name
from guard.durable import open_new
from guard.errors import Damage, DataFault
from guard.failpoints import point
from guard.folder_tree import Entry, list_tree, mark_of

__all__ = ["MOST_FILES", "Part", "Stored", "open_part", "pack_folder", "stored_files"]

MOST_FILES = 200_000
"""More files than that in one data set are refused: each is remembered while it is read."""
_BLOCK = 1 << 20
_END = 512


class Stored(NamedTuple):
    """One file in a tar: its name, where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int


class Part(io.RawIOBase):
    """Some bytes of a file as a file of their own, for reading: `size` bytes from `offset` of a seekable stream."""

    def __init__(self, stream: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._stream, self._offset, self._size, self._at = stream, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a place before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._size - self._at))
        if not wanted:
            return 0
        self._stream.seek(self._offset + self._at)
        data = self._stream.read(wanted)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_part(stream: BinaryIO, file: Stored) -> BinaryIO:
    """A file of a tar, buffered, while `stream` stays open."""
    return io.BufferedReader(Part(stream, file.offset, file.size), _BLOCK)


def stored_files(stream: BinaryIO) -> list[Stored]:
    """The files in a tar in the order in which they stand; names without a leading "./".

    Raises DataFault for what is no whole tar, and for one that holds links, devices, holes or a name twice.
    """
    end = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            found = list(_files(tar, end))
            _check_end(stream, tar.offset, end)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise DataFault(f"this is no tar that can be read: {error}", hint="pack it again: tar cf NAME.tar FOLDER") from error
    twice = len(found) - len({file.name for file in found})
    if twice:
        raise DataFault("the tar holds a name more than once", hint="pack it again: tar cf NAME.tar FOLDER")
    return found


def _files(tar: tarfile.TarFile, end: int) -> Iterator[Stored]:
    count = 0
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # they would all be kept, with their headers
        name = member.name.removeprefix("./")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise DataFault(f"{shown_name(name)[:200]} in the tar is no plain file", hint="tar chf NAME.tar FOLDER packs files")
        if member.offset_data + member.size > end:
            raise DataFault(f"the tar is cut off in {shown_name(name)[:200]}", hint="copy it again")
        count += 1
        if count > MOST_FILES:
            raise DataFault(f"the tar holds more than {MOST_FILES:,} files", hint="make larger pieces of them")
        yield Stored(name, member.offset_data, member.size)


def _check_end(stream: BinaryIO, offset: int, end: int) -> None:
    """`tarfile` takes a damaged header for the end. Raises DataFault unless zeroes follow the last file, and nothing else."""
    stream.seek(offset)
    if end - offset < _END:
        raise DataFault("the tar is cut off at its end", hint="copy it again")
    while block := stream.read(_BLOCK):
        if block.strip(b"\0"):
            raise DataFault(f"the tar is damaged near byte {offset:,}", hint="copy it again")


def pack_folder(folder: Path | str, target: Path | str) -> dict[str, Any]:
    """Pack a folder into the file `target`, durably, and compare that with the folder before it takes its name.

    Returns `files`, `left_out` (names of junk) and `mark` (`mark_of` of what was packed). Raises DataFault for a folder
    that holds anything but files and folders or changed meanwhile, Damage when what was written is not what was read,
    OSError as the machine says.
    """
    entries = list_tree(folder)
    kept = [(name, facts) for name, facts in entries if not is_junk(name)]
    odd = next((name for name, facts in kept if not stat.S_ISREG(facts.st_mode)), "")
    if odd:
        raise DataFault(f"{shown_name(odd)} in it is not a regular file", hint="put the file in its place, or take it away")
    if len(kept) > MOST_FILES:
        raise DataFault(f"the folder holds more than {MOST_FILES:,} files", hint="make larger pieces of them")

    def check(packed: Path) -> None:
        point("pack.written")
        _compare(folder, packed)
        if mark_of(list_tree(folder)) != mark_of(entries):
            raise DataFault("the folder changed while it was packed", hint="drop it again when nobody writes to it")

    with open_new(target, check=check) as writer:
        _write(folder, kept, writer)
    point("pack.compared")
    left_out = sorted(shown_name(name) for name, _facts in entries if is_junk(name))
    return {"files": len(kept), "left_out": left_out, "mark": mark_of(entries)}


def _write(folder: Path | str, entries: list[Entry], writer: BinaryIO) -> None:
    with tarfile.open(fileobj=writer, mode="w:", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for name, facts in entries:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = facts.st_size, 0o644, 0
            with _open(folder, name) as reader:
                tar.addfile(info, reader)
            tar.members = []  # type: ignore[attr-defined]  # they would all be kept


def _open(folder: Path | str, name: str) -> BinaryIO:
    descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb", buffering=_BLOCK)


def _compare(folder: Path | str, packed: Path) -> None:
    """Raises Damage unless the tar holds exactly the bytes that lie in the folder."""
    wanted = [name for name, _facts in list_tree(folder) if not is_junk(name)]
    with packed.open("rb") as stream:
        found = stored_files(stream)
        same = [file.name for file in found] == wanted
        for file in found if same else ():
            with _open(folder, file.name) as original:
                same = same and _same_bytes(original, open_part(stream, file))
        if not same:
            raise Damage(f"what was packed of {folder} is not what lies there", subject=str(folder),
                         hint="check the disk; the folder was not touched")  # fmt: skip


def _same_bytes(first: BinaryIO, second: BinaryIO) -> bool:
    while True:
        one, other = first.read(_BLOCK), second.read(_BLOCK)
        if one != other:
            return False
        if not one:
            return True
