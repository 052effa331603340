"""What a version and its ancestors have learnt, computed from bitmaps and sidecars, and what a file adds to that.

"Learnt" is a fact about (example, objective) and an ancestry (law 4); it is stored on no file, so after a rollback
the data is trainable again by itself. The answer at intake is an estimate for the person; the trainer's prepare step
decides again against the actual base. Questions go to the index of known examples, so that their cost follows the
size of the file that is asked about and not of everything that was ever learnt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bitmap import bitmap_bits
from guard.columns import SYNC_BYTES
from guard.durable import open_new, sync_so_far
from guard.heldout import held_out_mask
from guard.key_runs import RUN_ROWS, Runs, merged, split_keys
from guard.key_sets import among, different, distinct_keys
from guard.splits import KeptBack
from guard.steps import Steps, drain
from guard.store.keeper import Keeper
from guard.store.known import FileHits, KnownIndex, open_index, sidecar_path, sidecar_problem_steps
from guard.store.lost import found_lost, spare_steps
from guard.store.versions import ancestors

__all__ = ["FINGERPRINT_BYTES", "Novelty", "judge_novelty", "known_mask_steps", "novelty_steps", "write_known",
           "write_known_steps"]  # fmt: skip

FINGERPRINT_BYTES = 16
_AT_ONCE = 1 << 16
"""Questions asked in one step."""
_FILES_AT_ONCE = 256
_Keys = tuple[NDArray[np.uint64], NDArray[np.uint32]]


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


def known_mask_steps(keeper: Keeper, fingerprints: bytes | memoryview, version_id: int, objective: str,
                     instead: Mapping[str, bytes] | None = None) -> Steps[NDArray[np.bool_]]:  # fmt: skip
    """For each of the 16-byte fingerprints [n]: was it learnt by the version or an ancestor of it, under the objective?

    `instead`: fingerprints by SHA-256 of originals whose sidecars are not to be read. Exact whether the index covers
    everything or nothing, but for files that no folder covers and whose fingerprints are lost: those are noted (`lost.py`).
    Raises OSError as the machine says, Damage for a bitmap that is damaged.
    """
    known = np.zeros(len(fingerprints) // FINGERPRINT_BYTES, dtype=bool)
    if not len(known):
        return known
    ancestry = _Ancestry(keeper, version_id, objective)
    index = open_index(keeper)
    for part, high, low in _portions(known, fingerprints):
        asked, place = distinct_keys(high, low)
        found = np.zeros(len(asked), dtype=bool)
        yield from index.find_steps(high[asked], low[asked], partial(_mark, found, ancestry))
        part |= found[place]
        yield
    # After the search: a damaged folder was left out on the way, and its files are uncovered by now.
    for learnt in _learnt_outside(keeper, ancestry, index, instead or {}):
        yield
        if not isinstance(learnt, bytes) or not learnt:
            continue
        high, low = split_keys(learnt)
        order, _place = distinct_keys(high, low)
        for part, asked_high, asked_low in _portions(known, fingerprints):
            part |= among(high[order], low[order], asked_high, asked_low)
            yield
    return known


def _portions(known: NDArray[np.bool_], fingerprints: bytes | memoryview) -> Iterator[tuple[NDArray[np.bool_], *_Keys]]:
    """The mask and the split keys of a bounded number of questions at a time."""
    view = memoryview(fingerprints)
    for start in range(0, len(known), _AT_ONCE):
        yield (known[start : start + _AT_ONCE],
               *split_keys(view[start * FINGERPRINT_BYTES : (start + _AT_ONCE) * FINGERPRINT_BYTES]))  # fmt: skip


def _mark(known: NDArray[np.bool_], ancestry: _Ancestry, hits: FileHits) -> None:
    flags = ancestry.flags(hits.sha256)
    if flags is not None:
        inside = hits.ordinal < len(flags)
        known[hits.question[inside][flags[hits.ordinal[inside]]]] = True


def _learnt_outside(keeper: Keeper, ancestry: _Ancestry, index: KnownIndex,
                    instead: Mapping[str, bytes]) -> Iterator[Any]:  # fmt: skip
    """The fingerprints that the ancestry learnt of files that no folder covers, some RUN_ROWS at a time, as bytes; whatever
    else comes in between is a step.

    A file whose sidecar cannot be believed is noted (`lost.py`) and passed over.
    """
    held, count = list[bytes](), 0
    for sha256 in ancestry.files_outside(index.covered):
        flags = ancestry.flags(sha256)
        if flags is None:
            continue
        if sha256 not in instead:
            problem = yield from sidecar_problem_steps(keeper, sha256)
            spare, left = (yield from _from_datasets(keeper, sha256, flags)) if problem else (b"", 0)
            found_lost(keeper, sha256, f"{problem} ({left:,} learnt examples)" if left else "")
            if problem:
                held.append(spare)
                continue
        for first, data in _stretches(keeper.home.files / sha256, instead.get(sha256)):
            examples = np.frombuffer(data, dtype="V16")
            learnt = flags[first : first + len(examples)]
            held.append(examples[: len(learnt)][learnt].tobytes())
            count += len(held[-1]) // FINGERPRINT_BYTES
            if count >= RUN_ROWS:
                yield b"".join(held)
                held, count = [], 0
        yield None
    yield b"".join(held)


def _from_datasets(keeper: Keeper, sha256: str, flags: NDArray[np.bool_]) -> Steps[tuple[bytes, int]]:
    """(the fingerprints of a file's learnt examples that datasets still have, how many they have not)."""
    ordinals, keys = yield from spare_steps(keeper, sha256)
    inside = ordinals < len(flags)
    ordinals, keys = ordinals[inside], keys[inside]
    missing = flags.copy()
    missing[ordinals] = False
    return keys[flags[ordinals]].tobytes(), int(missing.sum())


def _stretches(folder: Path, instead: bytes | None) -> Iterator[tuple[int, bytes]]:
    """A file's fingerprints from its sidecar, or those given instead of it: (first ordinal, RUN_ROWS of them at most)."""
    if instead is not None:
        yield from ((first, instead[first * FINGERPRINT_BYTES : (first + RUN_ROWS) * FINGERPRINT_BYTES])
                    for first in range(0, len(instead) // FINGERPRINT_BYTES, RUN_ROWS))  # fmt: skip
        return
    first = 0
    with sidecar_path(folder)[0].open("rb") as handle:
        while data := handle.read(RUN_ROWS * FINGERPRINT_BYTES):
            yield first, data
            first += RUN_ROWS


def write_known_steps(keeper: Keeper, sidecars: Sequence[Path], version_id: int, objective: str, path: Path) -> Steps[int]:
    """Write for the prepare child which examples of these files' sidecar folders were learnt; returns how many.

    Memory: some bytes for each example of the largest file. Many small files are asked about together, so that what no
    folder covers is read once for all of them. Raises Damage as `known_mask_steps`, OSError as the disk says.
    """
    count = 0
    with open_new(path) as handle:
        for keys in _gathered(sidecars):
            mask = yield from known_mask_steps(keeper, keys, version_id, objective)
            for start in range(0, len(mask), RUN_ROWS):
                stretch = keys[start * FINGERPRINT_BYTES : (start + RUN_ROWS) * FINGERPRINT_BYTES]
                chosen = np.frombuffer(stretch, dtype="V16")[mask[start : start + RUN_ROWS]]
                handle.write(chosen.tobytes())
                count += len(chosen)
                yield
            if len(keys) * FINGERPRINT_BYTES >= SYNC_BYTES:
                sync_so_far(handle)
    return count


def _gathered(folders: Sequence[Path]) -> Iterator[memoryview]:
    """The fingerprints of files: of a large one by itself, mapped and not read; of small ones some RUN_ROWS together."""
    held, count = list[bytes](), 0
    for folder in folders:
        path, examples = sidecar_path(folder)
        if examples >= RUN_ROWS:
            yield memoryview(np.memmap(path, dtype=np.uint8, mode="r"))  # type: ignore[arg-type]
            continue
        held.append(path.read_bytes())
        count += examples
        if count >= RUN_ROWS or len(held) >= _FILES_AT_ONCE:
            yield memoryview(b"".join(held))
            held, count = [], 0
    if held:
        yield memoryview(b"".join(held))


def write_known(keeper: Keeper, sidecars: Sequence[Path], version_id: int, objective: str, path: Path) -> int:
    """`write_known_steps`, all of it now."""
    return drain(write_known_steps(keeper, sidecars, version_id, objective, path))


def novelty_steps(keeper: Keeper, fingerprints: bytes, version_id: int | None, objective: str,
                  instead: Mapping[str, bytes] | None = None, apart: bytes = b"") -> Steps[Novelty]:  # fmt: skip
    """`judge_novelty` in slices. Memory: about three times the fingerprints."""
    fraction = float(keeper.ledger.meta("validation_fraction") or keeper.settings.validation.fraction)
    examples = len(fingerprints) // FINGERPRINT_BYTES
    trainable, held_out, distinct, kept = list[bytes](), 0, 0, KeptBack(apart)
    for keys in _distinct_portions(fingerprints):
        yield
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            held = held_out_mask(part.tobytes(), keeper.salt, fraction) | kept.mask(part.tobytes())
            trainable.append(part[~held].tobytes())
            held_out, distinct = held_out + int(held.sum()), distinct + len(part)
            yield
    wanted = b"".join(trainable)
    known = 0
    if version_id is not None and wanted:
        known = int((yield from known_mask_steps(keeper, wanted, version_id, objective, instead)).sum())
    return Novelty(examples, len(wanted) // FINGERPRINT_BYTES - known, known, held_out, examples - distinct)


def _distinct_portions(fingerprints: bytes) -> Iterator[NDArray[np.uint64]]:
    """The different fingerprints in ascending order, as two big-endian words each [n, 2], portion by portion; at first,
    while they are sorted, empty portions."""
    runs, view = Runs(), memoryview(fingerprints)
    for start in range(0, len(fingerprints), RUN_ROWS * FINGERPRINT_BYTES):
        words = np.frombuffer(view[start : start + RUN_ROWS * FINGERPRINT_BYTES], dtype=">u8").reshape(-1, 2)
        runs.add({"high": words[:, 0].astype(np.uint64), "rest": words[:, 1].astype(np.uint64)})
        yield words[:0]
    last, seen = None, np.empty(0, dtype=np.uint64)
    for rows in merged(runs.sorted()):
        order, fresh = different(rows["high"], rows["rest"])
        high, rest = rows["high"][order], rows["rest"][order]
        if last == high[0]:  # a key may come in several portions
            fresh &= ~((high == last) & np.isin(rest, seen))
        mine = rest[fresh & (high == high[-1])]
        seen = np.concatenate([seen, mine]) if last == high[-1] else mine
        last = high[-1]
        yield np.stack([high[fresh], rest[fresh]], axis=1).astype(">u8")


def judge_novelty(keeper: Keeper, fingerprints: Sequence[bytes] | bytes, version_id: int | None, objective: str,
                  instead: Mapping[str, bytes] | None = None, apart: bytes = b"") -> Novelty:  # fmt: skip
    """Count what of a file is new to a version (None: to a model that has learnt nothing); `instead` as above.

    `apart`: fingerprints that the file keeps for judging (`guard/splits.py`), held out like those the home holds out.
    """
    joined = fingerprints if isinstance(fingerprints, bytes) else b"".join(fingerprints)
    return drain(novelty_steps(keeper, joined, version_id, objective, instead, apart))
