"""Known bytes that were dropped again: their stored copy is read before they are judged, a slice in every round.

A second copy may only be let go when the first is sound, so all of it is read: of twenty gigabytes in minutes, in which
the daemon goes on with every other file. Not here: what is found (`guard/store/originals.py`), the verdict (`intake.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from guard.steps import SLICE_SECONDS, Steps, advance
from guard.store.files import get_file
from guard.store.keeper import Keeper
from guard.store.originals import examine_steps, forget_examined

__all__ = ["Examining"]

Answer = dict[str, Any]


@dataclass
class _Waiting:
    drop: int
    answer: Answer
    steps: Steps[list[str]]


class Examining:
    """The stored copies that are read now, one after the other. `go_on` gets a drop back when its copy was read, `fail` when
    it cannot be read."""

    def __init__(self, keeper: Keeper, go_on: Callable[[int, Answer], None], fail: Callable[[int, Exception], None]) -> None:
        self.keeper, self.go_on, self.fail = keeper, go_on, fail
        self._waiting: list[_Waiting] = []
        self._examined: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether there is something to read."""
        return bool(self._waiting)

    def begin(self, drop: int, answer: Answer) -> bool:
        """Whether a drop has to wait until the stored copy of its bytes was read; False when it was, or there is none."""
        known = get_file(self.keeper.ledger, str(answer.get("sha256") or ""))
        if drop in self._examined or known is None or answer.get("verdict") != "ok":
            self._examined.discard(drop)
            return False
        self._waiting.append(_Waiting(drop, answer, examine_steps(self.keeper.home, known)))
        return True

    def tick(self) -> None:
        """Read on for a slice. Small files are read many in one."""
        clock = self.keeper.clock.monotonic
        stop = clock() + SLICE_SECONDS
        while self._waiting:
            first = self._waiting[0]
            try:
                done, _found = advance(first.steps, clock, stop - clock())
            except Exception as error:  # noqa: BLE001 - told with the drop; one drop never ends the daemon
                self._waiting.remove(first)
                self.fail(first.drop, error)
                continue
            if done:
                self._waiting.remove(first)
                self._examined.add(first.drop)
                self.go_on(first.drop, first.answer)
            if clock() >= stop:
                return

    def forget(self, record: Mapping[str, Any]) -> None:
        """Its verdict was carried out: whoever drops the same bytes again has the stored copy read again."""
        forget_examined(self.keeper.home, str(record.get("sha256") or ""))
