"""Folders in the inbox that are one drop: which they are, what one look at each saw, and whether it may be taken now.

Names are listed and nothing is opened but to ask for writers. Not here: the rule (`guard/checks/folders.py`), the sweep
(`scan.py`), the moving (`guard/store/folder_drops.py`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from daemon.settle import Settler, Sighting
from guard.checks.folders import PLAIN_FOLDER, dataset_folders, ignored_folder, is_junk, shown_name, waits_for
from guard.errors import UsageError
from guard.folder_tree import Entry, list_tree, mark_of, regular, tree_bytes

__all__ = ["changing_beside", "folder_now", "folder_problem", "folder_sighting", "grouped", "held_open",
           "ignored_folder_at", "require_data_set", "room_problem"]  # fmt: skip

ROOM_FACTOR = 2
"""A folder needs its size once more where it is packed, and once more where it must be copied."""
_TOLD = ("train", "-of-", "state.json", "dataset_dict.json")


def grouped(top: Path, entries: Sequence[Entry]) -> tuple[dict[Path, list[Entry]], list[Entry]]:
    """The data sets at or below a folder with what lies in each, and what belongs to none; names are relative to `top`."""
    if not any(word in name.lower() for name, _facts in entries for word in _TOLD):
        return {}, list(entries)  # most folders: their names cost nothing
    units = dataset_folders(name for name, _facts in entries)
    found: dict[Path, list[Entry]] = {top / unit if unit else top: [] for unit in units}
    rest = []
    for name, facts in entries:
        unit = next((unit for unit in _above(name) if unit in units), None)
        if unit is None:
            rest.append((name, facts))
        else:
            found[top / unit if unit else top].append((name[len(unit) + 1 if unit else 0 :], facts))
    return found, rest


def _above(name: str) -> list[str]:
    """Every folder that a name lies in, the nearest first, "" last."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(len(parts), -1, -1)]


def folder_sighting(path: Path, entries: Sequence[Entry], unreadable: str = "") -> Sighting:
    """One look at a data set: its signature changes with any file in it. Raises OSError when the folder has gone."""
    facts = os.lstat(path)
    newest = max((item.st_ctime_ns for name, item in entries if not is_junk(name)), default=0)
    signature = (facts.st_dev, facts.st_ino, tree_bytes(entries), mark_of(entries), newest)
    # Never 0 bytes to the settler: an empty data set says by itself what it lacks.
    return Sighting(path, signature, tree_bytes(entries) or 1, unreadable or folder_problem(path, entries))


def folder_problem(path: Path, entries: Sequence[Entry]) -> str:
    """Why a data set cannot be taken even if it holds still; "" when it can."""
    irregular = [name for name, facts in entries if not stat.S_ISREG(facts.st_mode)]
    problem = waits_for(regular(entries), irregular)
    if problem:
        return problem
    closed = next((name for name, facts in entries if not facts.st_mode & 0o444
                   or not os.access(path / name, os.R_OK, follow_symlinks=False)), "")  # fmt: skip
    return f"{shown_name(closed)} in it is unreadable" if closed else ""


def folder_now(path: Path) -> Sighting:
    """Look at a data set once more. Raises OSError."""
    return folder_sighting(path, list_tree(path))


def held_open(path: Path, has_writer: Callable[[Path], bool]) -> str:
    """The name of a file in it that somebody writes to; "" when nobody does. Raises OSError."""
    return next((shown_name(name) for name, _facts in list_tree(path) if not is_junk(name) and has_writer(path / name)), "")


def changing_beside(path: Path, top: Path, settler: Settler, now: float) -> str:
    """What changed a moment ago in the same folder of the inbox; "" when all of it holds still.

    A data set below the folder that was dropped may be a part of a larger one whose other parts are still on their way.
    """
    if path == top:
        return ""
    for other, seen in settler.seen.items():
        if other != path and now - seen.since < settler.settle_seconds and other.is_relative_to(top):
            return shown_name(other.name)
    return ""


def room_problem(size_bytes: int, free_bytes: int) -> str:
    """Why the disk has no room to take and pack a folder of so many bytes; "" when it has.

    The reserve of the settings is for what is trained: like a file, a folder only takes the room it needs to come in.
    """
    wanted = ROOM_FACTOR * size_bytes
    if free_bytes >= wanted:
        return ""
    return f"the disk has {free_bytes / 1e9:,.2f} GB free, and to take and pack it {wanted / 1e9:,.2f} GB are needed: make room"


def require_data_set(path: Path) -> None:
    """Raises UsageError for a folder that is no data set, or is not whole, with what to do."""
    entries = list_tree(path)
    found = sorted(dataset_folders(name for name, _facts in entries))
    if "" not in found:
        inside = " ".join(str(path / name) for name in found[:3]) or f"{path}/*.jsonl"
        raise UsageError(f"{path} is a folder, and no data set by the names in it", subject=str(path),
                         hint=f"name what is in it: heirloom register {inside}")  # fmt: skip
    if problem := folder_problem(path, entries):
        raise UsageError(f"{path} cannot be taken: {problem}", subject=str(path), hint="make it whole, and register it again")


def ignored_folder_at(path: Path, relative: str) -> str:
    """Why a folder in the inbox is not taken as one drop, "" when it is a data set; `relative` to the inbox."""
    try:
        found = dataset_folders(name for name, _facts in list_tree(path))
    except OSError as error:
        return f"this folder cannot be read: {error.strerror}"
    return ignored_folder(relative) if "" in found else PLAIN_FOLDER
