"""The watcher: watchdog tells when something stirs in the inbox, and that is all it tells.

Events overflow and observer threads die silently, so a hint only wakes the sweep, the sweep also runs without hints,
and the observer itself is looked after: a dead one is replaced, and the status says so meanwhile. Network folders give no
events for what others write there, so they are only swept. Not here: the sweep (`scan.py`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

__all__ = ["Watcher", "file_system_of"]

_TOLD = [FileCreatedEvent, FileMovedEvent, FileClosedEvent, DirCreatedEvent, DirMovedEvent]
MOUNTS = Path("/proc/self/mountinfo")
# A folder that is moved in is met twice, by its event and by the walk through its parent: watchdog tells of that on the terminal.
warnings.filterwarnings("ignore", r"Callback with id", RuntimeWarning)
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "vboxsf", "virtiofs", "davfs")


def file_system_of(device: int, mounts: Path = MOUNTS) -> str:
    """The type of a mounted file system by its device number (proc(5), mountinfo); "" when the kernel does not say."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _dash, after = line.partition(" - ")
        if before.split()[2:3] == [wanted]:
            return after.split()[0]
    return ""


def _gives_no_events(kind: str) -> bool:
    """Whether others may write there without our kernel knowing. `fuseblk` is a local disk."""
    return kind in _REMOTE or kind == "fuse" or kind.startswith("fuse.")


class _Hint(FileSystemEventHandler):
    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        # Reading a file also makes events; taking them as hints would make our own reading wake us for ever.
        if event.event_type not in ("opened", "closed_no_write"):
            self.wake()


class Watcher:
    """Keeps one observer alive over one folder."""

    def __init__(self, folder: Path, wake: Callable[[], None]) -> None:
        self.folder, self.wake = folder, wake
        self.problem = ""
        self.kind_of: Callable[[int], str] = file_system_of
        self._observer: object | None = None
        self._watched: tuple[int, int] | None = None

    def check(self) -> None:
        """Start or replace the observer when it is missing, dead, or watches a folder that was made again."""
        try:
            facts = os.stat(self.folder)
        except OSError as error:
            self.stop()
            self.problem = f"the inbox cannot be watched: {error.strerror}"
            return
        identity = (facts.st_dev, facts.st_ino)
        if self._observer is not None and self._alive() and self._watched == identity:
            self.problem = ""
            return
        died = self._observer is not None and self._watched == identity
        self.stop()
        kind = self.kind_of(facts.st_dev)
        if _gives_no_events(kind):
            self.problem = f"the inbox lies on {kind}, which tells of no changes: it is swept instead, every inbox.sweep_seconds"
            return
        self._start(identity)
        if died and not self.problem:
            self.problem = "the watcher of the inbox had died and was replaced; sweeps went on meanwhile"

    def _alive(self) -> bool:
        observer = self._observer
        return observer is not None and observer.is_alive() and all(  # type: ignore[attr-defined]
            emitter.is_alive() for emitter in observer.emitters)  # type: ignore[attr-defined]  # fmt: skip

    def _start(self, identity: tuple[int, int]) -> None:
        observer = Observer()
        try:
            # Not every open and every write: in a burst these events cost a tenth of the daemon's time, and say nothing
            # that these do not say as well.
            observer.schedule(_Hint(self.wake), os.fspath(self.folder), recursive=True, event_filter=_TOLD)
            observer.daemon = True
            observer.start()
        except OSError as error:
            # Exhausted inotify watches: sweeps alone still find every file.
            self.problem = f"no file events ({error.strerror}): the inbox is swept instead"
            return
        self._observer, self._watched, self.problem = observer, identity, ""
        self.wake()

    def stop(self) -> None:
        """End the observer."""
        observer, self._observer, self._watched = self._observer, None, None
        if observer is not None:
            observer.stop()  # type: ignore[attr-defined]
