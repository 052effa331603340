"""After the last step: does the log of the run say what the plan says? Before anything is written that could be published.

The log is read back from the disk, as it will be sealed: a figure that is not finite stands in JSON as null and would be
drawn as a gap, a rate that is off after a resume looks like any other rate. Not here: what was fed (the consumed hash) and
the weights, which the daemon compares with the plan (`guard/checks/proof.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from guard.errors import CheckFailed
from trainer.schedule import learning_rate

__all__ = ["require_sound_run"]

_RETRY = "the child is not published; heirloom queue retry ID trains it from the beginning"


def require_sound_run(metrics: Path, steps: int, training: Mapping[str, Any]) -> None:
    """Raise CheckFailed when a line of metrics.jsonl lacks a finite figure or has another rate than its step's by the schedule,
    or when steps are missing at the end, repeated or out of order. `skipped: true` stands for a step that was passed over.
    """
    before = 0
    for line in metrics.read_bytes().splitlines():
        row = orjson.loads(line)
        step = int(row["step"])
        if step <= before:
            raise CheckFailed(f"step {step} stands in the log behind step {before}: it was trained twice",
                              subject="metrics.jsonl", hint=_RETRY)  # fmt: skip
        before = step
        if row.get("skipped") is not True:  # a step that was passed over has no figures
            _require_sound_step(row, step, steps, training)
    if before != steps:
        raise CheckFailed(f"the log ends at step {before} of {steps}", subject="metrics.jsonl", hint=_RETRY)


def _require_sound_step(row: Mapping[str, Any], step: int, steps: int, training: Mapping[str, Any]) -> None:
    for name in ("loss", "grad_norm", "learning_rate"):
        if row.get(name) is None or not math.isfinite(row[name]):
            raise CheckFailed(f"the {name.replace('_', ' ')} of step {step} is not finite, and training went on",
                              subject="metrics.jsonl", hint=f"{_RETRY}; a lower training.learning_rate may help")  # fmt: skip
    wanted = learning_rate(step - 1, steps, training)
    if not math.isclose(row["learning_rate"], wanted, rel_tol=1e-9):
        raise CheckFailed(f"the learning rate of step {step} was {row['learning_rate']:g}, its schedule says {wanted:g}",
                          subject="metrics.jsonl", hint=_RETRY)  # fmt: skip
