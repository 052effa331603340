"""The index of every example that is stored here: data/known/, made from the sidecars and never the truth itself.

`data/known/index.json` names the folders that count (`guard/key_columns.py`); whatever else lies there is a leftover
and is cleared. Files that no folder covers yet are looked up in their own sidecars, so that an answer is complete
whether the index is there or not: losing or damaging it costs time and nothing else.
Not here: which of the found examples a version has learnt (`guard/store/learnt.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.columns import Columns, write_columns_steps
from guard.durable import make_dir, remove_tree, sha256_bytes, write_json
from guard.errors import Damage
from guard.failpoints import point
from guard.home import Home
from guard.key_columns import KEY_LAYOUT, KeyColumns, merged_chunks, sorted_rows, split_keys
from guard.steps import Steps
from guard.store.derived import is_aside, make_room, misplaced
from guard.store.keeper import Keeper

__all__ = ["FileHits", "KnownIndex", "keep_index_steps", "open_index", "sidecar_bytes", "uncovered"]

FLUSH_FILES = 2048
FLUSH_KEYS = 1 << 20
FAN_OUT = 8
"""So many folders of about the same size become one: a key is rewritten once for each power of eight."""
SMALLEST_TIER = 1 << 17
PROVEN_ROWS = 1 << 26
"""Folders of at most so many rows (1.3 GB) are compared whole now and then; of larger ones what is asked for."""
_SCHEMA = 1


class FileHits(NamedTuple):
    """Examples of one stored file that were asked for: positions in the question [k], their ordinals in the file [k]."""

    sha256: str
    question: NDArray[np.int64]
    ordinal: NDArray[np.int64]


def sidecar_bytes(folder: Path) -> bytes:
    """The fingerprints beside a stored original, 16 bytes for each ordinal. Raises Damage when torn or missing."""
    path = folder / "examples.fp"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise Damage(f"{path} is missing", subject=str(path), hint="heirloom verify --all") from error
    if len(data) % 16:
        raise Damage(f"{path} is torn", subject=str(path), hint="heirloom verify --all")
    return data


def _folder(home: Home) -> Path:
    return home.data / "known"


def _manifest(home: Home) -> list[str]:
    """The names of the folders that count; none when there is no readable manifest: it is made again then."""
    try:
        head = orjson.loads((_folder(home) / "index.json").read_bytes())
        return [str(name) for name in head["folders"]] if head["schema"] == _SCHEMA else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _stamp(home: Home) -> tuple[int, int, int]:
    try:
        facts = (_folder(home) / "index.json").stat()
    except OSError:
        return (0, 0, 0)
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


class KnownIndex:
    """The index as one process sees it. `damaged`: folders that were left out because they are not what was written."""

    def __init__(self, home: Home) -> None:
        self.stamp = _stamp(home)
        self.parts: dict[str, KeyColumns] = {}
        self.damaged: dict[str, str] = {name: "it is no folder" for name in misplaced(home) if name == "data/known"}
        for name in _manifest(home):
            try:
                self.parts[name] = KeyColumns(Columns(_folder(home) / name))
            except Damage as damage:
                self.damaged[name] = damage.message
        self._cover()

    def _cover(self) -> None:
        self.covered = {sha256 for part in self.parts.values() for sha256 in part.columns.file_names()}

    @property
    def keys(self) -> int:
        """How many (example, file) pairs it holds."""
        return sum(part.columns.rows for part in self.parts.values())

    def leave_out(self, name: str, reason: str) -> None:
        """Believe nothing of a folder any more; its files count as uncovered from now on."""
        self.damaged[name] = reason
        self.parts.pop(name, None)
        self._cover()

    def find(self, fingerprints: bytes) -> Iterator[FileHits]:
        """Where covered files hold these fingerprints (16 bytes each). A damaged folder is left out on the way."""
        high, low = split_keys(fingerprints)
        for name, part in list(self.parts.items()):
            try:
                for hits in part.find(high, low):
                    yield from _by_file(part.columns, hits.question, hits.file, hits.ordinal)
            except Damage as damage:
                self.leave_out(name, damage.message)


def _by_file(columns: Columns, question: NDArray[np.int64], file: NDArray[np.int64],
             ordinal: NDArray[np.int64]) -> Iterator[FileHits]:  # fmt: skip
    order = np.argsort(file, kind="stable")
    numbers, starts = np.unique(file[order], return_index=True)
    for number, mine in zip(numbers, np.split(order, starts[1:]), strict=True):
        yield FileHits(columns.file(int(number)), question[mine], ordinal[mine])


def open_index(keeper: Keeper) -> KnownIndex:
    """The index, opened again only when it was changed since this keeper last asked."""
    known: KnownIndex | None = keeper.memory.get("known")
    if known is None or known.stamp != _stamp(keeper.home):
        known = keeper.memory["known"] = KnownIndex(keeper.home)
    return known


def uncovered(keeper: Keeper, index: KnownIndex) -> list[tuple[str, int]]:
    """Stored files with examples that no folder covers: (sha256, examples), oldest first."""
    rows = keeper.ledger.rows("SELECT sha256, examples FROM files WHERE examples > 0 ORDER BY rowid")
    return [(row[0], row[1]) for row in rows if row[0] not in index.covered]


# --- keeping it -------------------------------------------------------------------------------------------------------


def keep_index_steps(keeper: Keeper) -> Steps[int]:
    """Bring the index up to date in slices: clear leftovers, take in new files, join small folders; returns its keys.

    Only the holder of the home lock calls it. What it finds damaged is left out and made again from the sidecars.
    Raises OSError as the disk says; a sidecar that is not what was recorded stays uncovered, for verify to name.
    """
    make_room(_folder(keeper.home))
    make_room(_folder(keeper.home) / "index.json", folder=False)
    index = open_index(keeper)
    _clear(keeper.home, index)
    for name in [name for name, part in index.parts.items() if part.columns.rows <= PROVEN_ROWS]:
        try:
            yield from index.parts[name].columns.prove_all_steps()
        except Damage as damage:
            index.leave_out(name, damage.message)
    if index.damaged:
        with keeper.ledger.transaction():
            keeper.ledger.event("known.damaged", "data/known", folders=sorted(index.damaged))
        index = yield from _publish(keeper, list(index.parts))
    waiting = uncovered(keeper, index)
    while waiting:
        batch = _batch(waiting)
        yield from _take_in(keeper, batch)
        waiting = waiting[len(batch) :]
    yield from _join_steps(keeper)
    return open_index(keeper).keys


def _clear(home: Home, index: KnownIndex) -> None:
    if _folder(home).is_dir():
        keep = {*index.parts, *index.damaged}
        for entry in list(_folder(home).iterdir()):
            if entry.is_dir() and entry.name not in keep and not is_aside(entry.name):
                remove_tree(entry)


def _batch(waiting: list[tuple[str, int]]) -> list[str]:
    keys, batch = 0, list[str]()
    for sha256, examples in waiting:
        if batch and keys + examples > FLUSH_KEYS:
            break
        batch.append(sha256)
        keys += examples
    return batch


def _take_in(keeper: Keeper, batch: list[str]) -> Steps[None]:
    """Make one folder of whole files. A sidecar that cannot be believed stays out: asking for it raises then (law 5)."""
    names, sidecars = [], []
    for sha256 in batch:
        try:
            data = sidecar_bytes(keeper.home.files / sha256)
        except Damage:
            continue  # `verify` names it, and a job that needs it is refused
        if _is_recorded(keeper, sha256, data):
            names.append(sha256)
            sidecars.append(data)
        if len(names) % 64 == 63:
            yield
    if not names:
        return
    index = open_index(keeper)
    name = _next_name(keeper.home)
    yield from write_columns_steps(_folder(keeper.home) / name, KEY_LAYOUT, sum(map(len, sidecars)) // 16,
                                   [sorted_rows(sidecars)], names)  # fmt: skip
    point("known.written")
    yield from _publish(keeper, [*index.parts, name])


def _is_recorded(keeper: Keeper, sha256: str, data: bytes) -> bool:
    recorded = keeper.ledger.value("SELECT json_extract(record, '$.sidecars.\"examples.fp\"') FROM files WHERE sha256 = ?",
                                   (sha256,))  # fmt: skip
    return recorded is None or recorded == sha256_bytes(data)


def _next_name(home: Home) -> str:
    taken = [int(entry.name) for entry in _folder(home).iterdir() if entry.name.isdigit()] if _folder(home).is_dir() else []
    return f"{max(taken, default=0) + 1:08d}"


def _publish(keeper: Keeper, names: list[str]) -> Steps[KnownIndex]:
    """Make these the folders that count, then let the others go."""
    home = keeper.home
    make_dir(_folder(home))
    write_json(_folder(home) / "index.json", {"schema": _SCHEMA, "folders": names})
    point("known.published")
    index = open_index(keeper)
    _clear(home, index)
    point("known.cleared")
    yield
    return index


def _tier(rows: int) -> int:
    tier = 0
    while rows > SMALLEST_TIER * FAN_OUT**tier:
        tier += 1
    return tier


def _join_steps(keeper: Keeper) -> Steps[None]:
    """Join FAN_OUT folders of about one size into one, from the smallest up, until there is nothing to join."""
    while True:
        index = open_index(keeper)
        tiers: dict[int, list[str]] = {}
        for name, part in index.parts.items():
            tiers.setdefault(_tier(part.columns.rows), []).append(name)
        full = next((names for tier, names in sorted(tiers.items()) if len(names) >= FAN_OUT), None)
        if full is None:
            return
        parts = [index.parts[name].columns for name in full]
        try:
            for columns in parts:
                yield from columns.prove_all_steps()
        except Damage:
            # What was too large to be compared before: its files are uncovered now, and taken in anew the next time.
            yield from _publish(keeper, [name for name in index.parts if name not in full])
            return
        files = [sha256 for part in parts for sha256 in part.file_names()]
        name = _next_name(keeper.home)
        yield from write_columns_steps(_folder(keeper.home) / name, KEY_LAYOUT, sum(part.rows for part in parts),
                                       merged_chunks(parts), files)  # fmt: skip
        point("known.written")
        yield from _publish(keeper, [*(other for other in index.parts if other not in full), name])
