"""Numbers and estimates from plan to version: frozen, kept, compared with what it took, and made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from homes import within
from runner_help import ask
from toy import CONFIGS, Toy, chat_of

from daemon import facts, remake
from daemon.cli.doctor import probe_lines
from daemon.cli.plans import plan_lines
from daemon.cli.versions import version_lines
from daemon.costs import past_jobs
from daemon.ledger_checks import judge_estimates
from daemon.plan_advice import plan_warnings
from daemon.probing import judge_machine_file, measure, probe
from daemon.targets import numbers_of, shape_of, target_of
from guard import durable
from guard.errors import Busy, EnvironmentFault, UsageError
from guard.lock import home_lock
from guard.settings_read import load_settings
from guard.store.jobs import find_job, jobs_in
from guard.store.versions import find_version, version_by_id
from trainer.hardware import hardware_facts, library_versions
from trainer.machine import MACHINE_FILE, Machine, machine_text, read_machine
from trainer.recipe import parse_recipe
from trainer.recipe_files import load_recipe

BASE = "v001_baseline"
FINDINGS = [
    {"finding": "busy", "share": 0.02}, {"finding": "peak", "dtype": "float32", "gflops": 100.0},
    {"finding": "threads", "threads": 1, "seconds": 1.0}, {"finding": "threads", "threads": 2, "seconds": 2.0},
    {"finding": "widths", "width": 16, "float32": 2.0, "bfloat16": 1.0},
    {"finding": "compile", "failed": "there is no C++ compiler"},
]  # fmt: skip


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    return Toy(tmp_path / "home").make_base()


def record(toy: Toy, name: str) -> dict[str, Any]:
    return find_version(toy.keeper.ledger, name).record


def takes(seconds: float, memory: int) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Every training takes so many seconds and so much memory."""
    return lambda _job, result: result.update(wall_seconds=seconds, peak_memory_bytes=memory)


def dropped(toy: Toy, *seeds: int) -> None:
    for seed in seeds:
        toy.drop(f"rows{seed}.jsonl", chat_of(20, seed))
        toy.settle()


def registered(toy: Toy, name: str, seed: int) -> None:
    path = toy.home.root.parent / name
    path.write_text(chat_of(20, seed))
    ask(toy, "register", paths=[str(path)])
    toy.settle()


def test_a_version_keeps_what_was_estimated_beside_what_it_took(toy: Toy) -> None:
    toy.server.spoil = takes(7.5, 480_000_000)
    dropped(toy, 1)
    found = record(toy, "v002")
    assert found["actual"] == {"seconds": 7.5, "memory_bytes": 480_000_000, "tokens_per_second": 20 / 7.5}
    assert found["estimate"]["seconds"] > 0 and found["estimate"]["memory_bytes"] > 100e6
    assert found["estimate"]["corrected_by"] == 0 and found["estimate"]["shape"].startswith("sft 1x16x")
    assert (found["compile"], found["device"], found["numbers_from"]) == (False, "cpu", "table")
    lines = "\n".join(version_lines(found))
    assert "took 8 s" in lines and "480" in lines


def test_the_next_job_of_a_shape_is_estimated_from_what_the_last_ones_took(toy: Toy) -> None:
    dropped(toy, 1)
    table = record(toy, "v002")["estimate"]

    def thrice(job: dict[str, Any], result: dict[str, Any]) -> None:
        takes(3 * job["estimate"]["table_seconds"], 2 * table["table_memory_bytes"])(job, result)

    toy.server.spoil = thrice
    dropped(toy, 2, 3, 4)
    told = record(toy, "v005")["estimate"]
    assert told["corrected_by"] == 3
    assert told["table_memory_bytes"] == table["table_memory_bytes"] and told["shape"] == table["shape"]
    # the median of (1 s, 3x, 3x); memory of the first is unknown: toys that nobody spoilt do not tell theirs
    assert told["seconds"] == pytest.approx(3 * told["table_seconds"], rel=1e-3)
    assert told["memory_bytes"] == pytest.approx(2 * table["table_memory_bytes"], rel=1e-3)
    registered(toy, "more.jsonl", 9)
    plan = ask(toy, "plan", base="v005", files=["more.jsonl"], output="x", dry_run=True)
    assert plan["estimate"]["corrected_by"] == 4
    assert plan["estimate"]["memory_bytes"] == told["memory_bytes"] and plan["estimate"]["numbers"]["device"] == "cpu"
    assert any("Est. memory" in line for line in plan_lines(plan, is_tip=True, free_bytes=None))


@pytest.mark.parametrize(("setting", "value"), [("training.processes", 512), ("training.threads", 100_000)])
def test_a_slip_of_the_hand_in_threads_or_processes_is_held_and_says_where_it_stands(
    toy: Toy, setting: str, value: int
) -> None:
    toy.flags[setting] = value
    toy.again()
    dropped(toy, 1)
    assert len(toy.versions()) == 1, "nothing was trained"
    (job,) = jobs_in(toy.keeper.ledger, "held")
    assert f"{setting} = {value}" in job.reason and "heirloom config show --origin" in job.reason
    toy.flags[setting] = 1
    toy.again()
    toy.clock.advance(3600)
    toy.settle()
    assert len(toy.versions()) == 2, "it goes on by itself"


def test_a_plan_says_what_its_recipe_cannot_do(toy: Toy) -> None:
    training = "{learning_rate: 1e-3, batch_sequences: 4, warmup_steps: 100000}"
    (toy.home.configs / "sft" / "odd.yaml").write_text(f"stage: sft\ntraining: {training}\n")
    registered(toy, "more.jsonl", 9)
    asked: dict[str, Any] = {"base": "v001", "files": ["more.jsonl"], "output": "x", "dry_run": True}
    plan = ask(toy, "plan", **asked, recipe="sft/odd")
    assert any("warm-up takes 100,000 steps" in text for text in plan["warnings"])
    assert "warm-up takes" in "\n".join(plan_lines(plan, is_tip=True, free_bytes=None))
    assert ask(toy, "plan", **asked)["warnings"] == []
    shape, recipe = shape_of(toy.keeper, version_by_id(toy.keeper.ledger, 1)), load_recipe(CONFIGS / "pretrain" / "small.yaml")
    (told,) = plan_warnings(recipe, shape, 100, named=True)
    assert "a fork keeps its base's shape" in told and f"block_size {shape.block_size}, not" in told
    assert plan_warnings(recipe, shape, 100, named=False) == []


def test_the_doctor_tells_how_wrong_estimates_were() -> None:
    def job(told: float, found: float) -> dict[str, Any]:
        return {"estimate": {"seconds": told, "memory_bytes": 100}, "actual": {"seconds": found, "memory_bytes": 100}}

    check = judge_estimates([job(10, 20), job(20, 10)])
    assert check.ok and "time right within a factor of 2.00, memory right within a factor of 1.00" in check.detail
    assert judge_estimates([]).ok is None
    assert judge_estimates([{"estimate": {}, "actual": {"seconds": None}}]).ok is None


def test_versions_of_earlier_releases_have_no_estimate_and_are_passed_over(toy: Toy) -> None:
    dropped(toy, 1)
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE versions SET record = json_remove(record, '$.estimate', '$.actual', '$.compile') "
                              "WHERE name LIKE 'v002%'")  # fmt: skip
    assert past_jobs(toy.keeper) == []
    dropped(toy, 2)
    assert record(toy, "v003")["estimate"]["corrected_by"] == 0


@pytest.mark.parametrize(("whole", "free", "words"), [(1000, 1000, "may be used here"), (10**12, 1000, "are free now")])
def test_a_job_that_does_not_fit_into_memory_is_held_and_goes_on_by_itself(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, whole: int, free: int, words: str
) -> None:
    monkeypatch.setattr(facts, "usable_memory", lambda: (whole, free))
    dropped(toy, 1)
    (_base, job) = toy.jobs()
    assert job[2] == "held" and words in job[3] and job[3].startswith("Memory: ")
    monkeypatch.setattr(facts, "usable_memory", lambda: (10**12, 10**12))
    toy.clock.advance(3600)
    toy.settle()
    assert "v002_rows1" in toy.versions()


def test_memory_that_cannot_be_told_is_a_refusal(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> tuple[int, int]:
        raise OSError("no /proc here")

    monkeypatch.setattr(facts, "usable_memory", unknown)
    dropped(toy, 1)
    assert toy.jobs()[1][2] == "held" and "not known" in toy.jobs()[1][3]


def test_a_gpu_that_is_not_there_holds_the_job_and_says_what_to_type(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.flags["training.device"] = "cuda"
    toy.again()
    monkeypatch.setattr(facts, "has_cuda", lambda: False)
    dropped(toy, 1)
    assert toy.jobs()[1][2] == "held" and "training.device: auto" in toy.jobs()[1][3]
    with pytest.raises(UsageError, match="auto, cpu, cuda"):
        load_settings(toy.home.root, {}, {"training.device": "tpu"})


def test_a_plan_goes_by_what_was_measured_here_and_a_frozen_one_keeps_its_numbers(toy: Toy) -> None:
    here = hardware_facts()
    machine = Machine(here["cpu"], here["cores"], library_versions()["torch"], "now", threads=1)
    path = toy.home.configs / MACHINE_FILE
    path.write_text(machine_text(machine))
    dropped(toy, 1)
    assert record(toy, "v002")["numbers_from"].startswith("machine.yaml ")
    path.unlink()
    dropped(toy, 2)
    assert record(toy, "v003")["numbers_from"] == "table" and record(toy, "v002")["numbers_from"] != "table"


def test_a_spoilt_machine_file_holds_jobs_and_blames_no_data(toy: Toy) -> None:
    (toy.home.configs / MACHINE_FILE).write_text("schema: 1\nthreads: many\n")
    dropped(toy, 1)
    assert toy.jobs()[1][2] == "held" and "machine.yaml" in toy.jobs()[1][3]
    check = judge_machine_file(toy.home)
    assert check.ok is False and "--probe" in check.remedy
    (toy.home.configs / MACHINE_FILE).unlink()
    toy.clock.advance(3600)
    toy.settle()
    assert "v002_rows1" in toy.versions() and judge_machine_file(toy.home).ok is None


def test_a_probe_writes_what_it_found_and_a_dry_run_only_tells(toy: Toy) -> None:
    path = toy.home.configs / MACHINE_FILE
    told = probe(toy.home, dry_run=True, measuring=lambda: FINDINGS)
    assert not path.exists() and not told["written"] and "Would write" in probe_lines(told)[-1]
    told = probe(toy.home, dry_run=False, measuring=lambda: FINDINGS)
    assert told["written"] and told["machine"]["threads"] == 1 and told["machine"]["bfloat16_from_width"] == 16
    assert told["notes"] == ["compile: there is no C++ compiler"] and json.dumps(told, allow_nan=False)
    assert judge_machine_file(toy.home).detail.startswith("measured ")
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.set_meta("paused", "1")
    dropped(toy, 1)
    assert numbers_of(toy.keeper, target_of(toy.keeper, find_job(toy.keeper.ledger, 2))).numbers_from.startswith("machine.yaml")


def test_what_compiling_brings_on_a_card_is_told_and_kept(toy: Toy) -> None:
    card = {"finding": "gpu", "name": "Card 9", "warmup_seconds": 41.2, "eager": 3.0, "compiled": 2.0}
    told = probe(toy.home, dry_run=False, measuring=lambda: [*FINDINGS, card])
    assert "   compiling on Card 9: 41 s before the first step, then 1.50x" in probe_lines(told)
    found = read_machine(toy.home.configs / MACHINE_FILE)
    assert found is not None and (found.gpu, found.gpu_compile_warmup_seconds, found.gpu_compile_gain) == ("Card 9", 41.2, 1.5)
    failed = probe(toy.home, dry_run=True, measuring=lambda: [*FINDINGS, {**card, "failed": "no C++ compiler"}])
    assert failed["machine"]["gpu"] == "" and not any("Card 9" in line for line in probe_lines(failed))


def test_a_busy_machine_is_told_and_nothing_at_all_is_a_fault(toy: Toy) -> None:
    told = probe(toy.home, dry_run=True, measuring=lambda: [{"finding": "busy", "share": 0.6}, *FINDINGS[1:]])
    assert told["machine"]["threads"] == 0 and "60%" in told["notes"][0]
    with pytest.raises(EnvironmentFault, match="nothing could be measured"):
        probe(toy.home, dry_run=False, measuring=lambda: [{"finding": "time", "failed": "ended"}])
    assert not (toy.home.configs / MACHINE_FILE).exists()


def test_nothing_is_measured_beside_a_daemon(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.probing.LOCK_SECONDS", 0.01)
    with home_lock(toy.home, command="heirloom run", since="now"), pytest.raises(Busy):
        probe(toy.home, dry_run=True, measuring=lambda: FINDINGS)


def test_a_child_that_takes_too_long_is_ended_and_what_it_told_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\necho '{\"finding\": \"busy\", \"share\": 0.5}'\necho half\nsleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr("daemon.probing.sys.executable", str(slow))
    with within(60):  # what the child had started holds its output open no longer
        found = measure(0.5)
    assert {"finding": "busy", "share": 0.5} in found and any("ended after" in item.get("failed", "") for item in found)


def test_compiling_is_measured_with_an_empty_cache_that_is_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    telling = tmp_path / "telling"
    telling.write_text('#!/bin/sh\ntouch "$XDG_CACHE_HOME/kernel"\n'
                       'echo "{\\"finding\\": \\"compile\\", \\"cache\\": \\"$XDG_CACHE_HOME\\"}"\n')  # fmt: skip
    telling.chmod(0o755)
    monkeypatch.setattr("daemon.probing.sys.executable", str(telling))
    first, second = measure(60.0)[0]["cache"], measure(60.0)[0]["cache"]
    assert first != second and not Path(first).exists() and not Path(second).exists()


def test_a_version_is_made_again_with_its_own_numbers_and_one_of_an_earlier_release_without(toy: Toy) -> None:
    dropped(toy, 1)
    version = find_version(toy.keeper.ledger, "v002")
    request = dict.fromkeys(("schema", "job", "stage", "staging", "tokenization", "tokenizer_folder", "files", "block_size",
                             "recipe", "seed", "nice"), 1)  # fmt: skip
    prepared = {"dataset_path": "x", "dataset_id": "y"}
    base = find_version(toy.keeper.ledger, "v001")
    version.record.update(compile=True, device="cuda")
    again = remake._train_request(toy.keeper, version, base, request, prepared)
    assert (again["compile"], again["device"]) == (True, "cuda")
    for key in ("compile", "device"):
        del version.record[key]
    again = remake._train_request(toy.keeper, version, base, request, prepared)
    assert (again["compile"], again["device"]) == (False, "cpu")


def test_a_plan_says_which_lengths_of_a_curriculum_do_not_fit_its_base(toy: Toy) -> None:
    shape = shape_of(toy.keeper, version_by_id(toy.keeper.ledger, 1))
    training = {"learning_rate": 1e-3, "batch_sequences": 4, "curriculum": [8, shape.block_size * 4]}
    (told,) = plan_warnings(parse_recipe({"stage": "pretrain", "training": training}), shape, 100, named=True)
    assert f"{shape.block_size * 4:,} tokens do not fit the base's block of {shape.block_size:,}" in told
