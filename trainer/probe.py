"""Measuring this machine, in a process of its own: `python -m trainer.probe`. One line of JSON for each finding.

    busy      the share of a core that one thread did not get: other work was running (asked first and last)
    peak      GFLOP/s of a matrix product in fp32 and in bf16
    threads   seconds of a training step with 1, 2, 4 ... threads
    widths    seconds of a step in fp32 and in bf16, for models of growing width
    compile   warm-up and seconds of a compiled step beside the eager one
    gpu       the same on a card, in bf16, where there is one

The cheap ones come first and every finding is told at once: whoever ends this process after its time has what was found
until then. Real steps of our own model are timed, not operators. It writes no file: what becomes of the findings is the
caller's business (`machine_of`, and `daemon/probing.py`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trainer.hardware import gpu_model, hardware_facts, has_compiler, has_cuda, set_environment, torch_version, usable_cores
from trainer.machine import Machine
from trainer.model_config import ModelConfig

__all__ = ["BUSY_SHARE", "WIDTHS", "machine_of", "main"]

WIDTHS = (128, 256, 512, 1024)
BUSY_SHARE = 0.1
"""From here on the machine is busy: a thread that works waits for no more than this when it is alone."""
_ROWS, _BLOCK = 4, 128
_GPU_ROWS, _GPU_BLOCK = 16, 1024
_VOCABULARY = 1024
_REPEATS = 3
_TURNS = 5
_MOST_SECONDS = 2.0
_PEAK_SIZE = 1024
# A step that is not clearly faster is not worth other bits, nor threads that other work could use.
_CLEARLY = 1.1
_ENOUGH = 1.05
_HOPELESS = 1.5
_TRAINING = {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0}


def main(clock: Callable[[], float] = time.perf_counter) -> int:
    """Measure everything and tell it on stdout. What fails is told as such and the next thing is measured."""
    set_environment()
    cores = usable_cores()
    for name, measure in (("busy", _busy), ("peak", _peak), ("threads", _threads), ("widths", _widths), ("compile", _compile),
                          ("gpu", _gpu), ("busy", _busy)):  # fmt: skip
        try:
            for finding in measure(cores, clock):
                print(json.dumps({"finding": name, **finding}), flush=True)
        except Exception as error:  # noqa: BLE001 - told: a torch that cannot do one thing can do the others
            print(json.dumps({"finding": name, "failed": f"{type(error).__name__}: {str(error)[:300]}"}), flush=True)
    return 0


def _busy(_cores: int, clock: Callable[[], float]) -> Iterable[dict[str, Any]]:
    step = _step(256, "float32", 1)
    step()
    began, used = clock(), time.process_time()
    for _ in range(_REPEATS):
        step()
    yield {"share": max(0.0, 1.0 - (time.process_time() - used) / (clock() - began))}


def _peak(cores: int, clock: Callable[[], float]) -> Iterable[dict[str, Any]]:
    import torch

    torch.set_num_threads(cores)
    for dtype in ("float32", "bfloat16"):
        left = torch.randn(_PEAK_SIZE, _PEAK_SIZE).to(getattr(torch, dtype))
        right, out = left.t().contiguous(), torch.empty_like(left)
        seconds = _best(lambda a=left, b=right, c=out: torch.mm(a, b, out=c), clock, repeats=8)  # type: ignore[misc]
        yield {"dtype": dtype, "gflops": 2 * _PEAK_SIZE**3 / seconds / 1e9}


def _threads(cores: int, clock: Callable[[], float]) -> Iterable[dict[str, Any]]:
    for threads in sorted({1, *(2**power for power in range(1, 8) if 2**power < cores), cores}):
        yield {"threads": threads, "seconds": _best(_step(512, "float32", threads), clock)}


def _widths(cores: int, clock: Callable[[], float]) -> Iterable[dict[str, Any]]:
    for width in WIDTHS:
        seconds = {dtype: _best(_step(width, dtype, cores), clock) for dtype in ("float32", "bfloat16")}
        yield {"width": width, **seconds}
        if seconds["bfloat16"] > _HOPELESS * seconds["float32"]:
            return  # without matrix units for it bf16 only gets worse as products get larger


def _compile(cores: int, clock: Callable[[], float]) -> Iterable[dict[str, Any]]:
    yield _compiled(lambda compiled: _step(256, "float32", cores, compiled=compiled), clock)


def _gpu(cores: int, clock: Callable[[], float]) -> Iterable[dict[str, Any]]:
    if has_cuda():
        yield {"name": gpu_model(), **_compiled(lambda compiled: _step(
            768, "bfloat16", cores, compiled=compiled, rows=_GPU_ROWS, block=_GPU_BLOCK, device="cuda"), clock)}


def _compiled(make: Callable[[bool], Callable[[], object]], clock: Callable[[], float]) -> dict[str, Any]:
    """What compiling costs before the first step and what it brings from then on. Every step waits for the device's figures."""
    if not has_compiler():
        return {"failed": "there is no C++ compiler (g++ or clang++)"}
    plain = make(False)
    plain()
    began = clock()
    compiled = make(True)
    compiled()
    warmup = clock() - began
    # By turns: what else begins to run meanwhile then slows both.
    took: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(_TURNS):
        for name, step in (("eager", plain), ("compiled", compiled)):
            took[name].append(_once(step, clock))
    return {"warmup_seconds": warmup, **{name: min(times) for name, times in took.items()}}


def _best(call: Callable[[], object], clock: Callable[[], float], repeats: int = _REPEATS) -> float:
    """The shortest of several times after a warm-up: what the machine can do, whatever else runs on it."""
    call()
    times: list[float] = []
    while len(times) < repeats and sum(times) < _MOST_SECONDS:
        times.append(_once(call, clock))
    return min(times)


def _once(call: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    call()
    return clock() - began


def _step(
    width: int, dtype: str, threads: int, *, compiled: bool = False, rows: int = _ROWS, block: int = _BLOCK, device: str = "cpu"
) -> Callable[[], object]:
    """One training step of a model of two layers on `rows` x `block` made-up tokens."""
    import numpy as np

    from trainer.batches import StepBatch, pad
    from trainer.device import Placed, Same, move_model, prepare_device
    from trainer.hardware import apply_numbers
    from trainer.model import new_model
    from trainer.objectives import find_objective
    from trainer.stepper import Stepper

    prepare_device(device)
    apply_numbers(threads)
    shape = ModelConfig(layers=2, heads=width // 64, width=width, hidden=-(-8 * width // 3 // 64) * 64, block_size=block,
                        vocab_size=_VOCABULARY)  # fmt: skip
    model = new_model(shape, 1)
    move_model(model, device)
    tokens = rows * block
    stepper = Stepper(model, find_objective("pretrain"), _TRAINING, dtype, compile_tokens=tokens if compiled else 0)
    ids = np.arange(block, dtype=np.int64) % _VOCABULARY
    batch = StepBatch(np.arange(rows), [pad([(ids, ids, np.ones(block, dtype=np.float32))] * rows)], float(tokens), tokens,
                      tokens, 0)  # fmt: skip
    source = Placed(Same(batch), device)
    return lambda: stepper.step(source.step(0), 1e-4, 0)


def machine_of(findings: Iterable[Mapping[str, Any]], measured: str) -> Machine:
    """What the findings say, as the file keeps it; what is not among them stays unmeasured. Pure but for the machine's name."""
    facts = hardware_facts()
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for item in findings:
        if "failed" not in item:
            by_name.setdefault(str(item["finding"]), []).append(item)
    peaks = {item["dtype"]: round(float(item["gflops"]), 1) for item in by_name.get("peak", ())}
    # What is best beside other work is no fact about the machine, and may be another tomorrow.
    alone = all(float(item["share"]) <= BUSY_SHARE for item in by_name.get("busy", ()))
    compiled = by_name.get("compile") if alone else None
    on_card = by_name.get("gpu") if alone else None
    return Machine(
        cpu=facts["cpu"], cores=facts["cores"], torch=torch_version(), measured=measured,
        threads=_best_threads(by_name.get("threads", ())) if alone else 0,
        bfloat16_from_width=_first_width(by_name.get("widths", ())),
        float32_gflops=peaks.get("float32"), bfloat16_gflops=peaks.get("bfloat16"),
        compile_warmup_seconds=_warmup(compiled), compile_gain=_gain(compiled),
        gpu=str(on_card[0]["name"]) if on_card else "",
        gpu_compile_warmup_seconds=_warmup(on_card), gpu_compile_gain=_gain(on_card),
    )  # fmt: skip


def _warmup(rows: Sequence[Mapping[str, Any]] | None) -> float:
    return round(float(rows[0]["warmup_seconds"]), 1) if rows else float("inf")


def _gain(rows: Sequence[Mapping[str, Any]] | None) -> float:
    return round(float(rows[0]["eager"] / rows[0]["compiled"]), 2) if rows else 1.0


def _best_threads(rows: Iterable[Mapping[str, Any]]) -> int:
    """The fewest threads that are about as fast as the fastest number; 0 when nothing was measured."""
    found = {int(row["threads"]): float(row["seconds"]) for row in rows}
    return min((threads for threads, seconds in found.items() if seconds <= min(found.values()) * _ENOUGH), default=0)


def _first_width(rows: Iterable[Mapping[str, Any]]) -> int | None:
    """The width from which on bf16 is clearly faster at every width that was measured."""
    first = None
    for row in sorted(rows, key=lambda item: -int(item["width"])):
        if float(row["float32"]) < _CLEARLY * float(row["bfloat16"]):
            break
        first = int(row["width"])
    return first


if __name__ == "__main__":
    sys.exit(main())
