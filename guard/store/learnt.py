"""What a version and its ancestors have learnt, computed from bitmaps and sidecars, and what a file adds to that.

"Learnt" is a fact about (example, objective) and an ancestry (law 4); it is stored on no file, so after a rollback
the data is trainable again by itself. The answer at intake is an estimate for the person; the trainer's prepare step
decides again against the actual base. Questions go to the index of known examples, so that their cost follows the
size of the file that is asked about and not of everything that was ever learnt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.bitmap import bitmap_bits
from guard.durable import open_new
from guard.heldout import held_out_mask
from guard.key_columns import sorted_rows, split_keys
from guard.steps import Steps, drain
from guard.store.keeper import Keeper
from guard.store.known import FileHits, open_index, sidecar_bytes
from guard.store.versions import ancestors

__all__ = ["FINGERPRINT_BYTES", "Novelty", "judge_novelty", "known_mask_steps", "novelty_steps", "write_known",
           "write_known_steps"]  # fmt: skip

FINGERPRINT_BYTES = 16
_AT_ONCE = 1 << 19


@dataclass(frozen=True)
class Novelty:
    """How a file's examples stand towards one version: counts of distinct examples."""

    examples: int
    new: int
    known: int
    held_out: int
    repeated: int


class _Ancestry:
    """What a version and its ancestors learnt under an objective, file by file and only where it is asked for."""

    def __init__(self, keeper: Keeper, version_id: int, objective: str) -> None:
        self.keeper, self.objective = keeper, objective
        self.family = frozenset(ancestors(keeper.ledger, version_id))
        self._flags: dict[str, NDArray[np.bool_] | None] = {}

    def flags(self, sha256: str) -> NDArray[np.bool_] | None:
        """Which ordinals of a file were learnt [at most its examples]; None for a file nothing was learnt from."""
        if sha256 not in self._flags:
            rows = self.keeper.ledger.rows("SELECT version_id, bitmap FROM learnt WHERE sha256 = ? AND objective = ?",
                                           (sha256, self.objective))  # fmt: skip
            maps = [bitmap_bits(row["bitmap"]) for row in rows if row["version_id"] in self.family]
            whole = np.zeros(max(map(len, maps)), dtype=bool) if maps else None
            for bits in maps:
                assert whole is not None
                whole[: len(bits)] |= bits
            self._flags[sha256] = whole
        return self._flags[sha256]

    def files_outside(self, covered: Collection[str]) -> list[str]:
        """Every file outside `covered` that any version learnt from under the objective: a cheap superset.

        Which files were learnt from is remembered with the keeper and followed by the rows that came since.
        """
        ledger = self.keeper.ledger
        # Rows only come, and not in the order of version numbers: a job that was held is born after a younger one.
        count = ledger.value("SELECT count(*) FROM learnt")
        key = ("learnt", self.objective)
        known = self.keeper.memory.get(key)
        if known is None or known[0] != count or known[1] is not covered:
            names = {row[0] for row in ledger.rows("SELECT DISTINCT sha256 FROM learnt WHERE objective = ?", (self.objective,))}
            known = self.keeper.memory[key] = (count, covered, sorted(names.difference(covered)))
        return list(known[2])


def known_mask_steps(keeper: Keeper, fingerprints: bytes, version_id: int, objective: str,
                     instead: Mapping[str, bytes] | None = None) -> Steps[NDArray[np.bool_]]:  # fmt: skip
    """For each of the 16-byte fingerprints [n]: was it learnt by the version or an ancestor of it, under the objective?

    `instead`: fingerprints by SHA-256 of originals whose sidecars are not to be read. Exact whether the index covers
    everything or nothing. Raises Damage when what a file held cannot be known (law 5).
    """
    known = np.zeros(len(fingerprints) // FINGERPRINT_BYTES, dtype=bool)
    if not len(known):
        return known
    ancestry = _Ancestry(keeper, version_id, objective)
    index = open_index(keeper)
    for start in range(0, len(known), _AT_ONCE):
        part = known[start : start + _AT_ONCE]
        for hits in index.find(fingerprints[start * FINGERPRINT_BYTES : (start + _AT_ONCE) * FINGERPRINT_BYTES]):
            _mark(part, hits, ancestry)
        yield
    # After the search: a damaged folder was left out on the way, and its files are uncovered by now.
    for sha256 in ancestry.files_outside(index.covered):
        if ancestry.flags(sha256) is not None:
            sidecar = (instead or {}).get(sha256) or sidecar_bytes(keeper.home.files / sha256)
            _mark(known, _look_into(sidecar, sha256, fingerprints), ancestry)
            yield
    return known


def _mark(known: NDArray[np.bool_], hits: FileHits, ancestry: _Ancestry) -> None:
    flags = ancestry.flags(hits.sha256)
    if flags is not None:
        inside = hits.ordinal < len(flags)
        known[hits.question[inside][flags[hits.ordinal[inside]]]] = True


def _look_into(sidecar: bytes, sha256: str, fingerprints: bytes) -> FileHits:
    """The same answer as the index gives, from one file's own sidecar. A repeated example has several ordinals."""
    rows = sorted_rows([sidecar])
    high, low = split_keys(fingerprints)
    left, right = np.searchsorted(rows["high"], high, "left"), np.searchsorted(rows["high"], high, "right")
    lengths = right - left
    owner = np.repeat(np.arange(len(high)), lengths)
    place = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths) + left[owner]
    same = rows["low"][place] == low[owner]
    return FileHits(sha256, owner[same], rows["ordinal"][place[same]].astype(np.int64))


def write_known_steps(keeper: Keeper, sidecars: Sequence[Path], version_id: int, objective: str, path: Path) -> Steps[int]:
    """Write for the prepare child which examples of these files' sidecar folders were learnt; returns how many."""
    count = 0
    with open_new(path) as handle:
        for folder in sidecars:
            data = sidecar_bytes(folder)
            mask = yield from known_mask_steps(keeper, data, version_id, objective)
            chosen = np.frombuffer(data, dtype="V16")[mask]
            handle.write(chosen.tobytes())
            count += len(chosen)
    return count


def write_known(keeper: Keeper, sidecars: Sequence[Path], version_id: int, objective: str, path: Path) -> int:
    """`write_known_steps`, all of it now."""
    return drain(write_known_steps(keeper, sidecars, version_id, objective, path))


def _distinct(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The different rows of fingerprints as two words each [n, 2], in ascending order."""
    words = words[np.lexsort((words[:, 1], words[:, 0]))]
    fresh = np.ones(len(words), dtype=bool)
    fresh[1:] = (words[1:] != words[:-1]).any(axis=1)
    return words[fresh]


def novelty_steps(keeper: Keeper, fingerprints: bytes, version_id: int | None, objective: str,
                  instead: Mapping[str, bytes] | None = None) -> Steps[Novelty]:  # fmt: skip
    """`judge_novelty` in slices."""
    fraction = float(keeper.ledger.meta("validation_fraction") or keeper.settings.validation.fraction)
    distinct = _distinct(np.frombuffer(fingerprints, dtype=">u8").reshape(-1, 2))
    held = held_out_mask(distinct.tobytes(), keeper.salt, fraction)
    yield
    trainable = distinct[~held]
    known = 0
    if version_id is not None and len(trainable):
        known = int((yield from known_mask_steps(keeper, trainable.tobytes(), version_id, objective, instead)).sum())
    examples = len(fingerprints) // FINGERPRINT_BYTES
    return Novelty(examples, len(trainable) - known, known, int(held.sum()), examples - len(distinct))


def judge_novelty(keeper: Keeper, fingerprints: Sequence[bytes] | bytes, version_id: int | None, objective: str,
                  instead: Mapping[str, bytes] | None = None) -> Novelty:  # fmt: skip
    """Count what of a file is new to a version (None: to a model that has learnt nothing); `instead` as above."""
    joined = fingerprints if isinstance(fingerprints, bytes) else b"".join(fingerprints)
    return drain(novelty_steps(keeper, joined, version_id, objective, instead))
