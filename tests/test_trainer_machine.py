"""The numbers of a job: from the table, or from what was measured on this very machine and kept in a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guard.errors import EnvironmentFault
from trainer import machine as machine_module
from trainer.hardware import gpu_model, has_compiler, has_cuda, peak_memory, usable_memory
from trainer.machine import MACHINE_FILE, Machine, machine_here, machine_text, read_machine, stranger
from trainer.model_config import ModelConfig
from trainer.numbers import Numbers, choose_device, choose_numbers, resolve_numbers
from trainer.probe import machine_of

SMALL = ModelConfig(layers=4, heads=4, width=128, hidden=384, block_size=512, vocab_size=50304)
WIDE = ModelConfig(layers=6, heads=8, width=512, hidden=1408, block_size=512, vocab_size=320)
HERE = Machine(cpu="Toy 9000", cores=4, torch="2.13.0", measured="2026-11-21T00:00:00Z", threads=3, bfloat16_from_width=512,
               compile_warmup_seconds=60.0, compile_gain=1.5, sha256="ab" * 32)  # fmt: skip


@pytest.fixture
def toy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "hardware_facts", lambda: {"cpu": "Toy 9000", "cores": 4})
    monkeypatch.setattr(machine_module, "torch_version", lambda: "2.13.0")


def test_what_was_measured_takes_the_table_s_place() -> None:
    table = choose_numbers(WIDE, 8, ["avx512f"], 4, compiler=True, tokens=10**12)
    measured = choose_numbers(WIDE, 8, ["avx512f"], 4, compiler=True, tokens=10**12, machine=HERE)
    assert (table.threads, table.dtype, table.compile, table.numbers_from) == (4, "float32", False, "table")
    assert (measured.threads, measured.dtype, measured.compile) == (3, "bfloat16", True)
    assert measured.numbers_from == "machine.yaml abababababab" and measured.micro_sequences == table.micro_sequences
    assert choose_numbers(SMALL, 8, ["amx_bf16"], 4, machine=HERE).dtype == "float32", "measured as slower at this width"
    assert choose_numbers(WIDE, 8, [], 4, threads=2, machine=HERE).threads == 2, "what a person sets comes first"


def test_a_job_is_compiled_only_where_that_is_long_repaid_and_a_compiler_is_there() -> None:
    def compiled(tokens: int, *, compiler: bool = True, machine: Machine | None = HERE) -> bool:
        return choose_numbers(WIDE, 8, ["avx512f"], 4, tokens=tokens, compiler=compiler, machine=machine).compile

    assert [compiled(10**exponent) for exponent in (3, 5, 7, 9)] == [False, False, True, True]
    assert not compiled(10**9, compiler=False) and not compiled(10**9, machine=None)
    assert not compiled(10**9, machine=dataclasses.replace(HERE, compile_gain=1.0))
    assert not compiled(10**9, machine=dataclasses.replace(HERE, compile_warmup_seconds=float("inf")))


def test_on_a_card_layers_are_compiled_only_where_that_was_measured_on_this_very_card(
    tmp_path: Path, toy_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(machine: Machine | None, device: str = "cuda") -> bool:
        return choose_numbers(WIDE, 8, [], 4, tokens=10**12, compiler=True, device=device, machine=machine).compile

    measured = dataclasses.replace(HERE, gpu="Card 9", gpu_compile_warmup_seconds=40.0, gpu_compile_gain=1.4, compile_gain=1.0)
    assert compiled(measured) and not compiled(measured, "cpu") and not compiled(HERE) and not compiled(None)
    (tmp_path / MACHINE_FILE).write_text(machine_text(measured), "utf-8")
    for card, counts in (("Card 9", True), ("Card 10", False), ("", False)):
        monkeypatch.setattr(machine_module, "gpu_model", lambda card=card: card)
        found = machine_here(tmp_path)
        assert found is not None and compiled(found) is counts and found.threads == 3


def test_the_driver_tells_the_card_s_name(tmp_path: Path) -> None:
    assert gpu_model(tmp_path) == ""
    for bus, name in (("0000:02:00.0", "NVIDIA Second"), ("0000:01:00.0", "NVIDIA First")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 42\n")
    assert gpu_model(tmp_path) == "NVIDIA First"


def test_the_same_plan_gets_the_same_numbers_however_often_it_is_asked() -> None:
    recipe = {"training": {"batch_sequences": 8}}
    settings: Any = SimpleNamespace(training=SimpleNamespace(threads=0, device="cpu"))
    asked = [resolve_numbers(recipe, settings, WIDE, tokens=10**7, machine=HERE) for _ in range(20)]
    assert len(set(asked)) == 1
    assert dataclasses.asdict(asked[0]).keys() == {"threads", "dtype", "micro_sequences", "compile", "device", "numbers_from"}


def test_a_gpu_is_taken_where_there_is_one_and_named_outright_even_where_there_is_none() -> None:
    assert [choose_device(asked, cuda=cuda) for asked in ("auto", "cpu", "cuda") for cuda in (True, False)] == [
        "cuda", "cpu", "cpu", "cpu", "cuda", "cuda"]  # fmt: skip
    on_card = choose_numbers(WIDE, 512, [], 4, device="cuda")
    assert (on_card.device, on_card.dtype, on_card.micro_sequences) == ("cuda", "bfloat16", 128)


def test_what_a_probe_wrote_is_read_back_and_counts_here(tmp_path: Path, toy_machine: None) -> None:
    (tmp_path / MACHINE_FILE).write_text(machine_text(HERE), "utf-8")
    found = machine_here(tmp_path)
    assert found == HERE and found is not None and len(found.sha256) == 64
    nothing = Machine(cpu="Toy 9000", cores=4, torch="2.13.0", measured="now")
    (tmp_path / MACHINE_FILE).write_text(machine_text(nothing), "utf-8")
    assert read_machine(tmp_path / MACHINE_FILE) == nothing
    assert machine_here(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("changes", "word"), [
    ({"cpu": "Another"}, "processor"), ({"cores": 2}, "number of cores"), ({"torch": "2.12"}, "torch")])  # fmt: skip
def test_a_file_of_another_machine_is_passed_over(
    tmp_path: Path, toy_machine: None, changes: dict[str, Any], word: str
) -> None:
    other = dataclasses.replace(HERE, **changes)
    (tmp_path / MACHINE_FILE).write_text(machine_text(other), "utf-8")
    assert machine_here(tmp_path) is None and word in stranger(other)


@pytest.mark.parametrize(("old", "new", "words"), [
    ("schema: 1", "schema: 2", "schema: 1"), ("cores: 4", "cores: four", "cores"), ("threads: 3", "threads: -1", "threads"),
    ("threads: 3", "threads: yes", "threads"), ("compile_gain: 1.5", "compile_gain: .nan", "compile_gain"),
    ("cpu: Toy 9000", "cpu:", "cpu is missing"), ("threads:", "thread:", "unknown key thread"),
    ("schema: 1", "[", "machine.yaml"),
    ("gpu_compile_gain: 1.0", "gpu_compile_gain: much", "gpu_compile_gain"),
    ("bfloat16_from_width: 512", "bfloat16_from_width: 0", "bfloat16_from_width")])  # fmt: skip
def test_a_file_that_says_something_else_holds_the_job_and_tells_what_to_type(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    text = machine_text(HERE)
    assert old in text
    (tmp_path / MACHINE_FILE).write_text(text.replace(old, new), "utf-8")
    with pytest.raises(EnvironmentFault, match=words) as caught:
        machine_here(tmp_path)
    assert "--probe" in caught.value.hint


def test_findings_become_facts_and_what_is_not_clearly_faster_is_not_taken() -> None:
    def widths(*ratios: float) -> list[dict[str, Any]]:
        return [{"finding": "widths", "width": 128 << power, "float32": ratio, "bfloat16": 1.0}
                for power, ratio in enumerate(ratios)]  # fmt: skip

    found = machine_of([
        {"finding": "busy", "share": 0.01}, {"finding": "peak", "dtype": "float32", "gflops": 330.04},
        *({"finding": "threads", "threads": threads, "seconds": seconds} for threads, seconds in ((1, 2.0), (2, 1.02), (4, 1.0))),
        *widths(0.9, 1.2, 2.0), {"finding": "compile", "warmup_seconds": 31.26, "eager": 3.0, "compiled": 2.0},
    ], "now")  # fmt: skip
    assert (found.threads, found.bfloat16_from_width, found.float32_gflops) == (2, 256, 330.0)
    assert (found.compile_warmup_seconds, found.compile_gain, found.bfloat16_gflops) == (31.3, 1.5, None)
    assert machine_of(widths(1.2, 0.9, 2.0), "now").bfloat16_from_width == 512, "slower at a width between: only above it"
    assert machine_of(widths(2.0, 2.0, 1.05), "now").bfloat16_from_width is None
    nothing = machine_of([{"finding": "compile", "failed": "no compiler"}], "now")
    assert nothing.threads == 0 and nothing.compile_warmup_seconds == float("inf")


def test_threads_and_compiling_are_not_taken_from_a_busy_machine() -> None:
    rows: list[dict[str, Any]] = [{"finding": "threads", "threads": threads, "seconds": 1.0} for threads in (1, 2)]
    rows += [{"finding": "compile", "warmup_seconds": 30.0, "eager": 3.0, "compiled": 2.0}]
    busy, alone = (machine_of([{"finding": "busy", "share": share}, *rows], "now") for share in (0.5, 0.0))
    assert (busy.threads, busy.compile_warmup_seconds, busy.compile_gain) == (0, float("inf"), 1.0)
    assert (alone.threads, alone.compile_warmup_seconds, alone.compile_gain) == (1, 30.0, 1.5)


def test_memory_compiler_and_gpu_are_found_in_files(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable: 1500 kB\n")
    assert usable_memory(tmp_path / "meminfo", tmp_path / "no limit") == (2000 * 1024, 1500 * 1024)
    (tmp_path / "limit").write_text("1024000\n")
    assert usable_memory(tmp_path / "meminfo", tmp_path / "limit") == (1024000, 1024000)
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t  7 kB\n")
    assert peak_memory(tmp_path / "status") == 7168 and peak_memory(tmp_path / "none") is None
    (tmp_path / "bin").mkdir()
    assert not has_compiler({"PATH": str(tmp_path / "bin")})
    (tmp_path / "bin" / "mycc").touch(0o755)
    assert has_compiler({"PATH": str(tmp_path / "bin"), "CXX": "mycc"})
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    assert not has_cuda(tmp_path / "nvidiactl", tmp_path / "torch")
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    assert has_cuda(tmp_path / "nvidiactl", tmp_path / "torch") and not has_cuda(tmp_path / "gone", tmp_path / "torch")


def test_numbers_of_earlier_plans_are_those_of_a_plain_processor() -> None:
    old = Numbers(1, "float32", 4)
    assert (old.compile, old.device, old.numbers_from) == (False, "cpu", "table")
