"""Speed may not cost quality: the loss of a run in a bf16 working copy, and of a compiled one, beside the plain fp32 run.

The same model, seed, data (this project's own documents and source as bytes) and rate in each; told are the mean losses of
ten steps at a time. Not here: how fast each is (`peers.py`).

    python -m benchmarks.curves [--steps 300] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import words
from trainer.batches import Batch, StepBatch
from trainer.model import new_model
from trainer.model_config import ModelConfig
from trainer.objectives import pretrain
from trainer.schedule import learning_rate
from trainer.stepper import Stepper

__all__ = ["curve", "main"]

ROWS, BLOCK, VOCABULARY, MEAN_OF = 8, 128, 65, 10
_TRAINING = {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0, "learning_rate": 1e-3, "warmup_fraction": 0.05,
             "decay_fraction": 0.2, "min_learning_rate_ratio": 0.1}  # fmt: skip
_RUNS = {"fp32": ("float32", 0), "fp32 compiled": ("float32", ROWS * BLOCK), "bf16 copy": ("bfloat16", 0),
         "bf16 copy compiled": ("bfloat16", ROWS * BLOCK)}  # fmt: skip


def curve(data: Tensor, dtype: str, compile_tokens: int, steps: int) -> list[float]:
    """The loss of every step."""
    model = new_model(ModelConfig(layers=4, heads=4, width=128, hidden=352, block_size=BLOCK, vocab_size=VOCABULARY), 1)
    stepper = Stepper(model, pretrain, _TRAINING, dtype, compile_tokens=compile_tokens)
    size, losses = ROWS * BLOCK, []
    for step in range(steps):
        starts = np.random.default_rng(step).integers(0, len(data) - BLOCK - 1, ROWS)
        rows = torch.stack([data[start : start + BLOCK + 1] for start in starts])
        micro = Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), torch.ones(ROWS, BLOCK))
        whole = StepBatch(np.arange(ROWS), [micro], float(size), size, size, 0)
        losses.append(stepper.step(whole, learning_rate(step, steps, _TRAINING), step)[0])
    return losses


def main(arguments: Sequence[str] | None = None) -> int:
    """Train each and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", default="")
    asked = parser.parse_args(arguments)
    data = torch.from_numpy(words({"vocabulary": VOCABULARY}).astype(np.int64))
    curves = {name: curve(data, dtype, tokens, asked.steps) for name, (dtype, tokens) in _RUNS.items()}
    print(f"{'step':>6}" + "".join(f"{name:>20}" for name in curves))
    for end in sorted({MEAN_OF, 50, *range(100, asked.steps + 1, 100), asked.steps}):
        means = [statistics.fmean(losses[max(0, end - MEAN_OF) : end]) for losses in curves.values()]
        print(f"{end:>6}" + "".join(f"{mean:>20.4f}" for mean in means))
    plain = np.array(curves["fp32"])
    for name, losses in curves.items():
        print(f"{name}: furthest from fp32 at any step {float(np.abs(np.array(losses) - plain).max()):.4f} nat")
    if asked.json:
        Path(asked.json).write_text(json.dumps({"schema": 1, "losses": curves}) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
