"""How fast a run goes now, for people who ask when it will be done. From a clock that is passed in; no bit depends on it.

Only time spent in steps of this process counts: not what passed between a death and the resume, not the waiting of
an earlier, busier hour. Until the first step of a resumed run is through, what the snapshot remembered is told.
"""

from __future__ import annotations

import math

__all__ = ["SMOOTHED_OVER_SECONDS", "Pace"]

SMOOTHED_OVER_SECONDS = 20.0
"""A step's weight falls to 1/e in so many seconds: long enough to be read, short enough to see a change."""


class Pace:
    """Exponentially smoothed seconds and tokens per step; steps count by how long they took."""

    def __init__(self, seconds_per_step: float = 0.0, tokens_per_second: float = 0.0) -> None:
        """What an earlier part of the run measured; 0: nothing is known yet."""
        self.seconds_per_step, self.tokens_per_second = seconds_per_step, tokens_per_second
        self._weight = self._steps = self._tokens = 0.0

    def step(self, seconds: float, tokens: int) -> None:
        """One more step."""
        fade = math.exp(-seconds / SMOOTHED_OVER_SECONDS)
        self._weight = self._weight * fade + seconds
        self._steps = self._steps * fade + 1.0
        self._tokens = self._tokens * fade + tokens
        if self._weight > 0:
            self.seconds_per_step = self._weight / self._steps
            self.tokens_per_second = self._tokens / self._weight
