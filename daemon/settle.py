"""When is a dropped file finished? Pure: what was seen of each file, and `now` on a monotonic clock.

A file is settled when it is not empty and (device, inode, size, mtime, ctime) held still for `settle_seconds`; files
found at start-up go the same way. An old mtime proves nothing (`cp -p`, `rsync -a`), so only our own watching counts.
Not here: looking at the disk (`scan.py`) or asking whether a writer still holds it open (`scan.py: has_writer`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Seen", "Settler", "Sighting"]


@dataclass(frozen=True)
class Sighting:
    """One look at one file. `problem`: why it could not be taken even if it held still."""

    path: Path
    signature: tuple[int, int, int, int, int]
    size: int
    problem: str = ""


@dataclass
class Seen:
    """What is remembered of a file between looks."""

    signature: tuple[int, int, int, int, int]
    since: float
    reason: str = ""


class Settler:
    """Remembers files between looks; forgets those that have gone."""

    def __init__(self, settle_seconds: float) -> None:
        self.settle_seconds = settle_seconds
        self.seen: dict[Path, Seen] = {}

    def look(self, sightings: Iterable[Sighting], now: float) -> list[Sighting]:
        """Take in a whole sweep; returns the settled files in the order they were first seen."""
        current = {item.path: item for item in sightings}
        for gone in self.seen.keys() - current.keys():
            del self.seen[gone]
        ready = []
        for path, item in current.items():
            known = self.seen.get(path)
            if known is None or known.signature != item.signature:
                self.seen[path] = known = Seen(item.signature, now)
            known.reason = self._waiting_for(item, known, now)
            if not known.reason:
                ready.append((known.since, item))
        return [item for _since, item in sorted(ready, key=lambda pair: (pair[0], pair[1].path))]

    def _waiting_for(self, item: Sighting, known: Seen, now: float) -> str:
        if item.size == 0:
            return "it is empty"
        if item.problem:
            return item.problem
        if now - known.since < self.settle_seconds:
            return "it changed a moment ago"
        return ""

    def postpone(self, path: Path, reason: str) -> None:
        """A settled file cannot be taken yet (a writer, a cut last line): it keeps waiting, and says why."""
        if path in self.seen:
            self.seen[path].reason = reason

    def still_for(self, path: Path, now: float) -> float:
        """Seconds for which nothing about the file changed."""
        return now - self.seen[path].since if path in self.seen else 0.0

    def forget(self, path: Path) -> None:
        """The file was taken."""
        self.seen.pop(path, None)

    def next_due(self, now: float) -> float | None:
        """Seconds until the next file may be settled; None when nothing is changing."""
        waits = [item.since + self.settle_seconds - now for item in self.seen.values()
                 if item.reason == "it changed a moment ago"]  # fmt: skip
        return max(0.0, min(waits)) if waits else None

    def waiting(self) -> dict[str, str]:
        """Every file that waits, with the reason."""
        return {str(path): item.reason for path, item in self.seen.items() if item.reason}
