"""The vigil over a child: stopped, hanging and greedy children are told from ones that work or wait for the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from daemon.vigil import STALL_SECONDS, Vigil, cpu_seconds, descendants, is_stopped, machine_memory_mb, resident_mb, unshared_mb

SLEEPER = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that does nothing, and has done all that it does at its start: an interpreter at work is not idle."""
    with subprocess.Popen(SLEEPER, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        while psutil.Process(process.pid).status() != psutil.STATUS_SLEEPING:
            time.sleep(0.005)
        yield process.pid
        process.kill()


def watch(vigil: Vigil, seconds: float, begin: float = 0.0, step: float = 5.0) -> tuple[str, str]:
    """Look every `step` seconds; the first thing said, or nothing."""
    now = begin
    while now <= begin + seconds:
        found = vigil.look(now)
        if found[0]:
            return found
        now += step
    return "", ""


def test_a_child_that_does_nothing_at_all_is_noticed(sleeper: int, tmp_path: Path) -> None:
    vigil = Vigil(sleeper, tmp_path / "progress.json", memory_mb=1e6, hang_seconds=0)
    assert watch(vigil, STALL_SECONDS - 10) == ("", "")
    fault, reason = watch(vigil, 40, begin=STALL_SECONDS)
    assert fault == "hung" and "did nothing" in reason


def test_a_stopped_helper_is_noticed_though_the_one_that_waits_for_it_wakes_up_now_and_then(tmp_path: Path) -> None:
    """As ranks do that wait for a gradient: a few milliseconds a second, more than nothing, and no work."""
    waiting = f"import subprocess\np = subprocess.Popen({SLEEPER!r})\nwhile p.poll() is None: sum(range(1000))"
    with subprocess.Popen([sys.executable, "-c", waiting], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"\n"
            (helper,) = descendants(process.pid)
            vigil = Vigil(process.pid, tmp_path / "progress.json", memory_mb=1e6, hang_seconds=0)
            assert watch_at_work(vigil, process.pid) == ("", "")
            os.kill(helper, signal.SIGSTOP)
            while not is_stopped(helper):
                time.sleep(0.005)
            fault, reason = watch_at_work(vigil, process.pid, begin=10 * STALL_SECONDS)
            assert fault == "hung" and "stopped" in reason
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def watch_at_work(vigil: Vigil, pid: int, begin: float = 0.0) -> tuple[str, str]:
    """As `watch`, of a process that uses some of a processor between any two looks."""
    now = begin
    while now <= begin + 2 * STALL_SECONDS:
        found = vigil.look(now)
        if found[0]:
            return found
        before = cpu_seconds(pid)
        while cpu_seconds(pid) < before + 0.02:
            time.sleep(0.005)
        now += 5.0
    return "", ""


def test_the_work_and_the_memory_of_processes_that_it_started_are_its_own(tmp_path: Path) -> None:
    """A launcher waits and its ranks work; helpers of one that waits for them likewise."""
    worker = ("import time\nheld = bytearray(80 << 20)\nheld[::4096] = b'x' * len(held[::4096])\n"
              "end = time.monotonic() + 60\nwhile time.monotonic() < end: sum(range(1000))")  # fmt: skip
    waiting = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    with subprocess.Popen([sys.executable, "-c", waiting], start_new_session=True) as process:
        try:
            vigil = Vigil(process.pid, tmp_path / "progress.json", memory_mb=1e6, hang_seconds=0)
            until = time.monotonic() + 30
            while not descendants(process.pid) or sum(map(unshared_mb, descendants(process.pid))) < 80:
                assert time.monotonic() < until
                time.sleep(0.02)
            now = 0.0
            while now < 2 * STALL_SECONDS:
                before = sum(map(cpu_seconds, descendants(process.pid)))
                while sum(map(cpu_seconds, descendants(process.pid))) < before + 0.02:
                    time.sleep(0.005)
                assert vigil.look(now) == ("", "")
                now += 5.0
            vigil.memory_mb = resident_mb(process.pid) + 40
            assert vigil.look(now)[0] == "environment"
        finally:
            os.killpg(process.pid, 9)


def test_progress_is_a_sign_of_life(sleeper: int, tmp_path: Path) -> None:
    progress = tmp_path / "progress.json"
    vigil = Vigil(sleeper, progress, memory_mb=1e6, hang_seconds=200)
    for turn in range(10):
        progress.write_text(str(turn))
        os.utime(progress, ns=(turn, turn + 1))
        assert watch(vigil, STALL_SECONDS / 2, begin=turn * STALL_SECONDS) == ("", "")


def test_a_child_that_is_busy_without_getting_on_hangs_when_its_time_is_over(tmp_path: Path) -> None:
    vigil = Vigil(os.getpid(), tmp_path / "progress.json", memory_mb=1e6, hang_seconds=30)
    now, found = 0.0, ("", "")
    while not found[0] and now < 100:
        burnt = cpu_seconds(os.getpid()) + 0.03
        while cpu_seconds(os.getpid()) < burnt:
            sum(range(10_000))
        found = vigil.look(now)
        now += 5
    assert found[0] == "hung" and "no progress for 30 s" in found[1]


def test_time_in_which_nobody_looked_does_not_count(sleeper: int, tmp_path: Path) -> None:
    vigil = Vigil(sleeper, tmp_path / "progress.json", memory_mb=1e6, hang_seconds=60)
    for now in (0.0, 10_000.0, 20_000.0):
        assert vigil.look(now) == ("", "")


def test_too_much_memory_is_the_machines_matter(sleeper: int, tmp_path: Path) -> None:
    until = time.monotonic() + 60
    found = ("", "")
    while not found[0] and time.monotonic() < until:  # the process may not have grown yet
        found = Vigil(sleeper, tmp_path / "progress.json", memory_mb=1.0, hang_seconds=0).look(0.0)
    assert found[0] == "environment" and "MiB of memory; 1 MiB are allowed" in found[1]


def test_processor_time_of_a_process_that_is_gone_is_none() -> None:
    assert cpu_seconds(2**22 + 1) == 0.0 and cpu_seconds(os.getpid()) > 0.0 and machine_memory_mb() > 100
