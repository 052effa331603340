"""The learning rate as a pure function of the step: warm-up, stable, linear final decay.

"Warmup-stable-decay" (MiniCPM, arXiv 2404.06395; Hägele et al., arXiv 2405.18392). Nothing here remembers anything,
so a resumed run cannot be off by one. Which optimizer uses the rate is the loop's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["learning_rate", "warm_up_steps"]


def learning_rate(step: int, steps: int, training: Mapping[str, Any]) -> float:
    """The rate of step `step` (0-based) out of `steps`, from a recipe's `training` section.

    Warm-up rises linearly and reaches the peak at its last step; decay falls linearly to just above
    peak * min_learning_rate_ratio, so that no step is ever wasted on a rate of zero. `warmup_steps`, where the recipe gives
    it, counts the steps of the warm-up in the place of a share of the run; a run that is shorter never reaches the peak.
    """
    assert 0 <= step < steps, f"step {step} of {steps}"
    peak, floor = float(training["learning_rate"]), float(training["min_learning_rate_ratio"])
    warm_up = warm_up_steps(steps, training)
    decay = math.ceil(float(training["decay_fraction"]) * steps)
    rising = (step + 1) / warm_up if step < warm_up else 1.0
    decayed = max(0, step - (steps - decay) + 1) / (decay + 1)
    return peak * min(rising, 1.0 - (1.0 - floor) * decayed)


def warm_up_steps(steps: int, training: Mapping[str, Any]) -> int:
    """Steps until the peak in a run of `steps`: counted by the recipe, or its share of the run."""
    exactly = training.get("warmup_steps")
    return math.ceil(float(training["warmup_fraction"]) * steps) if exactly is None else int(exactly)
