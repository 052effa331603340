"""A disk that can be asked to fail: it sees every durable call below a folder and knows what a power cut would leave.

`Disk` stands between the code and `os` while it is entered. Each call that changes the disk (write, fsync, rename,
link, unlink, mkdir, chmod, a ledger's COMMIT ...) is counted and may be made to crash, to fail or to fall short.
Not here: the faults (`faults.py`), and what is durable after which call (`disk_model.py`).
"""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disk_model import DurableTree
from faults import Fault

from guard import durable
from guard.failpoints import Crash
from guard.store.ledger import Ledger
from guard.store.ledger_file import translate

__all__ = ["Disk"]


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


class Disk(DurableTree):
    """Enter it to watch `root`; everything below it counts as durable when it is entered first.

    `real`: nothing is modelled, every call goes through to the file system, and ledgers really sync.
    """

    def __init__(self, root: Path, *, real: bool = False) -> None:
        super().__init__(root)
        self.real = real
        self.calls: list[str] = []
        self.fault: Fault | None = None
        self.dead = False
        self.committed: Callable[[Ledger], None] = lambda _ledger: None
        self._real: dict[str, Any] = {}

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
                raise translate(sqlite3.OperationalError(text), ledger.path) from error
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
