"""A budget of pairs shared fairly among sources of different sizes: pure numbers.

Every source gets the same, as far as it goes; what a short one leaves over goes to the others. What is left after
dividing goes to the first ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from guard.errors import UsageError

__all__ = ["fair_shares", "parse_count"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def fair_shares(budget: int, limits: Mapping[str, int]) -> dict[str, int]:
    """How many each may give; `limits`: the most each has, by name, in the order that gets the remainder."""
    shares = dict.fromkeys(limits, 0)
    waiting = [name for name, limit in limits.items() if limit > 0]
    while budget > 0 and waiting:
        each, extra = divmod(budget, len(waiting))
        for place, name in enumerate(waiting):
            more = min(each + (place < extra), limits[name] - shares[name])
            shares[name] += more
            budget -= more
        waiting = [name for name in waiting if shares[name] < limits[name]]
    return shares


def parse_count(text: str, option: str) -> int:
    """`200k`, `1.5M` or `50000` as a number of at least 1. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb]?)", text.strip().replace(",", "").replace("_", ""), re.IGNORECASE)
    number = round(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if number < 1:
        raise UsageError(f"{option} {text!r} is no number of pairs", hint=f"{option} 200k, or {option} 50000")
    return number
