"""Jobs to be killed: one small home, a job per recipe, and what an undisturbed run of it ends in.

Another objective joins every test of kills by one line in RECIPES. Not a test itself.
"""

from __future__ import annotations

import functools
import json
import os
import random
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trainer_help
from trainer_help import shared_server

from guard.durable import sha256_file
from guard.failpoints import Crash
from guard.weights import ADAPTER_BASE, FULL
from trainer.dataset import Dataset

Job = dict[str, Any]
NOT_BITS = ("seconds", "tokens_per_second")

RECIPES: dict[str, Callable[[Path, Path], Job]] = {
    "pretrain": lambda home, staging: _job(home, staging, "pretrain"),
    "sft": lambda home, staging: _job(home, staging, "sft"),
    "lora": lambda home, staging: _adapter_job(home, staging),
    "lanes": lambda home, staging: _job(home, staging, "sft", lanes=2),
    "sealed halves": lambda home, staging: _job(home, staging, "pretrain", lanes=2, dtype="bfloat16",
                                                training={"seal_optimizer": True}),
    "processes": lambda home, staging: _job(home, staging, "sft", lanes=2, processes=2),
}
"""Writes a job into a staging folder: (home, staging) -> job."""
IN_PROCESS = [name for name in RECIPES if name != "processes"]
"""Those that fork nothing, and may be run inside a test."""


def compiled_job(home: Path, staging: Path) -> Job:
    """Not among the recipes: what every one of them would compile anew takes minutes."""
    return _job(home, staging, "pretrain", steps=12, compile=True, block_size=trainer_help.SHAPE["block_size"])


@functools.cache
def _dataset(home: Path, stage: str) -> Dataset:
    return trainer_help.make_dataset(home / f"data-{stage}", stage, amount=900 if stage == "pretrain" else 40)


def make_home(home: Path) -> Path:
    """A base, and a dataset of each stage."""
    from trainer.train_job import run_base

    run_base(trainer_help.base_job(home / "base"))
    for stage in ("pretrain", "sft"):
        made = _dataset(home, stage)
        assert len(made.train.examples) and len(made.train.fingerprints)  # mapped now, not by the first test that asks
    return home


def _job(home: Path, staging: Path, stage: str, **changes: Any) -> Job:
    changes = {"steps": 9, "snapshot": {"every_steps": 3, "every_seconds": 0}, "evaluation": [], **changes}
    return trainer_help.train_job(staging, home / "base" / "out", _dataset(home, stage), **changes)


def _adapter_job(home: Path, staging: Path) -> Job:
    job = _job(home, staging, "sft")
    base = home / "base" / "out"
    job["recipe"]["lora"] = {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    job["inputs"] = [{"role": ADAPTER_BASE, "name": "base", "path": str(base), "sha256": sha256_file(base / FULL)}]
    return trainer_help.write_job(staging, job)


def run_here(job: Job) -> bool:
    """Train in this process; False when an armed fail point ended it."""
    from trainer import judged, train_job

    spoken, judged.SAMPLES = judged.SAMPLES, 0  # nothing that is said has any part in the weights
    try:
        train_job.run_train(job)
    except Crash:
        return False
    finally:
        judged.SAMPLES = spoken
    return True


def outcome(staging: Path) -> tuple[dict[str, str], str, list[dict[str, Any]]]:
    """What must be the same whatever happened: the weights (and the sealed optimiser),
    what was fed, and metrics.jsonl without its clocks."""
    result = json.loads((staging / "result.json").read_text("utf-8"))
    lines = (staging / "out" / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key not in NOT_BITS} for line in lines]
    weights = {name: digest for name, digest in result["files"].items() if name.endswith(".safetensors")}
    return weights, result["consumed_sha256"], rows


def kill_at_random(staging: Path, dice: random.Random, seconds: float, kills: int) -> int:
    """Run a job and kill it with -9 at random moments until it is through; how often it was really killed.

    The moments are even over `seconds`, about what the job takes from its last snapshot. After so many kills it is left
    alone.
    """
    deaths = 0
    while True:
        _number, pid = shared_server().spawn(staging)
        if deaths < kills:
            handle = os.pidfd_open(pid)
            until = time.monotonic() + dice.uniform(0.0, seconds)
            while (left := until - time.monotonic()) > 0 and not select.select([handle], [], [], left)[0]:
                continue
            os.close(handle)
            if left <= 0 and not (staging / "result.json").exists():
                os.kill(pid, signal.SIGKILL)
        status = shared_server().ended()
        if status == 0:
            return deaths
        assert status == -signal.SIGKILL, (staging / "child.log").read_text("utf-8")
        deaths += 1
