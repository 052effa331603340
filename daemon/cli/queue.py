"""`heirloom queue`: what waits, what runs and why something does not, and the few things a person may do about it.

Reads the ledger, so it answers beside a running daemon and without one. Changes go through operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import table, visible
from daemon.cli.status import progress_line
from guard.errors import CheckFailed, DaemonNotRunning
from guard.home import Home

__all__ = ["Teller", "add_to", "finish", "follow_line", "job_lines", "read_job", "watch_job"]

_GOOD_ENDS = ("done",)
_BAD_ENDS = ("failed", "quarantined", "cancelled", "parked")
_SHOWN_DONE = 10


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    group = typer.Typer(add_completion=False, rich_markup_mode=None)
    group.callback(invoke_without_command=True, epilog=EPILOGUE)(show)
    group.command("list", epilog=EPILOGUE)(list_jobs)
    group.command("pause", epilog=EPILOGUE)(pause)
    group.command("resume", epilog=EPILOGUE)(resume)
    group.command("cancel", epilog=EPILOGUE)(cancel)
    group.command("retry", epilog=EPILOGUE)(retry)
    group.command("move", epilog=EPILOGUE)(move)
    app.add_typer(group, name="queue", epilog=EPILOGUE)


def show(
    context: typer.Context,
    follow: Annotated[int | None, typer.Option("--follow", metavar="ID", help="Follow one job to its end.")] = None,
) -> None:
    """The jobs: queued, running, held, and why."""
    if context.invoked_subcommand is not None:
        return
    if follow is None:
        list_jobs(context)
    else:
        _follow(context.obj, follow)


def list_jobs(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Finished ones too, however many.")] = False,
) -> None:
    """List the jobs in the order they run."""
    from guard.store.jobs import jobs_told
    from guard.store.keeper import open_reader

    caller: Caller = context.obj
    with open_reader(caller.home()) as keeper:
        records = jobs_told(keeper.ledger)
    caller.console.emit({"jobs": records})
    caller.console.say(*job_lines(records, everything=everything))


def read_job(home: Home, number: int) -> dict[str, Any]:
    """One job's record as it is now. Raises NotFound."""
    from guard.store.jobs import jobs_told
    from guard.store.keeper import open_reader

    with open_reader(home) as keeper:
        return jobs_told(keeper.ledger, number)[0]


def job_lines(records: list[dict[str, Any]], *, everything: bool) -> list[str]:
    """The jobs in columns; of the finished ones only the newest unless `everything`."""
    finished = [item for item in records if item["state"] in ("done", "cancelled")]
    hidden = {item["id"] for item in finished[:-_SHOWN_DONE]} if not everything else set()
    shown = [item for item in records if item["id"] not in hidden]
    if not shown:
        return ["The queue is empty."]
    rows = [("ID", "STATE", "KIND", "OUTPUT", "FILES", "WHY")]
    rows += [(str(item["id"]), item["state"], item["kind"], item["output"] or _to_come(item), _files(item["files"]),
              item["reason"]) for item in shown]  # fmt: skip
    return [*(line.rstrip() for line in table(rows)), *([f"({len(hidden)} more finished: --all)"] if hidden else [])]


def _to_come(item: Mapping[str, Any]) -> str:
    """What will come of a job that has no number for it yet."""
    if item["state"] == "cancelled":
        return "-"
    return "next index" if item["kind"] == "index" else f"next of {item['line']}"


def _files(names: list[str | None]) -> str:
    if not names:
        return "-"
    return str(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def follow_line(number: int, state: str, progress: Mapping[str, Any]) -> str:
    """One line on where a job stands; `progress` is what its child last told, empty when nothing."""
    line = progress_line(progress)
    return f"job {number} {visible(state)}" + (f": {line}" if progress and line != state else "")


class Teller:
    """Tells a job's progress as often as a person can read it: when it changed, and at most every two seconds."""

    def __init__(self, number: int, tell: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._number, self._tell, self._now = number, tell, now
        self._told, self._phase, self._at = "", "", float("-inf")

    def __call__(self, progress: Mapping[str, Any]) -> None:
        """Take in a new progress record; empty ones say nothing."""
        if not progress:
            return
        phase = str(progress.get("phase") or "training")
        text = follow_line(self._number, phase, progress)
        if text != self._told and (phase != self._phase or self._now() - self._at >= 2.0):
            self._told, self._phase, self._at = text, phase, self._now()
            self._tell(text)


def _follow(caller: Caller, number: int) -> None:
    """Wait until the job has ended. Raises DaemonNotRunning when nobody works on it."""
    from daemon.endings import read_progress
    from daemon.report import daemon_running

    home = caller.home()

    def look() -> tuple[dict[str, Any], Mapping[str, Any], bool]:
        return read_job(home, number), read_progress(home.staging_of(number)), daemon_running(home)

    watch_job(look, caller.console.progress, time.sleep)
    finish(caller, number)


Look = Callable[[], tuple[dict[str, Any], Mapping[str, Any], bool]]


def watch_job(look: Look, tell: Callable[[str], None], sleep: Callable[[float], None]) -> None:
    """Tell every change until `look` shows the job at its end.

    `look` gives the job's record, its progress, and whether a daemon runs. Raises DaemonNotRunning.
    """
    told = ""
    while True:
        job, progress, running = look()
        if job["state"] in (*_GOOD_ENDS, *_BAD_ENDS):
            return
        text = follow_line(job["id"], job["state"], progress)
        if job["reason"]:
            text += f" ({visible(job['reason'])})"
        if text != told:
            tell(text)
            told = text
        if not running:
            raise DaemonNotRunning(f"job {job['id']} is {job['state']} and no daemon works on it",
                                   hint="heirloom run, or heirloom run --once")  # fmt: skip
        sleep(0.5)


def finish(caller: Caller, number: int) -> None:
    """Say how a job ended; exit code 3 for any end but a good one."""
    job = read_job(caller.home(), number)
    caller.console.emit(job)
    good = job["state"] in _GOOD_ENDS
    text = f"{'✅' if good else '❌'} Job {number} {job['state']}"
    text += f": {visible(job['output'])}" if good and job["output"] else ""
    lines = [text + (f": {visible(job['reason'])}" if job["reason"] else "")]
    if good:
        caller.console.note(*lines)
        return
    caller.console.say(*lines)
    raise typer.Exit(CheckFailed.exit_code)


def pause(context: typer.Context, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Start nothing more; what trains now takes a snapshot and waits."""
    _change(context.obj, "queue.pause", {"dry_run": dry_run})
    context.obj.console.note("The queue would be paused." if dry_run else "Paused. heirloom queue resume goes on.")


def resume(context: typer.Context, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Go on after a pause."""
    _change(context.obj, "queue.resume", {"dry_run": dry_run})
    context.obj.console.note("The queue would go on." if dry_run else "Going on.")


_Number = Annotated[int, typer.Argument(metavar="ID", help="The job's number.")]


def cancel(context: typer.Context, job: _Number, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Take a job out of the queue; its data stays and may be planned again."""
    _change(context.obj, "queue.cancel", {"job": job, "dry_run": dry_run})
    context.obj.console.note(f"Job {job} {'would be' if dry_run else 'is'} cancelled.")


def retry(context: typer.Context, job: _Number, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Queue a failed, parked or cancelled job again."""
    found = _change(context.obj, "queue.retry", {"job": job, "dry_run": dry_run})
    context.obj.console.note(f"Job {job} {retry_words(found, job, dry_run=dry_run)}.")


def retry_words(found: Mapping[str, Any], job: int, *, dry_run: bool) -> str:
    """What a second try is: the rest of the work, all of it, or another job."""
    if found["state"] == "training":
        return "would go on where it stopped" if dry_run else "goes on where it stopped"
    if found["job"] != job:
        return "would be tried again as a new job" if dry_run else f"is tried again as job {found['job']}"
    return "would be queued again" if dry_run else "is queued again"


def move(
    context: typer.Context,
    job: _Number,
    to: Annotated[int, typer.Option("--to", min=1, metavar="N", help="Its new place among the queued ones, from 1.")],
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Give a queued job another place."""
    found = _change(context.obj, "queue.move", {"job": job, "to": to, "dry_run": dry_run})
    context.obj.console.note(f"Job {job} {'would be' if dry_run else 'is'} number {found['place']} in the queue.")


def _change(caller: Caller, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    found = caller.call(operation, arguments)
    caller.console.emit({**found, "dry_run": True} if arguments["dry_run"] else found)
    return found
