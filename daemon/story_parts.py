"""Where every row of a file went, line by line: parts that add up to the rows that came.

Computed when it is asked for, from fingerprints, bitmaps and prepared shards, in the order in which the trainer judges them
(`trainer/choose.py`): a row counts in the first part that fits. Reads only. Not here: the words (`daemon/cli/files.py`).

    rows = new + learnt + held_out + untouchable + repeated + too_long + bad + unusable
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.checks.kinds import TRAINABLE_KINDS, stage_of
from guard.errors import HeirloomError
from guard.heldout import held_out_mask
from guard.splits import KeptBack, val_keys
from guard.steps import drain
from guard.store.evaluation import touched_rows
from guard.store.files import StoredFile
from guard.store.keeper import Keeper
from guard.store.known import sidecar_bytes
from guard.store.learnt import known_mask_steps
from guard.store.versions import ancestors, tips

__all__ = ["PARTS", "parts_of", "passed_over"]

PARTS = ("new", "learnt", "held_out", "untouchable", "repeated", "too_long", "bad", "unusable")
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class _TooLong:
    """What a version passed over of a file because its window is shorter: which rows [examples], or only how many."""

    version: str
    window: int
    rows: Flags | None
    count: int


def parts_of(keeper: Keeper, file: StoredFile) -> dict[str, dict[str, Any]] | None:
    """By line: the count of each of PARTS, their sum `rows`, `window` (tokens, where rows were too long, else null).

    None for what is not trained (documents, pairs, tasks), and where the file's sidecar cannot be read (`heirloom verify`
    tells of that).
    """
    if file.kind not in TRAINABLE_KINDS:
        return None
    try:
        fingerprints = sidecar_bytes(keeper.home.files / file.sha256)
        fraction = float(keeper.ledger.meta("validation_fraction") or keeper.settings.validation.fraction)
        held = held_out_mask(fingerprints, keeper.salt, fraction)
        held |= KeptBack(val_keys(file.record, fingerprints)).mask(fingerprints)
        barred = touched_rows(keeper, file, fingerprints)
        return {line: _parts(keeper, file, fingerprints, held, barred, tip.id) for line, tip in tips(keeper.ledger).items()}
    except (HeirloomError, OSError):
        return None


def _parts(keeper: Keeper, file: StoredFile, fingerprints: bytes, held: Flags, barred: Flags, tip: int) -> dict[str, Any]:
    known = drain(known_mask_steps(keeper, fingerprints, tip, stage_of(file.kind)))
    left = np.ones(len(held), dtype=bool)
    counts = {}
    for name, flags in (("held_out", held), ("untouchable", barred), ("learnt", known), ("repeated", _repeated(fingerprints))):
        counts[name] = int((left & flags).sum())
        left &= ~flags
    family = set(ancestors(keeper.ledger, tip))
    over = next((item for item in passed_over(keeper, file, family) if item.count), None)
    counts["too_long"] = 0
    if over is not None:
        counts["too_long"] = min(over.count, int(left.sum())) if over.rows is None else int((left & over.rows).sum())
    record = file.record
    bad = int(record.get("bad_rows_count") or len(record.get("bad_rows") or []))
    counts |= {"bad": bad, "unusable": int(record.get("unusable_rows_count") or 0)}
    counts["new"] = int(left.sum()) - counts["too_long"]
    return {**{name: counts[name] for name in PARTS}, "rows": sum(counts.values()),
            "window": over.window if over is not None and counts["too_long"] else None}  # fmt: skip


def _repeated(fingerprints: bytes) -> Flags:
    """Which examples [n] stand earlier in the same file already."""
    words = np.frombuffer(fingerprints, dtype=">u8").reshape(-1, 2)
    order = np.lexsort((np.arange(len(words)), words[:, 1], words[:, 0]))
    again = np.zeros(len(words), dtype=bool)
    again[order[1:]] = (words[order[1:]] == words[order[:-1]]).all(axis=1)
    return again


def passed_over(keeper: Keeper, file: StoredFile, family: set[int] | None = None) -> list[_TooLong]:
    """For each version made of a file, the newest first: its rows that were longer than the version's window.

    `family`: ids of the versions that count, None for all. Exact where the shards it was made of are still there, or the
    file was alone in its job; otherwise nothing is said.
    """
    rows = keeper.ledger.rows(
        "SELECT v.id, v.name, v.record, (SELECT count(*) FROM job_files o WHERE o.job_id = j.id) AS files FROM job_files f "
        "JOIN jobs j ON j.id = f.job_id JOIN versions v ON v.id = j.output_id AND j.kind = 'train' WHERE f.sha256 = ? "
        "ORDER BY v.id DESC", (file.sha256,))  # fmt: skip
    found = []
    for row in rows:
        record = orjson.loads(row["record"])
        told = int((record.get("skipped") or {}).get("too_long") or 0)
        if not told or (family is not None and row["id"] not in family):
            continue
        which = _which(keeper, file, record)
        if which is not None or row["files"] == 1:
            count = told if which is None else int(which.sum())
            found.append(_TooLong(row["name"], int(record.get("block_size") or 0), which, count))
    return found


def _which(keeper: Keeper, file: StoredFile, record: dict[str, Any]) -> Flags | None:
    """The rows [examples] of a file that a version's shards show to be too long; None where they cannot be read."""
    from trainer.choose import too_long
    from trainer.dataset import FILE, ORDINAL, open_dataset

    try:
        dataset = open_dataset(keeper.home.shards / str((record.get("dataset") or {}).get("id")))
        number = next(place for place, item in enumerate(dataset.files) if item["sha256"] == file.sha256)
        table = dataset.train.examples[too_long(dataset, int(record["block_size"]))]
        flags = np.zeros(file.examples, dtype=bool)
        flags[table[table[:, FILE] == number, ORDINAL]] = True
        return flags
    except (HeirloomError, OSError, KeyError, IndexError, StopIteration):
        return None
