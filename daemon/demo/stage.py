"""The stage of the demo: a scratch home, the `heirloom` command, a daemon process, and checks that say what they saw.

It uses nothing of Heirloom but its command line and its files, as a stranger would.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["DemoFailed", "Stage"]


class DemoFailed(Exception):
    """A step of the demo did not hold."""


def _environment() -> dict[str, str]:
    settings = {
        "HEIRLOOM_DISK__RESERVE_GB": "1", "HEIRLOOM_INBOX__SETTLE_SECONDS": "1",
        "HEIRLOOM_TRAINING__SNAPSHOT_SECONDS": "4", "HEIRLOOM_GOAL__TOKENS": "1e6", "HEIRLOOM_NICE": "0",
        # Enough to see learning on two cores within the demo's time; what the cap leaves over stays trainable.
        "HEIRLOOM_TRAINING__MAX_STEPS": "48", "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    return {**os.environ, **settings}


@dataclass
class Stage:
    """One run of the demo."""

    home: Path
    command: str = field(default_factory=lambda: str(Path(sys.executable).with_name("heirloom")))
    daemon: subprocess.Popen[bytes] | None = None
    steps: int = 0
    begun: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def step(self, title: str) -> None:
        self.steps += 1
        self.say(f"\n[{time.monotonic() - self.begun:5.0f} s] {self.steps}. {title}")

    def check(self, what: str, held: bool, seen: object = "") -> None:
        """Say that something held; raise DemoFailed when it did not."""
        if not held:
            raise DemoFailed(f"{what}: {seen}")
        self.say(f"          ok  {what}" + (f"  ({seen})" if seen != "" else ""))

    def run(self, *arguments: str, code: int | None = 0, stdin: str | None = None) -> str:
        """Run `heirloom --home HOME ...`; the exit code must be `code` (None: any). Returns what it printed."""
        done = subprocess.run([self.command, "--home", str(self.home), *arguments], input=stdin, text=True,
                              capture_output=True, env=_environment(), timeout=300, check=False)  # fmt: skip
        if code is not None and done.returncode != code:
            raise DemoFailed(f"heirloom {' '.join(arguments)}: exit {done.returncode}, expected {code}\n"
                             f"{done.stdout}{done.stderr}")  # fmt: skip
        return done.stdout + done.stderr

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Run a command with `--json` and return its object."""
        text = self.run("--json", *arguments, code=code)
        return json.loads(text)

    def status(self) -> dict[str, Any]:
        return self.json("status")

    def wait(self, what: str, happened: Callable[[], object], seconds: float = 240.0) -> Any:
        """Wait until something is true; raise DemoFailed after `seconds`, or at once when the daemon has died."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = happened()
            if found:
                return found
            if self.daemon is not None and self.daemon.poll() is not None:
                raise DemoFailed(f"the daemon ended with {self.daemon.returncode} while waiting for {what}")
            time.sleep(0.3)
        raise DemoFailed(f"waited {seconds:.0f} s in vain for {what}; status: {json.dumps(self.status(), indent=1)}")

    def start_daemon(self) -> None:
        log = (self.home / ".heirloom" / "demo-daemon.log").open("ab")
        self.daemon = subprocess.Popen([self.command, "--home", str(self.home), "run"], stdout=log, stderr=log,
                                       env=_environment())  # fmt: skip
        log.close()
        self.wait("the daemon", lambda: self.status()["state"] != "stopped", 60)

    def stop_daemon(self) -> int:
        """Ask the daemon to end politely; returns its exit code."""
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGTERM)
        code = self.daemon.wait(timeout=120)
        self.daemon = None
        return code

    def end(self) -> None:
        """End the daemon whatever happened."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            try:
                self.daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()

    def drop(self, source: Path | str, name: str) -> None:
        """Put a file (or a text) into the inbox."""
        target = self.home / "inbox" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path):
            shutil.copyfile(source, target)
        else:
            target.write_text(source, "utf-8")

    def versions(self) -> dict[int, dict[str, Any]]:
        return {item["id"]: item for item in self.json("lineage")["versions"]}
