"""`retention plan` and `retention apply`: what models/ holds, asked of the ledger, and the archiving of what may go.

The proposal is `guard/checks/retention.py`; one version is archived by `archive.py`. Nothing here runs by itself:
no start, no timer and no full disk archives anything (law 3).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

from guard.checks.retention import Candidate, plan_retention
from guard.clock import utc_seconds
from guard.errors import CheckFailed, EnvironmentFault, HeirloomError, NotConfirmed, Protected
from guard.steps import Steps, drain
from guard.store.archive import archive_steps, finish_archives, require_apart
from guard.store.keeper import Keeper
from guard.store.vault_state import vault_of
from guard.store.versions import all_versions

__all__ = ["retention_apply", "retention_apply_steps", "retention_plan"]

_PLANNED = "SELECT v.id FROM versions v JOIN jobs j ON j.id = v.job_id WHERE json_extract(j.request, '$.origin') = 'plan'"
_ROLLED_BACK = "SELECT DISTINCT json_extract(payload, '$.after') FROM events WHERE verb = 'line.rolled_back'"
_CHILDREN = ("SELECT parent_id, count(*) FROM versions WHERE parent_id IS NOT NULL AND state NOT IN ('trashed', 'purged') "
             "GROUP BY parent_id")  # fmt: skip
_TIPS = "SELECT tip_id, name FROM lines ORDER BY name"
_USERS = ("SELECT i.input_id, v.name FROM version_inputs i JOIN versions v ON v.id = i.version_id "
          "WHERE v.state NOT IN ('trashed', 'purged') ORDER BY v.id")  # fmt: skip
_JOBS = ("SELECT coalesce(base_id, json_extract(plan, '$.train.base.id')), id FROM jobs WHERE state IN "
         "('queued', 'held', 'preparing', 'training', 'committing', 'parked') ORDER BY id")  # fmt: skip


def retention_plan(keeper: Keeper, newest: int | None = None) -> dict[str, Any]:
    """What might be archived; reads only. `newest`: how many of each line stay in any case (None: the setting).

    Returns versions [{name, keep, reason, bytes}], archive (names), bytes (that would become free), vault, problem
    (why nothing can be archived now, or ""), confirm (the words a person types).
    """
    count = keeper.settings.retention.newest if newest is None else newest
    choices = plan_retention(_candidates(keeper), now=utc_seconds(keeper.clock.utc()), newest=count)
    leaving = [choice for choice in choices if not choice.keep]
    problem = ""
    try:
        require_apart(keeper)
    except HeirloomError as error:
        problem = error.message
    return {
        "versions": [{"name": item.name, "keep": item.keep, "reason": item.reason, "bytes": item.size_bytes}
                     for item in choices],
        "archive": [item.name for item in leaving], "bytes": sum(item.size_bytes for item in leaving),
        "vault": str(vault_of(keeper)), "problem": problem, "confirm": f"archive {len(leaving)} versions",
    }  # fmt: skip


def _candidates(keeper: Keeper) -> list[Candidate]:
    """Every version in models/ with its facts; a few queries for all of them, however many there are."""
    ledger = keeper.ledger
    planned = {row[0] for row in ledger.rows(_PLANNED)}
    chosen = {row[0] for row in ledger.rows(_ROLLED_BACK)}
    children = {row[0]: row[1] for row in ledger.rows(_CHILDREN)}
    active, users, jobs = (_grouped(ledger.rows(sql)) for sql in (_TIPS, _USERS, _JOBS))
    return [
        Candidate(
            version.name, version.id, version.line, utc_seconds(version.created), version.size_bytes,
            is_base=version.parent_id is None, quarantined=version.state == "quarantined",
            tip_of=active.get(version.id, ()), children=children.get(version.id, 0),
            needed_by=users.get(version.id, ()), jobs=jobs.get(version.id, ()),
            annotation="a person rolled back to it" if version.name in chosen else
                       "a person named it in a plan" if version.id in planned else "")
        for version in all_versions(ledger, "sealed", "quarantined")
    ]  # fmt: skip


def _grouped(rows: Sequence[sqlite3.Row]) -> dict[int, tuple[Any, ...]]:
    """Pairs of id and value as all values of each id."""
    found: dict[int, tuple[Any, ...]] = {}
    for row in rows:
        found[row[0]] = (*found.get(row[0], ()), row[1])
    return found


def retention_apply(
    keeper: Keeper, *, confirm: str | None, newest: int | None = None, dry_run: bool = False,
    shown: Collection[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`retention_apply_steps` run to its end."""
    return drain(retention_apply_steps(keeper, confirm=confirm, newest=newest, dry_run=dry_run, shown=shown))


def retention_apply_steps(
    keeper: Keeper, *, confirm: str | None, newest: int | None = None, dry_run: bool = False,
    shown: Collection[str] | None = None,
) -> Steps[dict[str, Any]]:  # fmt: skip
    """Archive what the plan of this moment proposes, the oldest first; returns the plan with archived, kept and unseen.

    `shown`: the versions that the person who confirmed was shown (None: those of this plan). Of them only what is still
    proposed goes; what came into the plan since then stays and is told as `unseen` (names).
    `kept`: [{name, reason}] of those that stayed because their copy did not read back, or because they may not go any
    more. Raises CheckFailed when the vault is on the same device or nothing may go, NotConfirmed when the typed words
    are not the list's.
    """
    if not dry_run:
        finish_archives(keeper)
    plan = {**retention_plan(keeper, newest), "archived": [], "kept": [], "unseen": []}
    if not plan["archive"]:
        raise CheckFailed("there is nothing to archive", hint="heirloom retention plan says why each version stays")
    require_apart(keeper)
    if dry_run:
        return plan
    if shown is not None:
        _bind(plan, shown)
    if confirm != plan["confirm"]:
        typed = "nothing was typed" if confirm is None else f"{confirm!r} was typed"
        raise NotConfirmed(f"{typed}, so nothing was archived", hint=f'--confirm "{plan["confirm"]}"')
    for name in plan["archive"]:
        try:
            yield from archive_steps(keeper, name)
            plan["archived"].append(name)
        except EnvironmentFault:
            raise
        except (CheckFailed, Protected) as error:
            plan["kept"].append({"name": name, "reason": error.message})
    sizes = {item["name"]: item["bytes"] for item in plan["versions"]}
    plan["bytes"] = sum(sizes[name] for name in plan["archived"])
    return plan


def _bind(plan: dict[str, Any], shown: Collection[str]) -> None:
    """Narrow a plan to what was shown; the words a person typed count that list and not the one of this moment."""
    reasons = {item["name"]: item["reason"] for item in plan["versions"]}
    proposed = set(plan["archive"])
    plan["unseen"] = [name for name in plan["archive"] if name not in shown]
    plan["archive"] = [name for name in plan["archive"] if name in shown]
    plan["kept"] = [{"name": name, "reason": reasons.get(name, "it is not in models/ any more")}
                    for name in shown if name not in proposed]  # fmt: skip
    plan["confirm"] = f"archive {len(shown)} versions"
