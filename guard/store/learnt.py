"""What a version and its ancestors have learnt, computed from bitmaps and sidecars, and what a file adds to that.

"Learnt" is a fact about (example, objective) and an ancestry (law 4); it is stored on no file, so after a rollback
the data is trainable again by itself. The answer at intake is an estimate for the person; the trainer's prepare step
decides again against the actual base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from guard.bitmap import unpack_bitmap
from guard.durable import open_new
from guard.errors import Damage
from guard.heldout import is_held_out
from guard.store.keeper import Keeper
from guard.store.versions import learnt_by

__all__ = ["FINGERPRINT_BYTES", "Novelty", "judge_novelty", "known_fingerprints", "read_sidecar", "write_known"]

FINGERPRINT_BYTES = 16


@dataclass(frozen=True)
class Novelty:
    """How a file's examples stand towards one version: counts of distinct examples."""

    examples: int
    new: int
    known: int
    held_out: int
    repeated: int


def read_sidecar(folder: Path) -> list[bytes]:
    """The fingerprints beside a stored original, in order of ordinals. Raises Damage when torn or missing."""
    path = folder / "examples.fp"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise Damage(f"{path} is missing", subject=str(path), hint="heirloom verify --all") from error
    if len(data) % FINGERPRINT_BYTES:
        raise Damage(f"{path} is torn", subject=str(path), hint="heirloom verify --all")
    return [data[start : start + FINGERPRINT_BYTES] for start in range(0, len(data), FINGERPRINT_BYTES)]


def known_fingerprints(
    keeper: Keeper, version_id: int, objective: str, instead: Mapping[str, list[bytes]] | None = None
) -> Iterator[bytes]:
    """Every fingerprint learnt by a version and its ancestors under an objective; one may come more than once.

    `instead`: fingerprints by SHA-256 of originals whose sidecars are not to be read.
    """
    sidecars: dict[str, list[bytes]] = dict(instead or {})
    for row in learnt_by(keeper.ledger, version_id, objective):
        if row["sha256"] not in sidecars:
            sidecars[row["sha256"]] = read_sidecar(keeper.home.files / row["sha256"])
        known = sidecars[row["sha256"]]
        for ordinal in unpack_bitmap(row["bitmap"]):
            yield known[ordinal]


def write_known(keeper: Keeper, version_id: int, objective: str, path: Path) -> int:
    """Write those fingerprints to a file for the prepare child; returns how many."""
    count = 0
    with open_new(path) as handle:
        for fingerprint in known_fingerprints(keeper, version_id, objective):
            handle.write(fingerprint)
            count += 1
    return count


def judge_novelty(
    keeper: Keeper, fingerprints: list[bytes], version_id: int | None, objective: str,
    instead: Mapping[str, list[bytes]] | None = None,
) -> Novelty:  # fmt: skip
    """Count what of a file is new to a version (None: to a model that has learnt nothing); `instead` as above."""
    fraction = float(keeper.ledger.meta("validation_fraction") or keeper.settings.validation.fraction)
    distinct = set(fingerprints)
    held = {item for item in distinct if is_held_out(item, keeper.salt, fraction)}
    trainable = distinct - held
    known: set[bytes] = set()
    if version_id is not None and trainable:
        known = trainable & set(known_fingerprints(keeper, version_id, objective, instead))
    return Novelty(len(fingerprints), len(trainable - known), len(known), len(held), len(fingerprints) - len(distinct))
