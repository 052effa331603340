"""A burst: thousands of small files dropped at once into a home whose queue is paused, until the last one is admitted.

Beside it the bare limit: the same bytes read, hashed, copied, synced and renamed one after the other, which is the least
that a careful program does with a file. Meanwhile `heirloom status` is asked again and again, and afterwards the daemon is
started on the full queue. BURST_FILES sets how many (50,000 is what is promised for). Not here: large files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks.measure import Figure
from guard.clock import SYSTEM_CLOCK
from guard.durable import write_bytes
from guard.home import Home
from guard.store.create import create_home
from guard.store.ledger import Ledger

__all__ = ["BENCHMARKS", "burst_against_copying"]

FILES = int(os.environ.get("BURST_FILES", "2000"))
_WORDS = ("the harbour keeps its boats in winter and lends them out again when ice has gone from the narrow water near "
          "an old mill where two roads meet and nobody asks who came first or why").split()  # fmt: skip
_ENVIRONMENT = {**os.environ, "HEIRLOOM_DISK__RESERVE_GB": "0", "HEIRLOOM_BACKUP__AUTO": "0", "OMP_WAIT_POLICY": "PASSIVE"}


def _command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "daemon.cli.main", "--home", str(root), *words]


def _drop(folder: Path, files: int) -> None:
    dice = random.Random(1)
    for number in range(files):
        asked = [f"{number} {row} " + " ".join(dice.choices(_WORDS, k=12)) for row in range(3)]
        pairs = [[("user", text), ("assistant", " ".join(dice.choices(_WORDS, k=25)))] for text in asked]
        rows = [{"messages": [{"role": role, "content": text} for role, text in pair]} for pair in pairs]
        (folder / f"file_{number:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    subprocess.run(["sync", "-f", str(folder)], check=True)


def _copied(source: Path, target: Path) -> float:
    """Seconds for the bare limit over all files of a folder."""
    target.mkdir()
    begun = time.perf_counter()
    for path in sorted(source.glob("*.jsonl")):
        data = path.read_bytes()
        write_bytes(target / hashlib.sha256(data).hexdigest(), data)
    return time.perf_counter() - begun


def _asked(root: Path) -> tuple[float, dict[str, object]]:
    begun = time.perf_counter()
    answer = subprocess.run(_command(root, "status", "--json"), check=True, capture_output=True, env=_ENVIRONMENT)
    return time.perf_counter() - begun, orjson.loads(answer.stdout)


def _admitted(root: Path) -> int:
    with contextlib.closing(Ledger(Home(root).ledger, clock=SYSTEM_CLOCK, actor="benchmark", read_only=True)) as ledger:
        return int(ledger.value("SELECT count(*) FROM files"))


def burst_against_copying(_runs: int) -> list[Figure]:
    """Files admitted per second against the bare limit, and what a person waits for meanwhile. One run: it is long."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BURST_FOLDER")) as folder:
        root = Path(folder) / "home"
        create_home(Home(root), clock=SYSTEM_CLOCK, recipes=Path(__file__).parent.parent / "configs")
        subprocess.run(_command(root, "queue", "pause"), check=True, capture_output=True, env=_ENVIRONMENT)
        _drop(root / "inbox", FILES)
        bare = _copied(root / "inbox", Path(folder) / "bare")
        ours, waits = _until_admitted(root)
        print(f"   {FILES:,} files in {ours:.1f} s; status took {statistics.median(waits):.2f} s (median of {len(waits)}) and "
              f"{max(waits):.2f} s at most; the daemon on the full queue was there after {_restarted(root):.1f} s")  # fmt: skip
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    return [Figure(f"burst of {FILES:,} small files", "files/s", FILES / ours, FILES / bare, "read, hash, copy, sync, rename", 1)]


def _until_admitted(root: Path) -> tuple[float, list[float]]:
    waits: list[float] = []
    begun = time.perf_counter()
    daemon = subprocess.Popen(_command(root, "run"), env=_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while _admitted(root) < FILES:
            assert daemon.poll() is None, "the daemon ended"
            time.sleep(1.0)
            if len(waits) * 10 < time.perf_counter() - begun:
                waits.append(_asked(root)[0])
        return time.perf_counter() - begun, waits
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


def _restarted(root: Path) -> float:
    """Seconds from the start of the daemon until it tells that it runs."""
    begun = time.perf_counter()
    daemon = subprocess.Popen(_command(root, "run"), env=_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not Home(root).socket.exists() or _asked(root)[1]["state"] == "stopped":
            assert daemon.poll() is None and time.perf_counter() - begun < 120, "the daemon did not start"
        return time.perf_counter() - begun
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


BENCHMARKS = {"burst of small files, against copying": burst_against_copying}
