"""The state of a home in one dictionary (`status --json`), read from the ledger with or without a daemon.

Also publishes `.heirloom/status.json` for readers that may not open the ledger. Only the few facts that no ledger
holds (what waits in the inbox, alerts of the moment) come from the daemon's last published word. No numpy, no torch:
this must answer at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from daemon.control import is_listening
from guard.checks.forecast import Grown, forecast
from guard.checks.kinds import SIDE_SUFFIXES
from guard.clock import utc_seconds, utc_text
from guard.durable import publish
from guard.errors import EnvironmentFault
from guard.home import Home
from guard.names import index_name
from guard.store.drills import drill_state
from guard.store.files import OPEN_DROPS
from guard.store.glance import lost_things
from guard.store.jobs import Job, counts, jobs_in
from guard.store.keeper import Keeper, open_reader
from guard.store.standing import standing_damage
from guard.store.vault_room import vault_free_bytes
from guard.store.versions import tips, tokens_trained

__all__ = ["compose", "daemon_running", "publish_status", "status"]

GB = 1e9
FULL_BYTES = 1 << 20
SILENT_SECONDS = 120.0
_RECENT = 20
_LAST_MOMENT = 253_402_300_000.0


def daemon_running(home: Home) -> bool:
    """Whether a daemon answers for this home."""
    return is_listening(home.socket)


def status(home: Home) -> dict[str, Any]:
    """The state of a home now. Raises Damage for a home that is not whole."""
    published = _published(home)
    running = daemon_running(home)
    try:
        with open_reader(home) as keeper:
            found = compose(keeper, published.get("live", {}) if running else {}, running=running)
    except EnvironmentFault:
        if "state" not in published:
            raise
        found = published
    found.pop("live", None)
    if not running:
        found["state"], found["training"] = "stopped", None
    return found


def _published(home: Home) -> dict[str, Any]:
    try:
        return json.loads(home.status_file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def publish_status(keeper: Keeper, live: Mapping[str, Any]) -> dict[str, Any]:
    """Compose and publish the state; called by the daemon about once a second."""
    found = compose(keeper, live, running=True)
    publish(keeper.home.status_file, orjson.dumps({**found, "live": dict(live), "schema": 1}))
    return found


def compose(keeper: Keeper, live: Mapping[str, Any], *, running: bool) -> dict[str, Any]:
    """Put the state together. `live`: waiting {path: reason}, ignored, problems [text] from the running daemon."""
    ledger = keeper.ledger
    jobs = counts(ledger)
    active = tips(ledger)
    current = [job for job in jobs_in(ledger, "preparing", "training", "committing")]
    training = next((job for job in current if job.kind in ("train", "base")), None)
    indexing = any(job.kind == "index" for job in current)
    trained = tokens_trained(ledger, active["policy"].id) if "policy" in active else 0
    speed = _speed(keeper, training)
    index = ledger.value("SELECT max(id) FROM indexes WHERE state = 'active'")
    paused = ledger.meta("paused") == "1"
    goal = int(keeper.settings.goal.tokens)
    return {
        "state": _state(running, training, indexing, paused, jobs),
        "active": {line: version.name for line, version in active.items()},
        "index": index_name(index) if index else None,
        "training": _training(keeper, training) if running else None,
        "queue": {
            "queued": jobs.get("queued", 0), "running": sum(jobs.get(key, 0) for key in ("preparing", "training", "committing")),
            "held": jobs.get("held", 0), "failed": jobs.get("failed", 0), "done": jobs.get("done", 0),
            "parked": jobs.get("parked", 0), "quarantined": jobs.get("quarantined", 0),
        },
        "inbox": _inbox(keeper, live, running),
        "tokens": {"trained": trained, "goal": goal, "per_second": speed,
                   "eta": round((goal - trained) / speed) if speed and goal > trained else None},
        "disk": _disk(keeper, active.get("policy")),
        "alerts": _alerts(keeper, live, jobs),
        "paused": paused,
    }  # fmt: skip


def _state(running: bool, training: Job | None, indexing: bool, paused: bool, jobs: Mapping[str, int]) -> str:
    if not running:
        return "stopped"
    if paused:
        return "paused"
    if training is not None:
        return "preparing" if training.state == "preparing" else "training"
    if indexing:
        return "indexing"
    return "held" if jobs.get("held") else "idle"


def _progress(keeper: Keeper, job: Job) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((keeper.home.staging_of(job.id) / "progress.json").read_text("utf-8"))
    return {}


def _training(keeper: Keeper, job: Job | None) -> dict[str, Any] | None:
    if job is None:
        return None
    plan, told = job.plan.get("train", {}), _progress(keeper, job)
    base = plan.get("base", {}).get("name")
    return {
        "job": job.id, "base": base, "output": plan.get("output", {}).get("name"), "phase": told.get("phase") or job.state,
        "step": int(told.get("step") or 0), "steps": int(plan.get("steps") or told.get("steps") or 0),
        "loss": told.get("loss"), "tokens_per_second": told.get("tokens_per_second"),
        "eta_seconds": told.get("eta_seconds"),
    }  # fmt: skip


def _speed(keeper: Keeper, job: Job | None) -> float | None:
    """Tokens per second: of the running job, else of the newest trained version."""
    if job is not None:
        speed = _progress(keeper, job).get("tokens_per_second")
        if speed:
            return float(speed)
    value = keeper.ledger.value(
        "SELECT json_extract(record, '$.metrics.tokens_per_second') FROM versions WHERE tokens > 0 ORDER BY id DESC LIMIT 1")
    return float(value) if value else None


def _inbox(keeper: Keeper, live: Mapping[str, Any], running: bool) -> dict[str, int]:
    on_the_way = int(keeper.ledger.value(f"SELECT count(*) FROM drops WHERE state IN {OPEN_DROPS}"))
    waiting = int(live.get("waiting_count", 0)) if running else _count_inbox(keeper.home)
    # What lies there now: a refused `register` leaves nothing, and what a person took away is not there any more.
    return {"waiting": waiting + on_the_way,
            "rejected": _came_back(keeper, keeper.home.rejected, "rejected"),
            "duplicates": _came_back(keeper, keeper.home.duplicates, "duplicate"),
            "ignored": int(live.get("ignored_count", 0))}  # fmt: skip


def _came_back(keeper: Keeper, folder: Path, state: str) -> int:
    """Files that lie where they came back to, and those that could not be moved and stayed where they are."""
    stayed = int(keeper.ledger.value("SELECT count(*) FROM drops WHERE state = ? AND mode = 'copy' AND returned_to IS NULL "
                                     "AND origin = 'inbox'", (state,)))  # fmt: skip
    try:
        changed = os.stat(folder).st_mtime_ns
        kept = keeper.memory.get(folder)
        if kept is None or kept[0] != changed:
            names = os.listdir(folder)
            kept = changed, sum(not name.endswith((".why.txt", *SIDE_SUFFIXES)) and not name.startswith(".") for name in names)
            # Two changes within a tick of the kernel's clock have one time: only what lay still for a moment is remembered.
            if time.time_ns() - changed > 1_000_000_000:
                keeper.memory[folder] = kept
    except OSError:
        return stayed
    return stayed + int(kept[1])


def _count_inbox(home: Home) -> int:
    """Files and data sets lying in the inbox while no daemon looks: what nothing ignores."""
    from daemon.scan import sweep

    try:
        return len(sweep(home).files)
    except OSError:
        return 0  # the inbox is missing or closed: `doctor` tells of that


def _disk(keeper: Keeper, tip: Any) -> dict[str, Any]:
    """What is free, what stays reserved, and how long it lasts: `full_on` is a UTC date or null."""
    free, reserve = keeper.home.free_bytes(), int(keeper.settings.disk.reserve_gb * GB)
    vault = keeper.home.vault(keeper.settings.backup.path)
    shared = _same_device(vault, keeper)
    rows = keeper.ledger.rows(
        "SELECT v.created, v.size_bytes, b.size_bytes AS copy_bytes FROM versions v LEFT JOIN backups b ON "
        "b.what = 'version' AND b.name = v.name AND b.vault = ? WHERE v.parent_id IS NOT NULL ORDER BY v.id DESC LIMIT ?",
        (str(vault), _RECENT))  # fmt: skip
    recent = [Grown(utc_seconds(row["created"]), row["size_bytes"] + (_copy_bytes(row) if shared else 0)) for row in rows]
    guess = (2 if shared else 1) * (tip.size_bytes if tip is not None else 0)
    found = forecast(room_bytes=free - reserve, recent=recent, now=utc_seconds(keeper.clock.utc()), guess_bytes=guess)
    return {"free_bytes": free, "reserve_bytes": reserve, "forks_left": found.forks_left, "full_on": _date(found.full_at)}


def _copy_bytes(row: Any) -> int:
    """What its backup takes on the same disk; as much as the version itself until there is one."""
    return row["copy_bytes"] if row["copy_bytes"] is not None else row["size_bytes"]


def _date(moment: float | None) -> str | None:
    """The day of a moment; null beyond the year 9999, which no disk is asked about."""
    return utc_text(moment)[:10] if moment is not None and moment < _LAST_MOMENT else None


def _same_device(vault: Path, keeper: Keeper) -> bool:
    with contextlib.suppress(OSError):
        # One that is not there yet would be begun below the nearest folder that is.
        there = next(place for place in (vault, *vault.parents) if place.exists())
        return os.stat(there).st_dev == os.stat(keeper.home.models).st_dev
    return False


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


def _alerts(keeper: Keeper, live: Mapping[str, Any], jobs: Mapping[str, int]) -> list[dict[str, str]]:
    alerts = [{"what": text, "remedy": "heirloom doctor"} for text in live.get("problems", [])]
    # A screen that says "nothing is lost" must have looked.
    alerts += [{"what": item.what, "remedy": item.remedy} for item in lost_things(keeper)]
    disk = _disk(keeper, None)
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
    for state, remedy in (("held", "it is retried by itself: heirloom queue"), ("parked", "heirloom queue retry ID"),
                          ("failed", "heirloom queue retry ID"),
                          ("quarantined", "heirloom queue; heirloom show VERSION")):  # fmt: skip
        if jobs.get(state):
            reason = keeper.ledger.value("SELECT reason FROM jobs WHERE state = ? ORDER BY updated DESC LIMIT 1", (state,))
            alerts.append({"what": f"{jobs[state]} job{'s' if jobs[state] > 1 else ''} {state}: {reason}", "remedy": remedy})
    alerts += _skipped_steps(keeper)
    for thing, problem in standing_damage(keeper).items():
        alerts.append({"what": f"damaged: {thing}: {problem}", "remedy": "heirloom verify --all"})
    if problem := drill_state(keeper)["problem"]:
        alerts.append({"what": problem, "remedy": "heirloom backup drill"})
    if _same_device(keeper.home.vault(keeper.settings.backup.path), keeper):
        alerts.append({"what": "backups lie on the same disk as the models: a lost disk loses both",
                       "remedy": "set backup.path to a folder on another disk"})  # fmt: skip
    return alerts


def live_facts(engine: Any) -> dict[str, Any]:
    """What only the running engine knows, for `compose`."""
    waiting = engine.intake.settler.waiting()
    ignored = {str(path): reason for path, reason in engine.intake.last.ignored.items()}
    problems = [text for text in (engine.home_problem, engine.machine_problem, engine.intake.problem, engine.backup_problem,
                                engine.watch_problem, engine.scrub_problem, engine.near.problem, engine.upkeep.problem,
                                engine.keeper.ledger.export_problem) if text]
    shown = dict(list(waiting.items())[:100])
    return {"waiting": {_shown(key): value for key, value in shown.items()}, "waiting_count": len(waiting),
            "ignored": {_shown(key): value for key, value in list(ignored.items())[:100]},
            "ignored_count": len(ignored), "problems": problems, "at": time.time()}  # fmt: skip


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
