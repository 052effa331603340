"""What of a file would be new, reckoned where the file is read: in the limited child, from a ledger opened for reading.

An estimate for the person and for the verdict of this moment; what is trained is decided again when the job starts.
The daemon's loop stays free of it: a file of thirty million rows is asked about here. Not here: the reckoning itself
(`learnt.py`) and the verdict (`admission.py`).
"""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from guard.bitmap import bitmap_flags
from guard.errors import HeirloomError
from guard.home import Home
from guard.splits import recorded_splits, val_keys
from guard.steps import drain
from guard.store.keeper import Keeper, open_reader
from guard.store.known import sidecar_bytes
from guard.store.learnt import Novelty, novelty_steps
from guard.store.lost import lost_now
from guard.store.versions import DEFAULT_LINE, line_tip

__all__ = ["estimate", "forget_all", "stored_estimate", "tip_of", "touchable"]

_open: dict[str, tuple[Keeper, ExitStack]] = {}


def _reader(root: str) -> Keeper:
    """The home's ledger, opened once in the life of this process: it sees what is committed meanwhile."""
    if root not in _open:
        stack = ExitStack()
        _open[root] = stack.enter_context(open_reader(Home(Path(root)))), stack
    return _open[root][0]


def touchable(fingerprints: bytes, untouchable: str) -> bytes:
    """The fingerprints of a file less those of the ordinals in a bitmap ("" for none): what an evaluation set keeps out."""
    if not untouchable:
        return fingerprints
    examples = np.frombuffer(fingerprints, dtype="V16")
    return examples[~bitmap_flags(untouchable, len(examples))].tobytes()


def estimate(root: str, line: str, objective: str, sidecar: Path, untouchable: str = "") -> dict[str, Any] | None:
    """The counts of `Novelty` with the `tip` they hold for; None when it cannot be said from here (the daemon then says).

    `line`: the one it is for, "" for the usual one; `sidecar`: the folder with the file's `examples.fp`; `untouchable`:
    bitmap of its examples in evaluation sets.
    """
    line = line or DEFAULT_LINE
    try:
        keeper = _reader(root)
        tip = tip_of(keeper, line)
        keys = sidecar_bytes(sidecar)
        apart = val_keys(recorded_splits(sidecar), keys)
        novelty = drain(novelty_steps(keeper, touchable(keys, untouchable), tip, objective, apart=apart))
        if lost_now(keeper):
            return None  # this very file may mend what is lost: the daemon knows
    except (HeirloomError, OSError, sqlite3.Error):
        forget(root)
        return None
    return {"tip": tip, "line": line, **dataclasses.asdict(novelty)}


def forget(root: str) -> None:
    """Close what was opened of a home."""
    found = _open.pop(root, None)
    if found:
        found[1].close()


def forget_all() -> None:
    """Close whatever is open: for a process that does more than read files."""
    for root in list(_open):
        forget(root)


def tip_of(keeper: Keeper, line: str) -> int | None:
    """The version a drop for this line would be forked from."""
    tip = line_tip(keeper.ledger, line) or line_tip(keeper.ledger, DEFAULT_LINE)
    return tip.id if tip else None


def stored_estimate(keeper: Keeper, line: str, found: dict[str, Any] | None) -> Novelty | None:
    """An estimate as counts, when it was made for the line's present tip."""
    if not found or found["line"] != line or found["tip"] != tip_of(keeper, line):
        return None
    return Novelty(**{field.name: found[field.name] for field in dataclasses.fields(Novelty)})
