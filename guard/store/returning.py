"""Returning: a drop that is refused goes back into the inbox's folders, with the reason beside it.

To `inbox/rejected/` or `inbox/duplicates/`, under a name that nothing has, its side file with it; the intent names the
place first. Not here: why it is refused (`guard/checks/why.py` words it, `daemon/verdicts.py` decides it).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.checks.kinds import SIDE_SUFFIXES
from guard.copies import copy_verified
from guard.durable import make_dir, remove_tree, rename_new, write_text
from guard.errors import EnvironmentFault
from guard.failpoints import point
from guard.folders import sync_parents
from guard.names import first_free, safe_name
from guard.store.folder_drops import move_folder
from guard.store.intake import claimed_content, drop_folder, set_drop
from guard.store.keeper import Keeper
from guard.store.side_files import put_back, return_beside, side_source

__all__ = ["give_back"]


def give_back(keeper: Keeper, drop: int, verdict: str, reason: str, why: str, record: Mapping[str, Any]) -> Path | None:
    """Return a claimed drop to `inbox/rejected/` or `inbox/duplicates/` with `<name>.why.txt` beside it.

    `verdict` is "rejected" or "duplicate". Returns where it lies now; None for a copy whose source never moved.
    """
    row = keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (drop,))
    assert row is not None
    folder = keeper.home.rejected if verdict == "rejected" else keeper.home.duplicates
    _ready_folder(folder)
    content = claimed_content(keeper, drop)
    target = Path(os.fsdecode(row["returned_to"])) if row["returned_to"] else _free_name(folder, row["name"])
    if content.exists() and os.path.lexists(target):
        target = _free_name(folder, row["name"])  # somebody took the name since it was chosen
    with keeper.ledger.transaction():
        set_drop(keeper, drop, "returning", reason, returned_to=str(target), sha256=record.get("sha256"),
                 verdict={**record, "verdict": verdict, "why": why})  # fmt: skip
    point("verdict.intended")
    kept = row["mode"] == "copy"
    if not kept:
        if content.exists():
            _move_out(content, target)
        else:
            sync_parents(target, content)
        point("verdict.returned")
        return_beside(side_source(keeper, drop), drop_folder(keeper, drop), target, _move_out)
        write_text(target.with_name(_why_name(target.name)), why)
    else:
        put_back(side_source(keeper, drop), drop_folder(keeper, drop), folder)
    point("verdict.moved")
    with keeper.ledger.transaction():
        set_drop(keeper, drop, verdict, reason, returned_to=None if kept else str(target))
    point("verdict.recorded")
    remove_tree(drop_folder(keeper, drop))
    point("verdict.cleared")
    return None if kept else target


def _why_name(name: str) -> str:
    """`<name>.why.txt`, shortened so that even a 255-byte name gets one."""
    return f"{safe_name(name)}.why.txt"


def _ready_folder(folder: Path) -> None:
    """`inbox/rejected/` may be made again; the inbox itself never: where it is missing, its disk may be (law 9)."""
    if not folder.parent.is_dir():
        raise EnvironmentFault(f"{folder.parent} has vanished", subject=str(folder.parent),
                               hint="is its disk mounted? nothing is put under a missing one")  # fmt: skip
    make_dir(folder)


def _free_name(folder: Path, name: str) -> Path:
    """A name in the folder that nothing has: `data.jsonl`, then `data (2).jsonl` ... (an older drop is never replaced).

    Nothing that goes back with it, its reason and a side file, may meet an older one either.
    """
    stem, suffix = os.path.splitext(name)

    def numbered(number: int) -> str:
        return name if number == 1 else f"{stem} ({number}){suffix}"

    def taken(number: int) -> bool:
        wanted = numbered(number)
        beside = [wanted, _why_name(wanted), *(wanted + side for side in SIDE_SUFFIXES)]
        return any(os.path.lexists(folder / item) for item in beside)

    return folder / numbered(first_free(taken))


def _move_out(content: Path, target: Path) -> None:
    if content.is_dir():
        move_folder(content, target)
        return
    try:
        rename_new(content, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_verified(content, target)
        os.unlink(content)
