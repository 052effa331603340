"""Estimates: of the right size, and made without torch, as the daemon plans with them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trainer_help

from trainer.estimate import estimate_job, tokens_per_second, version_bytes
from trainer.hardware import hardware_facts, library_versions, usable_cores
from trainer.loss import CHUNK_TOKENS
from trainer.model_config import ModelConfig

MICRO = ModelConfig(layers=4, heads=4, width=128, hidden=384, block_size=512, vocab_size=50304)


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys, trainer, trainer.hardware, trainer.estimate, trainer.schedule, trainer.model_config, trainer.child;"
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
    assert tokens_per_second(MICRO, ["avx2"], 2, measured=1234.5) == 1234.5
    assert tokens_per_second(MICRO, ["avx2"], 4) == 2 * tokens_per_second(MICRO, ["avx2"], 2)
    assert tokens_per_second(MICRO, ["avx512f"], 2) > tokens_per_second(MICRO, [], 2)


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
