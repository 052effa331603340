"""Tiny jobs for the trainer's tests: a dataset, a base and a job.json in a temporary folder, all in a second.

Not a test itself. Everything is `char` tokenized, two layers of width 32, one thread.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.choose import select_new
from trainer.dataset import Dataset
from trainer.hardware import set_environment
from trainer.prepare import SourceFile, prepare_dataset
from trainer.selection import training_steps
from trainer.tokenizer import load_tokenizer

set_environment()

SHAPE = {
    "architecture": "qwen3", "layers": 2, "heads": 4, "kv_heads": 2, "width": 32, "hidden": 64, "block_size": 48,
    "vocab_size": 320, "rope_theta": 10000.0, "norm_eps": 1e-6, "tie_embeddings": True, "qk_norm": True,
}  # fmt: skip
TRAINING = {
    "learning_rate": 3e-3, "min_learning_rate_ratio": 0.1, "warmup_fraction": 0.1, "decay_fraction": 0.2,
    "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0, "batch_sequences": 4, "epochs": 1,
}  # fmt: skip
PYTHON = sys.executable
ROOT = Path(__file__).resolve().parent.parent


def conversations(count: int) -> str:
    """JSONL of short conversations with a context."""
    dice = random.Random(7)
    rows = []
    for number in range(count):
        left, right = dice.randrange(50), dice.randrange(50)
        rows.append(json.dumps({"messages": [{"role": "user", "content": f"{left}+{right}?"},
                                             {"role": "assistant", "content": f"= {left + right} #{number}"}]}))  # fmt: skip
    return "\n".join(rows) + "\n"


def prose(words: int) -> str:
    """Text that a tiny model can learn something from."""
    dice = random.Random(3)
    return " ".join(dice.choice(["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs."]) for _ in range(words))


def make_dataset(folder: Path, stage: str = "pretrain", amount: int = 0) -> Dataset:
    """A prepared dataset of `amount` words or conversations."""
    folder.mkdir(parents=True)
    text = prose(amount or 900) if stage == "pretrain" else conversations(amount or 40)
    source = folder / ("text.txt" if stage == "pretrain" else "chat.jsonl")
    source.write_text(text, "utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return prepare_dataset([SourceFile(digest, source.name, source)], load_tokenizer("char"), folder / "shards",
                           stage=stage, shard_size_tokens=100_000, salt="salt", validation_fraction=0.1)  # fmt: skip


def write_job(staging: Path, job: dict[str, Any]) -> dict[str, Any]:
    """job.json of a staging folder, with what every job has."""
    staging.mkdir(parents=True, exist_ok=True)
    whole = {"schema": 1, "job": 1, "staging": str(staging), "tokenization": "char", "seed": 1337, "threads": 1,
             "dtype": "float32", "micro_sequences": 4, **job}  # fmt: skip
    (staging / "job.json").write_text(json.dumps(whole), "utf-8")
    return whole


def base_job(staging: Path, shape: dict[str, Any] = SHAPE) -> dict[str, Any]:
    """A job that makes a base."""
    return write_job(staging, {"task": "base", "recipe": {"name": "tiny", "stage": "pretrain", "model": shape}})


def train_job(staging: Path, base: Path, dataset: Dataset, **changes: Any) -> dict[str, Any]:
    """A job that trains one epoch of a dataset; keyword arguments replace parts of it."""
    staging.mkdir(parents=True, exist_ok=True)
    chosen = select_new(dataset, stage=dataset.stage, known_fps=None, block_size=SHAPE["block_size"])
    training = {**TRAINING, **changes.pop("training", {})}
    batch = training["batch_sequences"]
    steps = changes.pop("steps", None) or training_steps(chosen.selection, batch, epochs=1)
    job = {
        "task": "train", "stage": dataset.stage, "objective": dataset.stage, "base": {"name": "base", "path": str(base)},
        "recipe": {"name": "tiny", "stage": dataset.stage, "training": training,
                   "use_loss_mask": dataset.stage == "sft"},
        "steps": steps, "selection_sha256": chosen.selection.save(staging),
        "consumed_sha256": chosen.selection.consumed_hash(1337, steps, batch),
        "dataset": {"id": dataset.id, "path": str(dataset.folder)},
        "evaluation": [{"name": "new", "role": "new_held_out", "dataset": str(dataset.folder),
                        "split": "val" if dataset.val.count else "train",
                        "stage": dataset.stage, "max_tokens": 2000}],
        "snapshot": {"every_steps": 0, "every_seconds": 0},
    }  # fmt: skip
    return write_job(staging, {**job, **changes})


class ServerClient:
    """The other end of a torch server, as the daemon holds it."""

    def __init__(self, light: bool = False) -> None:
        """`light`: without importing torch first, for what only concerns processes."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        number = str(theirs.fileno())
        whole = [PYTHON, "-m", "trainer.server", "--fd", number, "--parent", str(os.getpid())]
        code = f"import socket; from trainer.server import Server; Server(socket.socket(fileno={number})).serve()"
        command = [PYTHON, "-c", code] if light else whole
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT)
        theirs.close()
        self.channel = ours
        self._unread = b""
        self._jobs = 0
        assert self.next(60)["ready"]

    def send(self, message: object) -> None:
        self.channel.sendall(json.dumps(message).encode() + b"\n")

    def next(self, seconds: float = 30.0) -> dict[str, Any]:
        """The next message; fails the test when none comes."""
        self.channel.settimeout(seconds)
        while b"\n" not in self._unread:
            data = self.channel.recv(65536)
            assert data, "the server ended"
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)

    def spawn(self, folder: Path, **options: Any) -> tuple[int, int]:
        """Start a job; returns its number and pid."""
        self._jobs += 1
        self.send({"spawn": str(folder), "id": self._jobs, **options})
        started = self.next()
        assert started["started"] == self._jobs, started
        return self._jobs, started["pid"]

    def ended(self) -> int:
        """Exit code (or minus the signal) of the next child that ends."""
        return int(self.next(60)["status"])

    def run(self, folder: Path) -> int:
        """Do a job to its end."""
        self.spawn(folder)
        return self.ended()

    def close(self) -> None:
        self.channel.close()
        self.process.wait(60)


@functools.cache
def shared_server() -> ServerClient:
    """One server for all tests of a run: importing torch once is most of its cost."""
    client = ServerClient()
    atexit.register(client.close)
    return client


def wait_until(true: Callable[[], bool], process_ended: Callable[[], bool] = lambda: False) -> bool:
    """Look again and again, without sleeping long, until it is true; False when the process ended before."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if true():
            return True
        if process_ended():
            return False
        select.select([], [], [], 0.001)
    raise AssertionError("waited a minute in vain")


def steps_logged(staging: Path) -> int:
    """Whole lines in metrics.jsonl."""
    log = staging / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0
