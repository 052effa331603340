"""What a disk keeps over a power cut, modelled as strictly as POSIX allows, in the manner of ALICE and CrashMonkey.

A file has the bytes it had at its own last good fsync, a folder the entries it had at its own last fsync; a rename is one
step, so syncing either folder keeps both ends of it. After a failed fsync the pages count as clean and their bytes as
gone, which is what Linux does. `cut()` builds that tree. A real file system keeps more: `test_daemon_powercut_ext4.py`.
Not here: who calls (`disk.py`), and SQLite's own calls. The ledger is taken to be durable when its COMMIT returns, as
synchronous=FULL promises.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

__all__ = ["DurableTree"]

_LEDGER = ("ledger.db", "ledger.db-wal")


class DurableTree:
    """The durable state of everything below `root`, as far as `settle` and the `_keep` methods were told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lost: dict[int, int] = {}
        """Files whose unsynced bytes a failed fsync threw away, and when they had been written last."""

    def settle(self) -> None:
        """Everything that is there now is durable: as after `sync`."""
        self.content: dict[int, bytes] = {}
        self.modes: dict[int, int] = {}
        self.entries: dict[int, dict[str, tuple[str, int, str]]] = {}
        self.moves: list[tuple[int, str, int, str]] = []
        for place, _names, files in os.walk(self.root):
            self._keep_folder(place)
            for name in files:
                path = os.path.join(place, name)
                if not os.path.islink(path):
                    facts = os.stat(path)
                    data = _read(path)
                    # What a failed fsync lost stays lost, whatever is synced later.
                    gone = self.lost.get(facts.st_ino) == facts.st_mtime_ns
                    self.content[facts.st_ino] = bytes(len(data)) if gone else data
                    self.modes[facts.st_ino] = facts.st_mode & 0o7777

    def _keep_folder(self, path: str) -> None:
        number = os.stat(path).st_ino
        self.entries[number] = _listing(path)
        self.modes[number] = os.stat(path).st_mode & 0o7777
        pending = []
        for move in self.moves:
            source, old, target, new = move
            if number == target and new in self.entries[number]:
                _forget(self.entries.get(source, {}), old, self.entries[number][new][1])
            elif number == source and (found := self._current.get(target)) and new in (names := _listing(found)):
                self.entries.setdefault(target, {})[new] = names[new]
            else:
                pending.append(move)
        self.moves = pending

    @property
    def _current(self) -> dict[int, str]:
        return {os.stat(place).st_ino: place for place, _names, _files in os.walk(self.root)}

    def _keep_file(self, path: str, facts: os.stat_result) -> None:
        if self.lost.get(facts.st_ino) == facts.st_mtime_ns:
            return  # the kernel calls these pages clean: a second fsync succeeds and writes nothing
        self.lost.pop(facts.st_ino, None)
        self.content[facts.st_ino], self.modes[facts.st_ino] = _read(path), facts.st_mode & 0o7777

    def _lose_file(self, path: str, facts: os.stat_result) -> None:
        """A failed fsync: what was not on the disk before is not there now and never will be."""
        if self.content.get(facts.st_ino) != _read(path):
            self.lost[facts.st_ino] = facts.st_mtime_ns
            self.content[facts.st_ino] = bytes(facts.st_size)

    def _keep_ledger(self, path: Path) -> None:
        folder = self.entries.setdefault(os.stat(path.parent).st_ino, {})
        for name in _LEDGER:
            file = path.with_name(name)
            if file.exists():
                facts = file.stat()
                folder[name] = ("f", facts.st_ino, "")
                self.content[facts.st_ino], self.modes[facts.st_ino] = _read(str(file)), facts.st_mode & 0o7777
            else:
                folder.pop(name, None)

    def cut(self, dice: random.Random | None = None) -> None:
        """Leave in `root` what a power cut at the moment of death would leave.

        `dice`: what was not synced may have reached the disk all the same, each file and folder by itself.
        """
        entries, content = dict(self.entries), dict(self.content)
        if dice:
            self._some_more(dice, entries, content)
        built = self.root.with_name(f"{self.root.name}~cut")
        self._build(os.stat(self.root).st_ino, built, entries, content, {})
        _remove(self.root)
        os.rename(built, self.root)

    def _some_more(self, dice: random.Random, entries: dict[int, Any], content: dict[int, bytes]) -> None:
        tied = {number for source, _old, target, _new in self.moves for number in (source, target)}
        for place, _names, files in os.walk(self.root):
            number = os.stat(place).st_ino
            if number not in tied and dice.random() < 0.5:
                kept = {name: item for name, item in entries.get(number, {}).items() if name in _LEDGER}
                entries[number] = {name: item for name, item in _listing(place).items() if name not in _LEDGER} | kept
            for name in files:
                path = os.path.join(place, name)
                if not os.path.islink(path) and name not in _LEDGER and dice.random() < 0.5:
                    data, facts = _read(path), os.stat(path)
                    if self.lost.get(facts.st_ino) != facts.st_mtime_ns:
                        content.setdefault(facts.st_ino, data[: dice.randrange(len(data) + 1)])

    def _build(self, number: int, target: Path, entries: dict[int, Any], content: dict[int, bytes],
               made: dict[int, Path]) -> None:  # fmt: skip
        os.mkdir(target)
        for name, (kind, inode, link) in entries.get(number, {}).items():
            path = target / name
            if kind == "d":
                self._build(inode, path, entries, content, made)
            elif kind == "l":
                os.symlink(link, path)
            elif inode in made:
                os.link(made[inode], path)
            else:
                path.write_bytes(content.get(inode, b""))
                os.chmod(path, self.modes.get(inode, 0o644))
                made[inode] = path
        os.chmod(target, self.modes.get(number, 0o755))


def _read(path: str) -> bytes:
    with open(path, "rb") as handle:
        return handle.read()


def _listing(path: str) -> dict[str, tuple[str, int, str]]:
    found = {}
    for item in os.scandir(path):
        if item.name.endswith("-shm"):
            continue
        kind = "l" if item.is_symlink() else "d" if item.is_dir() else "f"
        found[item.name] = (kind, item.inode(), os.readlink(item.path) if kind == "l" else "")
    return found


def _forget(names: dict[str, tuple[str, int, str]], name: str, number: int) -> None:
    if name in names and names[name][1] == number:
        del names[name]


def _remove(root: Path) -> None:
    for place, _names, _files in os.walk(root):
        os.chmod(place, 0o755)
    shutil.rmtree(root)
