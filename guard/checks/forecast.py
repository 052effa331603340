"""How long will the disk last? From what the newest versions cost, and how fast they came. Pure.

    forks left = room / mean bytes of a recent version (with its backup, where that is on the same disk)
    full on    = now + room / (bytes of the recent versions but the oldest / time since the oldest, a day at least)

The time runs until now and not until the newest: a home where nothing is dropped any more fills later and later. What
came in the first minutes of a home is taken as that day's: ten files at once are not ten files a minute for ever.
Not here: what is free, or what to do about it (`guard/checks/preflight.py` refuses, the runner pauses).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Forecast", "Grown", "forecast"]

_DAY = 86400.0


@dataclass(frozen=True)
class Grown:
    """One version as it weighed on the models' disk."""

    created: float
    """Seconds since the epoch."""
    size_bytes: int


@dataclass(frozen=True)
class Forecast:
    """`full_at` in seconds since the epoch; None when nothing grows, or too little is known to say."""

    forks_left: int
    full_at: float | None


def forecast(*, room_bytes: int, recent: Sequence[Grown], now: float, guess_bytes: int = 0) -> Forecast:
    """The forecast from the newest versions, in any order. `guess_bytes`: what a version costs while none was trained."""
    room = max(0, room_bytes)
    mean = sum(item.size_bytes for item in recent) / len(recent) if recent else float(guess_bytes)
    forks = int(room / mean) if mean > 0 else 0
    ordered = sorted(recent, key=lambda item: item.created)
    grown = sum(item.size_bytes for item in ordered[1:])
    seconds = now - ordered[0].created if ordered else 0.0
    if grown <= 0 or seconds <= 0:
        return Forecast(forks, None)
    return Forecast(forks, now + room / (grown / max(seconds, _DAY)))
