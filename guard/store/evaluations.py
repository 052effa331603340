"""What versions were measured to be worth: the results of `heirloom eval`, kept for ever and never changed.

A result belongs to a version, a set (known by the hash of what it holds, not by its name) and the options it was asked with;
asked again, it is answered from here. Each one is an event as well, whose payload is the whole row, so that a ledger that is
made again has them all. Not here: measuring (`trainer/`), which sets there are (`daemon/evaluating.py`), the gate's own
losses (in `version.json`), and sets whose rows are never trained (`evaluation.py`).
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from guard.errors import CheckFailed, UsageError
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger
from guard.store.versions import GONE, find_version

__all__ = ["KINDS", "MEASURED", "VERB", "evaluations_of", "insert", "options_key", "record_all", "same_evaluation"]

VERB = "evaluation.measured"
KINDS = ("loss", "questions", "comparison")
MEASURED = ("version", "kind", "set_name", "set_id", "options", "figures", "made_with", "sums_sha256")
"""What a result says beside when it was made. `sums_sha256` names the very weights that were measured."""
_TEXTS = ("version", "kind", "set_name", "set_id", "sums_sha256")
_MOST_BYTES = 1 << 18
_SORTED = orjson.OPT_SORT_KEYS


def options_key(options: Mapping[str, Any]) -> str:
    """The options as text in one spelling: equal text, equal question."""
    return orjson.dumps(dict(options), option=_SORTED).decode()


def record_all(keeper: Keeper, results: Sequence[Mapping[str, Any]], *, dry_run: bool = False) -> list[int]:
    """Write results, each with its event, all or none; returns their numbers. The one writer calls it (law 13).

    A result that says word for word what is there already gets that one's number. Raises UsageError for what is no result,
    NotFound for an unknown version, CheckFailed when the version is not the one that was measured.
    """
    checked = [_checked(keeper, item) for item in results]
    if dry_run:
        return []
    numbers = []
    with keeper.ledger.transaction():
        for version_id, item in checked:
            known = _same_row(keeper.ledger, version_id, item, figures=True)
            if known is not None:
                numbers.append(int(known["id"]))
                continue
            created = keeper.clock.utc()
            keeper.ledger.event(VERB, item["version"], **{**item, "created": created})
            numbers.append(insert(keeper.ledger, version_id, item, created))
    return numbers


def _checked(keeper: Keeper, item: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    told = {key: item.get(key) for key in MEASURED}
    wrong = next((key for key in _TEXTS if not isinstance(told[key], str) or not told[key]), None) or \
        next((key for key in ("options", "figures", "made_with") if not isinstance(told[key], dict)), None)  # fmt: skip
    if wrong or told["kind"] not in KINDS or not _plain(told):
        raise UsageError(f"that is no result of an evaluation: {wrong or 'kind or figures'}", subject=str(wrong or "kind"),
                         hint="daemon and command are of different versions?")  # fmt: skip
    if len(orjson.dumps(told)) > _MOST_BYTES:
        raise UsageError(f"a result of more than {_MOST_BYTES >> 10} KiB", subject=str(told["set_name"]),
                         hint="figures are recorded, not answers")  # fmt: skip
    version = find_version(keeper.ledger, str(told["version"]))
    if version.sums_sha256 != told["sums_sha256"] or version.state in GONE:
        raise CheckFailed(f"{version.name} is not the version that was measured", subject=version.name,
                          hint="it was moved or made again meanwhile: measure it again")  # fmt: skip
    return version.id, {**told, "version": version.name}


def _plain(value: Any) -> bool:
    """Whether a value is JSON without NaN or infinity: orjson would write those as null."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def insert(ledger: Ledger, version_id: int, item: Mapping[str, Any], created: str) -> int:
    """One row, inside the caller's transaction; returns its number."""
    ledger.run(
        "INSERT INTO evaluations (version_id, kind, set_name, set_id, options, figures, made_with, sums_sha256, created) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (version_id, item["kind"], item["set_name"], item["set_id"], options_key(item["options"]),
         orjson.dumps(item["figures"], option=_SORTED).decode(), orjson.dumps(item["made_with"], option=_SORTED).decode(),
         item["sums_sha256"], created))  # fmt: skip
    return int(ledger.value("SELECT max(id) FROM evaluations"))


def _same_row(ledger: Ledger, version_id: int, item: Mapping[str, Any], *, figures: bool = False) -> sqlite3.Row | None:
    values: list[object] = [version_id, item["kind"], item["set_id"], options_key(item["options"]), item["sums_sha256"]]
    also = ""
    if figures:
        also = " AND figures = ?"
        values.append(orjson.dumps(item["figures"], option=_SORTED).decode())
    return ledger.row("SELECT * FROM evaluations WHERE version_id = ? AND kind = ? AND set_id = ? AND options = ? "
                      f"AND sums_sha256 = ?{also} ORDER BY id DESC LIMIT 1", values)  # fmt: skip


def same_evaluation(ledger: Ledger, version_id: int, kind: str, set_id: str, options: Mapping[str, Any],
                    sums_sha256: str) -> dict[str, Any] | None:  # fmt: skip
    """The newest result of the very question, or None: another release's rules are another option. None, too, from a ledger
    that is read only and older than this table."""
    if not _kept_here(ledger):
        return None
    row = _same_row(ledger, version_id, {"kind": kind, "set_id": set_id, "options": options, "sums_sha256": sums_sha256})
    return None if row is None else _told(row)


def evaluations_of(ledger: Ledger, version_id: int) -> list[dict[str, Any]]:
    """Every result of a version, oldest first: id, kind, set_name, set_id, options, figures, made_with, created.

    None from a ledger that is read only and older than this table.
    """
    if not _kept_here(ledger):
        return []
    return [_told(row) for row in ledger.rows("SELECT * FROM evaluations WHERE version_id = ? ORDER BY id", (version_id,))]


def _kept_here(ledger: Ledger) -> bool:
    """A reader brings no ledger up to date: that of an earlier release has no such table until a writer opened it."""
    return ledger.value("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'evaluations'") is not None


def _told(row: sqlite3.Row) -> dict[str, Any]:
    return {**{key: row[key] for key in ("id", "kind", "set_name", "set_id", "created")},
            **{key: orjson.loads(row[key]) for key in ("options", "figures", "made_with")}}  # fmt: skip
