"""Where the time of one child went: wall and processor seconds of its phases, told in `phases.json` of its staging folder.

For people and benchmarks: it goes with the staging folder, nothing is decided by it and no version records it. Not here:
the time of single steps (`metrics.jsonl`), or what a child tells while it works (`progress.json`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from guard.durable import json_bytes, publish

__all__ = ["Phases"]


class Phases:
    """A stop-watch whose phases follow one another; a phase of a name that was there before goes on counting."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, processor: Callable[[], float] = time.process_time) -> None:
        self._clocks = (clock, processor)
        self._spent: dict[str, tuple[float, float]] = {}
        self._name, self._since = "", self._now()

    def _now(self) -> tuple[float, float]:
        return self._clocks[0](), self._clocks[1]()

    def begin(self, name: str) -> None:
        """End the phase that runs and begin another."""
        now = self._now()
        if self._name:
            before = self._spent.get(self._name, (0.0, 0.0))
            self._spent[self._name] = (before[0] + now[0] - self._since[0], before[1] + now[1] - self._since[1])
        self._name, self._since = name, now

    def tell(self, folder: Path) -> None:
        """Leave the seconds in `phases.json` of a folder, not synced. Raises OSError."""
        publish(folder / "phases.json", json_bytes(self.end()))

    def end(self) -> dict[str, list[float]]:
        """By phase [wall seconds, processor seconds of all threads], the one that runs now included."""
        self.begin(self._name)
        return {name: [round(wall, 4), round(processor, 4)] for name, (wall, processor) in self._spent.items()}
