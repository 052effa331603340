"""Long work in slices: generators that yield between bounded pieces and return their result.

The daemon has one thread and must get back to its socket and its children many times a second; hashing twenty gigabytes
may not stop it. Whoever has time to wait drains the same generator. Not here: threads, and any work of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar

__all__ = ["SLICE_SECONDS", "Steps", "advance", "breathe", "drain", "on_breath"]

T = TypeVar("T")
Steps: TypeAlias = Generator[Any, None, T]
"""What it yields is of no matter here: nothing, bytes read, or what it is busy with."""

SLICE_SECONDS = 0.05


_breath: list[Callable[[], object]] = []


def on_breath(act: Callable[[], object] | None) -> None:
    """Have `act` called between the pieces of everything that is drained; None: no more.

    For whoever watches over this process: an act that cannot be sliced (a restore, a birth) still shows that it gets on.
    """
    _breath[:] = [] if act is None else [act]


def breathe() -> None:
    """Say that a piece of work was done: for loops that are no generator of steps."""
    for act in _breath:
        act()


def drain(steps: Steps[T]) -> T:
    """Do all of it now; returns what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        breathe()


def advance(steps: Steps[T], clock: Callable[[], float], seconds: float = SLICE_SECONDS) -> tuple[bool, T | None]:
    """Work for about so many seconds: (True, result) when it came to its end, (False, None) when there is more."""
    stop = clock() + seconds
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return True, done.value
        if clock() >= stop:
            return False, None
