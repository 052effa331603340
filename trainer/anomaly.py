"""When a step of a run is an anomaly: a loss or gradient that is not finite, or a loss far above those before it.

Pure: figures in, a finding out, the same for the same figures wherever a run was killed and resumed. A loss is a spike
when it is above both

    median + factor * max(1.4826 * MAD, 0.1 * |median|, 0.1 nat)      and      1.5 times the worst

of the newest 64 losses that were learnt from, once there are 16 of them. Median and MAD (median absolute deviation;
1.4826 makes it a standard deviation, Hampel 1974) are not moved by the spikes they are to find; the least spread keeps
a run whose loss hardly moves from tripping over nothing, the worst one of a kind keeps data of two sorts (easy and hard
batches) from being taken for an accident. Not here: what is done about it (`trainer/rewind.py`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["LEAST", "WINDOW", "Anomaly", "AnomalyFound", "Rules", "find_anomaly", "guilty_steps", "rules_of"]

WINDOW = 64
LEAST = 16
OVER_WORST = 1.5
_NORMAL = 1.4826
_LEAST_SHARE = 0.1
_LEAST_NATS = 0.1


@dataclass(frozen=True)
class Rules:
    """What is an anomaly in a run, and what is done about one. A recipe that says nothing halts, and knows no spikes."""

    on_anomaly: str
    """`skip` or `halt`."""
    spike_factor: float
    """0: a finite loss is never an anomaly."""
    most_skipped: int
    """So many steps may be skipped; one more halts the run."""


@dataclass(frozen=True)
class Anomaly:
    """One finding."""

    step: int
    """Counted from 0."""
    kind: str
    """`loss_not_finite`, `gradient_not_finite` or `loss_spike`."""
    value: float
    limit: float | None
    """What the loss should have stayed below; None where any finite figure would have done."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: a figure that is not finite as its name; the step counted from 1, as people see it."""
        told = {**asdict(self), "step": self.step + 1}
        return {**told, "value": self.value if math.isfinite(self.value) else str(self.value)}

    @property
    def words(self) -> str:
        """The finding as a clause, the step counted from 1."""
        if self.kind == "loss_spike":
            return f"the loss of step {self.step + 1} is a spike ({self.value:.4f}, {self.limit:.4f} at most was to be expected)"
        what = "gradient" if self.kind.startswith("gradient") else "loss"
        return f"the {what} of step {self.step + 1} is not finite ({self.value})"


class AnomalyFound(Exception):
    """Ends a step before its update was made."""

    def __init__(self, anomaly: Anomaly, resumes: int) -> None:
        """`resumes`: how often the run had been resumed by then."""
        super().__init__(anomaly.words)
        self.anomaly, self.resumes = anomaly, resumes


def rules_of(training: Mapping[str, Any], steps: int) -> Rules:
    """The rules of a run of so many steps, from a recipe's `training` section, whole or as an earlier release sealed it.

    Never more than one step in ten is skipped (one may always be, but never all): what is left is to be called trained.
    """
    most = min(int(training.get("max_skipped_steps", 0)), max(1, steps // 10), steps - 1)
    return Rules(str(training.get("on_anomaly", "halt")), float(training.get("spike_factor", 0.0)), most)


def find_anomaly(what: str, value: float, step: int, recent: Sequence[float], factor: float) -> Anomaly | None:
    """Judge the `loss` or `gradient` of a step (0-based); `recent`: losses of earlier steps learnt from, newest last."""
    if not math.isfinite(value):
        return Anomaly(step, f"{what}_not_finite", value, None)
    if what != "loss" or factor <= 0 or len(recent) < LEAST:
        return None
    limit = spike_limit(recent[-WINDOW:], factor)
    return Anomaly(step, "loss_spike", value, limit) if value > limit else None


def spike_limit(recent: Sequence[float], factor: float) -> float:
    """Above which loss a step is a spike, after these."""
    median, worst = statistics.median(recent), max(recent)
    spread = _NORMAL * statistics.median(abs(loss - median) for loss in recent)
    by_spread = median + factor * max(spread, _LEAST_SHARE * abs(median), _LEAST_NATS)
    return max(by_spread, worst + (OVER_WORST - 1) * abs(worst))


def guilty_steps(step: int, skipped: frozenset[int]) -> tuple[int, ...]:
    """Which steps to skip for an anomaly found at `step`: its own batch; and when the step before was skipped already,
    the newest one learnt from as well: then it is not one batch that is bad, but what the weights were made by an update."""
    if step == 0 or step - 1 not in skipped:
        return (step,)
    before = step - 1
    while before in skipped:
        before -= 1
    return (step,) if before < 0 else (before, step)
