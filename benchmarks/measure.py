"""How a figure is taken: ours and the other in turn (A B A B ...), after a warm-up, medians and their ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

__all__ = ["Figure", "compare"]


@dataclass(frozen=True)
class Figure:
    """One row of the table. `amount` is what one run handles, in `unit`s."""

    name: str
    unit: str
    ours: float
    """Units per second, median."""
    other: float
    other_name: str
    runs: int

    @property
    def ratio(self) -> float:
        return self.ours / self.other

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "ratio": self.ratio}


def _seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def compare(name: str, unit: str, amount: float, ours: Callable[[], object], other_name: str,
            other: Callable[[], object], runs: int = 5) -> Figure:  # fmt: skip
    """Run both in turn and return the medians as units per second."""
    ours(), other()
    pairs = [(_seconds(ours), _seconds(other)) for _ in range(runs)]
    return Figure(name, unit, amount / statistics.median(pair[0] for pair in pairs),
                  amount / statistics.median(pair[1] for pair in pairs), other_name, runs)  # fmt: skip
