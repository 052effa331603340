"""The runner on a toy daemon: what becomes of a job when proof, gate, child, machine or a person says something else.

Crashes of the daemon itself are in `test_daemon_crash.py`; the verdicts of the guards are in their own files.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runner_help import Deaths, ask, last_job, learnt_of, run_until, state, tip, trainable_rows
from toy import Toy, chat_of, text_of
from toy_fixtures import _begin, _no_syncing, _template, _toy  # noqa: F401 - fixtures

from daemon import endings, freezing, runner, schedule
from guard.errors import CheckFailed
from guard.steps import advance
from guard.store import learnt
from guard.store.jobs import find_job
from guard.store.versions import ancestors, find_version

BASE = "v001_baseline"


# --- the ordinary way ---------------------------------------------------------------------------------------------


def test_a_drop_becomes_a_version_that_learnt_exactly_what_is_not_held_out(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(60))
    toy.settle()
    assert toy.versions() == {BASE: "sealed", "v002_a": "sealed"} and tip(toy) == "v002_a"
    wanted = trainable_rows(toy, "a.jsonl")
    assert 40 < wanted < 60 and learnt_of(toy, "v002_a") == {"a.jsonl": wanted}
    record = json.loads((toy.home.models / "v002_a" / "version.json").read_text())
    assert record["id"] == 2 and record["parent"] == BASE and record["data"][0]["examples"] == wanted
    assert record["skipped"]["held_out"] == 60 - wanted
    assert toy.keeper.ledger.meta("version_high_water") == "2"


def test_two_kinds_make_two_versions_each_on_the_tip_before(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.drop("pretrain/b.txt", text_of(1500))
    toy.settle()
    ledger = toy.keeper.ledger
    newest = find_version(ledger, tip(toy))
    assert newest.id == 3 and ancestors(ledger, 3) == [3, 2, 1]
    assert {find_version(ledger, f"v{number:03d}").record["stage"] for number in (2, 3)} == {"sft", "pretrain"}


# --- proof and gate -----------------------------------------------------------------------------------------------


def change_file(job: dict[str, Any], result: dict[str, Any]) -> None:
    (Path(job["staging"]) / "out" / "model.safetensors").write_bytes(b"other bytes")


SPOILS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "0 executed": lambda job, result: result.update(steps_executed=0),
    "examples": lambda job, result: result.update(consumed_sha256="0" * 64),
    "KeyError": lambda job, result: result.pop("parent_weights_sha256"),
    "not as the child wrote them": change_file,
}


@pytest.mark.parametrize("reason", SPOILS)
def test_without_proof_nothing_is_published_and_the_data_stays_trainable(toy: Toy, reason: str) -> None:
    toy.server.spoil = lambda job, result: SPOILS[reason](job, result) if job["task"] == "train" else None
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    number, found, why = last_job(toy)
    assert found == "failed" and "no proof of training" in why and reason in why
    assert toy.versions() == {BASE: "sealed"} and tip(toy) == BASE
    assert toy.keeper.ledger.rows("SELECT * FROM learnt") == [] and number in toy.engine.troubled
    toy.server.spoil = lambda job, result: None
    assert ask(toy, "queue.retry", job=number) == {"job": number, "state": "queued", "paused": False}
    toy.settle()
    assert state(toy, number) == "done"
    assert list(learnt_of(toy, tip(toy)).values()) == [trainable_rows(toy, "a.jsonl")]


def test_a_file_whose_job_failed_trains_when_it_is_dropped_again(toy: Toy) -> None:
    Deaths(toy, (1, 0, {"fault": "data", "message": "row 3 cannot be encoded"}))
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert last_job(toy)[1:] == ("failed", "row 3 cannot be encoded")
    toy.drop("again.jsonl", chat_of(30))
    toy.settle()
    assert toy.drops()[-1][1] == "admitted" and last_job(toy)[1] == "done"


def bad_gate(job: dict[str, Any], result: dict[str, Any]) -> None:
    for row in result.get("evaluation", ()):
        row["child_loss"] = row["parent_loss"] + 1


def test_a_child_that_fails_the_gate_is_kept_but_never_the_tip(toy: Toy) -> None:
    toy.server.spoil = bad_gate
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    number, found, why = last_job(toy)
    assert found == "quarantined" and "did not fall" in why and number in toy.engine.troubled
    assert toy.versions() == {BASE: "sealed", "v002_a": "quarantined"} and tip(toy) == BASE
    record = json.loads((toy.home.models / "v002_a" / "version.json").read_text())
    assert record["gate"]["verdict"] == "failed" and not (toy.home.models / "v002_a").stat().st_mode & 0o222
    toy.server.spoil = lambda job, result: None
    toy.settle()
    assert len(toy.jobs()) == 2, "a quarantine re-queues nothing by itself"
    toy.drop("b.jsonl", chat_of(30, seed=2))
    toy.settle()
    assert find_version(toy.keeper.ledger, tip(toy)).record["parent"] == BASE


def test_the_data_of_a_quarantined_child_trains_when_a_person_asks(toy: Toy) -> None:
    toy.server.spoil = bad_gate
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    toy.server.spoil = lambda job, result: None
    old = last_job(toy)[0]
    assert ask(toy, "queue.retry", job=old)["job"] == old + 1
    with pytest.raises(CheckFailed, match=f"in job {old + 1} .queued. already"):
        ask(toy, "queue.retry", job=old)  # pressed twice: the same bytes would be trained twice
    toy.settle()
    assert state(toy, old) == "quarantined" and tip(toy) == "v003_a"
    assert learnt_of(toy, "v003_a") == learnt_of(toy, "v002_a")


def test_a_gate_that_only_warns_lets_the_child_pass_and_says_so(begin: Callable[..., Toy]) -> None:
    toy = begin(gate="warn")
    toy.server.spoil = bad_gate
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert tip(toy) == "v002_a"
    assert find_version(toy.keeper.ledger, "v002_a").record["gate"]["verdict"] == "failed (warn)"


@pytest.mark.parametrize("missing", ["evaluation", "generation", "wall_seconds"])
def test_a_result_with_a_hole_in_it_publishes_nothing_and_the_daemon_lives(toy: Toy, missing: str) -> None:
    toy.server.spoil = lambda job, result: result.pop(missing, None)
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert last_job(toy)[1] == "failed" and missing in last_job(toy)[2]
    assert tip(toy) == BASE and toy.versions() == {BASE: "sealed"}


# --- deaths and the machine ---------------------------------------------------------------------------------------


def test_a_child_that_dies_without_progress_has_three_chances(toy: Toy) -> None:
    Deaths(toy, (-11, 0, None), (-9, 0, None), (-11, 0, None))
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    number, found, why = last_job(toy)
    assert found == "failed" and "status -11 (3 times without progress)" in why
    assert find_job(toy.keeper.ledger, number).attempts == 3 and toy.versions() == {BASE: "sealed"}


def test_a_child_killed_again_and_again_is_held_and_its_data_is_not_blamed(toy: Toy) -> None:
    Deaths(toy, *((-9, 0, None) for _ in range(3)))
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert last_job(toy)[1] == "held"
    toy.clock.advance(300)
    toy.settle()
    assert tip(toy) == "v002_a"


def test_a_child_that_dies_with_progress_each_time_is_never_given_up(toy: Toy) -> None:
    Deaths(toy, *((-9, step, None) for step in range(1, 8)))
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    number, found, _why = last_job(toy)
    assert found == "done" and find_job(toy.keeper.ledger, number).progress == 7


def test_a_death_together_with_the_daemon_costs_no_attempt(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    for _ in range(4):
        number = run_until(toy, "training")
        toy.again()
        assert find_job(toy.keeper.ledger, number).attempts == 0
    toy.settle()
    assert tip(toy) == "v002_a" and list(toy.versions()) == [BASE, "v002_a"]


def test_an_environment_fault_holds_the_job_and_it_goes_on_by_itself(toy: Toy) -> None:
    Deaths(toy, *((1, 0, {"fault": "environment", "message": "no space left on device"}),) * 4)
    toy.drop("a.jsonl", chat_of(30))
    for _ in range(30):
        toy.step()
    number, found, why = last_job(toy)
    assert (found, why) == ("held", "no space left on device") and number in toy.engine.troubled
    toy.drop("b.jsonl", chat_of(30, seed=2))
    for _ in range(10):
        toy.step()
    assert last_job(toy)[1] == "queued", "its line waits for the held one"
    for _ in range(4):
        toy.clock.advance(endings.HOLD_SECONDS + 1)
        toy.settle()
    assert state(toy, number) == "done" and find_job(toy.keeper.ledger, number).attempts == 0
    assert tip(toy) == "v003_b" and toy.drops()[0][1] == "admitted"


def test_a_full_disk_while_the_job_is_begun_holds_it(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(freezing, "write_known_steps", full)
        toy.drop("a.jsonl", chat_of(30))
        for _ in range(20):
            toy.step()
        assert last_job(toy)[1] == "held" and "No space left" in last_job(toy)[2]
    toy.clock.advance(endings.HOLD_SECONDS + 1)
    toy.settle()
    assert last_job(toy)[1] == "done"


def test_too_little_room_is_told_before_anything_is_begun(begin: Callable[..., Toy]) -> None:
    toy = begin(disk__reserve_gb=10**9)
    toy.drop("a.jsonl", chat_of(30))
    for _ in range(20):
        toy.step()
    assert last_job(toy)[1] == "held" and "Disk space" in last_job(toy)[2]


# --- batches ------------------------------------------------------------------------------------------------------


def test_thirty_two_waiting_files_are_trained_as_one_version(toy: Toy) -> None:
    ask(toy, "queue.pause")
    for number in range(32):
        toy.drop(f"f{number}.jsonl", chat_of(3, seed=number * 100))
    toy.settle()
    ask(toy, "queue.resume")
    toy.settle()
    states = [row[2] for row in toy.jobs()[1:]]
    assert states.count("done") == 1 and states.count("cancelled") == 31
    assert len(toy.versions()) == 2 and tip(toy).endswith("_and_31_more")
    learnt = learnt_of(toy, tip(toy))
    assert len(learnt) == 32 and all(learnt[name] == trainable_rows(toy, name) for name in learnt)


@pytest.mark.parametrize(("limit", "value", "batches"), [("MOST_FILES", 4, [4, 4, 1]), ("MOST_EXAMPLES", 25, [3, 3, 3])])
def test_a_batch_holds_no_more_than_it_may_and_the_rest_comes_after_it(
    begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch, limit: str, value: int, batches: list[int]
) -> None:
    monkeypatch.setattr(schedule, limit, value)
    toy = begin(coalesce__after=3)
    ask(toy, "queue.pause")
    for number in range(9):
        toy.drop(f"f{number}.jsonl", chat_of(8, seed=number * 100))
    toy.settle()
    ask(toy, "queue.resume")
    toy.settle()
    assert [len(learnt_of(toy, name)) for name in list(toy.versions())[1:]] == batches


def test_what_was_learnt_of_large_files_is_written_down_in_slices_while_others_are_served(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learnt, "_FILES_AT_ONCE", 1)
    # Every look at the clock is later than a slice: one step of a generator in every round.
    monkeypatch.setattr(runner, "advance", lambda steps, clock: advance(steps, clock, -1.0))
    toy.drop("a.jsonl", chat_of(60))
    rounds, served = 0, []
    toy.until(lambda: toy.engine.runner.judging is not None)
    while toy.jobs()[-1][2] != "done":
        staging = toy.home.staging_of(toy.jobs()[-1][0])
        if staging.is_dir() and not (staging / "known.fp").exists():
            served.append(ask(toy, "queue.pause")["paused"] and ask(toy, "queue.resume")["paused"] is False)
        toy.step()
        rounds += 1
        assert rounds < 200
    assert served and all(served)
    toy.settle()
    assert toy.jobs()[-1][2] == "done"


def test_a_job_that_is_cancelled_while_its_list_is_written_leaves_nothing(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "advance", lambda steps, clock: advance(steps, clock, -1.0))
    toy.drop("a.jsonl", chat_of(60))
    toy.until(lambda: any(toy.home.staging.iterdir()))
    assert toy.jobs()[-1][2] == "queued"
    ask(toy, "queue.cancel", job=toy.jobs()[-1][0])
    toy.settle()
    assert toy.jobs()[-1][2] == "cancelled" and list(toy.home.staging.iterdir()) == [] and len(toy.versions()) == 1


def test_fewer_files_and_files_somebody_planned_are_trained_one_by_one(begin: Callable[..., Toy]) -> None:
    toy = begin(coalesce__after=3)
    ask(toy, "queue.pause")
    for number in range(2):
        toy.drop(f"f{number}.jsonl", chat_of(8, seed=number * 100))
    toy.drop("pretrain/t.txt", text_of(600))
    toy.settle()
    ask(toy, "queue.resume")
    toy.settle()
    assert len(toy.versions()) == 4


def test_a_failed_batch_is_split_before_any_file_is_blamed(begin: Callable[..., Toy]) -> None:
    toy = begin(coalesce__after=3)

    def spoil(job: dict[str, Any], result: dict[str, Any]) -> None:
        if job["task"] == "train" and any(item["name"] == "bad.jsonl" for item in job["files"]):
            result["finite"] = False

    toy.server.spoil = spoil
    ask(toy, "queue.pause")
    for place, name in enumerate(("good one (1).jsonl", "bad.jsonl", "\U0001f600\n.jsonl")):
        toy.drop(name, chat_of(12, seed=place * 100))
    toy.settle()
    ask(toy, "queue.resume")
    toy.settle()
    batch, *singles = [row for row in toy.jobs()[1:] if "trained together" not in row[3]]
    assert batch[2] == "cancelled" and "split into single files" in batch[3]
    assert sorted(row[2] for row in singles) == ["done", "done", "failed"]
    names = list(toy.versions())
    assert len(names) == 3 and names[1].isascii() and " " not in names[1] and "\n" not in names[2]
    failed = next(row[0] for row in singles if row[2] == "failed")
    sha256 = find_job(toy.keeper.ledger, failed).files[0]
    assert toy.keeper.ledger.value("SELECT name FROM files WHERE sha256 = ?", (sha256,)) == "bad.jsonl"
