"""Time as an argument: wall time for records, monotonic time for durations. Tests pass a clock that they turn.

Durations are never computed from wall time: it jumps (daylight saving, NTP, a person).
"""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "ManualClock", "utc_before", "utc_seconds", "utc_text"]


def utc_text(seconds: float) -> str:
    """Seconds since the epoch as `2026-11-21T01:02:03.456Z`."""
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_seconds(text: str) -> float:
    """The seconds since the epoch of such a text. Raises ValueError."""
    return datetime.datetime.fromisoformat(text).timestamp()


def utc_before(text: str, seconds: float) -> str:
    """The moment so many seconds before another; such texts compare as the moments do."""
    return utc_text(max(0.0, utc_seconds(text) - seconds))


class Clock(Protocol):
    """What the rest of the house may ask about time."""

    def utc(self) -> str: ...

    def monotonic(self) -> float: ...


class _SystemClock:
    def utc(self) -> str:
        return utc_text(time.time())

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass
class ManualClock:
    """A clock that stands still until it is told to move."""

    seconds: float = 1_000_000_000.0
    elapsed: float = 0.0

    def utc(self) -> str:
        return utc_text(self.seconds)

    def monotonic(self) -> float:
        return self.elapsed

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        self.elapsed += seconds


SYSTEM_CLOCK: Clock = _SystemClock()
