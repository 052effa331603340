"""Preflight: every check by itself, each refusal with a remedy, and a figure that is not there is a refusal."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from guard.checks.preflight import DataFact, Facts, preflight
from guard.checks.verdict import Check, Verdict, guarded, verdict_of

GOOD = Facts(
    data=[DataFact("a.jsonl", "aa", "aa")], base="v001_baseline", base_present=True, base_intact=True,
    base_is_intended=True, examples_new=5, free_bytes=100, needed_bytes=60, reserve_bytes=40, device_free=True,
    unfinished_jobs=[], inconsistencies=[], tokenizer_base="tok", tokenizer_data="tok", template_base="tpl",
    template_data="tpl", mask_ratio=0.5, mask_needed=True, memory_needed=50, memory_allowed=60, memory_free=55,
)  # fmt: skip

REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("Data verified", {"data": []}, "no data file"),
    ("Data verified", {"data": [DataFact("a.jsonl", "aa", None)]}, "missing: a.jsonl"),
    ("Data verified", {"data": [DataFact("a.jsonl", "aa", "aa"), DataFact("b.jsonl", "bb", "bc")]}, "changed: b.jsonl"),
    ("Base model exists", {"base_present": False}, "not in models/"),
    ("Base model exists", {"base_present": None}, "not in models/"),
    ("Base model exists", {"base_intact": False, "base_problem": "bits"}, "damaged: bits"),
    ("Base model exists", {"base_intact": None}, "could not be checked"),
    ("Base model exists", {"base_is_intended": False, "base_problem": "the tip moved"}, "the tip moved"),
    ("Base model exists", {"base_is_intended": None}, "not the version that was meant"),
    ("No duplicates", {"examples_new": 0}, "learnt all of it already"),
    ("No duplicates", {"examples_new": None}, "not known"),
    ("Examples fit", {"examples_new": 0, "examples_too_long": 3}, "all 3 new examples are longer"),
    ("Disk space", {"free_bytes": 99}, "GB free"),
    ("Disk space", {"free_bytes": None}, "not known"),
    ("Disk space", {"needed_bytes": None}, "not known"),
    ("Disk space", {"reserve_bytes": None}, "not known"),
    ("Device available", {"device_free": False, "device_problem": "chat"}, "busy: chat"),
    ("Device available", {"device_free": None}, "not known"),
    ("Previous training finished", {"unfinished_jobs": ["job 3"]}, "job 3"),
    ("Previous training finished", {"unfinished_jobs": None}, "could not be read"),
    ("Registry consistent", {"inconsistencies": ["v009 is not in the ledger"]}, "v009"),
    ("Registry consistent", {"inconsistencies": None}, "not compared"),
    ("Tokenizer matches", {"tokenizer_data": "other"}, "other"),
    ("Tokenizer matches", {"tokenizer_base": None}, "does not say"),
    ("Template matches", {"template_data": "other"}, "other"),
    ("Template matches", {"template_base": None}, "does not say"),
    ("Mask trains answers", {"mask_ratio": 0.0}, "no token"),
    ("Mask trains answers", {"mask_ratio": 1.0}, "every token"),
    ("Mask trains answers", {"mask_ratio": float("nan")}, "no token"),
    ("Output name free", {"output_problem": "the number 5 was used"}, "number 5"),
    ("Memory", {"memory_needed": 61}, "may be used here"),
    ("Memory", {"memory_needed": 56}, "free now"),
    ("Memory", {"memory_needed": None}, "not known"),
    ("Memory", {"memory_allowed": None}, "not known"),
    ("Memory", {"memory_free": None}, "not known"),
]


def judged(**changes: Any) -> Verdict:
    return preflight(dataclasses.replace(GOOD, **changes))


def test_sound_facts_pass_every_check_of_the_seed_and_of_the_design() -> None:
    verdict = judged()
    assert verdict.ok and verdict.reason == "" and not verdict.environment_only
    assert [check.name for check in verdict.checks][:7] == [
        "Data verified", "Base model exists", "No duplicates", "Examples fit", "Disk space", "Device available",
        "Previous training finished"]  # fmt: skip
    assert len(verdict.checks) == 13 and all(check.detail for check in verdict.checks)


@pytest.mark.parametrize("name, changes, detail", REFUSALS)
def test_each_fault_is_refused_alone_with_what_to_do(name: str, changes: dict[str, Any], detail: str) -> None:
    verdict = judged(**changes)
    assert not verdict.ok and [check.name for check in verdict.failures] == [name]
    assert detail in verdict.failures[0].detail and verdict.failures[0].remedy
    assert verdict.reason.startswith(f"{name}: ") and verdict.failures[0].remedy in verdict.reason


def test_every_check_can_refuse() -> None:
    assert {check.name for check in judged().checks} == {name for name, _changes, _detail in REFUSALS}


def test_only_disk_device_memory_and_a_running_job_are_the_machine_s_fault() -> None:
    environment = {name for name, changes, _detail in REFUSALS if judged(**changes).environment_only}
    assert environment == {"Disk space", "Device available", "Previous training finished", "Memory"}
    assert not judged(free_bytes=0, examples_new=0).environment_only, "a fault of the data is not retried for ever"


def test_every_fault_is_told_at_once() -> None:
    verdict = judged(free_bytes=0, examples_new=0, base_intact=False)
    assert [check.name for check in verdict.failures] == ["Base model exists", "No duplicates", "Disk space"]


@pytest.mark.parametrize("fault", [{"base_intact": False}, {"base_present": False}])
def test_what_a_damaged_base_cannot_tell_is_not_called_the_disk_s_or_the_memory_s_fault(fault: dict[str, Any]) -> None:
    verdict = judged(**fault, needed_bytes=None, memory_needed=None)
    assert [check.name for check in verdict.failures] == ["Base model exists"] and not verdict.environment_only
    free = judged(**fault, needed_bytes=60, free_bytes=None)
    assert "Disk space" in [check.name for check in free.failures], "a disk that cannot be asked is still a fault"


def test_room_to_the_last_byte_is_enough() -> None:
    assert judged(free_bytes=100, needed_bytes=60, reserve_bytes=40).ok
    assert not judged(free_bytes=100, needed_bytes=60, reserve_bytes=41).ok


def test_a_full_vault_is_told_and_refuses_nothing() -> None:
    for free, needed, warned in ((10, 11, True), (10, 10, True), (11, 10, False), (None, 10, False), (10, None, False)):
        verdict = judged(vault_free_bytes=free, vault_needed_bytes=needed)
        check = next(check for check in verdict.checks if check.name == "Disk space")
        assert verdict.ok and check.warning == warned and ("its backup is held" in check.detail) == warned
    assert not judged(vault_free_bytes=0, vault_needed_bytes=1, free_bytes=0).ok


@pytest.mark.parametrize("ratio, ok, warned", [(0.0999, True, True), (0.10, True, False), (0.999, True, False)])
def test_few_answer_tokens_are_a_warning(ratio: float, ok: bool, warned: bool) -> None:
    check = next(check for check in judged(mask_ratio=ratio).checks if check.name == "Mask trains answers")
    assert (check.ok, check.warning) == (ok, warned)
    assert not warned or check.detail.startswith("Mask ratio too low (10.0%)")


def test_plain_text_has_no_mask_and_unprepared_data_none_yet() -> None:
    plain = next(check for check in judged(mask_needed=False, mask_ratio=1.0).checks if check.name == "Mask trains answers")
    assert plain.ok is None and judged(mask_needed=False, mask_ratio=1.0).ok
    assert judged(mask_ratio=None, tokenizer_data=None, template_data=None).ok


def test_some_too_long_examples_are_a_warning() -> None:
    check = next(check for check in judged(examples_too_long=2).checks if check.name == "Examples fit")
    assert check.ok and check.warning and "2 are too long" in check.detail


# --- the shape of every verdict -----------------------------------------------------------------------------------


def test_a_question_that_raises_is_a_refusal_naming_the_error() -> None:
    def broken() -> Check:
        raise ZeroDivisionError("division by zero")

    check = guarded("thing", broken)
    assert check.ok is False and "ZeroDivisionError: division by zero" in check.detail and check.remedy
    verdict = verdict_of([("thing", broken), ("other", lambda: Check("other", True, "fine"))])
    assert not verdict.ok and len(verdict.checks) == 2


def test_no_question_at_all_is_no_yes() -> None:
    assert not verdict_of([]).ok


def test_not_applicable_is_told_and_is_no_refusal() -> None:
    verdict = verdict_of([("a", lambda: Check("a", None, "too few")), ("b", lambda: Check("b", True, "fine"))])
    assert verdict.ok and verdict.as_list()[0] == {
        "name": "a", "ok": None, "detail": "too few", "remedy": "", "environment": False, "warning": False}  # fmt: skip


def test_a_file_of_which_only_what_is_too_long_is_left_is_passed_over_and_not_parked() -> None:
    first = judged(examples_new=0, examples_too_long=174)
    assert [check.name for check in first.failures] == ["Examples fit"]
    again = judged(examples_new=0, examples_too_long=174, examples_known=110)
    assert [check.name for check in again.failures] == ["No duplicates"]
    assert "the other 174 examples are too long" in again.reason
