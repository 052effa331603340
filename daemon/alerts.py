"""What a person should know of now, each with what to do about it: the alerts of `status`.

They are read from the ledger and the disk at the moment of asking; an alert ends when its cause does. Not here: the
lines of the audit trail and notifications (`daemon/notify.py`), nor the words on the screen (`daemon/cli/status.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from daemon.disk_room import GB, shares_the_disk
from guard.store.drills import drill_state
from guard.store.glance import lost_things
from guard.store.keeper import Keeper
from guard.store.standing import standing_damage
from guard.store.vault_room import vault_free_bytes

__all__ = ["standing_alerts"]

FULL_BYTES = 1 << 20
SILENT_SECONDS = 120.0


def _vault_room(keeper: Keeper) -> list[dict[str, str]]:
    """Told before the next birth: its version will be kept in models/, and its backup held until there is room."""
    free = vault_free_bytes(keeper)
    size = keeper.ledger.value("SELECT size_bytes FROM versions ORDER BY id DESC LIMIT 1") or 0
    if free is None or free > size:
        return []
    return [{"what": f"the vault has {free / GB:.2f} GB free, and another version takes up to {size / GB:.2f} GB: "
                     "backups wait until there is room",
             "remedy": "free space there, or set backup.path to a larger disk"}]  # fmt: skip


def _skipped_steps(keeper: Keeper) -> list[dict[str, str]]:
    """Tips that passed over steps of their training: until the line moves on, a person should have looked."""
    rows = keeper.ledger.rows("SELECT v.name, json_extract(v.record, '$.metrics.steps_skipped') AS steps FROM versions v "
                              "WHERE v.id IN (SELECT tip_id FROM lines) AND steps > 0 ORDER BY v.id")  # fmt: skip
    return [{"what": f"{row['name']} was trained without {row['steps']} of its steps: their loss or gradient was no sound figure",
             "remedy": f"heirloom show {row['name']}"} for row in rows]  # fmt: skip


_REMEDIES = {"held": "mend what it names, or wait: it is tried again by itself (heirloom queue)",
             "parked": "heirloom queue retry {id}", "failed": "heirloom queue retry {id}",
             "quarantined": "heirloom show {version}"}  # fmt: skip


def _resting_jobs(keeper: Keeper, jobs: Mapping[str, int]) -> list[dict[str, str]]:
    """One alert for each state in which a job waits for something, with the reason and the number of the newest."""
    alerts = []
    for state in filter(jobs.get, _REMEDIES):
        # None, when it went on since it was counted: whoever asks for the status is often not the daemon.
        for newest in keeper.ledger.rows("SELECT j.id, j.reason, v.name AS version FROM jobs j LEFT JOIN versions v "
                                         "ON v.id = j.output_id WHERE j.state = ? ORDER BY j.updated DESC LIMIT 1", (state,)):
            told = _REMEDIES[state].format(**newest) + (" (all of them: heirloom queue)" if jobs[state] > 1 else "")
            alerts.append({"what": f"{jobs[state]} job{'s' if jobs[state] > 1 else ''} {state}: {newest['reason']}",
                           "remedy": told})  # fmt: skip
    return alerts


def standing_alerts(
    keeper: Keeper, live: Mapping[str, Any], jobs: Mapping[str, int], disk: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Every alert as `{what, remedy}`. `live`: what the running daemon published; `jobs`: how many are in each state;
    `disk`: from `disk_state`."""
    alerts = [{"what": text, "remedy": "heirloom doctor"} for text in live.get("problems", [])]
    # A screen that says "nothing is lost" must have looked.
    alerts += [{"what": item.what, "remedy": item.remedy} for item in lost_things(keeper)]
    if disk["free_bytes"] < FULL_BYTES:
        told = f"the disk of {keeper.home.root} is full: everything is held until there is room; this may be old"
        alerts.insert(0, {"what": told, "remedy": "free space on that disk; all goes on by itself"})
    elif live.get("at") and time.time() - float(live["at"]) > SILENT_SECONDS:
        silent = time.time() - float(live["at"])
        alerts.insert(0, {"what": f"the daemon has told nothing of itself for {silent:,.0f} s: what is shown here may be old",
                          "remedy": "heirloom doctor"})  # fmt: skip
    if disk["free_bytes"] < disk["reserve_bytes"]:
        alerts.append({"what": f"only {disk['free_bytes'] / GB:.1f} GB free; {disk['reserve_bytes'] / GB:.1f} GB stay reserved, "
                               "so training waits and goes on by itself when there is room",
                       "remedy": "free space (heirloom retention plan proposes what), or lower disk.reserve_gb"})  # fmt: skip
    alerts += _vault_room(keeper)
    alerts += _resting_jobs(keeper, jobs)
    alerts += _skipped_steps(keeper)
    for thing, problem in standing_damage(keeper).items():
        alerts.append({"what": f"damaged: {thing}: {problem}", "remedy": "heirloom verify --all"})
    if problem := drill_state(keeper)["problem"]:
        alerts.append({"what": problem, "remedy": "heirloom backup drill"})
    if shares_the_disk(keeper.home.vault(keeper.settings.backup.path), keeper):
        alerts.append({"what": "backups lie on the same disk as the models: a lost disk loses both",
                       "remedy": "set backup.path to a folder on another disk"})  # fmt: skip
    return alerts
