"""The watcher: watchdog tells when something stirs in the inbox, and that is all it tells.

Events overflow and observer threads die silently, so a hint only wakes the sweep, the sweep also runs without hints,
and the observer itself is looked after: a dead one is replaced, and the status says so meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

__all__ = ["Watcher"]


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
            return
        self.stop()
        self._start(identity)

    def _alive(self) -> bool:
        observer = self._observer
        return observer is not None and observer.is_alive() and all(  # type: ignore[attr-defined]
            emitter.is_alive() for emitter in observer.emitters)  # type: ignore[attr-defined]  # fmt: skip

    def _start(self, identity: tuple[int, int]) -> None:
        observer = Observer()
        try:
            observer.schedule(_Hint(self.wake), os.fspath(self.folder), recursive=True)
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
