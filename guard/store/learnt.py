"""What a version and its ancestors have learnt, computed from bitmaps and sidecars, and what a file adds to that.

"Learnt" is a fact about (example, objective) and an ancestry (law 4); it is stored on no file, so after a rollback
the data is trainable again by itself. The answer at intake is an estimate for the person; the trainer's prepare step
decides again against the actual base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from guard.bitmap import unpack_bitmap
from guard.durable import open_new
from guard.errors import Damage
from guard.heldout import is_held_out
from guard.steps import Steps, drain
from guard.store.keeper import Keeper
from guard.store.versions import ancestors, learnt_by

__all__ = [
    "FINGERPRINT_BYTES", "Novelty", "judge_novelty", "known_fingerprints", "known_steps", "novelty_steps", "read_sidecar",
    "write_known",
]  # fmt: skip

FINGERPRINT_BYTES = 16
HELD_BYTES = 64 << 20
"""Four million examples; a longer ancestry is read anew each time it is asked about."""


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


def known_steps(keeper: Keeper, version_id: int, objective: str, take: Callable[[bytes], object]) -> Steps[None]:
    """Hand `take` every fingerprint learnt by a version and its ancestors under an objective, many at a time, in slices.

    One may come more than once. What is handed over is a run of fingerprints of FINGERPRINT_BYTES each. The whole run of
    the ancestry asked about last is held in memory up to HELD_BYTES: sidecars and bitmaps never change, and opening 50,000
    of them for every drop and again for every fork took six seconds each time. Raises Damage.
    """
    after, held = keeper.known.get(objective, (0, b""))
    if after not in ancestors(keeper.ledger, version_id):
        after, held = 0, b""
    take(held)
    run, whole = bytearray(held), True
    for row in learnt_by(keeper.ledger, version_id, objective, after=after):
        known = read_sidecar(keeper.home.files / row["sha256"])
        part = b"".join([known[ordinal] for ordinal in unpack_bitmap(row["bitmap"])])
        take(part)
        whole = whole and len(run) + len(part) <= HELD_BYTES
        if whole:
            run += part
        yield len(part)
    if whole:
        keeper.known[objective] = (version_id, bytes(run))


def _cut(run: bytes) -> Iterator[bytes]:
    return (run[start : start + FINGERPRINT_BYTES] for start in range(0, len(run), FINGERPRINT_BYTES))


def known_fingerprints(keeper: Keeper, version_id: int, objective: str) -> Iterator[bytes]:
    """Each fingerprint that `known_steps` hands over."""
    runs: list[bytes] = []
    drain(known_steps(keeper, version_id, objective, runs.append))
    return (fingerprint for run in runs for fingerprint in _cut(run))


def write_known(keeper: Keeper, version_id: int, objective: str, path: Path) -> int:
    """Write those fingerprints to a file for the prepare child; returns how many."""
    with open_new(path) as handle:
        drain(known_steps(keeper, version_id, objective, handle.write))
        return handle.tell() // FINGERPRINT_BYTES


def judge_novelty(keeper: Keeper, fingerprints: list[bytes], version_id: int | None, objective: str) -> Novelty:
    """Count what of a file is new to a version (None: to a model that has learnt nothing)."""
    return drain(novelty_steps(keeper, fingerprints, version_id, objective))


def novelty_steps(keeper: Keeper, fingerprints: list[bytes], version_id: int | None, objective: str) -> Steps[Novelty]:
    """`judge_novelty` in slices."""
    fraction = float(keeper.ledger.meta("validation_fraction") or keeper.settings.validation.fraction)
    distinct = set(fingerprints)
    held = {item for item in distinct if is_held_out(item, keeper.salt, fraction)}
    trainable = distinct - held
    known: set[bytes] = set()
    if version_id is not None and trainable:
        yield from known_steps(keeper, version_id, objective, lambda run: known.update(trainable.intersection(_cut(run))))
    return Novelty(len(fingerprints), len(trainable - known), len(known), len(held), len(fingerprints) - len(distinct))
