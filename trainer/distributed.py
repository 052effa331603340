"""Several processes that train one model: their group (gloo), the helpers that are forked, and how a rank says goodbye.

Rank 0 is the job's own process: it alone judges, logs, takes snapshots and writes the version; the others compute their
lanes and nothing else. All hold the same weights, since all add the same gradients in the same order and take the same
step. Helpers are forked before torch has done anything, and end with rank 0 (PR_SET_PDEATHSIG). When one of them is
gone the job ends with a fault of the machine, and goes on later from its newest snapshot, with as many processes as
there are then. Not here: which lane is whose (`dealing.py`), the sum (`lanes.py`), other launchers (`launch.py`).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from guard.errors import Damage, DataFault, EnvironmentFault
from guard.parent_death import die_with
from trainer.lanes import Alone, Team
from trainer.stopping import StopRequested

__all__ = ["Crew", "Group", "forked_crew"]

_EXIT_HELPER = 70
GOODBYE_SECONDS = 10.0
"""So long a helper may take to end when all is done."""
WITHOUT_LIMIT_SECONDS = 7 * 86400.0


class Group:
    """One rank of a gloo group; a `trainer.lanes.Team`."""

    def __init__(self, rank: int, size: int, meeting: str, hang_seconds: float) -> None:
        """Meet the others at `meeting`: `env://`, or `file:///...` of a file that nobody has used before.

        Nobody waits longer than `hang_seconds` for another (0: a week). Raises EnvironmentFault.
        """
        self.rank, self.size = rank, size
        with _told(rank):
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size,
                                    timeout=datetime.timedelta(seconds=hang_seconds or WITHOUT_LIMIT_SECONDS))  # fmt: skip

    def gather(self, values: Tensor) -> Tensor:
        """The `values` [n] of every process: [size, n]. Raises EnvironmentFault when one is gone or hangs."""
        rows = torch.empty(self.size, values.numel(), dtype=values.dtype)
        with _told(self.rank):
            dist.all_gather(list(rows), values.detach().contiguous())
        return rows

    def agree(self, stop: bool, step: int, norm: float) -> bool:
        """What rank 0 wants. Raises Damage when the processes have come apart: then none of them may be believed."""
        rows = self.gather(torch.tensor([float(stop), float(step), norm], dtype=torch.float64))
        if not torch.equal(rows[:, 1:], rows[:1, 1:].expand_as(rows[:, 1:])):
            raise Damage(f"after step {step} the processes of this job differ: {rows[:, 1:].tolist()} (step, gradient norm)",
                         hint="they must run on processors of the same kind; training.processes: 1 does without")  # fmt: skip
        return bool(rows[0, 0])

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def _told(rank: int) -> Iterator[None]:
    """gloo tells a lost or hanging neighbour as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise EnvironmentFault(f"one of the processes that train this job together is gone or hangs (process {rank} lost it)",
                               hint="it goes on from its newest snapshot; what they said is in child.log") from error


@dataclass(frozen=True)
class Crew:
    """One process among those of a job, before and after it has met the others."""

    rank: int = 0
    meet: Callable[[], Team] = Alone
    """Joins the group; called once, by all of them."""


@contextlib.contextmanager
def forked_crew(processes: int, staging: Path, hang_seconds: float) -> Iterator[Crew]:
    """Fork the helpers of a job, in this very call; the `with` block is what all of them do.

    To be entered before torch has done any work in this process: its threads do not survive a fork. A helper never
    leaves the block, its process ends there; rank 0 goes on behind it. Raises OSError, EnvironmentFault.
    """
    if processes == 1:
        yield Crew()
        return
    # All of them are on this machine: no name has to be looked up, and no network need be there.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = staging / f".meeting-{os.getpid()}-{time.monotonic_ns()}"
    helpers, rank, parent = [], 0, os.getpid()
    for number in range(1, processes):
        pid = os.fork()
        if pid == 0:
            rank = number
            break
        helpers.append(pid)
    group: list[Group] = []

    def meet() -> Team:
        group.append(Group(rank, processes, f"file://{meeting}", hang_seconds))
        return group[0]

    if rank:
        status = _EXIT_HELPER
        try:
            die_with(parent, _EXIT_HELPER)
            # A stop is asked of the job, and so of rank 0, which tells the others at the end of a step.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            yield Crew(rank, meet)
            status = 0
        except (StopRequested, DataFault):
            status = 0  # all of them end so, and rank 0 tells it
        except BaseException:  # noqa: BLE001 (told in child.log; rank 0 finds out that this process is gone)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    try:
        yield Crew(0, meet)
        _see_off(helpers, time.monotonic() + GOODBYE_SECONDS)
    finally:
        for item in group:
            item.close()
        _end(helpers)
        meeting.unlink(missing_ok=True)


def _see_off(helpers: list[int], until: float) -> None:
    """Wait for helpers that are through."""
    while helpers and time.monotonic() < until:
        for pid in list(helpers):
            if os.waitpid(pid, os.WNOHANG)[0]:
                helpers.remove(pid)
        if helpers:
            time.sleep(0.005)


def _end(helpers: list[int]) -> None:
    for pid in helpers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
