"""`heirloom doctor --probe`: let a child measure this machine, and keep what it found in `configs/machine.yaml`.

The home lock is held meanwhile: beside a training job one measures what the job left over. The child has two minutes; what
it found until then counts. Not here: what is measured and how (`trainer/probe.py`), and what plans make of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from daemon.children import child_environment
from daemon.client import LOCK_SECONDS
from guard.checks.verdict import Check
from guard.clock import SYSTEM_CLOCK, Clock
from guard.durable import make_dir, write_text
from guard.errors import EnvironmentFault, HeirloomError
from guard.home import Home
from guard.lock import home_lock
from trainer.machine import MACHINE_FILE, machine_text, machine_values, read_machine, stranger
from trainer.probe import BUSY_SHARE, machine_of

__all__ = ["PROBE_SECONDS", "judge_machine_file", "measure", "probe"]

PROBE_SECONDS = 110.0


def measure(seconds: float = PROBE_SECONDS) -> list[dict[str, Any]]:
    """What the child tells within so many seconds, and one more finding when that was not all. It outlives this in nothing."""
    # What was compiled once takes seconds from then on: the time before a first step is that of an empty cache.
    with tempfile.TemporaryDirectory(prefix="heirloom-probe-") as cache:
        output, found = _child_output(seconds, {**child_environment(), "XDG_CACHE_HOME": cache})
    for line in output.splitlines():
        with contextlib.suppress(ValueError):  # half a line of a child that was ended, or words of a library
            item = json.loads(line)
            if isinstance(item, dict) and "finding" in item:
                found.append(item)
    return found


def _child_output(seconds: float, environment: dict[str, str]) -> tuple[str, list[dict[str, Any]]]:
    """What it printed, and the finding that its time was over, if it was."""
    with subprocess.Popen([sys.executable, "-m", "trainer.probe"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, env=environment, text=True, start_new_session=True) as child:
        try:
            return child.communicate(timeout=seconds)[0], []
        except subprocess.TimeoutExpired:
            _end_all(child)
            over = {"finding": "time", "failed": f"ended after {seconds:.0f} s; the rest stays unknown"}
            return child.communicate()[0], [over]
        except BaseException:  # Ctrl-C reaches only us: it has a session of its own
            _end_all(child)
            raise


def _end_all(child: subprocess.Popen[str]) -> None:
    """End the child and the compilers it has at work, which hold its output open and the processors busy."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def probe(
    home: Home, *, dry_run: bool, measuring: Callable[[], list[dict[str, Any]]] = measure, clock: Clock = SYSTEM_CLOCK
) -> dict[str, Any]:
    """Measure and, unless `dry_run`, write the file; returns path, written, machine {..}, findings[], notes[].

    Raises Busy while a daemon or another command works in the home, EnvironmentFault when nothing could be measured.
    """
    path = home.configs / MACHINE_FILE
    make_dir(home.state)
    with home_lock(home, command="heirloom doctor --probe", since=clock.utc(), timeout=LOCK_SECONDS):
        findings = measuring()
        if all("failed" in item for item in findings):
            raise EnvironmentFault("nothing could be measured here", subject="probe",
                                   hint="python -m trainer.probe tells more; plans go by the built-in table")  # fmt: skip
        machine = machine_of(findings, clock.utc())
        if not dry_run:
            write_text(path, machine_text(machine))
    busy = max((float(item["share"]) for item in findings if item["finding"] == "busy" and "share" in item), default=0.0)
    notes = [f"other work took {busy:.0%} of a core: threads and compiling are left to the table; measure when nothing else runs"]
    notes = notes if busy > BUSY_SHARE else []
    notes += [f"{item['finding']}: {item['failed']}" for item in findings if "failed" in item]
    return {"path": str(path), "written": not dry_run, "machine": machine_values(machine), "findings": findings, "notes": notes}


def judge_machine_file(home: Home) -> Check:
    """Is there a file of measured facts, is it sound, and is it of this machine?"""
    name = "Machine file"
    try:
        machine = read_machine(home.configs / MACHINE_FILE)
    except HeirloomError as error:
        return Check(name, False, error.message, error.hint)
    if machine is None:
        return Check(name, None, "no machine was measured: plans go by the built-in table (heirloom doctor --probe measures)")
    if strange := stranger(machine):
        return Check(name, True, f"configs/{MACHINE_FILE} is passed over: {strange}; heirloom doctor --probe", warning=True)
    return Check(name, True, f"measured {machine.measured}: plans go by it")
