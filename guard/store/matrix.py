"""The forgetting matrix: the held-out loss of every version on every set it was measured on, and what was forgotten since.

One row for each figure of `metrics.evaluation` in a version.json, written with the version's birth and again from there
when the ledger is made again. Sparse: a child is measured on its own data and on a few sets of its ancestry
(`daemon/planning.py`). Not here: the verdict (`guard/checks/gate.py`), or results that a person asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import orjson

from guard.errors import CheckFailed
from guard.store.ledger import Ledger
from guard.store.versions import Version, ancestors

__all__ = ["forgetting_matrix", "record_losses"]


def record_losses(ledger: Ledger, record: Mapping[str, Any]) -> None:
    """Write the figures of a version.json, inside the caller's transaction. A figure that is missing or not finite has none."""
    rows: dict[tuple[int, str, str], tuple[object, ...]] = {}
    for item in (record.get("metrics") or {}).get("evaluation") or ():
        if _finite(item.get("child_loss")):
            key = (int(record["id"]), str(item.get("dataset") or ""), str(item.get("split") or "val"))
            before = float(item["parent_loss"]) if _finite(item.get("parent_loss")) else None
            rows.setdefault(key, (*key, *(str(item.get(name) or "") for name in ("name", "role", "stage")),
                                  float(item["child_loss"]), before,
                                  *(int(item.get(name) or 0) for name in ("tokens", "loss_tokens", "examples"))))  # fmt: skip
    ledger.run_many("INSERT INTO held_out_losses (version_id, dataset, split, name, role, stage, loss, parent_loss, tokens, "
                    "loss_tokens, examples) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", list(rows.values()))  # fmt: skip


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def forgetting_matrix(ledger: Ledger, version: Version, *, newest: int | None = None) -> dict[str, Any]:
    """What a version and its ancestors lose on every held-out set, in nats per token: version, versions, sets, older.

    `newest`: only the sets learnt last; `older` says how many more there are (every figure of 10,000 versions takes seconds).
    `versions`: names of those that were measured, oldest first. A set: set (its name), dataset, stage, learnt_in, before
    (the loss of the version it was learnt on top of; null where not known), best and now ({version, loss}, the lowest and the
    newest figure), rise (now - best), rise_share, losses ([{version, loss, tokens, loss_tokens, examples}], oldest first).
    Sets are in the order in which they were learnt. Raises CheckFailed for a ledger that no writer of this release opened.
    """
    if not ledger.row("SELECT 1 FROM sqlite_master WHERE name = 'held_out_losses'"):
        raise CheckFailed("this home was last written by an earlier release, which kept no matrix", subject="matrix",
                          hint="start the daemon once (heirloom run --once): it brings the ledger up to date")  # fmt: skip
    family = orjson.dumps(ancestors(ledger, version.id)).decode()
    known = [row[0] for row in ledger.rows(
        "SELECT dataset, min(version_id) AS first FROM held_out_losses WHERE split = 'val' "
        "AND version_id IN (SELECT value FROM json_each(?)) GROUP BY dataset ORDER BY first DESC, dataset", (family,))]
    wanted = known[:newest]
    # The plus keeps SQLite from looking up every ancestor in every set, which took minutes at 10,000 of both.
    rows = ledger.rows(
        "SELECT h.*, v.name AS version FROM json_each(?) s CROSS JOIN held_out_losses h INDEXED BY held_out_losses_by_set "
        "ON h.dataset = s.value AND h.split = 'val' JOIN versions v ON v.id = h.version_id "
        "WHERE +h.version_id IN (SELECT value FROM json_each(?)) ORDER BY h.dataset, h.version_id",
        (orjson.dumps(wanted).decode(), family))  # fmt: skip
    sets = [_set(list(group)) for _dataset, group in groupby(rows, key=lambda row: row["dataset"])]
    names = {row["version_id"]: row["version"] for row in rows}
    return {"version": version.name, "older": len(known) - len(wanted), "versions": [names[number] for number in sorted(names)],
            "sets": [told for _first, told in sorted(sets, key=lambda item: (item[0], item[1]["set"]))]}  # fmt: skip


def _set(rows: Sequence[Any]) -> tuple[int, dict[str, Any]]:
    """The figures of one set, oldest first, as (id of the version that learnt it first, what is told)."""
    first, last = rows[0], rows[-1]
    best = min(rows, key=lambda row: (row["loss"], row["version_id"]))
    rise = last["loss"] - best["loss"]
    told = {
        "set": last["name"], "dataset": last["dataset"], "stage": last["stage"], "learnt_in": first["version"],
        "before": first["parent_loss"], "best": {"version": best["version"], "loss": best["loss"]},
        "now": {"version": last["version"], "loss": last["loss"]}, "rise": rise,
        "rise_share": rise / best["loss"] if best["loss"] > 0 else None,
        "losses": [{key: row[key] for key in ("version", "loss", "tokens", "loss_tokens", "examples")} for row in rows],
    }  # fmt: skip
    return first["version_id"], told
