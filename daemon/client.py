"""How a command reaches the home: over the running daemon's socket, else by itself under the home lock.

A command that takes the lock recovers the home first, exactly as the daemon would. Errors come back as the very
classes the operation raised. Not here: what a command says to a person (`daemon/cli/`).
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from daemon.control import ask, is_listening
from guard import errors
from guard.clock import SYSTEM_CLOCK
from guard.errors import Busy, CheckFailed, DaemonNotRunning, EnvironmentFault, HeirloomError
from guard.home import Home
from guard.lock import home_lock
from guard.splits import split_counts
from guard.store.keeper import Keeper, default_actor, open_reader, open_writer

__all__ = ["call", "call_drill", "call_register", "drop_result", "local_engine", "run_until_done", "wait_for_drops"]

LOCK_SECONDS = 5.0
# A daemon at work sends a sign of life in every round; one that is silent for so long was stopped, or hangs.
ANSWER_SECONDS = 45.0
# These read and write whole models in one go; a daemon that ends meanwhile is noticed at once, by the broken line.
LONG_OPERATIONS = {"restore", "purge", "retention.apply"}
LONG_SECONDS = 24 * 3600.0
POLL_SECONDS = 0.05
FINAL_DROPS = ("admitted", "registered", "duplicate", "rejected", "gone")
FINAL_JOBS = ("done", "held", "parked", "failed", "cancelled", "quarantined")


def _raise(answer: Mapping[str, Any]) -> None:
    """Raise a daemon's refusal as the class it had there."""
    kind = getattr(errors, str(answer.get("error")), HeirloomError)
    if not (isinstance(kind, type) and issubclass(kind, HeirloomError)):
        kind = HeirloomError
    raise kind(str(answer.get("message")), hint=str(answer.get("hint") or ""), subject=str(answer.get("subject") or ""))


def call(home: Home, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Do one changing operation through the daemon or under the lock. Raises what it raised, or Busy."""
    try:
        request = {"operation": operation, "arguments": dict(arguments), "actor": default_actor("cli")}
        answer = ask(home.socket, request, LONG_SECONDS if operation in LONG_OPERATIONS else ANSWER_SECONDS)
    except DaemonNotRunning:
        with local_engine(home, operation) as engine:
            from daemon.operations import perform

            return perform(engine, operation, arguments)
    if not answer.get("ok"):
        _raise(answer)
    return answer["result"]


@contextlib.contextmanager
def local_engine(home: Home, command: str, *, watch_inbox: bool = False) -> Iterator[Any]:
    """An engine of this process's own, under the home lock, on a recovered home. Raises Busy."""
    from daemon.engine import Engine
    from daemon.reactor import Reactor
    from guard.store.recovery import recover

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # a lease of `scan.has_writer` was broken: no reason to die
    with home_lock(home, command=f"heirloom {command}", since=SYSTEM_CLOCK.utc(), timeout=LOCK_SECONDS):
        keeper = open_writer(home, actor=default_actor("cli"))
        reactor = Reactor()
        engine = Engine(keeper, reactor, watch_inbox=watch_inbox)
        try:
            recover(keeper)
            yield engine
        finally:
            engine.close()
            reactor.close()
            keeper.ledger.close()


# --- registering --------------------------------------------------------------------------------------------------


def _drop_result(keeper: Keeper, number: int) -> dict[str, Any] | None:
    """What became of a drop, or None while it is under way."""
    row = keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (number,))
    if row is None or row["state"] not in FINAL_DROPS:
        return None
    record = orjson.loads(row["verdict"])
    found = drop_result(row["name"], row["state"], row["reason"], row["sha256"], record)
    if not found["mended"]:
        return found
    from guard.store.views import file_status  # TinyDB costs a start more than this is asked for

    # What was mended is what it was before: it may be trained or in the index already.
    return found | {"status": file_status(keeper, row["sha256"])}


def drop_result(name: str, verdict: str, reason: str, sha256: str | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """One drop as `register` tells it; `record` is its identity with the decision. `bad_row_list`: the first 20 of them."""
    decision = record.get("decision", {})
    status = {"admitted": "queued"}.get(verdict, verdict)
    return {
        "name": name, "verdict": verdict, "reason": reason, "why": record.get("why", ""),
        "sha256": sha256 or None, "fingerprint": sha256 or None, "kind": record.get("kind"),
        "examples": record.get("examples", 0), "tokens": record.get("tokens_approx", 0),
        "bad_rows": record.get("bad_rows_count", 0), "bad_row_list": record.get("bad_rows", []),
        "unusable_rows": record.get("unusable_rows_count", 0),
        "duplicates": record.get("duplicates", 0) + decision.get("known_examples", 0), "status": status,
        "mended": list(decision.get("mends", ())),
        "splits": split_counts(record), "left_out": list(record.get("left_out", ())),
        "unread": list(record.get("unread", ())),
        "untouchable": decision.get("untouchable_examples", 0), "evaluation_rows": (record.get("evaluation") or {}).get("rows"),
    }  # fmt: skip


def wait_for_drops(home: Home, numbers: list[int], timeout: float = 24 * 3600.0) -> list[dict[str, Any]]:
    """Watch the ledger until every drop has its verdict; a running daemon does the work. Raises Busy after `timeout`."""
    until = time.monotonic() + timeout
    while True:
        with open_reader(home) as keeper:
            results = [_drop_result(keeper, number) for number in numbers]
        done = [result for result in results if result is not None]
        if len(done) == len(numbers):
            return done
        if time.monotonic() > until:
            raise Busy("the files are still being read", hint="heirloom status; heirloom why FILE")
        time.sleep(POLL_SECONDS)


def call_register(
    home: Home, *, paths: Sequence[str], description: str = "", kind: str | None = None, queue: bool = False,
    untouchable: bool = False,
) -> list[dict[str, Any]]:
    """Register files and wait for their verdicts, with or without a daemon."""
    arguments = {"paths": list(paths), "description": description, "kind": kind, "queue": queue,
                 "untouchable": untouchable}  # fmt: skip
    try:
        answer = ask(home.socket, {"operation": "register", "arguments": dict(arguments), "actor": default_actor("cli")})
    except DaemonNotRunning:
        return _register_here(home, arguments)
    if not answer.get("ok"):
        _raise(answer)
    return wait_for_drops(home, answer["result"]["drops"])


def _register_here(home: Home, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    from daemon.operations import perform

    with local_engine(home, "register") as engine:
        numbers = perform(engine, "register", arguments)["drops"]
        while True:
            results = [_drop_result(engine.keeper, number) for number in numbers]
            if all(result is not None for result in results) and not engine.intake.views_dirty:
                return [result for result in results if result is not None]
            if engine.intake.held and not engine.intake.busy:
                raise EnvironmentFault(engine.intake.problem, hint="nothing was lost: it is tried again at the next start")
            now = engine.keeper.clock.monotonic()
            engine.intake.take_up(now)
            engine.pool.tick(now)
            engine.refresh_views(now)
            engine.reactor.poll(0.05)


# --- a drill -------------------------------------------------------------------------------------------------------


def call_drill(home: Home, into: str | None) -> dict[str, Any]:
    """Hold a restore drill and wait for its end, with or without a daemon; returns what was recorded of it."""
    arguments = {"into": into}
    try:
        answer = ask(home.socket, {"operation": "backup.drill", "arguments": arguments, "actor": default_actor("cli")})
    except DaemonNotRunning:
        return _drill_here(home, arguments)
    if not answer.get("ok"):
        _raise(answer)
    while True:
        with open_reader(home) as keeper:
            found = _drilled(keeper, answer["result"]["after"])
        if found is not None:
            return found
        if not is_listening(home.socket):
            raise Busy("the daemon ended before the drill did", hint="heirloom backup drill holds one without it")
        time.sleep(0.5)


def _drilled(keeper: Keeper, after: int) -> dict[str, Any] | None:
    row = keeper.ledger.row("SELECT payload FROM events WHERE verb = 'backup.drilled' AND seq > ? ORDER BY seq", (after,))
    return orjson.loads(row[0]) if row else None


def _drill_here(home: Home, arguments: Mapping[str, Any]) -> dict[str, Any]:
    from daemon.operations import perform

    with local_engine(home, "backup drill") as engine:
        after = perform(engine, "backup.drill", arguments)["after"]
        while (found := _drilled(engine.keeper, after)) is None:
            engine.drill.tick(engine.keeper.clock.monotonic(), calm=True)
            engine.reactor.poll(1.0 if engine.drill.running else 0.0)
        return found


# --- working one job off ------------------------------------------------------------------------------------------


def run_until_done(home: Home, job: int, on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Follow a job to its end: by watching the daemon, or by working it off here like `run --once`.

    Returns {job, state, reason, output}. Raises CheckFailed when it did not become a version.
    """
    from daemon.control import is_listening

    if is_listening(home.socket):
        found = _follow(home, job, on_progress)
    else:
        found = _work_off(home, job, on_progress)
    if found["state"] != "done":
        raise CheckFailed(f"job {job} is {found['state']}: {found['reason']}", subject=f"job {job}",
                          hint=f"heirloom queue retry {job}")  # fmt: skip
    return found


def _job_result(keeper: Keeper, number: int) -> dict[str, Any]:
    from guard.store.jobs import find_job

    job = find_job(keeper.ledger, number)
    output = keeper.ledger.value("SELECT name FROM versions WHERE job_id = ?", (number,))
    return {"job": number, "state": job.state, "reason": job.reason, "output": output}


def _follow(home: Home, job: int, on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    from daemon.endings import read_progress

    while True:
        with open_reader(home) as keeper:
            found = _job_result(keeper, job)
        on_progress(read_progress(home.staging_of(job)))
        if found["state"] in FINAL_JOBS:
            return found
        time.sleep(0.5)


def _work_off(home: Home, job: int, on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    from daemon.endings import read_progress

    with local_engine(home, "train") as engine:
        while True:
            engine.loop(engine.keeper.clock.monotonic())
            found = _job_result(engine.keeper, job)
            on_progress(read_progress(home.staging_of(job)))
            if found["state"] in FINAL_JOBS and engine.idle:
                return found
            engine.reactor.poll(engine.wait_seconds(engine.keeper.clock.monotonic()))
