"""What a fork costs beside its training: twenty small files dropped at once on a model of ten million weights.

The daemon runs as it is, in a process of its own that also notes when each thing happened. Overhead of a file: the time
from the moment the one before it was live to the moment it is, less training steps, less the gate (parent and child on
every set, two samples), less slices of backups while no child was at work. Beside the wall time stands the processor time of
the same parts, which a busy machine changes little. FORKS_FILES, FORKS_FOLDER, FORKS_BYTES and FORKS_RECIPE change the load.
Not here: how fast a step is (`training.py`).

    python -m benchmarks.forks [--keep NOTES]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure
from guard.clock import SYSTEM_CLOCK
from guard.home import Home
from guard.store.create import create_home

__all__ = ["BENCHMARKS", "forks_against_training"]

FILES = int(os.environ.get("FORKS_FILES", "20"))
BYTES = int(os.environ.get("FORKS_BYTES", "8000"))
_ENVIRONMENT = {**os.environ, "HEIRLOOM_DISK__RESERVE_GB": "0", "OMP_WAIT_POLICY": "PASSIVE",
                "HEIRLOOM_COALESCE__AFTER": "1000000", "HEIRLOOM_INBOX__SETTLE_SECONDS": "1",
                "HEIRLOOM_GATE": "warn"}  # fmt: skip
_RECIPE = """stage: pretrain
model:
  {architecture: qwen3, layers: 6, heads: 6, width: 384, hidden: 1024, block_size: 256, tie_embeddings: true, qk_norm: true}
training: {learning_rate: 0.001, batch_sequences: 12, epochs: 1}
seed: 1337
"""
_WORDS = ("the harbour keeps its boats in winter and lends them out again when ice has gone from the narrow water near "
          "an old mill where two roads meet and nobody asks who came first or why").split()  # fmt: skip
_GATE = ("judging the parent", "judging the child", "letting it speak")


# --- in the process of the daemon ------------------------------------------------------------------------------------


class _Notes:
    """Wraps a few of the daemon's own functions so that each call leaves a line: when, what, how long, about which job."""

    def __init__(self, path: Path) -> None:
        self._out = path.open("a", encoding="utf-8", buffering=1)

    def note(self, what: str, **more: Any) -> None:
        self._out.write(json.dumps({"at": time.monotonic(), "what": what, **more}) + "\n")

    def around(self, owner: Any, name: str, what: str, about: Callable[..., dict[str, Any]] = lambda *_: {}) -> None:
        inner = getattr(owner, name)

        def wrapped(*given: Any, **named: Any) -> Any:
            begun, worked = time.monotonic(), time.process_time()
            try:
                return inner(*given, **named)
            finally:
                self.note(what, seconds=time.monotonic() - begun, cpu=time.process_time() - worked, **about(*given))

        setattr(owner, name, wrapped)


def _phases(staging: Path) -> dict[str, Any]:
    try:
        return json.loads((staging / "phases.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _serve(root: Path, notes: _Notes, once: bool) -> int:
    """The daemon over a home, with notes."""
    from daemon import children, publish, runner, service
    from daemon.engine import Engine
    from daemon.vigil import resident_mb
    from guard.store import birth, views

    home = Home(root)
    notes.around(children.TorchServer, "spawn", "spawn", lambda _s, job, *_r: {"job": job})
    notes.around(children.TorchServer, "_message", "message", lambda _s, told: {"told": told})
    exited = runner.Runner._exited

    def ended(self: Any, job: int, status: int) -> None:
        notes.note("child ended", job=job, status=status, phases=_phases(home.staging_of(job)))
        exited(self, job, status)

    runner.Runner._exited = ended  # type: ignore[method-assign]
    for owner, name in ((runner, "adopt_dataset"), (runner, "publish_child"), (runner, "freeze_training"),
                        (runner, "freeze_preparation"), (publish, "_sync_promised"), (publish, "hash_folder"),
                        (publish, "judge"), (publish, "announce"), (publish, "finish_birth"), (birth, "_describe"),
                        (birth, "_check_sums"), (birth, "_record"), (birth, "refresh"), (birth, "seal_folder"),
                        (birth, "remove_tree"), (Engine, "_back_up"), (Engine, "refresh_views"), (Engine, "sweep"),
                        (runner.Runner, "tick"), (views, "refresh")):  # fmt: skip
        notes.around(owner, name, name)

    born = Engine._born

    def live(engine: Engine, name: str) -> None:
        born(engine, name)
        server = engine.runner.server.process
        notes.note("live", name=name, daemon_mb=resident_mb(os.getpid()), server_mb=resident_mb(server.pid) if server else 0.0)

    Engine._born = live  # type: ignore[method-assign]
    return service.run(home, once=once)


# --- around it ---------------------------------------------------------------------------------------------------------


def _text(number: int) -> str:
    dice = random.Random(number)
    lines = []
    while sum(map(len, lines)) < BYTES:
        lines.append(f"{number}: " + " ".join(dice.choices(_WORDS, k=14)) + ".\n")
    return "".join(lines)


def _home(folder: Path) -> Home:
    """A home with a base of 10.6 million weights, or of the shape in the file that FORKS_RECIPE names."""
    home, recipe = Home(folder / "home"), folder / "ten_million.yaml"
    given = os.environ.get("FORKS_RECIPE")
    recipe.write_text(Path(given).read_text("utf-8") if given else _RECIPE, "utf-8")
    create_home(home, clock=SYSTEM_CLOCK, recipes=Path(__file__).parent.parent / "configs")
    subprocess.run([sys.executable, "-m", "daemon.cli.main", "--home", str(home.root), "init", "--recipe", str(recipe),
                    "--tokenization", "char"], check=True, capture_output=True, env=_ENVIRONMENT)  # fmt: skip
    return home


def measure(folder: Path) -> list[dict[str, Any]]:
    """Drop the files, let the daemon work them off; returns its notes."""
    home = _home(folder)
    (home.inbox / "pretrain").mkdir(exist_ok=True)
    for number in range(FILES):
        (home.inbox / "pretrain" / f"part_{number:03d}.txt").write_text(_text(number), "utf-8")
    notes = folder / "notes.jsonl"
    subprocess.run([sys.executable, "-m", "benchmarks.forks", "--serve", str(home.root), str(notes)], check=True,
                   env=_ENVIRONMENT)  # fmt: skip
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    return [json.loads(line) for line in notes.read_text("utf-8").splitlines()]


def per_file(notes: list[dict[str, Any]]) -> list[dict[str, float]]:
    """For each version in turn: seconds since the one before it was live, and what they went to."""
    rows, since, mine = [], None, []
    for note in notes:
        mine.append(note)
        if note["what"] == "live":
            if since is not None:
                rows.append({"wall": note["at"] - since, **_shares(mine)})
            since, mine = note["at"], []
    return rows


def _shares(notes: list[dict[str, Any]]) -> dict[str, float]:
    spent: dict[str, float] = {}
    at_work = False
    for note in notes:
        if note["what"] in ("spawn", "child ended"):
            at_work = note["what"] == "spawn"
        if note["what"] == "_back_up" and not at_work:
            spent["backup while nothing ran"] = spent.get("backup while nothing ran", 0.0) + note["seconds"]
        for mark, key in (("", "seconds"), (" cpu", "cpu")):
            spent[note["what"] + mark] = spent.get(note["what"] + mark, 0.0) + note.get(key, 0.0)
        for phase, both in (note.get("phases") or {}).items():
            for mark, value in zip(("", " cpu"), both, strict=True):
                spent[f"child: {phase}{mark}"] = spent.get(f"child: {phase}{mark}", 0.0) + value
    return spent


def overhead(row: dict[str, float]) -> float:
    """Of one file: the time that was neither a step, nor the gate, nor a backup."""
    apart = [row.get(f"child: {phase}", 0.0) for phase in ("training", *_GATE)]
    return row["wall"] - sum(apart) - row.get("backup while nothing ran", 0.0)


def overhead_cpu(row: dict[str, float]) -> float:
    """Processor seconds of what `overhead` measures: publication, the daemon's rounds, and the child's own phases."""
    child = sum(seconds for name, seconds in row.items() if name.startswith("child: ") and name.endswith(" cpu")
                and name[len("child: ") : -len(" cpu")] not in ("training", *_GATE))  # fmt: skip
    return child + row.get("message cpu", 0.0) + row.get("tick cpu", 0.0) + row.get("refresh_views cpu", 0.0)


def forks_against_training(_runs: int) -> list[Figure]:
    """Overhead of a fork (median of the files), told as forks per second beside what training and gate alone allow."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("FORKS_FOLDER")) as folder:
        rows = per_file(measure(Path(folder)))
    costs = [overhead(row) for row in rows]
    wall, cost = statistics.median(row["wall"] for row in rows), statistics.median(costs)
    print(f"   {len(rows)} forks: {wall:.2f} s each, of which overhead {cost:.2f} s (median; {max(costs):.2f} s at most)")
    return [Figure("forks of small files, 10.6M weights", "forks/s", 1 / wall, 1 / (wall - cost),
                   "steps, gate and backup alone", 1)]  # fmt: skip


BENCHMARKS = {"forks of small files, against training alone": forks_against_training}


def _print_detail(notes: list[dict[str, Any]]) -> None:
    rows = per_file(notes)
    for name in sorted({key for row in rows for key in row}):
        found = [row.get(name, 0.0) for row in rows]
        if max(found) >= 0.005:
            print(f"{name:<40} median {statistics.median(found):7.3f}  most {max(found):7.3f}")
    costs = [overhead(row) for row in rows]
    print(f"{'OVERHEAD':<40} median {statistics.median(costs):7.3f}  most {max(costs):7.3f}")
    costs = [overhead_cpu(row) for row in rows]
    print(f"{'OVERHEAD, processor':<40} median {statistics.median(costs):7.3f}  most {max(costs):7.3f}")
    lives = [note for note in notes if note["what"] == "live"]
    print("resident MiB, daemon:", [round(note["daemon_mb"]) for note in lives][:: max(1, len(lives) // 12)])
    print("resident MiB, server:", [round(note["server_mb"]) for note in lives][:: max(1, len(lives) // 12)])


def main() -> int:
    """Serve inside, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=2, metavar=("HOME", "NOTES"), help="(used by itself) the daemon with notes")
    parser.add_argument("--keep", default="", help="keep the notes in this file")
    asked = parser.parse_args()
    if asked.serve:
        return _serve(Path(asked.serve[0]), _Notes(Path(asked.serve[1])), once=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("FORKS_FOLDER")) as folder:
        notes = measure(Path(folder))
    if asked.keep:
        Path(asked.keep).write_text("".join(json.dumps(note) + "\n" for note in notes), "utf-8")
    _print_detail(notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
