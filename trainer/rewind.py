"""Going back after an anomaly: note the steps to skip, drop the snapshots that learnt from them, or halt.

    anomalies.json    in the staging folder: every finding of the run, the steps skipped for it and the surroundings it was
                      found in, durable before anything else is done about it

The run then goes on from the newest snapshot that is left, or from its parent's weights, and passes over the steps that
are noted. Since a skipped step leaves weights and moments as they were, the final weights depend on the set of skipped
steps alone; that set follows from the losses, so it is the same wherever the run was killed, and whatever snapshots it
had. Not here: what an anomaly is (`trainer/anomaly.py`), and the run itself (`trainer/loop.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from guard.durable import write_json
from guard.errors import Damage, DataFault
from guard.failpoints import point
from trainer.anomaly import Anomaly, Rules, guilty_steps
from trainer.snapshot import forget_snapshots

__all__ = ["found_in", "go_back", "noted_anomalies", "settle_snapshots", "skipped_steps"]

_NOTE = "anomalies.json"


def noted_anomalies(staging: Path) -> list[dict[str, Any]]:
    """What was found in this run so far, oldest first: step (from 1), kind, value, limit, skipped (steps, from 1).

    Raises Damage when the note cannot be read: without it the run would not be the same again.
    """
    found: list[dict[str, Any]] = _note(staging)["anomalies"]
    return found


def found_in(staging: Path) -> list[dict[str, Any]]:
    """The surroundings of each finding: in others the losses might have told otherwise. Raises Damage."""
    return list(_note(staging).get("found_in") or ())


def _note(staging: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = orjson.loads((staging / _NOTE).read_bytes())
        return {**note, "anomalies": list(note["anomalies"])}
    except FileNotFoundError:
        return {"anomalies": []}
    except (ValueError, KeyError, TypeError) as error:
        raise Damage(f"{staging / _NOTE} cannot be read: {error}", subject=str(staging),
                     hint="check the disk; `heirloom queue retry ID` trains from the beginning") from error  # fmt: skip


def skipped_steps(anomalies: list[dict[str, Any]]) -> frozenset[int]:
    """The steps (from 0) that are passed over because of these findings."""
    return frozenset(step - 1 for item in anomalies for step in item["skipped"])


def go_back(staging: Path, anomaly: Anomaly, rules: Rules, surroundings: Mapping[str, Any]) -> None:
    """Note what is to be skipped because of a finding in these surroundings.

    Raises DataFault when the recipe or the limit says to halt.
    """
    noted = noted_anomalies(staging)
    before = skipped_steps(noted)
    guilty = guilty_steps(anomaly.step, before)
    if rules.on_anomaly != "skip":
        raise DataFault(f"{anomaly.words}; training stopped before using it", hint=_ADVICE)
    if len(before) + len(guilty) > rules.most_skipped:
        steps = ", ".join(str(step + 1) for step in sorted(before)) or "none"
        raise DataFault(f"{anomaly.words}; training stopped before using it: no more than {rules.most_skipped} steps of this "
                        f"run may be skipped, and these were: {steps}", hint=_ADVICE)  # fmt: skip
    finding = {**anomaly.as_dict(), "skipped": [step + 1 for step in guilty]}
    write_json(staging / _NOTE, {"schema": 1, "anomalies": [*noted, finding],
                                 "found_in": [*found_in(staging), dict(surroundings)]})  # fmt: skip
    point("anomaly.noted")


_ADVICE = "lower training.learning_rate or look at the data; nothing was published"


def settle_snapshots(staging: Path, skipped: frozenset[int]) -> None:
    """Drop every snapshot that learnt from a step which is to be skipped; a killed run may have left that undone."""

    def agrees(state: Mapping[str, Any]) -> bool:
        return sorted(state["run"].get("skipped", ())) == sorted(step for step in skipped if step < state["step"])

    forget_snapshots(staging / "snapshots", agrees)
    point("anomaly.settled")
