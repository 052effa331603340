"""What snapshots take from a training: the same run with snapshots and without, in turn, in one process.

In processor time of all threads, since on a machine with other work the wall clock tells of that work; and, apart from it, how
long the steps themselves stood still, by the wall clock.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure

__all__ = ["BENCHMARKS", "seconds_lost"]

STEPS, EVERY = 40, 4
DEFAULT_SECONDS = 300.0


def _trainer(steps: int) -> Callable[[Path, int], float]:
    """A run of a model of 10M parameters in a folder, with a snapshot every so many steps; gives processor seconds."""
    import torch

    from trainer.batches import Batch, StepBatch
    from trainer.loop import LoopPlan, train
    from trainer.model import new_model
    from trainer.model_config import ModelConfig
    from trainer.objectives import find_objective

    config = ModelConfig(layers=6, heads=6, width=384, hidden=1024, block_size=256, vocab_size=320)
    ids = torch.randint(0, 320, (1, 257), generator=torch.Generator().manual_seed(1))
    ones = torch.ones(1, 256)
    batch = StepBatch(torch.arange(1).numpy(), [Batch(ids[:, :-1], ids[:, 1:], ones)], float(ones.sum()), 256, 256, 0)
    training = {"learning_rate": 1e-3, "min_learning_rate_ratio": 0.1, "warmup_fraction": 0.1, "decay_fraction": 0.2,
                "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0}  # fmt: skip

    class OneBatch:
        @staticmethod
        def step(_step: int) -> StepBatch:
            return batch

    def run(folder: Path, every: int) -> float:
        plan = LoopPlan(steps, training, "float32", folder, "x", snapshot_steps=every, snapshot_seconds=0.0)
        model: Any = new_model(config, 1)
        begun = time.process_time()
        train(model, OneBatch(), find_objective("pretrain"), plan, stop=lambda: False, clock=time.monotonic)  # type: ignore[arg-type]
        return time.process_time() - begun

    return run


def _stalls(found: list[float]) -> Callable[[], None]:
    """Note how long each step's end waits for its snapshot; returns what takes that back."""
    from trainer.scribe import Scribe

    real = Scribe.save_if_due

    def timed(self: Any, stepper: Any, stopping: bool) -> None:
        begun = time.perf_counter()
        owed = self._saved_at
        real(self, stepper, stopping)
        if self._saved_at != owed:
            found.append(time.perf_counter() - begun)

    Scribe.save_if_due = timed  # type: ignore[method-assign]
    return lambda: setattr(Scribe, "save_if_due", real)


def seconds_lost(runs: int) -> Figure:
    """Runs with a snapshot every EVERY steps against runs without any, on a disk; prints what one snapshot takes."""
    train = _trainer(STEPS)
    stalls: list[float] = []
    pairs, restore = [], _stalls(stalls)
    try:
        for _ in range(runs):
            seconds = []
            for every in (EVERY, 0):
                folder = Path(tempfile.mkdtemp(prefix="heirloom-snapshots-", dir="."))
                try:
                    seconds.append(train(folder, every))
                finally:
                    shutil.rmtree(folder)
            pairs.append((seconds[0], seconds[1]))
    finally:
        restore()
    taken = len(stalls) / runs
    lost = statistics.median((with_them - without) / taken for with_them, without in pairs)
    print(f"{taken:.0f} snapshots in a run; one takes {lost:.3f} s of processor time ({lost / DEFAULT_SECONDS:.2%} at one in "
          f"{DEFAULT_SECONDS:.0f} s) and holds the step up for {statistics.median(stalls):.3f} s (at most {max(stalls):.3f} s)")
    ours, other = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    return Figure("snapshots", "steps/s of CPU", STEPS / ours, STEPS / other, "none", runs)


BENCHMARKS: dict[str, Callable[[int], Figure]] = {f"snapshot every {EVERY} steps at 10M, against none": seconds_lost}
