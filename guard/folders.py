"""Folders whose entries are made durable apart from the moves into them: later and together, or once more.

Not here: the moves themselves (`durable.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from guard.durable import fsync_dir

__all__ = ["Folders", "sync_parents", "together"]

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")
_THREADS, _WORTH_THREADS = 8, 16


class Folders:
    """Folders whose entries are to be made durable together, before anything that stands on them is recorded.

    For bursts: a thousand moves into one folder are one fsync of it. Whoever hands one to `rename_new`, `make_dir` or
    `remove_tree` calls `sync` before the act is acknowledged. Folders that gained a name come first, in the order in
    which they did: nothing is durably gone from one place before it is durably at another.
    """

    def __init__(self) -> None:
        self._gained: dict[Path, None] = {}
        self._lost: dict[Path, None] = {}

    def gained(self, path: Path) -> None:
        """A name was made in a folder."""
        self._gained[path] = None

    def lost(self, path: Path) -> None:
        """A name went from a folder."""
        self._lost[path] = None

    def sync(self) -> None:
        """Make all of them durable, as far as they still exist. Raises OSError."""
        gained, lost, self._gained, self._lost = self._gained, self._lost, {}, {}
        for paths in (gained, [path for path in lost if path not in gained]):
            together(fsync_dir, [path for path in paths if path.is_dir()])


def together(sync: Callable[[T], None], paths: Sequence[T]) -> None:
    """Sync many things in no order; raises what the first that failed raised, when all have ended.

    A disk commits what is waiting at the same moment at once: a burst waits for a few commits, not for hundreds.
    """
    if len(paths) < _WORTH_THREADS:
        for path in paths:
            sync(path)
        return
    under_way = [_threads().submit(sync, path) for path in paths]
    for done in under_way:
        done.exception()
    for done in under_way:
        done.result()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """They stay: to start eight threads for every batch costs as much as the syncs."""
    from concurrent.futures import ThreadPoolExecutor  # only a burst needs it

    return ThreadPoolExecutor(_THREADS, "sync")


def sync_parents(*paths: Path | str) -> None:
    """Sync the folders in which these names stand, or stood, as far as they exist.

    For whoever finds a move already made: its attempt may have failed between the rename and the fsync of a folder,
    and what is recorded as done must not come back, or go away, with the next power cut.
    """
    for folder in dict.fromkeys(Path(path).parent for path in paths):
        if folder.is_dir():
            fsync_dir(folder)
