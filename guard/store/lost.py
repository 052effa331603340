"""Stored files whose fingerprints cannot be read: what of them cannot be asked for, told until it is mended.

While no index covers such a file, its examples are looked for in the datasets it was prepared into. What is nowhere cannot be
recognised in other files. That holds the jobs that train this very file and no others: one rotten sidecar would stop
everything that is ever dropped. So it must be told, in the status, by `heirloom why` and in the events.
Not here: finding it (`learnt.py`, in passing), or mending it (`admission.py`).
"""

from __future__ import annotations

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.steps import Steps
from guard.store.keeper import Keeper
from guard.store.known import lost_sidecar
from guard.store.standing import note_damage, standing_damage
from guard.store.sums import hash_steps

__all__ = ["found_lost", "lost_now", "spare_steps", "tell_lost"]


def found_lost(keeper: Keeper, sha256: str, problem: str) -> None:
    """Remember, in this process, that a file could not be asked; "" for one that could."""
    lost = keeper.memory.setdefault("lost", {})
    if problem:
        lost[sha256] = problem
    else:
        lost.pop(sha256, None)


def lost_now(keeper: Keeper) -> dict[str, str]:
    """What the last questions of this process could not ask: SHA-256 of the file -> what is wrong."""
    return dict(keeper.memory.get("lost") or {})


def tell_lost(keeper: Keeper, job: int) -> None:
    """Write down what a job went on without, for status and story; once for each file as long as it stands."""
    standing = standing_damage(keeper)
    fresh = {sha256: what for sha256, what in lost_now(keeper).items() if f"original {sha256}" not in standing}
    if not fresh:
        return
    with keeper.ledger.transaction():
        for sha256, what in fresh.items():
            key = f"original {sha256}"
            name = str(keeper.ledger.value("SELECT name FROM files WHERE sha256 = ?", (sha256,)) or sha256)
            hint = lost_sidecar(keeper.home.files / sha256, "").hint.partition("; then")[0]
            standing[key] = f"{name}: {what}; its examples are not recognised in other files until you {hint}"
            keeper.ledger.event("known.lost", name, sha256=sha256, reason=standing[key], job=job)
        note_damage(keeper.ledger, standing)


def spare_steps(keeper: Keeper, sha256: str) -> Steps[tuple[NDArray[np.int64], NDArray[np.void]]]:
    """Fingerprints of a file's examples from the datasets it was trained by: (ordinals [k], fingerprints [k] of 16 bytes).

    Each dataset is believed only when its two tables are what its metadata says. Examples that were held out are in none.
    """
    ordinals, keys = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype="V16")]
    rows = keeper.ledger.rows("SELECT DISTINCT json_extract(v.record, '$.dataset.id') FROM learnt l JOIN versions v "
                              "ON v.id = l.version_id WHERE l.sha256 = ?", (sha256,))  # fmt: skip
    for folder in [keeper.home.shards / row[0] for row in rows if row[0]]:
        try:
            head = orjson.loads((folder / "dataset_metadata.json").read_bytes())
            place = [item["sha256"] for item in head["files"]].index(sha256)
            told, split = head["splits"]["train"], folder / "train"
            if ((yield from hash_steps(split / "examples.npy")) != told["examples_sha256"]
                    or (yield from hash_steps(split / "examples.fp")) != told["fingerprints_sha256"]):  # fmt: skip
                continue
            table = np.load(split / "examples.npy", mmap_mode="r")
            mine = np.flatnonzero(table[:, 0] == place)
            ordinals.append(np.asarray(table[mine, 1]))
            keys.append(np.memmap(split / "examples.fp", dtype="V16", mode="r")[mine])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # pruned, or damaged: what is left is lost, and told
        yield
    return np.concatenate(ordinals), np.concatenate(keys)
