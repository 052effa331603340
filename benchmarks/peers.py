"""Training beside the lean trainers: nanoGPT, transformers, litgpt, TRL; each in its best setting, one run, in turn.

    PEERS_PYTHON=/path/to/venv/bin/python NANOGPT=/path/to/nanoGPT python -m benchmarks.peers [--shape 1] [--rounds 5]
                 [--steps 2] [--settings eager,compiled] [--dtypes float32,bfloat16] [--who nanogpt,transformers,litgpt,trl]

The peers live in a venv of their own (`pip install torch==2.13.0 transformers litgpt trl`), since they want other
versions of the same libraries; nanoGPT is a checkout. A worker per trainer and setting steps when it is its turn, so that
whatever else the machine does falls on all of them. Told: tokens per second of processor time and of the clock
(medians), share of the machine's matrix peak, peak memory, warm-up, losses. Not here: a step (`peer_worker.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SHAPES", "main", "matrix_peak"]

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {
    1: {"layers": 6, "heads": 6, "width": 384, "hidden": 1024, "block": 256, "batch": 12, "vocabulary": 65, "qk_norm": True},
    2: {"layers": 4, "heads": 4, "width": 256, "hidden": 704, "block": 256, "batch": 8, "vocabulary": 50257, "qk_norm": True},
}
PEERS = ("nanogpt", "transformers", "litgpt", "trl")


@dataclass
class Worker:
    """One trainer in one setting."""

    who: str
    setting: str
    process: subprocess.Popen[str]
    ready: Mapping[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)

    def hear(self) -> dict[str, Any] | None:
        """The next line of figures; None when the worker ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def turn(self, steps: int) -> None:
        """Have it make so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        found = self.hear()
        if found is None:
            raise RuntimeError(f"{self.who} {self.setting} ended in mid-run")
        self.turns.append(found)

    def median(self, over: str) -> float:
        """Tokens per second of `cpu_seconds` or `wall_seconds`."""
        return statistics.median(turn["tokens"] / turn[over] for turn in self.turns)

    def times(self, other: Worker, over: str) -> float:
        """How many times as fast as `other`: the median over rounds, in each of which both had the same machine."""
        pairs = zip(self.turns, other.turns, strict=True)
        return statistics.median(theirs[over] / mine[over] for mine, theirs in pairs)


def words(shape: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """This project's own documents and source as token ids of the shape's vocabulary."""
    kinds = ("docs/*.md", "*.md", "guard/*.py", "trainer/*.py", "daemon/*.py")
    paths = sorted(path for kind in kinds for path in ROOT.glob(kind))
    text = "\n".join(path.read_text("utf-8") for path in paths)
    if shape["vocabulary"] > 256:
        from trainer.tokenizer import load_tokenizer

        return np.array(load_tokenizer("gpt2").encode(text), dtype=np.int32)
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    common = np.argsort(-np.bincount(data, minlength=256), kind="stable")[: shape["vocabulary"] - 1]
    table = np.full(256, shape["vocabulary"] - 1, dtype=np.int32)
    table[common] = np.arange(len(common))
    return table[data]


def matrix_peak(threads: int) -> float:
    """Floating point operations per second of processor time in a large fp32 matrix product: the bare limit.

    With as many threads as the trainers have: two threads of one core share its arithmetic.
    """
    import torch

    torch.set_num_threads(threads)
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    left @ right
    speeds = []
    for _ in range(5):
        begun = time.process_time()
        left @ right
        speeds.append(2 * 2048**3 / (time.process_time() - begun))
    return statistics.median(speeds)


def operations_per_token(shape: Mapping[str, Any]) -> float:
    """Forward and backward of the matrix products: 6 per weight, and attention over half of the block on average."""
    layer = 4 * shape["width"] ** 2 + 3 * shape["width"] * shape["hidden"]
    return 6.0 * (shape["layers"] * layer + shape["vocabulary"] * shape["width"]) \
        + 6.0 * shape["layers"] * shape["width"] * shape["block"]  # fmt: skip


def _start(who: str, setting: str, dtype: str, shape: Mapping[str, Any], tokens: Path, threads: int) -> Worker:
    ours = who == "heirloom"
    python = sys.executable if ours else os.environ["PEERS_PYTHON"]
    asked = {"who": who, "shape": shape, "compile": setting == "compiled", "dtype": dtype, "threads": threads,
             "tokens": str(tokens), "nanogpt": os.environ.get("NANOGPT", ""), "scratch": str(tokens.parent / who)}  # fmt: skip
    environment = {**os.environ, **({"PYTHONPATH": str(ROOT)} if ours else {"PYTHONPATH": ""})}
    with (tokens.parent / f"{who}-{setting}-{dtype}.log").open("w") as log:
        process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "peer_worker.py"), json.dumps(asked)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)  # fmt: skip
    return Worker(who, f"{setting} {dtype}", process)


def _workers(asked: argparse.Namespace, shape: Mapping[str, Any], folder: Path) -> list[Worker]:
    """Those that came up, one after the other, so that no warm-up disturbs another."""
    tokens = folder / "tokens.npy"
    np.save(tokens, words(shape))
    found = []
    for who in ("heirloom", *asked.who.split(",")):
        for setting in asked.settings.split(","):
            for dtype in asked.dtypes.split(","):
                worker = _start(who, setting, dtype, shape, tokens, asked.threads)
                ready = worker.hear()
                if ready is None:
                    log = folder / f"{who}-{setting}-{dtype}.log"
                    print(f"{who} {setting} {dtype} could not be measured: {log.read_text('utf-8')[-300:]}", file=sys.stderr)
                    continue
                worker.ready = ready
                found.append(worker)
    return found


def _table(workers: Sequence[Worker], shape: Mapping[str, Any], peak: float) -> list[dict[str, Any]]:
    best = max((worker for worker in workers if worker.who == "heirloom"), key=lambda worker: worker.median("cpu_seconds"))
    rows = []
    for worker in workers:
        speed = worker.median("cpu_seconds")
        losses = [loss for turn in worker.turns for loss in turn["losses"]]
        rows.append({
            "who": worker.who, "setting": worker.setting, "tokens_per_cpu_second": speed,
            "tokens_per_second": worker.median("wall_seconds"), "ours_best_over_this": best.times(worker, "cpu_seconds"),
            "ours_best_over_this_by_the_clock": best.times(worker, "wall_seconds"),
            "share_of_peak": speed * operations_per_token(shape) / peak,
            "peak_mib": max(turn["peak_bytes"] for turn in worker.turns) / 2**20,
            "warm_up_seconds": worker.ready["warm_up_seconds"], "losses": losses,
        })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, choices=SHAPES, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--settings", default="eager,compiled")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--who", default=",".join(PEERS))
    parser.add_argument("--no-qk-norm", action="store_true", help="our Llama shape, whose layers do as much as litgpt's")
    parser.add_argument("--json", default="")
    asked = parser.parse_args(arguments)
    if "PEERS_PYTHON" not in os.environ or ("nanogpt" in asked.who and not os.environ.get("NANOGPT")):
        parser.error("PEERS_PYTHON must name the Python of a venv with the peers, and NANOGPT a checkout of nanoGPT")
    shape = {**SHAPES[asked.shape], **({"qk_norm": False} if asked.no_qk_norm else {})}
    with tempfile.TemporaryDirectory() as folder:
        workers = _workers(asked, shape, Path(folder))
        for _ in range(asked.rounds):
            for worker in workers:
                worker.turn(asked.steps)
        rows = _table(workers, shape, matrix_peak(asked.threads))
        for worker in workers:
            assert worker.process.stdin is not None
            worker.process.stdin.close()
            worker.process.wait(timeout=30)
    print(f"{'trainer':<14}{'setting':<20}{'tok/cpu-s':>10}{'tok/s':>9}{'ours/this':>10}{'by clock':>10}{'of peak':>9}{'MiB':>7}"
          f"{'warm-up':>9}{'loss':>8}")  # fmt: skip
    for row in rows:
        print(f"{row['who']:<14}{row['setting']:<20}{row['tokens_per_cpu_second']:>10,.0f}{row['tokens_per_second']:>9,.0f}"
              f"{row['ours_best_over_this']:>9.2f}x{row['ours_best_over_this_by_the_clock']:>9.2f}x{row['share_of_peak']:>8.0%}{row['peak_mib']:>7,.0f}"
              f"{row['warm_up_seconds']:>8.0f}s{row['losses'][-1] or float('nan'):>8.3f}")  # fmt: skip
    if asked.json:
        Path(asked.json).write_text(json.dumps({"schema": 1, "shape": shape, "rows": rows}, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
