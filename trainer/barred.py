"""Which rows of prepared data are in an evaluation set: of the data of a job, and of earlier data that may be replayed.

A row of pretraining text is known by its fingerprint alone. What a conversation asks, and what it is without its frame,
stands in the original, so the originals of conversations are read once more (`guard/untouchable.py` says what counts).
Not here: the choice that follows (`trainer/choose.py`, `trainer/replay.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.checks.columns import Reading
from guard.checks.kinds import name_for
from guard.durable import sha256_file
from guard.errors import Damage, HeirloomError
from guard.store.files import SIDECARS
from guard.untouchable import KeyList, touched_in_file
from trainer.dataset import FILE, ORDINAL, Dataset

__all__ = ["REPLAY_RULES", "barred_rows", "key_list", "look_for", "untouchable_rows"]

REPLAY_RULES = 4
"""1: replay was held against evaluation sets by the fingerprints of its rows alone; 2: also by what they ask; 3: rows that the
job itself trains, as one that repeats what was learnt does, are not replayed beside it; 4: under a step cap
replay takes no more than the steps leave to it. A version that is made again is made by the rules it was sealed under."""
Flags = NDArray[np.bool_]


def key_list(job: Mapping[str, Any]) -> KeyList | None:
    """The untouchable rows of the home's evaluation sets; None when it has none. Raises Damage (law 5)."""
    protected = job.get("protected")
    return KeyList(protected["path"], str(protected["sha256"])) if protected else None


def barred_rows(dataset: Dataset, keys: KeyList) -> Flags:
    """Which rows of the train split [n] are in a set by their own fingerprints."""
    return keys.sets_of(dataset.train.fingerprints.tobytes()) >= 0


def untouchable_rows(job: Mapping[str, Any], dataset: Dataset, keys: KeyList | None, *, folder: bool) -> Flags | None:
    """Which rows of the train split [n] belong to an evaluation set, by their fingerprints and by what they ask.

    Of a `folder` that was prepared elsewhere there is only the fingerprint. None when there is no set.
    """
    if keys is None:
        return None
    barred = barred_rows(dataset, keys)
    if str(job["stage"]) != "sft" or folder:
        return barred
    table = dataset.train.examples
    files = {str(item["sha256"]): item for item in job["files"]}
    for index, file in enumerate(dataset.files):
        item = files[str(file["sha256"])]
        path = str(item["path"])
        touched = touched_in_file(path, str(file.get("kind") or "sft"), keys, path, Reading(**item.get("reading") or {})) >= 0
        mine = np.flatnonzero(table[:, FILE] == index)
        barred[mine] |= touched[table[mine, ORDINAL]]
    return barred


def look_for(job: Mapping[str, Any], dataset: Dataset, keys: KeyList | None,
             warnings: list[str]) -> Callable[[int], Flags] | None:  # fmt: skip
    """How to look into the originals of an earlier dataset, file index by file index; None where nothing more is to be seen.

    An original that cannot be read bars all its rows (law 5), and `warnings` tells so.
    """
    replay = job.get("replay") or {}
    if keys is None or dataset.stage != "sft" or int(replay.get("rules") or 1) < 2:
        return None
    return partial(_look, Path(replay["originals"]), dataset, keys, warnings)


def _look(originals: Path, dataset: Dataset, keys: KeyList, warnings: list[str], index: int) -> Flags:
    file = dataset.files[index]
    count = int(file["examples"])
    try:
        path = _original(originals, str(file["sha256"]))
        name = name_for(str(file["container"]))
        kind = str(file.get("kind") or "sft")
        touched = touched_in_file(path, kind, keys, name, Reading(**file.get("reading") or {})) >= 0
        if len(touched) != count:
            raise Damage(f"{path} does not hold the examples that were prepared", subject=str(path))
    except (HeirloomError, OSError) as error:
        warnings.append(f"no replay from {file['name']}: what it asks cannot be held against the evaluation sets: {error}")
        return np.ones(count, dtype=bool)
    return touched


def _original(originals: Path, sha256: str) -> Path:
    """The stored bytes of this hash. Raises Damage when they are not there any more, or are others."""
    folder = originals / sha256
    found = [path for path in folder.iterdir() if path.name not in SIDECARS] if folder.is_dir() else []
    if len(found) != 1 or not found[0].is_file() or sha256_file(found[0]) != sha256:
        raise Damage(f"the stored original {sha256[:12]} is missing or damaged", subject=str(folder),
                     hint="drop the same file again, or copy it back from the vault")  # fmt: skip
    return found[0]
