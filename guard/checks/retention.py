"""Which versions might leave models/ for the vault: a log-spaced thinning, with a reason for every keep and archive.

Facts in, a proposal out; nothing is moved by it (`guard/store/archive.py` does that, after a person typed it).
What stays, whatever its age: bases, active versions, branch points, what others need to load or an unfinished job
trains from, what a person named or annotated, the newest of each line. Of the rest the oldest of each age class stays; class k
holds ages from 2^k to 2^(k+1) hours, so that a line of n hours keeps about log2(n) of them and each kept one goes on
to stand for its class as it grows older (the thinning of "grandfather, father, son" tape schemes, without steps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Candidate", "Choice", "age_class", "plan_retention"]

_HOUR = 3600.0


@dataclass(frozen=True)
class Candidate:
    """What the proposal depends on, of one version that is in models/."""

    name: str
    id: int
    line: str
    created: float
    """Seconds since the epoch."""
    size_bytes: int = 0
    is_base: bool = False
    quarantined: bool = False
    tip_of: tuple[str, ...] = ()
    children: int = 0
    """Versions that are not trashed or purged and have it as their parent."""
    needed_by: tuple[str, ...] = ()
    """Versions that cannot be loaded without it, or that name it as another input."""
    jobs: tuple[int, ...] = ()
    """Unfinished jobs that train from it."""
    annotation: str = ""
    """Why a person singled it out: it was named in a plan, or somebody rolled back to it; "" when nobody did."""


@dataclass(frozen=True)
class Choice:
    """One answer: stay or go to the vault, and why."""

    name: str
    keep: bool
    reason: str
    size_bytes: int = 0


def age_class(age_seconds: float) -> int:
    """The class of an age: floor(log2(hours)), 0 for everything younger than two hours."""
    return max(0, math.floor(math.log2(max(age_seconds / _HOUR, 1.0))))


def plan_retention(candidates: Sequence[Candidate], *, now: float, newest: int) -> tuple[Choice, ...]:
    """A choice for every candidate, ascending by id. `now` in seconds since the epoch; `newest` counts per line."""
    reasons = {item.id: _rule(item) for item in candidates}
    for line in {item.line for item in candidates}:
        _keep_newest(reasons, [item for item in candidates if item.line == line], newest)
        left = [item for item in candidates if item.line == line and not reasons[item.id] and not item.quarantined]
        _keep_spaced(reasons, left, now)
    return tuple(Choice(item.name, bool(reasons[item.id]), reasons[item.id] or _why_it_may_go(item, now), item.size_bytes)
                 for item in sorted(candidates, key=lambda item: item.id))  # fmt: skip


def _rule(item: Candidate) -> str:
    """The rule that keeps a version whatever its age; "" when none does."""
    if item.is_base:
        return "it is a base: everything was grown from it"
    if item.tip_of:
        return f"it is active on {', '.join(item.tip_of)}"
    if item.needed_by:
        return f"{', '.join(item.needed_by)} needs it"
    if item.jobs:
        return f"unfinished job {', '.join(map(str, item.jobs))} trains from it"
    if item.children > 1:
        return f"{item.children} versions branch from it"
    return item.annotation


def _keep_newest(reasons: dict[int, str], line: list[Candidate], newest: int) -> None:
    youngest = sorted(line, key=lambda item: item.id, reverse=True)[:newest] if newest else []
    for item in youngest:
        reasons[item.id] = reasons[item.id] or f"it is among the newest {newest} of {item.line}"


def _keep_spaced(reasons: dict[int, str], left: list[Candidate], now: float) -> None:
    oldest: dict[int, Candidate] = {}
    for item in sorted(left, key=lambda item: item.id):
        oldest.setdefault(age_class(now - item.created), item)
    for number, item in oldest.items():
        reasons[item.id] = f"it stands for the versions {_span(number)} old"


def _why_it_may_go(item: Candidate, now: float) -> str:
    if item.quarantined:
        return "it failed its gate and nothing stands on it" if not item.children else "it failed its gate"
    return f"another version stands for those {_span(age_class(now - item.created))} old"


def _span(number: int) -> str:
    """`4 to 8 hours`, `10.7 to 21.3 days`."""
    if number == 0:
        return "under 2 hours"
    low, high = 2.0**number, 2.0 ** (number + 1)
    unit, size = ("hours", 1.0) if high < 48 else ("days", 24.0)
    return f"{low / size:.3g} to {high / size:.3g} {unit}"
