"""A vigil over one child: is it still at work, and does it keep within its memory?

A child that was stopped, deadlocked or leaks does not end by itself (CASES C07). What is looked at: processor time used,
the file it publishes its progress in, and its memory; what its helpers and launched processes use counts as its own. Time
counts only as far as we looked: a suspended machine or a stopped daemon must not make a healthy child look idle. Not here:
ending it, and what that costs its job.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ["STALL_SECONDS", "Vigil", "cpu_seconds", "is_stopped", "machine_memory_mb", "own_mb", "resident_mb"]

STALL_SECONDS = 120.0
"""Neither processor time nor progress for so long: it was stopped, or waits for what never comes."""
LOOK_SECONDS = 1.0
# The most that one look may count: more passed only because nobody looked.
_MOST_SECONDS = 5.0
# Less of a processor than this is none: a process that only waits still wakes up now and then.
_IDLE_SHARE = 0.002


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MiB; 0 when it has gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def own_mb(pid: int) -> float:
    """Resident memory of a process in MiB less what it mapped from files, which the kernel takes back when it needs it."""
    try:
        _size, resident, mapped = Path(f"/proc/{pid}/statm").read_text("ascii").split()[:3]
    except (OSError, ValueError):
        return 0.0
    return (int(resident) - int(mapped)) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used, all its threads together; 0 when it has gone."""
    try:
        fields = _stat(pid)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def is_stopped(pid: int) -> bool:
    """Whether a signal stopped the process (SIGSTOP): it does nothing until somebody lets it go on."""
    try:
        return _stat(pid)[0] == "T"
    except (OSError, IndexError):
        return False


def _stat(pid: int) -> list[str]:
    # The name in brackets may hold anything, spaces and brackets too: what counts begins after the last one.
    return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and theirs: helpers, and what a launcher launched on this machine."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def unshared_mb(pid: int) -> float:
    """Memory in MiB that the end of this process would give back: what forks share is not counted twice."""
    try:
        return float(psutil.Process(pid).memory_full_info().uss) / (1 << 20)
    except psutil.Error:
        return 0.0


def machine_memory_mb() -> float:
    """Memory of the machine in MiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@dataclass
class Vigil:
    """What was seen of one child so far."""

    pid: int
    progress: Path
    """The file it replaces whenever it gets on."""
    memory_mb: float
    hang_seconds: float
    """Without progress for so long it hangs, however busy it is; 0: progress is not asked for."""
    _mark: tuple[int, int] = (0, 0)
    _cpu: float = 0.0
    _looked_at: float | None = field(default=None)
    _idle: float = 0.0
    _silent: float = 0.0
    _stopped: float = 0.0
    """For so long at least one of its processes has been stopped; those that wait for it are never quite idle."""
    _family: list[int] = field(default_factory=list)

    def look(self, now: float) -> tuple[str, str]:
        """(fault, reason) when it must be ended, ("", "") while all is well; `now` is monotonic, in seconds.

        The fault is `environment` for memory, which is the machine's matter, and `hung` otherwise.
        """
        if self._looked_at is not None and now - self._looked_at < LOOK_SECONDS:
            return "", ""
        passed = 0.0 if self._looked_at is None else min(now - self._looked_at, _MOST_SECONDS)
        self._looked_at = now
        self._count(passed)
        memory = resident_mb(self.pid) + sum(unshared_mb(child) for child in self._family)
        if memory > self.memory_mb:
            return "environment", f"it took {memory:,.0f} MiB of memory; {self.memory_mb:,.0f} MiB are allowed"
        if self._idle >= STALL_SECONDS:
            return "hung", f"it did nothing for {self._idle:.0f} s (stopped, or waiting for what never comes)"
        if self._stopped >= STALL_SECONDS:
            return "hung", f"one of its processes has been stopped for {self._stopped:.0f} s, and the others wait for it"
        if self.hang_seconds and self._silent >= self.hang_seconds:
            return "hung", f"it made no progress for {self._silent:.0f} s"
        return "", ""

    def _count(self, passed: float) -> None:
        self._family = descendants(self.pid)
        mark, cpu = self._progress_mark(), sum(cpu_seconds(pid) for pid in (self.pid, *self._family))
        moved = mark != self._mark
        worked = cpu - self._cpu > _IDLE_SHARE * passed
        self._mark, self._cpu = mark, cpu
        self._silent = 0.0 if moved else self._silent + passed
        self._idle = 0.0 if moved or worked else self._idle + passed
        stopped = not moved and any(map(is_stopped, (self.pid, *self._family)))
        self._stopped = self._stopped + passed if stopped else 0.0

    def _progress_mark(self) -> tuple[int, int]:
        try:
            found = self.progress.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino
