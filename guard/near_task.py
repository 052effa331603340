"""The child task "near": the signatures of stored files, and which of their examples resemble older ones.

Reads stored originals, the index of sketches and files of signatures; writes new files of signatures among those, and
nothing else. It reports; it decides nothing about training. Not here: who asks and keeps (`guard/store/near.py`).

Request: {"files": [{"sha256", "path", "kind"}], oldest first, "signatures": folder of `<sha256>.mh`,
"index": [column folders], "loose": [sha256 of older files that no folder holds], "threshold"}.
Answer: {"near": [{"sha256", "examples", "short", "alike", "resembles": [{"sha256", "examples"}]} or {"sha256", "fault"}],
"unused": {folder or sha256: why it could not be used}}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.checks.columns import Reading
from guard.checks.rows import iter_examples
from guard.columns import Columns
from guard.errors import Damage, HeirloomError, is_environment
from guard.minhash import BINS, signatures, similarity, trained_text
from guard.near_file import SignatureFile, write_signatures
from guard.near_join import SKETCH, Join

__all__ = ["SKETCH_COLUMNS", "least_equal", "run_near"]

SKETCH_COLUMNS = tuple(f"b{number}" for number in range(SKETCH))
_MOST_FILES = 20
"""Of the files that one resembles, so many are named, those with the most examples first."""


def least_equal(threshold: float) -> int:
    """How many of 64 bytes must be equal for an estimate of at least `threshold`."""
    return next(count for count in range(BINS + 1) if float(similarity(count)) >= min(threshold, 1.0) - 1e-9)


def run_near(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do the task. Raises OSError for the machine's faults; what is wrong with one file stands in its answer."""
    return _Task(request).run()


class _Task:
    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self.signatures = Path(request["signatures"])
        self.unused: dict[str, str] = {}
        self.faults: dict[str, str] = {}
        self._opened: dict[str, SignatureFile] = {}
        self._met = 0
        """How many stored signatures were met so far."""
        self._stretches: list[tuple[int, Callable[[NDArray[np.int64]], list[str]]]] = []
        """Where each stretch of the stream begins, and which files rows of it (counted from there) belong to."""

    def run(self) -> dict[str, Any]:
        names, parts = [], []
        for file in self.request["files"]:
            made = self._make(file)
            if made is not None:
                names.append(str(file["sha256"]))
                parts.append(made)
        questions = np.concatenate(parts) if parts else np.empty((0, BINS), dtype=np.uint8)
        counts = np.array([len(part) for part in parts], dtype=np.int64)
        join = Join(questions, least_equal(float(self.request["threshold"])))
        owner = np.repeat(np.arange(len(names)), counts)
        self._meet_older(join, names, owner)
        # Files of one request came one after the other as well: each meets those before it.
        starts = np.cumsum(counts) - counts
        join.feed(list(questions[:, :SKETCH].T), self._met, lambda rows: questions[rows],
                  lambda asked, rows: owner[rows] < owner[asked])  # fmt: skip
        ends = np.cumsum(counts)
        self._stretches.append((self._met, lambda rows: [names[at] for at in np.searchsorted(ends, rows, "right")]))
        told = [self._report(name, join, slice(int(start), int(start + count)))
                for name, start, count in zip(names, starts, counts, strict=True)]  # fmt: skip
        told += [{"sha256": name, "fault": fault} for name, fault in self.faults.items()]
        return {"near": told, "unused": self.unused}

    def _make(self, file: Mapping[str, Any]) -> NDArray[np.uint8] | None:
        """The signatures of a file: those that are there and sound, else made now."""
        sha256 = str(file["sha256"])
        kept = self.signatures / f"{sha256}.mh"
        try:
            if kept.exists():
                return SignatureFile(kept, sha256).all()
        except Damage as damage:
            self.unused[sha256] = damage.message
        try:
            reading = Reading(**file.get("reading") or {})
            rows = signatures(trained_text(example.fields) for example in iter_examples(file["path"], str(file["kind"]), reading))
        except (OSError, HeirloomError) as error:
            if is_environment(error):
                raise
            self.faults[sha256] = str(error)
            return None
        write_signatures(kept, sha256, rows)
        return rows

    def _meet_older(self, join: Join, names: list[str], owner: NDArray[np.int64]) -> None:
        """Meet the index, then the files that it does not hold yet; no file meets itself, should it be there already."""
        for folder in self.request["index"]:
            try:
                columns = Columns(Path(folder))
                for _ in columns.prove_all_steps():
                    pass
            except Damage as damage:
                self.unused[str(folder)] = damage.message
                continue
            self._feed_folder(join, columns, names, owner)
        for sha256 in self.request["loose"]:
            try:
                rows = SignatureFile(self.signatures / f"{sha256}.mh", str(sha256)).all()
            except Damage as damage:
                self.unused[str(sha256)] = damage.message
                continue
            own = names.index(sha256) if sha256 in names else -1
            join.feed(list(rows[:, :SKETCH].T), self._met, lambda places, rows=rows: rows[places],  # type: ignore[misc]
                      lambda asked, _places, own=own: owner[asked] != own)  # type: ignore[misc]
            self._stretches.append((self._met, lambda places, name=str(sha256): [name] * len(places)))  # type: ignore[misc]
            self._met += len(rows)

    def _feed_folder(self, join: Join, columns: Columns, names: list[str], owner: NDArray[np.int64]) -> None:
        numbers = {name: number for number, name in enumerate(columns.file_names())}
        own = np.array([numbers.get(name, -1) for name in names], dtype=np.int64)
        file = columns.columns["file"]

        def fetch(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
            found = np.zeros((len(rows), BINS), dtype=np.uint8)
            numbers, ordinals = file[rows], columns.columns["ordinal"][rows].astype(np.int64)
            order = np.argsort(numbers, kind="stable")
            each, starts = np.unique(numbers[order], return_index=True)
            for number, mine in zip(each.tolist(), np.split(order, starts[1:]), strict=True):
                found[mine] = self._at(columns.file(number), ordinals[mine])
            return found

        join.feed([columns.columns[name] for name in SKETCH_COLUMNS], self._met, fetch,
                  lambda asked, rows: own[owner[asked]] != file[rows])  # fmt: skip
        self._stretches.append((self._met, lambda rows: [columns.file(int(number)) for number in file[rows]]))
        self._met += columns.rows

    def _at(self, sha256: str, ordinals: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Signatures of a stored file; zeroes, which are like nothing, where they cannot be had."""
        try:
            if sha256 not in self._opened:
                if len(self._opened) >= 256:
                    self._opened.clear()
                self._opened[sha256] = SignatureFile(self.signatures / f"{sha256}.mh", sha256)
            return self._opened[sha256].at(ordinals)
        except Damage as damage:
            self.unused[sha256] = damage.message
            return np.zeros((len(ordinals), BINS), dtype=np.uint8)

    def _owners(self, places: NDArray[np.int64]) -> Counter[str]:
        """How many of these places in the stream belong to which file."""
        found: Counter[str] = Counter()
        bases = np.array([base for base, _names in self._stretches])
        stretch = np.searchsorted(bases, places, "right") - 1
        for number in np.unique(stretch):
            base, names = self._stretches[number]
            found.update(names(places[stretch == number] - base))
        return found

    def _report(self, sha256: str, join: Join, mine: slice) -> dict[str, Any]:
        places, equal = join.place[mine], join.equal[mine]
        found = places >= 0
        alike = int(found.sum())
        resembled = sorted(self._owners(places[found]).items(), key=lambda item: (-item[1], item[0]))
        return {
            "sha256": sha256, "examples": len(places), "alike": alike,
            "short": int((~join.questions[mine].any(axis=1)).sum()),
            "similarity": round(float(similarity(equal[found]).mean()), 3) if alike else None,
            "resembles": [{"sha256": name, "examples": count} for name, count in resembled[:_MOST_FILES]],
        }  # fmt: skip
