"""A disk that can be asked to fail: it sees every durable call below a folder and knows what a power cut would leave.

`Disk` stands between the code and `os` while it is entered. Each call that changes the disk (write, fsync, rename,
link, unlink, mkdir, chmod, a ledger's COMMIT ...) is counted and may be made to crash, to fail or to fall short.

What survives a cut is modelled as strictly as POSIX allows, in the manner of ALICE and CrashMonkey: a file has the bytes
it had at its own last good fsync, a folder the entries it had at its own last fsync; a rename is one step, so syncing
either folder keeps both ends of it. After a failed fsync the pages count as clean and their bytes as gone, which is what
Linux does. `cut()` builds that tree. A real file system keeps more; the real one is `test_guard_powercut.py`'s.
Not here: SQLite's own calls. The ledger is taken to be durable when its COMMIT returns, as synchronous=FULL promises.
"""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guard import durable
from guard.failpoints import Crash
from guard.store import ledger as ledger_module
from guard.store.ledger import Ledger

__all__ = ["Disk", "crash_at", "fail_at", "full_from", "lie_about_fsync", "short_at"]

Fault = Callable[[int, str], int | None]
"""Told the number and the name of a call about to be made; may raise, or return how many bytes of a write are taken."""

_LEDGER = ("ledger.db", "ledger.db-wal")


def crash_at(number: int) -> Fault:
    """Sudden death just before the call of that number (1 is the first)."""
    def fault(count: int, _name: str) -> None:
        if count == number:
            raise Crash(f"call {number}")
    return fault  # fmt: skip


def fail_at(number: int, code: int) -> Fault:
    """One call fails with this errno and the next ones succeed."""
    def fault(count: int, name: str) -> None:
        if count == number:
            raise OSError(code, os.strerror(code), name)
    return fault  # fmt: skip


def full_from(number: int) -> Fault:
    """From this call on the disk takes no new bytes and no new names."""
    def fault(count: int, name: str) -> None:
        if count >= number and name in ("write", "mkdir", "link", "symlink", "commit", "create"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    return fault  # fmt: skip


def short_at(number: int) -> Fault:
    """A write of this number takes a single byte and says so."""
    def fault(count: int, name: str) -> int | None:
        return 1 if count == number and name == "write" else None
    return fault  # fmt: skip


def lie_about_fsync(number: int) -> Fault:
    """The first fsync of a file from this call on fails with EIO; its bytes are gone, and nobody is told twice."""
    done: list[int] = []

    def fault(count: int, name: str) -> None:
        if count >= number and name == "fsync file" and not done:
            done.append(count)
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
    return fault  # fmt: skip


class _Raw(io.RawIOBase):
    """An unbuffered file whose every write is a call of the disk."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self.disk, self.descriptor = disk, descriptor

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self.descriptor, offset, whence)

    def fileno(self) -> int:
        return self.descriptor

    def write(self, data: Any) -> int:
        if self.disk.dead:
            return len(data)  # what a dead process still had in its buffers goes nowhere
        taken = self.disk.call("write")
        return os.write(self.descriptor, data if taken is None else bytes(data[:taken]))

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self.descriptor)


class Disk:
    """Enter it to watch `root`; everything below it counts as durable when it is entered first.

    `real`: nothing is modelled, every call goes through to the file system, and ledgers really sync.
    """

    def __init__(self, root: Path, *, real: bool = False) -> None:
        self.root, self.real = root, real
        self.calls: list[str] = []
        self.fault: Fault | None = None
        self.dead = False
        self.lost: dict[int, int] = {}
        """Files whose unsynced bytes a failed fsync threw away, and when they had been written last."""
        self.committed: Callable[[Ledger], None] = lambda _ledger: None
        self._real: dict[str, Any] = {}

    # --- what is durable -----------------------------------------------------------------------------------------

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

    # --- standing in between -------------------------------------------------------------------------------------

    def call(self, name: str) -> int | None:
        """One durable call: count it, and let the fault have its say."""
        if self.dead:
            raise Crash("dead")
        self.calls.append(name)
        if self.fault is None:
            return None
        try:
            return self.fault(len(self.calls), name)
        except Crash:
            self.dead = True
            raise

    def _ours(self, path: Any, folder: int | None = None) -> bool:
        text = os.fsdecode(path) if not isinstance(path, int) else os.readlink(f"/proc/self/fd/{path}")
        if folder is not None and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
        return text.startswith(f"{self.root}/")

    def __enter__(self) -> Disk:
        if not self.real and not hasattr(self, "content"):
            self.settle()
        for name in ("fsync", "rename", "unlink", "rmdir", "link", "symlink", "mkdir", "chmod", "fdopen", "open"):
            self._real[name] = getattr(os, name)
            setattr(os, name, getattr(self, f"_{name}"))
        self._real |= {"noreplace": durable._rename_noreplace, "run": Ledger.run, "close": Ledger.close,
                       "sync": durable.sync_file_system}  # fmt: skip
        durable._rename_noreplace = self._noreplace  # type: ignore[assignment]
        durable.sync_file_system = self._sync  # type: ignore[assignment]
        Ledger.run, Ledger.close = self._runner(), self._closer()  # type: ignore[method-assign]
        return self

    def __exit__(self, *_error: object) -> None:
        durable._rename_noreplace = self._real.pop("noreplace")
        durable.sync_file_system = self._real.pop("sync")
        Ledger.run, Ledger.close = self._real.pop("run"), self._real.pop("close")  # type: ignore[method-assign]
        for name, function in self._real.items():
            setattr(os, name, function)

    def _fsync(self, descriptor: int) -> None:
        if not self._ours(f"{os.readlink(f'/proc/self/fd/{descriptor}')}/"):
            return self._real["fsync"](descriptor)
        facts = os.fstat(descriptor)
        folder = stat.S_ISDIR(facts.st_mode)
        try:
            self.call("fsync folder" if folder else "fsync file")
        except OSError:
            if not folder:
                self._lose_file(f"/proc/self/fd/{descriptor}", facts)
            raise
        if self.real:
            return self._real["fsync"](descriptor)
        if folder:
            return self._keep_folder(os.readlink(f"/proc/self/fd/{descriptor}"))
        return self._keep_file(f"/proc/self/fd/{descriptor}", facts)

    def _moved(self, name: str, source: Any, target: Any) -> None:
        if self._ours(source) or self._ours(target):
            self.call("rename")
        number = os.lstat(source).st_ino
        before, after = os.path.dirname(os.path.abspath(source)), os.path.dirname(os.path.abspath(target))
        ends = (os.stat(before).st_ino, os.path.basename(source), os.stat(after).st_ino, os.path.basename(target))
        self._real[name](source, target)
        if not self.real and before != after and number in {item[1] for item in self.entries.get(ends[0], {}).values()}:
            self.moves.append(ends)

    def _rename(self, source: Any, target: Any, **more: Any) -> None:
        self._moved("rename", source, target)

    def _noreplace(self, source: Any, target: Any) -> None:
        self._moved("noreplace", source, target)

    def _sync(self, path: Path) -> None:
        self.call("sync")
        if self.real:
            return self._real["sync"](path)
        return self.settle()

    def _plain(self, name: str, path: Any, *rest: Any, **more: Any) -> None:
        if self._ours(path, more.get("dir_fd")):
            if self.dead:
                return  # a dead process tidies nothing up
            self.call(name)
        self._real[name](path, *rest, **more)

    def _unlink(self, path: Any, **more: Any) -> None:
        self._plain("unlink", path, **more)

    def _rmdir(self, path: Any, **more: Any) -> None:
        self._plain("rmdir", path, **more)

    def _mkdir(self, path: Any, *rest: Any, **more: Any) -> None:
        self._plain("mkdir", path, *rest, **more)

    def _chmod(self, path: Any, *rest: Any, **more: Any) -> None:
        self._plain("chmod", path, *rest, **more)

    def _link(self, source: Any, target: Any, **more: Any) -> None:
        if self._ours(target):
            self.call("link")
        self._real["link"](source, target, **more)

    def _symlink(self, source: Any, target: Any, **more: Any) -> None:
        if self._ours(target):
            self.call("symlink")
        self._real["symlink"](source, target, **more)

    def _open(self, path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT and self._ours(path, more.get("dir_fd")):
            self.call("create")
        return self._real["open"](path, flags, *rest, **more)

    def _fdopen(self, descriptor: int, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode == "wb" and self._ours(descriptor):
            return io.BufferedWriter(_Raw(self, descriptor))
        return self._real["fdopen"](descriptor, mode, *rest, **more)

    def _runner(self) -> Callable[..., int]:
        real = self._real["run"]

        def run(ledger: Ledger, sql: str, values: Any = ()) -> int:
            if self.real and sql == "BEGIN IMMEDIATE":
                ledger._db.execute("PRAGMA synchronous=FULL")  # the toys switch it off
            if sql != "COMMIT" or not self._ours(ledger.path):
                return real(ledger, sql, values)
            try:
                self.call("commit")
            except OSError as error:
                text = "database or disk is full" if error.errno == errno.ENOSPC else "disk I/O error"
                raise ledger_module._translate(sqlite3.OperationalError(text), ledger.path) from error
            result = real(ledger, sql, values)
            if not self.real:
                self._keep_ledger(ledger.path)
            self.committed(ledger)
            return result
        return run  # fmt: skip

    def _closer(self) -> Callable[[Ledger], None]:
        real = self._real["close"]

        def close(ledger: Ledger) -> None:
            if self.dead:
                ledger._db.close()  # a dead process says no goodbye
                return
            real(ledger)
            if not self.real and not self.dead and self._ours(ledger.path):
                self._keep_ledger(ledger.path)
        return close  # fmt: skip


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
