"""Side files on their way: taken in with their drop, kept beside the stored original, given back with a refused one.

A side file (`<name>.meta.yaml`) is taken before its drop, so that a drop is never taken without it, and under the same
intent: the drop's options name where it came from. User bytes are never deleted: what cannot go on is put back.
Not here: what a side file says (`guard/checks/side.py`), or the drop's own bytes (`intake.py`, `placing.py`, `returning.py`).

In a drop's folder it is called `side.yaml`, beside a stored original `meta.yaml`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import orjson

from guard.copies import copy_verified
from guard.durable import make_dir, rename_new, sha256_file
from guard.errors import is_environment
from guard.failpoints import point
from guard.folders import sync_parents
from guard.names import first_free
from guard.store.keeper import Keeper

__all__ = ["SIDE", "STORED_SIDE", "put_back", "return_beside", "side_source", "store_beside", "take_side"]

SIDE = "side.yaml"
STORED_SIDE = "meta.yaml"

Take = Callable[[Path, Path, bool], str]


def side_source(keeper: Keeper, drop: int) -> Path | None:
    """Where the side file of a drop lay, or lies; None for a drop without one."""
    options = orjson.loads(keeper.ledger.value("SELECT options FROM drops WHERE id = ?", (drop,)) or "{}")
    source = (options.get("side") or {}).get("source")
    return Path(os.fsdecode(bytes.fromhex(source))) if source else None


def take_side(source: Path, folder: Path, take: Take, *, move: bool) -> bool:
    """Bring a side file into the drop's folder, from wherever an earlier attempt stopped; False when it has gone."""
    kept = folder / SIDE
    if kept.exists():
        sync_parents(kept, source)
        return True
    try:
        take(source, kept, move)
    except OSError as error:
        if is_environment(error):
            raise
        return False  # it went, or became something that is not taken: a link, a folder
    point("claim.sided")
    return True


def put_back(source: Path | None, folder: Path, rejected: Path) -> None:
    """The drop came to nothing: its side file goes back to where it lay, or among what was refused when that is taken."""
    kept = folder / SIDE
    if source is None or not kept.exists():
        return
    if _is_copy(source, kept):
        return
    if os.path.lexists(source) or not source.parent.is_dir():
        make_dir(rejected)
        target = _free(rejected, source.name)
    else:
        target = source
    rename_new(kept, target)
    point("verdict.sided")


def _free(folder: Path, name: str) -> Path:
    def numbered(number: int) -> Path:
        return folder / (name if number == 1 else f"{number} {name}")

    return numbered(first_free(lambda number: os.path.lexists(numbered(number))))


def return_beside(source: Path | None, folder: Path, target: Path, move_out: Callable[[Path, Path], None]) -> None:
    """Give a side file back beside its returned drop, called after it, so that both can be dropped again as they are."""
    kept = folder / SIDE
    if source is None or not kept.exists():
        return
    beside = target.with_name(target.name + side_suffix(source.name))
    if os.path.lexists(beside) and _is_copy(beside, kept):
        return
    move_out(kept, beside)
    point("verdict.sided")


def side_suffix(name: str) -> str:
    """`.meta.yaml` or `.meta.yml`, as somebody wrote it."""
    return name[name.lower().rindex(".meta.y") :]


def store_beside(folder: Path, ready: Path) -> None:
    """Put a side file beside the original that is about to be stored."""
    if (folder / SIDE).exists() and not (ready / STORED_SIDE).exists():
        copy_verified(folder / SIDE, ready / STORED_SIDE)


def _is_copy(path: Path, kept: Path) -> bool:
    """Whether the very same bytes still lie there: ours was a copy, or an earlier attempt went that far."""
    try:
        facts = os.lstat(path)
        same = stat.S_ISREG(facts.st_mode) and facts.st_size == kept.stat().st_size
        return same and sha256_file(path) == sha256_file(kept)
    except OSError:
        return False
