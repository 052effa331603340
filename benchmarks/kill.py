"""Kill a real Heirloom at random moments and compare what it ends in with one that was left alone.

    python -m benchmarks.kill [--kills 50] [--seed 1] [--victim any|daemon|child] [--set training.lanes=2 ...] [--keep DIR]

Two homes are made alike, and the same files (a text, then conversations) are dropped into both. One daemon works in
peace. The other is killed with -9 at moments drawn evenly over the time that the first one took, the daemon or its
training child, and started again, until so many kills were dealt; then it may finish. Exit code 0 when every version has
the same weights, every metrics file each step once, and `verify --all` finds nothing; 1 otherwise. Not a benchmark of
speed. It runs the `heirloom` of the Python that runs it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["main"]

RECIPES = {
    "pretrain/kill.yaml": "stage: pretrain\nmodel: {layers: 2, heads: 2, width: 64, block_size: 64}\n"
                          "training: {learning_rate: 2e-3, batch_sequences: 4}\n",
    "sft/kill.yaml": "stage: sft\ntraining: {learning_rate: 1e-3, batch_sequences: 4, epochs: 1}\n",
}  # fmt: skip
SETTINGS = {
    "disk.reserve_gb": "0", "inbox.settle_seconds": "0.3", "validation.salt": "fixed", "gate": "warn", "training.threads": "1",
    "training.snapshot_seconds": "0.5", "training.max_attempts": "1000000",
}  # fmt: skip
STARTED_SECONDS = 30.0
"""So long a killed daemon's child may take to be gone."""


class Life:
    """A home and the command that works in it."""

    def __init__(self, home: Path, settings: dict[str, str]) -> None:
        self.home = home
        names = {f"HEIRLOOM_{key.upper().replace('.', '__')}": value for key, value in settings.items()}
        self.environment = {**os.environ, **names, "OMP_WAIT_POLICY": "PASSIVE"}

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "daemon.cli.main", "--home", str(self.home), *arguments]

    def heirloom(self, *arguments: str) -> str:
        """Run a command to its end; returns what it printed. Raises CalledProcessError."""
        return subprocess.run(self._command(*arguments), env=self.environment, check=True, capture_output=True, text=True).stdout

    def start(self) -> subprocess.Popen[bytes]:
        """Work until nothing is left."""
        with (self.home.parent / f"{self.home.name}.log").open("ab") as log:
            return subprocess.Popen(self._command("run", "--once"), env=self.environment, stdout=log, stderr=log)

    def make(self, dice: random.Random) -> None:
        """A base, the recipes, and two files in the inbox; equal dice, equal files."""
        recipe = self.home.parent / "base.yaml"
        recipe.write_text(RECIPES["pretrain/kill.yaml"])
        self.heirloom("init", str(self.home), "--recipe", str(recipe), "--tokenization", "char")
        for name, text in RECIPES.items():
            (self.home / "configs" / name).write_text(text)
        words = ["heirloom", "keeps", "one", "model", "learning", "for", "weeks", "and", "never", "loses", "any", "of", "it"]
        lines = (" ".join(dice.choice(words) for _ in range(12)) + f" {number}\n" for number in range(150))
        (self.home / "inbox" / "pretrain").mkdir(exist_ok=True)
        (self.home / "inbox" / "pretrain" / "text.txt").write_text("".join(lines))
        rows = ({"messages": [{"role": "user", "content": f"what is {row} plus {left}?"},
                              {"role": "assistant", "content": f"it is {row + left}"}]}
                for row, left in ((row, dice.randrange(99)) for row in range(80)))  # fmt: skip
        (self.home / "inbox" / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def child(self) -> int:
        """The pid of the training child; 0 while there is none."""
        for told in self.home.glob("models/.staging/job-*/progress.json"):
            try:
                pid = int(json.loads(told.read_text())["pid"])
                if Path(f"/proc/{pid}").exists():
                    return pid
            except (OSError, ValueError, KeyError):
                continue  # replaced at this very moment
        return 0

    def weights(self) -> dict[str, str]:
        """SHA-256 of every version's weights."""
        return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(self.home.glob("models/v*/*model.safetensors"))}  # fmt: skip

    def faults(self) -> list[str]:
        """What is wrong with the home, in words."""
        found = []
        for path in self.home.glob("models/v*/metrics.jsonl"):
            steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
            if steps != list(range(1, len(steps) + 1)):
                found.append(f"{path.parent.name}: steps are missing or doubled in metrics.jsonl")
        if not json.loads(self.heirloom("--json", "verify", "--all"))["ok"]:
            found.append("verify --all finds damage")
        return found


def _kill_once(life: Life, dice: random.Random, seconds: float, victim: str) -> str:
    """Start the daemon, kill it or its child after a random time; returns who was killed, or "" when it was through."""
    daemon = life.start()
    try:
        daemon.wait(dice.uniform(0.0, seconds))
        return ""
    except subprocess.TimeoutExpired:
        chosen = dice.choice(("daemon", "child")) if victim == "any" else victim
    child = life.child()
    if chosen == "child" and child:
        os.kill(child, signal.SIGKILL)
    if chosen == "daemon" or not child:
        daemon.kill()
        daemon.wait()
        _wait_for(child)
        return "daemon"
    # The daemon lives on and starts the child again; it is ended politely, so that the next round starts from there.
    daemon.terminate()
    daemon.wait()
    return "child"


def _wait_for(pid: int) -> None:
    """A child dies with its daemon, by the kernel's hand: it has a moment for it."""
    until = time.monotonic() + STARTED_SECONDS
    while pid and Path(f"/proc/{pid}").exists():
        if time.monotonic() > until:
            raise SystemExit(f"the child {pid} outlived its daemon")
        time.sleep(0.01)


def main() -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--victim", choices=("any", "daemon", "child"), default="any")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of both homes")
    parser.add_argument("--keep", default="", help="make the homes here and leave them")
    asked = parser.parse_args()
    root = Path(asked.keep or tempfile.mkdtemp(prefix="heirloom-kill-")).resolve()
    root.mkdir(parents=True, exist_ok=True)
    settings = SETTINGS | dict(item.split("=", 1) for item in asked.set)
    try:
        return _compare(root, settings, asked)
    finally:
        if not asked.keep:
            subprocess.run(["chmod", "-R", "u+w", str(root)], check=False)
            shutil.rmtree(root, ignore_errors=True)


def _compare(root: Path, settings: dict[str, str], asked: argparse.Namespace) -> int:
    lives = [Life(root / name, settings) for name in ("peace", "war")]
    lives[0].make(random.Random(asked.seed))
    # The base is copied with its home: both begin as the same home, salt and number and all.
    shutil.copytree(lives[0].home, lives[1].home, symlinks=True)
    begun = time.monotonic()
    if lives[0].start().wait() != 0:
        raise SystemExit(f"the undisturbed home did not finish; see {lives[0].home}.log")
    seconds, dice, killed = time.monotonic() - begun, random.Random(asked.seed), {"daemon": 0, "child": 0}
    while sum(killed.values()) < asked.kills:
        victim = _kill_once(lives[1], dice, seconds, asked.victim)
        if not victim:
            break
        killed[victim] += 1
        print(f"\r{sum(killed.values())} kills", end="", flush=True)
    while lives[1].start().wait() != 0 and lives[1].weights().keys() != lives[0].weights().keys():
        continue
    same, faults = lives[0].weights() == lives[1].weights(), lives[1].faults()
    labels = [json.loads(path.read_text())["exactness"] for path in sorted(lives[1].home.glob("models/v*/version.json"))]
    print(f"\r{sum(killed.values())} kills ({killed}), {seconds:.1f} s undisturbed, versions {labels}: "
          f"{'the same weights' if same else 'OTHER WEIGHTS'}; {'; '.join(faults) or 'no fault found'}")
    return 0 if same and not faults else 1


if __name__ == "__main__":
    sys.exit(main())
