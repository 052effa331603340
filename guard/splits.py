"""The splits a packed data set came with: which of its examples it keeps for judging.

What a data set calls its validation or test split is never trained from it: neither those examples nor their copies
among its train rows. Where the record lists no such split nothing is kept back here. Not here: what the home holds out of
every file (`heldout.py`), or how a name tells its split (`guard/checks/folders.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from guard.errors import Damage
from guard.fingerprint import FINGERPRINT_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["KeptBack", "recorded_splits", "split_counts", "val_keys"]


def split_counts(record: Mapping[str, Any]) -> dict[str, int]:
    """Examples by split, {"train": n, "val": n}, as far as there are any; {} for what is no packed data set."""
    counts: dict[str, int] = {}
    for item in record.get("splits") or ():
        counts[str(item["split"])] = counts.get(str(item["split"]), 0) + int(item["count"])
    return counts


def recorded_splits(sidecar: Path | str | None) -> dict[str, Any]:
    """The record beside an original's fingerprints, for whoever asks for its splits; {} when there is none.

    Raises Damage when it cannot be read: what is kept for judging would be trained.
    """
    path = Path(sidecar) / "record.json" if sidecar else None
    if path is None or not path.is_file():
        return {}
    try:
        record = orjson.loads(path.read_bytes())
    except ValueError as error:
        raise Damage(f"{path} cannot be read", subject=str(path), hint="heirloom verify --all") from error
    return record if isinstance(record, dict) else {}


def val_keys(record: Mapping[str, Any], fingerprints: bytes | memoryview) -> bytes:
    """The fingerprints of the examples that a data set keeps for judging; `fingerprints`: all of its own, in order."""
    places = [(int(item["start"]), int(item["count"])) for item in record.get("splits") or () if item["split"] == "val"]
    size = FINGERPRINT_BYTES
    return b"".join(bytes(fingerprints[start * size : (start + count) * size]) for start, count in places)


class KeptBack:
    """The examples that data sets keep for judging, by their fingerprints: sorted once and asked many times."""

    def __init__(self, keys: bytes) -> None:
        from guard.key_runs import split_keys
        from guard.key_sets import distinct_keys

        high, low = split_keys(keys)
        order, _place = distinct_keys(high, low)
        self._high, self._low = high[order], low[order]

    def mask(self, fingerprints: bytes | memoryview) -> NDArray[np.bool_]:
        """For each of the fingerprints [n]: is it one of them?"""
        from guard.key_runs import split_keys
        from guard.key_sets import among

        return among(self._high, self._low, *split_keys(fingerprints))
