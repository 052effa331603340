"""Training through another launcher: torchrun, srun, mpirun, or whatever a site has (setting `training.launch`).

The job's own process starts the command in its place and watches over it; each process that the launcher starts is a
rank: `python -m trainer.launch FOLDER MEETING`. Its number comes from the launcher's environment (RANK, SLURM_PROCID,
OMPI_COMM_WORLD_RANK, PMI_RANK); they meet at MASTER_ADDR where that is set, else at a file in the staging folder, which
then all of them must see. Rank 0 leaves result.json or error.json as a child does. A stop is asked for by a file, since
signals do not reach other machines. Here nothing outlives the job: each process dies with the one that started it.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.durable import write_json
from guard.errors import CheckFailed, DataFault, EnvironmentFault, HeirloomError, UsageError
from guard.parent_death import die_with
from trainer.stopping import StopRequested

__all__ = ["command_of", "run_launched"]

POLL_SECONDS = 0.1
_EXIT_ORPHAN = 70
_STOP = "stop.asked"
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_SIZES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_FAULTS: dict[str, type[HeirloomError]] = {"environment": EnvironmentFault, "data": DataFault}


def command_of(template: str, folder: Path, meeting: Path, processes: int, threads: int) -> list[str]:
    """The template's words, with {command} (what each rank runs; at the end when it is not named), {processes}, {threads}."""
    rank = [sys.executable, "-m", "trainer.launch", str(folder), str(meeting)]
    words = shlex.split(template)
    if "{command}" not in words:
        words.append("{command}")
    place = words.index("{command}")
    numbers = [word.replace("{processes}", str(processes)).replace("{threads}", str(threads)) for word in words]
    return [*numbers[:place], *rank, *numbers[place + 1 :]]


def run_launched(job: Mapping[str, Any], stop: Callable[[], bool]) -> dict[str, Any]:
    """Train a job by its `launch` command; returns what result.json says.

    Raises StopRequested, what rank 0 told in error.json, EnvironmentFault when the command fails otherwise.
    """
    folder = Path(job["staging"])
    (folder / _STOP).unlink(missing_ok=True)
    meeting = folder / f".meeting-{os.getpid()}-{time.monotonic_ns()}"
    command = command_of(job["launch"], folder, meeting, int(job["processes"]), int(job["threads"]))
    parent, asked = os.getpid(), False
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=lambda: die_with(parent, _EXIT_ORPHAN))
    except OSError as error:
        raise EnvironmentFault(f"training.launch cannot be started: {error}", subject="training.launch",
                               hint="heirloom config show --origin") from error  # fmt: skip
    try:
        while process.poll() is None:
            if not asked and stop():
                write_json(folder / _STOP, {"asked": True})
                asked = True
            time.sleep(POLL_SECONDS)
    finally:
        process.kill()
        process.wait()
        meeting.unlink(missing_ok=True)
    return _came_of_it(folder, process.returncode, asked, command)


def _came_of_it(folder: Path, status: int, asked: bool, command: Sequence[str]) -> dict[str, Any]:
    if (folder / "error.json").exists():
        told = json.loads((folder / "error.json").read_text("utf-8"))
        raise _FAULTS.get(told["fault"], CheckFailed)(told["message"], subject=str(folder), hint=told["hint"])
    if (folder / "result.json").exists():
        found: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
        return found
    if asked:
        raise StopRequested("the launched processes stopped as they were asked to")
    raise EnvironmentFault(f"`{shlex.join(command[:3])} ...` (training.launch) ended with status {status} and without a result",
                           subject="training.launch", hint=f"what it said is in {folder / 'child.log'}")  # fmt: skip


# --- one rank ------------------------------------------------------------------------------------------------------


def _number(names: Sequence[str], environment: Mapping[str, str]) -> int:
    for name in names:
        if name in environment:
            return int(environment[name])
    raise UsageError(f"the launcher sets none of {', '.join(names)}", subject="training.launch",
                     hint="use torchrun, srun or mpirun, or training.processes without training.launch")  # fmt: skip


class _Asked:
    """Whether a stop was asked for. Whoever asks gets on: the progress file is touched, for the daemon's vigil to see."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder, self._clock, self._told = folder, clock, -1.0

    def __call__(self) -> bool:
        now = self._clock()
        if now - self._told >= 1.0 and (self._folder / "progress.json").exists():
            os.utime(self._folder / "progress.json")
            self._told = now
        return (self._folder / _STOP).exists()


def main(arguments: Sequence[str]) -> int:
    """Be one rank of the job in a folder; returns the exit code."""
    die_with(os.getppid(), _EXIT_ORPHAN)
    # Launchers end the others when one ends; rank 0 shall have told why before.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder, meeting = Path(arguments[0]), Path(arguments[1])
    from trainer.hardware import set_environment

    set_environment()
    from trainer.child import attempt, read_job
    from trainer.distributed import Crew, Group
    from trainer.train_job import run_train

    rank, size = _number(_RANKS, os.environ), _number(_SIZES, os.environ)
    planned = read_job(folder)
    if size != planned["processes"]:
        raise UsageError(f"the launcher started {size} processes, training.processes says {planned['processes']}",
                         subject="training.processes", hint="write {processes} into training.launch")  # fmt: skip
    where = "env://" if "MASTER_ADDR" in os.environ else f"file://{meeting}"
    crew = Crew(rank, lambda: Group(rank, size, where, float(planned.get("hang_seconds") or 0.0)))
    if rank == 0:
        asked = _Asked(folder, time.monotonic)
        return attempt(folder, asked, lambda job, stop: run_train(job, stop=stop, crew=crew))
    try:
        run_train(planned, crew=crew)
    except (StopRequested, DataFault) as error:
        print(f"process {rank}: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m trainer.launch FOLDER MEETING (started by a launcher)")
    sys.exit(main(sys.argv[1:]))
