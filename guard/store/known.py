"""The index of every example that is stored here: data/known/, made from the sidecars and never the truth itself.

Its folders of sorted keys (`guard/key_columns.py`) stand on a shelf (`guard/store/shelf.py`). Files that no folder covers yet
are looked up in their own sidecars, so that an answer is complete whether the index is there or not: losing or damaging
it costs time and nothing else. Not here: which of the found examples a version has learnt (`guard/store/learnt.py`).
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from guard.columns import Columns
from guard.durable import make_dir
from guard.errors import Damage
from guard.home import Home
from guard.key_columns import KEY_LAYOUT, Hits, KeyColumns, merged_chunks
from guard.key_runs import RUN_ROWS, Rows, Runs, joined, key_rows, merged, split_keys
from guard.steps import Steps
from guard.store.derived import make_room, misplaced
from guard.store.files import SIDECARS
from guard.store.keeper import Keeper
from guard.store.shelf import Shelf, ShelfView

__all__ = ["FileHits", "KnownIndex", "LostSidecar", "keep_index_steps", "lost_sidecar", "open_index", "sidecar_bytes",
           "sidecar_path", "sidecar_problem_steps", "uncovered"]  # fmt: skip

FLUSH_FILES = 2048
FLUSH_KEYS = 1 << 20
FAN_OUT = 8
"""So many folders of about the same size become one: a key is rewritten once for each power of eight."""
SMALLEST_TIER = 1 << 17
PROVEN_ROWS = 1 << 26
"""Folders of at most so many rows (1.3 GB) are compared whole once in a process; of larger ones what is asked for."""
UNREADABLE = frozenset({errno.ENOENT, errno.EIO, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
                        errno.EUCLEAN})  # fmt: skip
"""What an OSError says about one file; any other is about the machine, and tried again."""
_MOST_AT_ONCE = 256
"""Sidecars that are opened in one step."""


class FileHits(NamedTuple):
    """Examples of one stored file that were asked for: positions in the question [k], their ordinals in the file [k]."""

    sha256: str
    question: NDArray[np.int64]
    ordinal: NDArray[np.int64]


class LostSidecar(Damage):
    """The fingerprints of a stored file cannot be used: jobs that train that very file wait for a person."""


def lost_sidecar(folder: Path, what: str) -> LostSidecar:
    """What is wrong with the fingerprints beside a stored original, and what to type."""
    names = [path.name for path in folder.iterdir() if path.name not in SIDECARS] if folder.is_dir() else []
    again = f"drop the same bytes again (cp {folder / names[0]} into inbox/)" if names else "drop the same file again"
    return LostSidecar(f"{folder / 'examples.fp'} {what}", subject=str(folder / "examples.fp"),
                       hint=f"{again}, or copy examples.fp back from the vault; then heirloom queue retry JOB")  # fmt: skip


def sidecar_path(folder: Path) -> tuple[Path, int]:
    """The fingerprints beside a stored original and how many there are. Raises LostSidecar when torn, missing or unreadable."""
    path = folder / "examples.fp"
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise lost_sidecar(folder, "is missing") from error
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise lost_sidecar(folder, f"cannot be read: {error.strerror}") from error
    if size % 16 or not path.is_file():
        raise lost_sidecar(folder, "is torn")
    return path, size // 16


def sidecar_bytes(folder: Path) -> bytes:
    """The fingerprints beside a stored original, 16 bytes for each ordinal. Raises as `sidecar_path`."""
    path, _count = sidecar_path(folder)
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise lost_sidecar(folder, f"cannot be read: {error.strerror}") from error


def _shelf(home: Home) -> Shelf:
    return Shelf(home.data / "known", KEY_LAYOUT, ("known.written", "known.published", "known.cleared"),
                 schema={"schema": 1}, fan_out=FAN_OUT, tier=_tier)  # fmt: skip


def _tier(rows: int) -> int:
    tier = 0
    while rows > SMALLEST_TIER * FAN_OUT**tier:
        tier += 1
    return tier


class KnownIndex(ShelfView):
    """The index as one process sees it."""

    def __init__(self, home: Home, before: KnownIndex | None = None) -> None:
        super().__init__(_shelf(home), before)
        self.damaged |= {name: "it is no folder" for name in misplaced(home) if name == "data/known"}
        kept: dict[str, KeyColumns] = before.parts if before else {}
        self.parts: dict[str, KeyColumns] = {
            name: kept[name] if name in kept and kept[name].columns is columns else KeyColumns(columns)
            for name, columns in self.folders.items()}  # fmt: skip

    @property
    def keys(self) -> int:
        """How many (example, file) pairs it holds."""
        return self.rows

    def leave_out(self, name: str, reason: str) -> None:
        """As every view does; nothing is asked of the folder any more."""
        super().leave_out(name, reason)
        self.parts.pop(name, None)

    def find(self, fingerprints: bytes) -> Iterator[FileHits]:
        """Where covered files hold these fingerprints (16 bytes each). A damaged folder is left out on the way."""
        high, low = split_keys(fingerprints)
        for name, part in list(self.parts.items()):
            try:
                for hits in part.find(high, low):
                    yield from _by_file(part.columns, hits)
            except Damage as damage:
                self.leave_out(name, damage.message)

    def find_steps(self, high: NDArray[np.uint64], low: NDArray[np.uint32], meet: Callable[[FileHits], None]) -> Steps[None]:
        """`find` for split keys, in slices, each answer handed to `meet`."""
        for name, part in list(self.parts.items()):
            try:
                yield from part.ready_steps(high)
                for hits in part.find(high, low):
                    yield
                    for found in _by_file(part.columns, hits):
                        meet(found)
                        yield
            except Damage as damage:
                self.leave_out(name, damage.message)
            yield


def _by_file(columns: Columns, hits: Hits) -> Iterator[FileHits]:
    order = np.argsort(hits.file, kind="stable")
    numbers, starts = np.unique(hits.file[order], return_index=True)
    for number, mine in zip(numbers, np.split(order, starts[1:]), strict=True):
        yield FileHits(columns.file(int(number)), hits.question[mine], hits.ordinal[mine])


def open_index(keeper: Keeper, *, look_again: bool = False) -> KnownIndex:
    """The index, opened again only when it was changed since this keeper last asked; what was proven of it stays proven.

    `look_again`: each folder's own stamp is compared too, whatever the manifest says.
    """
    known: KnownIndex | None = keeper.memory.get("known")
    if known is None or look_again or known.stamp != known.shelf.stamp():
        known = keeper.memory["known"] = KnownIndex(keeper.home, known)
    return known


def uncovered(keeper: Keeper, index: KnownIndex) -> list[tuple[str, int]]:
    """Stored files with examples that no folder covers: (sha256, examples), oldest first."""
    rows = keeper.ledger.rows("SELECT sha256, examples FROM files WHERE examples > 0 ORDER BY rowid")
    return [(row[0], row[1]) for row in rows if row[0] not in index.covered]


# --- keeping it -------------------------------------------------------------------------------------------------------


def keep_index_steps(keeper: Keeper) -> Steps[int]:
    """Bring the index up to date in slices: clear leftovers, take in new files, join small folders; returns its keys.

    Only the holder of the home lock calls it. Of what is there already, only what this process has not proven yet, or what
    was written to since, is read. What is found damaged is left out and made again from the sidecars. Raises OSError as
    the disk says; a sidecar that is not what was recorded stays uncovered, for verify to name.
    """
    make_room(keeper.home.data / "known")
    make_room(keeper.home.data / "known" / "index.json", folder=False)
    index, shelf = open_index(keeper, look_again=True), _shelf(keeper.home)
    shelf.clear([*index.folders, *index.damaged])
    yield from index.prove_steps(PROVEN_ROWS)
    if index.damaged:
        with keeper.ledger.transaction():
            keeper.ledger.event("known.damaged", "data/known", folders=sorted(index.damaged))
        yield from shelf.publish_steps(list(index.folders))
        index = open_index(keeper)
    waiting = uncovered(keeper, index)
    while waiting:
        batch = _batch(waiting)
        yield from _take_in(keeper, shelf, batch)
        waiting = waiting[len(batch) :]
    yield from shelf.join_steps(lambda: open_index(keeper), merged_chunks)
    return open_index(keeper).keys


def _batch(waiting: list[tuple[str, int]]) -> list[str]:
    keys, batch = 0, list[str]()
    for sha256, examples in waiting:
        if batch and keys + examples > FLUSH_KEYS:
            break
        batch.append(sha256)
        keys += examples
    return batch


def _take_in(keeper: Keeper, shelf: Shelf, batch: Sequence[str]) -> Steps[None]:
    """Make one folder of whole files. A sidecar that cannot be believed stays out; `verify` names it."""
    names = []
    for sha256 in batch:
        if not (yield from sidecar_problem_steps(keeper, sha256)):
            names.append(sha256)
    if not names:
        return
    make_dir(shelf.folder)
    runs = Runs(shelf.folder)
    try:
        for rows in _pieces([keeper.home.files / name for name in names]):
            runs.add(rows)
            yield
        made = yield from shelf.write_steps(runs.rows, merged(runs.sorted()), names)
    finally:
        runs.close()
    yield from shelf.publish_steps([*open_index(keeper).folders, made])


def sidecar_problem_steps(keeper: Keeper, sha256: str) -> Steps[str]:
    """Why the fingerprints of a stored file cannot be believed; "" when they are what was recorded at its admission.

    Read now, in slices. Raises OSError for what is wrong with the machine and not with this file.
    """
    recorded = keeper.ledger.value("SELECT json_extract(record, '$.sidecars.\"examples.fp\"') FROM files WHERE sha256 = ?",
                                   (sha256,))  # fmt: skip
    digest = hashlib.sha256()
    try:
        path, _count = sidecar_path(keeper.home.files / sha256)
        with path.open("rb") as handle:
            while recorded and (data := handle.read(RUN_ROWS * 16)):
                digest.update(data)
                yield
    except Damage as damage:
        return damage.message
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return f"{path} cannot be read: {error.strerror}"
    return "" if not recorded or recorded == digest.hexdigest() else f"{path} is not what was recorded"


def _pieces(folders: Sequence[Path]) -> Iterator[Rows]:
    """The rows of files' sidecars, numbered as given: RUN_ROWS at most, or those of _MOST_AT_ONCE small files, at a time."""
    held: list[Rows] = []
    count = 0
    for number, folder in enumerate(folders):
        ordinal = 0
        with sidecar_path(folder)[0].open("rb") as handle:
            while data := handle.read((RUN_ROWS - count) * 16):
                held.append(key_rows(data, number, ordinal))
                ordinal += len(data) // 16
                count += len(data) // 16
                if count >= RUN_ROWS or len(held) >= _MOST_AT_ONCE:
                    yield joined(held)
                    held, count = [], 0
    if held:
        yield joined(held)
