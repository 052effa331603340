"""Places of derived data: whatever lies there and is of the wrong form is moved aside, never deleted, and made again.

`data/known` and `data/near` can be made from the originals at any time, so a file where a folder belongs is damage like any
other. Whose file it is nobody knows: it stays, as `<name>.damaged-1` beside it. Imports nothing heavy: `status` asks here too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from guard.durable import rename_new
from guard.home import Home

__all__ = ["PLACES", "is_aside", "is_folder", "make_room", "misplaced"]

PLACES = ("known", "near", "near/signatures")


def is_folder(path: Path) -> bool:
    """Whether a folder lies there; a link to one counts, for a person may keep derived data on another disk."""
    return path.is_dir()


def misplaced(home: Home) -> list[str]:
    """Places of derived data, relative to the home, where something lies that is no folder."""
    return [f"data/{name}" for name in PLACES
            if os.path.lexists(home.data / name) and not is_folder(home.data / name)]  # fmt: skip


def is_aside(name: str) -> bool:
    """Whether something was moved aside under this name: it is nobody's leftover and stays."""
    return ".damaged-" in name


def make_room(path: Path, *, folder: bool = True) -> Path | None:
    """Move aside what lies at `path` and is no folder (or, with `folder=False`, no regular file); returns where it is now."""
    if not os.path.lexists(path) or (is_folder(path) if folder else _is_regular(path)):
        return None
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    rename_new(path, aside)
    return aside


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode)
