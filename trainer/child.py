"""One job in one process: read job.json, do the task, leave result.json or error.json, answer with an exit code.

    0  done          75  stopped because asked (SIGTERM, SIGINT): what can be kept is, run it again to go on
    1  a fault, told in error.json               76  another process works in this staging folder

error.json says whose fault it was: `environment` (held and retried), `data`, or `bug` (traceback on stderr).
Started by the torch server after a fork, or by hand: `python -m trainer.child JOB_FOLDER`.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from guard.durable import write_json
from guard.errors import CheckFailed, DataFault, HeirloomError, UsageError, is_environment
from guard.failpoints import arm_from_environment
from trainer.stopping import StopRequested

__all__ = ["EXIT_FAULT", "EXIT_LOCKED", "EXIT_OK", "EXIT_STOPPED", "attempt", "fault_of", "main", "preload_tasks",
           "read_job"]  # fmt: skip

EXIT_OK, EXIT_FAULT, EXIT_STOPPED, EXIT_LOCKED = 0, 1, 75, 76
LOCK_WAIT_SECONDS = 5.0
_LOCK_POLL_SECONDS = 0.05
Body = Callable[[Mapping[str, Any], Callable[[], bool]], object]
"""Does a job: (what job.json says, whether it is to stop)."""

# Task -> module and function, imported when asked for: reading a job must not cost an import of torch.
_TASKS = {
    "prepare": ("trainer.prepare_job", "run_prepare"),
    "dataset": ("trainer.prepare_job", "run_dataset"),
    "train": ("trainer.train_job", "run_train"),
    "base": ("trainer.train_job", "run_base"),
}


def main(job_folder: Path | str, lock_wait_seconds: float = LOCK_WAIT_SECONDS) -> int:
    """Do the job of a staging folder; returns the exit code and never raises for a fault of the job."""
    folder = Path(job_folder)
    arm_from_environment()
    lock = _lock(folder, lock_wait_seconds)
    if lock is None:
        print(f"another process works in {folder}", file=sys.stderr)
        return EXIT_LOCKED
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        return attempt(folder, stop.is_set)
    finally:
        os.close(lock)


def fault_of(error: BaseException) -> str:
    """`environment`, `data` or `bug`: decides whether the job is held and retried and whom to blame."""
    if is_environment(error) or _is_out_of_memory(error) or _is_out_of_threads(error):
        return "environment"
    return "data" if isinstance(error, DataFault) else "bug"


def _is_out_of_memory(error: BaseException) -> bool:
    """torch tells a failed allocation on the CPU as a RuntimeError with these words, on a GPU as one of this name."""
    told = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, RuntimeError) and told


def _is_out_of_threads(error: BaseException) -> bool:
    """Python's own words; only as its own kind of error, for a row of data may hold any words."""
    return type(error) is RuntimeError and "can't start new thread" in str(error)


def preload_tasks() -> None:
    """Import what the tasks need: done once by the server, so that its children need not."""
    for module, _function in _TASKS.values():
        importlib.import_module(module)
    from trainer.objectives import OBJECTIVES, find_objective

    for name in OBJECTIVES:
        find_objective(name)
    # torch imports this by itself with the first optimizer: 800 modules, two seconds, in every child anew.
    importlib.import_module("torch._dynamo")


def attempt(folder: Path, stop: Callable[[], bool], body: Body | None = None) -> int:
    """Do the job with `body`, or with the body of its task; returns the exit code, every fault told in error.json."""
    for name in ("result.json", "error.json"):  # of an earlier attempt: must not be taken for this one's
        (folder / name).unlink(missing_ok=True)
    try:
        job = read_job(folder)
        (body or _task(job))(job, stop)
    except Exception as error:  # noqa: BLE001 (every fault is told in error.json; the process ends here)
        if isinstance(error, StopRequested):
            print(f"{error}", file=sys.stderr)
            return EXIT_STOPPED
        return _tell_fault(folder, error)
    return EXIT_OK


def read_job(folder: Path) -> dict[str, Any]:
    """The job of a staging folder. Raises UsageError for another release's, CheckFailed for a folder that was moved."""
    job = orjson.loads((folder / "job.json").read_bytes())
    if not isinstance(job, dict) or job.get("schema") != 1:
        raise UsageError(f"{folder / 'job.json'} is no job this version understands", subject=str(folder),
                         hint="it was written by another version of Heirloom")  # fmt: skip
    if Path(job["staging"]).resolve() != folder.resolve():
        raise CheckFailed(f"the job in {folder} says its staging folder is {job['staging']}", subject=str(folder),
                          hint="staging folders are not moved by hand")  # fmt: skip
    return job


def _task(job: Mapping[str, Any]) -> Body:
    if job.get("task") not in _TASKS:
        raise UsageError(f"unknown task {job.get('task')!r}", subject="task", hint=f"known: {', '.join(_TASKS)}")
    module, function = _TASKS[job["task"]]
    body = getattr(importlib.import_module(module), function)
    if "stop" in inspect.signature(body).parameters:
        return lambda given, stop: body(given, stop=stop)
    return lambda given, _stop: body(given)


def _tell_fault(folder: Path, error: Exception) -> int:
    traceback.print_exception(error)
    told = {
        "fault": fault_of(error),
        "error": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "hint": error.hint if isinstance(error, HeirloomError) else "the whole story is in child.log beside this file",
    }
    try:
        write_json(folder / "error.json", told)
    except OSError as failed:
        print(f"error.json could not be written either: {failed}", file=sys.stderr)
    return EXIT_FAULT


def _lock(folder: Path, wait_seconds: float) -> int | None:
    """Hold `child.lock`; None when somebody else still does after `wait_seconds`. Raises OSError without the folder.

    A predecessor that was just killed may take a moment to be gone: hence the wait.
    """
    descriptor = os.open(folder / "child.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    until = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            if time.monotonic() >= until:
                os.close(descriptor)
                return None
            time.sleep(_LOCK_POLL_SECONDS)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m trainer.child JOB_FOLDER")
    from trainer.hardware import set_environment

    set_environment()
    sys.exit(main(sys.argv[1]))
