"""Damage that the scrub found and that stands until it reads well again. Small, for `heirloom status` loads it.

Not here: finding it (`scrub.py`).
"""

from __future__ import annotations

import orjson

from guard.store.keeper import Keeper
from guard.store.ledger import Ledger

__all__ = ["note_damage", "settle_damage", "standing_damage"]

_KEY = "scrub:damage"


def standing_damage(keeper: Keeper) -> dict[str, str]:
    """What the scrub found and has not seen sound since: thing -> what is wrong with it."""
    return orjson.loads(keeper.ledger.meta(_KEY) or "{}")


def note_damage(ledger: Ledger, standing: dict[str, str]) -> None:
    """Write down what stands, inside the caller's transaction."""
    ledger.set_meta(_KEY, orjson.dumps(standing, option=orjson.OPT_SORT_KEYS).decode())


def settle_damage(keeper: Keeper, thing: str) -> None:
    """Something was mended or removed: what stood of it no longer does. Inside the caller's transaction."""
    standing = standing_damage(keeper)
    if standing.pop(thing, None) is not None:
        note_damage(keeper.ledger, standing)
        keeper.ledger.event("scrub.mended", thing)
