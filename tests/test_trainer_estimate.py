"""Estimates: of the right size, and made without torch, as the daemon plans with them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trainer_help

from trainer.estimate import Correction, correct, estimate_job, shape_key, table_speed, version_bytes
from trainer.hardware import hardware_facts, library_versions, usable_cores
from trainer.loss import CHUNK_TOKENS
from trainer.model_config import ModelConfig

MICRO = ModelConfig(layers=4, heads=4, width=128, hidden=384, block_size=512, vocab_size=50304)


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys, trainer, trainer.hardware, trainer.estimate, trainer.schedule, trainer.model_config, trainer.child;"
        "import trainer.numbers, trainer.machine, trainer.probe;"
        "from trainer.hardware import *; hardware_facts(); library_versions(); print('torch' in sys.modules)"
    )
    done = subprocess.run([trainer_help.PYTHON, "-c", code], cwd=trainer_help.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_version_is_its_weights_and_a_little_more() -> None:
    weights = MICRO.parameter_count() * 4
    assert MICRO.parameter_count() == 7_292_288
    assert weights < version_bytes(MICRO) < weights + 10_000_000
    assert version_bytes(MICRO, steps=1000) > version_bytes(MICRO)


def test_a_job_is_estimated_on_the_safe_side() -> None:
    figures = estimate_job(MICRO, tokens=190_000, steps=100, micro_sequences=4, flags=["avx2", "avx512f"], cores=2)
    assert figures.staging_bytes > figures.version_bytes + 2 * 3 * MICRO.parameter_count() * 4
    assert 600e6 < figures.memory_bytes < 3e9
    assert 500 < figures.tokens_per_second < 20_000
    assert figures.seconds == pytest.approx(190_000 / figures.tokens_per_second)
    assert CHUNK_TOKENS == 128, "the estimate of memory counts with it"


def test_what_was_measured_beats_the_table() -> None:
    told = {"tokens": 190_000, "steps": 100, "micro_sequences": 4, "flags": ["avx2"], "cores": 2}
    assert estimate_job(MICRO, **told, measured=1234.5).tokens_per_second == pytest.approx(1234.5)
    plain, halved = estimate_job(MICRO, **told), estimate_job(MICRO, **told, measured=1.0, correction=Correction(2.0, 1.5, 4))
    assert halved.seconds == pytest.approx(2 * plain.seconds) and halved.memory_bytes == int(1.5 * plain.memory_bytes)
    assert (halved.table_seconds, halved.table_memory_bytes) == (plain.seconds, plain.memory_bytes)
    assert halved.corrected_by == 4


def test_facts_come_from_the_kernels_files(tmp_path: Path) -> None:
    text = "processor\t: 0\nmodel name\t: Toy 9000\nflags\t\t: sse avx2 amx_bf16\n\nprocessor\t: 1\n"
    (tmp_path / "cpuinfo").write_text(text)
    facts = hardware_facts(tmp_path / "cpuinfo")
    assert (facts["cpu"], facts["cpu_flags"]) == ("Toy 9000", ["avx2", "amx_bf16"])
    assert hardware_facts(tmp_path / "missing")["cpu_flags"] == []
    assert {"python", "torch", "numpy"} <= set(library_versions())


def test_cores_are_capped_by_the_control_group(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path / "cpu.max") == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path / "cpu.max") == usable_cores(tmp_path / "missing") >= 1


# Wall seconds are the machine's matter; these are processor seconds of one step of each shape (fp32, the median of several),
# and MiB above the 293 an imported torch takes, without a snapshot being written:
# layers, heads, width, hidden, block, vocabulary, sequences, cpu seconds, MB.
MEASURED = [
    (2, 4, 32, 64, 48, 320, 4, 0.0169, 23), (2, 4, 64, 192, 128, 320, 8, 0.052, 44),
    (4, 4, 128, 384, 512, 50304, 8, 3.56, 416),
    (6, 6, 384, 1024, 256, 320, 8, 2.35, 741), (4, 4, 256, 704, 256, 50257, 8, 3.02, 611),
    (2, 8, 512, 1408, 256, 1024, 4, 0.67, 281),
    (6, 6, 384, 1024, 256, 50304, 8, 5.20, 1127),
]  # fmt: skip


@pytest.mark.parametrize("measured", MEASURED)
def test_the_table_tells_time_within_half_and_memory_within_a_quarter(measured: tuple[float, ...]) -> None:
    layers, heads, width, hidden, block, vocabulary, sequences = (int(value) for value in measured[:7])
    shape = ModelConfig(layers=layers, heads=heads, width=width, hidden=hidden, block_size=block, vocab_size=vocabulary)
    told = estimate_job(shape, tokens=sequences * block, steps=1, micro_sequences=sequences, flags=["avx512f"], cores=1)
    assert 1 / 1.5 < told.seconds / measured[7] < 1.5
    copies = 3 * shape.parameter_count() * 4  # what a snapshot that is being written adds
    assert 1.0 < told.memory_bytes / ((293 + measured[8]) * (1 << 20) + copies) < 1.25


def _past(seconds: float, memory: float, **changes: object) -> dict[str, object]:
    return {"estimate": {"shape": "s", "table_seconds": 10.0, "table_memory_bytes": 100},
            "actual": {"seconds": 10 * seconds, "memory_bytes": 100 * memory}, "cpu": "Toy 9000", **changes}  # fmt: skip


def test_the_next_estimate_is_corrected_by_the_median_of_jobs_of_the_same_shape_on_the_same_processor() -> None:
    others = [{"cpu": "another"}, {"estimate": {"shape": "t"}}, {"estimate": None}, {"actual": {"seconds": None}}]
    past = [_past(2.0, 1.1), _past(50.0, 1.2), _past(2.2, 1.3), *(_past(9.0, 9.0, **change) for change in others)]
    assert correct(past, "s", "Toy 9000") == Correction(2.2, 1.2, 3)
    assert correct(past, "unheard of", "Toy 9000") == Correction() == correct([], "s", "Toy 9000")


def test_old_jobs_are_forgotten_and_absurd_figures_are_bounded() -> None:
    assert correct([_past(1.5, 1.0)] * 9 + [_past(8.0, 2.0)] * 20, "s", "Toy 9000") == Correction(1.5, 1.0, 9)
    assert correct([_past(1e9, 1e9)], "s", "Toy 9000") == Correction(50.0, 3.0, 1)
    assert correct([_past(1e-9, 1e-9)], "s", "Toy 9000") == Correction(0.02, 0.5, 1)


def test_a_shape_is_told_apart_by_everything_that_changes_its_speed() -> None:
    numbers = {"micro_sequences": 4, "threads": 2, "dtype": "float32"}
    changes = ({}, {"compile": True}, {"device": "cuda"}, {"threads": 1}, {"dtype": "bfloat16"}, {"micro_sequences": 2},
               {"lanes": 2}, {"lanes": 2, "processes": 2})  # fmt: skip
    keys = {shape_key(MICRO, {**numbers, **change}, stage) for stage in ("sft", "pretrain") for change in changes}
    assert len(keys) == 16


def test_every_process_holds_everything_and_lanes_wait_with_their_gradients() -> None:
    told = {"tokens": 8192, "steps": 2, "micro_sequences": 4, "flags": ["avx512f"], "cores": 1}
    one, lanes, pair = (estimate_job(MICRO, **told, **more) for more in ({}, {"lanes": 4}, {"lanes": 4, "processes": 2}))  # type: ignore[arg-type]
    assert lanes.memory_bytes - one.memory_bytes == 2 * 4 * one.parameters, "two pairs of four may stand side by side"
    assert pair.memory_bytes == 2 * lanes.memory_bytes and pair.seconds == pytest.approx(lanes.seconds / 2)
    assert pair.table_memory_bytes == lanes.table_memory_bytes, "what a process took is compared with one process"


def test_bf16_counts_its_working_copy_and_smaller_activations_and_only_units_for_it_make_it_faster() -> None:
    told = {"tokens": 8192, "steps": 1, "micro_sequences": 16, "cores": 1}
    wide = ModelConfig(layers=6, heads=6, width=384, hidden=1024, block_size=512, vocab_size=320)
    fp32, bf16 = (estimate_job(wide, flags=["avx512f", "amx_bf16"], dtype=dtype, **told) for dtype in ("float32", "bfloat16"))
    assert bf16.memory_bytes < fp32.memory_bytes and bf16.seconds < fp32.seconds / 1.5
    assert table_speed(wide, ["avx512f", "amx_bf16"], 2) == table_speed(wide, ["avx512f"], 2)
