"""What `heirloom why` says of a side file: whose it is, and why it waits, came too late or is alone.

The daemon says the same of those that it watches (`daemon/sides.py`); here it is said whether one runs or not, and of those
that were taken with their file as well. Reads only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from daemon.scan import ignored_because
from guard.checks.kinds import SIDE_SUFFIXES
from guard.home import Home
from guard.names import safe_name
from guard.store.keeper import Keeper

__all__ = ["came_back", "data_name", "in_the_inbox", "side_reason", "taken_with"]


def data_name(name: str) -> str:
    """The name of the file a side file is for; "" for what is no side file."""
    suffix = next((suffix for suffix in SIDE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: -len(suffix)] if suffix else ""


def in_the_inbox(home: Home, name: str) -> Path | None:
    """Where a file or folder of that name lies in the inbox: where it waits, else among what came back."""
    found = [Path(place) / name for place, names, files in os.walk(home.inbox) if name in files or name in names]
    return min(found, key=lambda path: (came_back(home, path), str(path)), default=None)


def came_back(home: Home, path: Path) -> bool:
    """Whether a path lies where files come back to."""
    return path.is_relative_to(home.rejected) or path.is_relative_to(home.duplicates)


def side_reason(keeper: Keeper, path: Path, told: Callable[[Path], str]) -> str:
    """Why a side file lies in the inbox, and what to do; `told`: why another file waits there."""
    data = path.with_name(data_name(path.name))
    if os.path.lexists(data):
        ignored = ignored_because(keeper.home, data)
        if ignored:
            return f"it is for {data.name}, which is ignored: {ignored}"
        return f"it goes with {data.name}, and is taken with it: {told(data)}"
    row = keeper.ledger.row("SELECT state, seen, returned_to FROM drops WHERE name = ? AND state != 'gone' "
                            "ORDER BY id DESC LIMIT 1", (safe_name(data.name),))  # fmt: skip
    if row is None:
        return f"no {data.name} lies beside it: drop that file into the same folder, or take this away"
    where = f" and came back to {row['returned_to']}" if row["returned_to"] else ""
    when = str(row["seen"])[:19].replace("T", " ")
    return (f"it came too late: {data.name} was taken without it ({when} UTC, {row['state']}{where})."
            f" Drop {data.name} again beside it, or take this away")  # fmt: skip


def taken_with(keeper: Keeper, name: str) -> str | None:
    """The name of the newest drop that a side file of that name was taken with; None when there was none."""
    found: str | None = keeper.ledger.value("SELECT name FROM drops WHERE json_extract(options, '$.side.name') = ? "
                                            "ORDER BY id DESC LIMIT 1", (safe_name(name),))  # fmt: skip
    return found
