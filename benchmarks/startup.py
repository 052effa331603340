"""How long a person waits for `heirloom status`, beside the bare start of a Python."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Figure, compare
from guard.clock import SYSTEM_CLOCK
from guard.home import Home
from guard.store.create import create_home

__all__ = ["status_against_python"]


def status_against_python(runs: int) -> Figure:
    """Answers per second of `heirloom status` in an empty home, against `python -c pass`."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        create_home(Home(home), clock=SYSTEM_CLOCK, recipes=Path(__file__).parent.parent / "configs")
        command = [str(Path(sys.executable).with_name("heirloom")), "--home", str(home), "status"]
        environment = {**os.environ, "HEIRLOOM_DISK__RESERVE_GB": "0"}

        def status() -> None:
            subprocess.run(command, check=True, capture_output=True, env=environment)

        def python() -> None:
            subprocess.run([sys.executable, "-c", "pass"], check=True)

        return compare("status", "answers/s", 1, status, "python -c pass", python, max(runs, 9))
