"""Which rows a version has been trained on, itself or in an ancestor: what an honest evaluation has to tell.

By fingerprint, through the index of known examples and the sidecars it does not cover, whatever the objective. A question may
have been learnt in a conversation with another answer, which no fingerprint of the row tells: for that the conversations of the
ancestry are read once more, up to a limit. Computed when it is asked; nothing is kept. Not here: keeping evaluation sets out
of training (`evaluation.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guard.bitmap import bitmap_bits
from guard.checks.columns import Reading
from guard.checks.kinds import stage_of
from guard.checks.rows import iter_examples
from guard.fingerprint import FINGERPRINT_BYTES
from guard.store.files import get_file, stored_path
from guard.store.keeper import Keeper
from guard.store.known import open_index, sidecar_bytes, uncovered
from guard.store.versions import ancestors
from guard.untouchable import asks

__all__ = ["READ_BYTES", "questions_asked", "trained_rows"]

READ_BYTES = 64 << 20
"""At most so many bytes of conversations are read again in search of a question."""


class _Learnt:
    """What a version and its ancestors learnt, file by file, under any objective."""

    def __init__(self, keeper: Keeper, version_id: int) -> None:
        self.keeper, self.family = keeper, set(ancestors(keeper.ledger, version_id))
        self._flags: dict[str, NDArray[np.bool_]] = {}

    def flags(self, sha256: str) -> NDArray[np.bool_]:
        """For each ordinal of a file whether it was learnt; shorter where nothing behind was."""
        if sha256 not in self._flags:
            whole = np.zeros(0, dtype=bool)
            for row in self.keeper.ledger.rows("SELECT version_id, bitmap FROM learnt WHERE sha256 = ? AND count > 0", (sha256,)):
                if row["version_id"] in self.family:
                    bits = bitmap_bits(row["bitmap"])
                    whole = np.pad(whole, (0, max(0, len(bits) - len(whole))))
                    whole[: len(bits)] |= bits
            self._flags[sha256] = whole
        return self._flags[sha256]

    def learnt(self, sha256: str, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
        flags = self.flags(sha256)
        inside = ordinals < len(flags)
        found = np.zeros(len(ordinals), dtype=bool)
        found[inside] = flags[ordinals[inside]]
        return found


def trained_rows(keeper: Keeper, version_id: int, rows: Sequence[Sequence[bytes]]) -> list[bool]:
    """For each row, given as the fingerprints it may be known by, whether the version or an ancestor learnt one of them.

    Raises Damage when a sidecar cannot be read.
    """
    found = [False] * len(rows)
    owners = [number for number, row in enumerate(rows) for _key in row]
    keys = [key for row in rows for key in row]
    if not keys:
        return found
    learnt, index = _Learnt(keeper, version_id), open_index(keeper)
    for hits in index.find(b"".join(keys)):
        for place in hits.question[learnt.learnt(hits.sha256, hits.ordinal)].tolist():
            found[owners[place]] = True
    asked: dict[bytes, list[int]] = {}
    for key, number in zip(keys, owners, strict=True):
        asked.setdefault(key, []).append(number)
    for sha256, _examples in uncovered(keeper, index):
        flags = learnt.flags(sha256)
        if flags.any():
            held, size = sidecar_bytes(keeper.home.files / sha256), FINGERPRINT_BYTES
            for place in np.flatnonzero(flags).tolist():
                for number in asked.get(held[size * place : size * (place + 1)], ()):
                    found[number] = True
    return found


def questions_asked(keeper: Keeper, version_id: int, questions: Sequence[bytes]) -> tuple[list[bool], int]:
    """For each question (a `guard.untouchable.question_key`) whether a learnt conversation asks it; and how many files were
    not read, being beyond READ_BYTES in all. Raises Damage, DataFault, OSError."""
    wanted = {key: number for number, key in enumerate(questions) if len(key) == FINGERPRINT_BYTES}
    found, left, unread = [False] * len(questions), READ_BYTES, 0
    learnt = _Learnt(keeper, version_id)
    for sha256 in _conversations(keeper, learnt.family) if wanted else ():
        file = get_file(keeper.ledger, sha256)
        if file is None or file.record.get("prepared"):
            continue
        if file.size_bytes > left:
            unread += 1
            continue
        left -= file.size_bytes
        flags = learnt.flags(sha256)
        for example in iter_examples(stored_path(keeper.home, file), file.kind, Reading(**file.record.get("reading") or {})):
            if example.ordinal < len(flags) and flags[example.ordinal]:
                for key in asks(example.fields):
                    if key in wanted:
                        found[wanted[key]] = True
    return found, unread


def _conversations(keeper: Keeper, family: set[int]) -> list[str]:
    """The files of conversations that a family learnt from, the smallest first."""
    rows = keeper.ledger.rows("SELECT l.version_id, f.sha256, f.kind, f.size_bytes FROM learnt l "
                              "JOIN files f ON f.sha256 = l.sha256 WHERE l.count > 0 "
                              "ORDER BY f.size_bytes, f.sha256")  # fmt: skip
    mine = [row["sha256"] for row in rows if row["version_id"] in family and stage_of(row["kind"]) == "sft"]
    return list(dict.fromkeys(mine))
