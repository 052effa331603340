"""Folders whose every byte this process read and found right a moment ago, so that nobody reads them again at once.

A version that was just born was read back from the disk; preflight of the next job, which forks from it, would read all of
it once more. It does not while nothing about any file changed (inode, size, both times) and the proof is younger than
PROVEN_SECONDS. Whatever changes unseen below that is still caught: the training child tells the hash of the weights it
really loaded, and the proof of training compares it. Not here: proving (`birth.py`, `sums.py`); nothing is written to the disk.
"""

from __future__ import annotations

import os
from pathlib import Path

from guard.store.keeper import Keeper

__all__ = ["PROVEN_SECONDS", "note_proven", "still_proven"]

PROVEN_SECONDS = 600.0
_KEY = "proven folders"
_MOST = 4

_Stamp = tuple[str, int, int, int, int, int]


def _stamps(folder: Path) -> list[_Stamp]:
    """What the system says of each file and folder below, and of the folder itself. Raises OSError."""
    paths = [str(folder)]
    for place, folders, files in os.walk(folder):
        paths += [os.path.join(place, name) for name in (*folders, *files)]
    found = []
    for path in sorted(paths):
        facts = os.lstat(path)
        found.append((path, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
    return found


def note_proven(keeper: Keeper, folder: Path, sums_sha256: str) -> None:
    """Remember that all of a folder was read just now and is what its SHA256SUMS of that hash says. Raises OSError."""
    kept = keeper.memory.setdefault(_KEY, {})
    kept.pop(folder.name, None)
    kept[folder.name] = (sums_sha256, _stamps(folder), keeper.clock.monotonic())
    while len(kept) > _MOST:
        del kept[next(iter(kept))]


def still_proven(keeper: Keeper, folder: Path, sums_sha256: str) -> bool:
    """Whether the folder was proven a moment ago against that very list and nothing about it changed since."""
    noted = keeper.memory.get(_KEY, {}).get(folder.name)
    if noted is None or noted[0] != sums_sha256 or keeper.clock.monotonic() - noted[2] > PROVEN_SECONDS:
        return False
    try:
        return bool(_stamps(folder) == noted[1])
    except OSError:
        return False
