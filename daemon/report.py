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

from daemon.alerts import standing_alerts
from daemon.control import is_listening
from daemon.disk_room import disk_state
from guard.checks.kinds import SIDE_SUFFIXES
from guard.durable import publish
from guard.errors import EnvironmentFault
from guard.home import Home
from guard.names import index_name
from guard.store.files import OPEN_DROPS
from guard.store.jobs import Job, counts, jobs_in
from guard.store.keeper import Keeper, open_reader
from guard.store.versions import tips, tokens_trained

__all__ = ["compose", "daemon_running", "publish_status", "status"]


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
    disk = disk_state(keeper, active.get("policy"))
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
        "disk": disk,
        "alerts": standing_alerts(keeper, live, jobs, disk),
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
