"""When the index of stored examples is brought up to date: in slices, between everything else.

Nothing waits for it: what it does not cover yet is looked up in the sidecars. So a small home never makes one, a burst
of files is taken in by the thousand, and a calm daemon catches up with the rest.
Not here: what the index is (`guard/store/known.py`).
"""

from __future__ import annotations

from guard.errors import HeirloomError
from guard.steps import Steps, advance
from guard.store.keeper import Keeper
from guard.store.known import FLUSH_FILES, FLUSH_KEYS, keep_index_steps, open_index

__all__ = ["Upkeep"]

CALM_FILES = 64
CALM_KEYS = 1 << 17
LOOK_SECONDS = 10.0
SLICE_SECONDS = 0.02


class Upkeep:
    """The upkeep of one home. `problem` stands in the alerts until it succeeds."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.problem = ""
        self._work: Steps[int] | None = None
        self._look_at = 0.0
        self._first = True

    @property
    def busy(self) -> bool:
        """Whether it is in the middle of something that `run --once` finishes."""
        return self._work is not None

    def tick(self, now: float, *, calm: bool) -> None:
        """A slice of work, or a look at whether there is any."""
        if self._work is None:
            if now < self._look_at or not self._due(calm):
                return
            self._work = keep_index_steps(self.keeper)
        try:
            done, _keys = advance(self._work, self.keeper.clock.monotonic, SLICE_SECONDS)
            if done:
                self._work, self.problem = None, ""
        except (OSError, HeirloomError) as error:
            # Derived data: what cannot be written now costs speed and nothing else.
            self._work, self.problem = None, f"the index of known examples was not brought up to date: {error}"

    def _due(self, calm: bool) -> bool:
        self._look_at = self.keeper.clock.monotonic() + LOOK_SECONDS
        index = open_index(self.keeper)
        if index.damaged or (self._first and calm and index.parts):
            self._first = False
            return True
        row = self.keeper.ledger.row("SELECT count(*), coalesce(sum(examples), 0) FROM files WHERE examples > 0")
        assert row is not None
        files, keys = row[0] - len(index.covered), row[1] - index.keys
        return bool(files >= (CALM_FILES if calm else FLUSH_FILES) or keys >= (CALM_KEYS if calm else FLUSH_KEYS))
