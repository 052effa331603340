"""Near-duplicates in the background: when the home is calm, a child of its own reads new files and says what they resemble.

It has a reader process for itself, so that no file on its way in waits for it, and nothing waits for its reports: what
is trained does not depend on them. Not here: what the child does (`guard/near_task.py`), the index (`guard/store/near.py`).
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from daemon.reactor import Reactor
from daemon.readers import ReaderPool, one_reader
from guard.errors import HeirloomError
from guard.steps import Steps
from guard.store.keeper import Keeper
from guard.store.near import forget_signatures, near_request, note_near, open_near, prepare_near, waiting_files
from guard.store.near_keep import keep_near_steps, prove_near_steps

__all__ = ["NearRunner"]

FILES_AT_ONCE, BYTES_AT_ONCE = 2048, 32 << 20
SLICE_SECONDS = 0.02
NOTED_AT_ONCE = 256
RETRY_SECONDS = 300.0


class NearRunner:
    """One request at a time, then the upkeep of the index."""

    def __init__(self, keeper: Keeper, reactor: Reactor) -> None:
        self.keeper = keeper
        self.pool = ReaderPool(reactor, keeper.settings.intake.memory_mb, readers=one_reader())
        self.problem = ""
        self._asked: list[str] = []
        self._waiting: deque[tuple[str, int]] = deque()
        self._failed: set[str] = set()
        self._upkeep: Steps[int] | None = None
        self._seen = -1
        self._not_before = 0.0
        self._ready = False

    @property
    def busy(self) -> bool:
        """A request or the upkeep is under way, or files were stored that nobody looked at yet."""
        if self.keeper.settings.near.policy == "off":
            return False
        return bool(self._asked) or self._upkeep is not None or (self._seen != self._files() and not self._not_before)

    @property
    def in_slices(self) -> bool:
        """The upkeep is under way: a loop that slept between its slices would take a minute over two thousand files."""
        return self._upkeep is not None

    def _files(self) -> int:
        return int(self.keeper.ledger.value("SELECT coalesce(max(rowid), 0) FROM files"))

    def tick(self, now: float, *, calm: bool) -> None:
        """Hand out the next request when it is calm, look after the one under way, go on with the upkeep."""
        self.pool.tick(now)
        if self._asked or self.keeper.settings.near.policy == "off" or not calm or now < self._not_before:
            return
        self._not_before = 0.0
        try:
            self._go_on(now)
        except (OSError, HeirloomError) as error:
            self._trouble(now, str(error))

    def _go_on(self, now: float) -> None:
        if self._upkeep is not None:
            stop = time.monotonic() + SLICE_SECONDS
            while time.monotonic() < stop:
                if next(self._upkeep, self) is self:
                    self._upkeep = None
                    return
            return
        files = self._files()
        if self._seen == files:
            return
        if not self._ready:
            prepare_near(self.keeper)
            self._upkeep, self._ready = prove_near_steps(self.keeper), True
            return
        if not self._waiting:  # looked for once for many requests: with fifty thousand files it takes half a second
            self._waiting.extend(waiting_files(self.keeper, self._failed))
        if not self._waiting:
            self._seen = files
            self.pool.close()
            return
        asked = self._next_files()
        body, size = near_request(self.keeper, asked)
        self._asked = asked
        self.pool.submit(body, size, self._answered)
        self.pool.tick(now)  # at once, and not after the sleep that follows

    def _next_files(self) -> list[str]:
        """As many of the waiting files as go into one request."""
        files: list[str] = []
        size = 0
        while self._waiting and len(files) < FILES_AT_ONCE and (not files or size + self._waiting[0][1] <= BYTES_AT_ONCE):
            sha256, more = self._waiting.popleft()
            files.append(sha256)
            size += more
        return files

    def _answered(self, answer: dict[str, Any]) -> None:
        asked, self._asked = self._asked, []
        now = self.keeper.clock.monotonic()
        if answer.get("fault"):
            if answer["fault"] in ("crash", "bug"):
                # Whichever of them it was: they are left out in this life, and the next one tries them again.
                self._failed |= set(asked)
            self._trouble(now, str(answer.get("message")))
            return
        try:
            self._failed |= {str(item["sha256"]) for item in answer["near"] if item.get("fault")}
            self._forget(answer.get("unused", {}))
            self._upkeep = self._keep_steps([item for item in answer["near"] if not item.get("fault")])
            self.problem = ""
        except (OSError, HeirloomError) as error:
            self._trouble(now, str(error))

    def _keep_steps(self, reports: list[dict[str, Any]]) -> Steps[int]:
        for start in range(0, len(reports), NOTED_AT_ONCE):
            note_near(self.keeper, reports[start : start + NOTED_AT_ONCE])
            yield
        return (yield from keep_near_steps(self.keeper))

    def _forget(self, unused: dict[str, str]) -> None:
        """Damaged folders are left out: their files are loose, and taken in anew. Damaged signatures are made again."""
        index = open_near(self.keeper)
        for name in unused:
            if "/" not in name:
                forget_signatures(self.keeper, name)
        for name in list(index.parts):
            if str(index.parts[name].folder) in unused:
                index.leave_out(name, unused[str(index.parts[name].folder)])

    def _trouble(self, now: float, message: str) -> None:
        self._waiting.clear()
        self.problem, self._not_before = f"near-duplicates are not looked for: {message}", now + RETRY_SECONDS
        self._upkeep = None

    def close(self) -> None:
        """End the child; what it was at is asked again in the next life."""
        self.pool.close()
