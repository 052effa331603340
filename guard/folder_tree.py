"""What lies in a folder: every file below it with its facts, in one order, and one mark that changes with any of them.

Nothing is opened or followed. Not here: what the names mean (`guard/checks/folders.py`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from guard.checks.folders import is_junk

__all__ = ["Entry", "list_tree", "mark_of", "regular", "tree_bytes"]

Entry = tuple[str, os.stat_result]
"""A name relative to the folder, parts joined by "/", and its lstat."""


def list_tree(folder: Path | str) -> list[Entry]:
    """Everything below a folder that is no folder, in the order of the names' bytes. Raises OSError."""
    found: list[Entry] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(os.path.join(folder, inside)) as entries:
            for entry in entries:
                name = f"{inside}/{entry.name}" if inside else entry.name
                facts = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(facts.st_mode):
                    waiting.append(name)
                else:
                    found.append((name, facts))
    return sorted(found, key=lambda entry: os.fsencode(entry[0]))


def regular(entries: Iterable[Entry]) -> list[str]:
    """The names of the regular files."""
    return [name for name, facts in entries if stat.S_ISREG(facts.st_mode)]


def tree_bytes(entries: Iterable[Entry]) -> int:
    """Bytes of the files that would be packed."""
    return sum(facts.st_size for name, facts in entries if stat.S_ISREG(facts.st_mode) and not is_junk(name))


def mark_of(entries: Sequence[Entry]) -> int:
    """A number that changes when any file (but for junk) comes, goes or changes: names, inode, size, mtime and ctime."""
    digest = hashlib.blake2b(digest_size=8)
    for name, facts in sorted(entries, key=lambda entry: os.fsencode(entry[0])):
        if not is_junk(name):
            numbers = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            digest.update(os.fsencode(name) + b"\0" + repr(numbers).encode() + b"\0")
    return int.from_bytes(digest.digest()[:7], "big")  # fits what JSON readers and SQLite call an integer
