"""The runner on a toy daemon: what becomes of a job when proof, gate, child, machine or a person says something else.

Crashes of the daemon itself are in `test_daemon_crash.py`; the verdicts of the guards are in their own files.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import read_sidecar
from toy import Toy, chat_of, text_of

from daemon import publish, runner
from daemon.operations import perform
from daemon.report import compose
from guard import durable
from guard.bitmap import unpack_bitmap
from guard.clock import utc_text
from guard.errors import CheckFailed, NotFound, Protected, UsageError
from guard.store.jobs import find_job
from guard.store.learnt import judge_novelty
from guard.store.versions import ancestors, find_version, line_tip

BASE = "v001_baseline"


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    """A home with its base, from which every test starts."""
    root = shared_scratch / "runner-template"
    Toy(root).make_base().die()
    return root


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


@pytest.fixture
def begin(template: Path, scratch: Path) -> Iterator[Callable[..., Toy]]:
    """Starts toys with settings, and ends them."""
    lives: list[Toy] = []

    def start(**settings: object) -> Toy:
        root = scratch / f"home{len(lives)}"
        subprocess.run(["cp", "-a", "--", template, root], check=True)
        lives.append(Toy(root, backup__auto=False, **settings))
        return lives[-1]

    yield start
    for toy in lives:
        toy.die()


@pytest.fixture
def toy(begin: Callable[..., Toy]) -> Toy:
    return begin()


def tip(toy: Toy, line: str = "policy") -> str:
    version = line_tip(toy.keeper.ledger, line)
    assert version is not None
    return version.name


def state(toy: Toy, number: int) -> str:
    return find_job(toy.keeper.ledger, number).state


def last_job(toy: Toy) -> tuple[int, str, str]:
    number, _kind, found, reason = toy.jobs()[-1]
    return number, found, reason


def run_until(toy: Toy, wanted: str) -> int:
    """Rounds until a job is in that state with its child still running; returns the job."""
    for _ in range(60):
        toy.clock.advance(0.5)
        toy.engine.loop(toy.clock.monotonic())
        current = toy.engine.runner.current
        if current is not None and state(toy, current) == wanted:
            return current
        toy.server.deliver()
    raise AssertionError(f"no job came to {wanted}: {toy.jobs()}")


def ask(toy: Toy, operation: str, **arguments: object) -> dict[str, Any]:
    return perform(toy.engine, operation, arguments)


def learnt_of(toy: Toy, name: str) -> dict[str, int]:
    """What a version itself learnt: examples by file name."""
    rows = toy.keeper.ledger.rows("SELECT f.name, l.count, l.bitmap FROM learnt l JOIN files f USING (sha256) "
                                  "JOIN versions v ON v.id = l.version_id WHERE v.name = ?", (name,))  # fmt: skip
    assert all(len(list(unpack_bitmap(row["bitmap"]))) == row["count"] for row in rows)
    return {row["name"]: row["count"] for row in rows}


def trainable_rows(toy: Toy, name: str) -> int:
    """Examples of a stored file that are not held out."""
    sha256 = toy.keeper.ledger.value("SELECT sha256 FROM files WHERE name = ?", (name,))
    return judge_novelty(toy.keeper, read_sidecar(toy.home.files / sha256), None, "sft").new


class Deaths:
    """A server whose training children die as they are told: (status, step they had reached, their last words)."""

    def __init__(self, toy: Toy, *deaths: tuple[int, int, dict[str, str] | None]) -> None:
        self.toy, self.left, self.really = toy, list(deaths), toy.server.spawn
        toy.server.spawn = self.spawn  # type: ignore[assignment, method-assign]

    def spawn(self, job: int, folder: Path, *more: Any) -> None:
        request = json.loads((folder / "job.json").read_text("utf-8"))
        if request["task"] != "train" or not self.left:
            self.really(job, folder, *more)
            return
        status, step, words = self.left.pop(0)
        (folder / "progress.json").write_text(json.dumps({"step": step}))
        if words:
            (folder / "error.json").write_text(json.dumps(words))
        self.toy.server.finished.append((job, status))


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
        toy.clock.advance(runner.HOLD_SECONDS + 1)
        toy.settle()
    assert state(toy, number) == "done" and find_job(toy.keeper.ledger, number).attempts == 0
    assert tip(toy) == "v003_b" and toy.drops()[0][1] == "admitted"


def test_a_full_disk_while_the_job_is_begun_holds_it(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_known", full)
        toy.drop("a.jsonl", chat_of(30))
        for _ in range(20):
            toy.step()
        assert last_job(toy)[1] == "held" and "No space left" in last_job(toy)[2]
    toy.clock.advance(runner.HOLD_SECONDS + 1)
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


# --- what a person asks -------------------------------------------------------------------------------------------


def test_a_paused_job_goes_on_after_resume(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    number = run_until(toy, "training")
    assert ask(toy, "queue.pause")["paused"] is True
    toy.settle()
    assert state(toy, number) == "training" and toy.engine.runner.current is None
    toy.again().settle()
    assert state(toy, number) == "training", "a pause outlives the daemon"
    ask(toy, "queue.resume")
    toy.settle()
    assert state(toy, number) == "done" and tip(toy) == "v002_a"


def test_a_cancelled_running_job_leaves_nothing_behind(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    number = run_until(toy, "training")
    ask(toy, "queue.cancel", job=number)
    ask(toy, "queue.pause")  # a pause in the same moment must not take the cancellation back
    ask(toy, "queue.resume")
    toy.settle()
    assert state(toy, number) == "cancelled" and toy.versions() == {BASE: "sealed"}
    assert list(toy.home.staging.iterdir()) == []
    toy.drop("again.jsonl", chat_of(30))
    toy.settle()
    assert tip(toy) == "v003_again", "the cancelled job's number is not given again, its data is"


def test_a_cancellation_that_was_acknowledged_outlives_the_daemon(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    number = run_until(toy, "training")
    assert ask(toy, "queue.cancel", job=number)["state"] == "cancelled"
    toy.again().settle()
    assert state(toy, number) == "cancelled" and toy.versions() == {BASE: "sealed"}
    assert list(toy.home.staging.iterdir()) == []


def test_a_queued_job_is_cancelled_at_once_and_a_finished_one_cannot_be(toy: Toy) -> None:
    ask(toy, "queue.pause")
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    number = last_job(toy)[0]
    assert ask(toy, "queue.cancel", job=number)["state"] == "cancelled"
    for job, refusal in ((number, CheckFailed), (1, CheckFailed), (99, NotFound)):
        with pytest.raises(refusal):
            ask(toy, "queue.cancel", job=job)
    with pytest.raises(CheckFailed):
        ask(toy, "queue.retry", job=1)


def test_a_moved_job_runs_at_its_new_place(toy: Toy) -> None:
    ask(toy, "queue.pause")
    for place, name in enumerate("abc"):
        toy.drop(f"{name}.jsonl", chat_of(8, seed=place * 50))
    toy.settle()
    assert ask(toy, "queue.move", job=4, to=1)["state"] == "queued"
    ask(toy, "queue.resume")
    toy.settle()
    assert list(toy.versions()) == [BASE, "v002_c", "v003_a", "v004_b"]
    with pytest.raises(CheckFailed):
        ask(toy, "queue.move", job=4, to=1)


def test_places_are_counted_from_one(toy: Toy) -> None:
    ask(toy, "queue.pause")
    toy.drop("a.jsonl", chat_of(8))
    toy.settle()
    with pytest.raises(UsageError):
        ask(toy, "queue.move", job=last_job(toy)[0], to=0)


def test_an_unknown_operation_is_refused(toy: Toy) -> None:
    with pytest.raises(UsageError):
        ask(toy, "queue.explode")


def test_rolling_back_under_a_running_job_parks_it_and_queues_nothing(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    toy.drop("b.jsonl", chat_of(30, seed=2))
    number = run_until(toy, "training")
    done = ask(toy, "rollback", version=BASE)
    assert done["parked_job"] == number and done["changed"]
    toy.settle()
    assert state(toy, number) == "parked" and tip(toy) == BASE and len(toy.jobs()) == 3
    assert toy.home.staging_of(number).is_dir(), "its snapshots are kept for whoever retries it"
    ask(toy, "queue.retry", job=number)
    toy.settle()
    child = find_version(toy.keeper.ledger, "v003_b")
    assert child.record["parent"] == "v002_a" and child.line == "b", "it is never rebased, and moves no other line's tip"
    assert tip(toy) == BASE and tip(toy, "b") == "v003_b"


def test_a_failed_job_queued_again_is_not_taken_for_one_under_way(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    Deaths(toy, (1, 0, {"fault": "data", "message": "no"}))
    toy.drop("b.jsonl", chat_of(30, seed=2))
    toy.settle()
    number = last_job(toy)[0]
    ask(toy, "queue.pause")
    ask(toy, "queue.retry", job=number)
    ask(toy, "rollback", version=BASE)
    assert state(toy, number) == "queued", "it starts afresh from whatever the tip is then"


def test_a_retried_job_starts_in_a_clean_folder(toy: Toy) -> None:
    Deaths(toy, (1, 0, {"fault": "data", "message": "no"}))
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    number = last_job(toy)[0]
    left = toy.home.staging_of(number) / "snapshots"
    left.mkdir()
    (left / "of-another-plan").write_text("old")
    ask(toy, "queue.retry", job=number)
    run_until(toy, "training")
    assert not left.exists()


# --- plans, lines and numbers -------------------------------------------------------------------------------------


def plan(toy: Toy, base: str, name: str, output: str, **more: object) -> dict[str, Any]:
    """Plan a file that is registered and not queued."""
    return ask(toy, "plan", base=base, files=[name], output=output, **more)


def register(toy: Toy, name: str, content: str) -> None:
    path = toy.home.root.parent / name
    path.write_text(content)
    ask(toy, "register", paths=[str(path)])
    toy.settle()
    assert toy.drops()[-1][:2] == (name, "registered")


def test_a_plan_on_a_base_that_is_not_the_tip_gets_a_line_of_its_own(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    register(toy, "b.jsonl", chat_of(30, seed=2))
    assert plan(toy, BASE, "b.jsonl", "side", dry_run=True)["line"] == "side"
    assert plan(toy, "v002", "b.jsonl", "x", dry_run=True)["line"] == "policy"
    planned = plan(toy, BASE, "b.jsonl", "side")
    assert planned["ok"] and planned["line"] == "side" and planned["job"]
    toy.settle()
    assert tip(toy) == "v002_a" and tip(toy, "side") == "v003_side"
    assert find_version(toy.keeper.ledger, "v003_side").record["parent"] == BASE


def test_two_plans_on_one_tip_never_jump_over_each_other(toy: Toy) -> None:
    register(toy, "a.jsonl", chat_of(30))
    register(toy, "b.jsonl", chat_of(30, seed=2))
    ask(toy, "queue.pause")
    for name in "ab":
        assert plan(toy, BASE, f"{name}.jsonl", name)["line"] == "policy"
    ask(toy, "queue.resume")
    toy.settle()
    assert tip(toy) == "v002_a" and tip(toy, "b") == "v003_b"
    assert find_version(toy.keeper.ledger, "v003_b").record["parent"] == BASE


def test_a_wanted_number_that_was_taken_meanwhile_parks_the_job(toy: Toy) -> None:
    register(toy, "a.jsonl", chat_of(30))
    register(toy, "b.jsonl", chat_of(30, seed=2))
    ask(toy, "queue.pause")
    plan(toy, BASE, "a.jsonl", "first")
    wanting = plan(toy, BASE, "b.jsonl", "v002_second")["job"]
    ask(toy, "queue.resume")
    toy.settle()
    assert list(toy.versions()) == [BASE, "v002_first"]
    assert state(toy, wanting) == "parked" and "number 2" in find_job(toy.keeper.ledger, wanting).reason


def test_a_wanted_number_that_is_free_is_given_and_the_next_lies_above_it(toy: Toy) -> None:
    register(toy, "a.jsonl", chat_of(30))
    assert plan(toy, BASE, "a.jsonl", "v007_seven")["job"]
    toy.settle()
    toy.drop("b.jsonl", chat_of(30, seed=2))
    toy.settle()
    assert list(toy.versions()) == [BASE, "v007_seven", "v008_b"]
    refused = plan(toy, "v008", "a.jsonl", "v005_below", allow_repeat=True)
    assert not refused["ok"] and refused["job"] is None
    assert [check["name"] for check in refused["checks"] if check["ok"] is False] == ["Output name free"]


def test_a_base_that_went_bad_stops_the_job_and_is_named(toy: Toy) -> None:
    weights = toy.home.models / BASE / "model.safetensors"
    weights.chmod(0o644)
    with weights.open("r+b") as handle:
        handle.write(b"\0")
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    number, found, why = last_job(toy)
    assert found == "parked" and f"{BASE} is damaged" in why and "model.safetensors" in why
    assert toy.versions() == {BASE: "sealed"} and toy.home.staging_of(number).exists() is False


def test_a_line_without_a_version_parks_the_job(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    ask(toy, "queue.pause")
    toy.settle()
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE jobs SET line = 'nowhere' WHERE id = ?", (last_job(toy)[0],))
    ask(toy, "queue.resume")
    toy.settle()
    assert last_job(toy)[1] == "parked" and "nowhere has no version yet" in last_job(toy)[2]


# --- the same data again ------------------------------------------------------------------------------------------


def test_the_same_bytes_under_another_name_come_back_as_a_duplicate(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    toy.drop("sft/other.jsonl", chat_of(30))
    toy.settle()
    name, found, why = toy.drops()[-1]
    assert (name, found) == ("other.jsonl", "duplicate") and "trained in v002_a" in why
    assert (toy.home.duplicates / "other.jsonl").read_text() == chat_of(30)
    assert "v002_a" in (toy.home.duplicates / "other.jsonl.why.txt").read_text()
    assert len(toy.versions()) == 2


def test_the_same_examples_in_another_dress_are_nothing_new(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    rows = [json.loads(line) for line in reversed(chat_of(30).splitlines())]
    toy.drop("dressed.jsonl", "".join(json.dumps({"source": "web", **row}, indent=None, separators=(" ,", " : ")) + "\r\n"
                                      for row in rows))  # fmt: skip
    toy.settle()
    assert toy.drops()[-1][1:] == ("duplicate", "nothing new for policy: every example in it was learnt from other files")
    assert len(toy.versions()) == 2


def test_a_queued_file_whose_examples_were_learnt_meanwhile_is_let_go_and_bothers_nobody(toy: Toy) -> None:
    ask(toy, "queue.pause")
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    toy.drop("b.jsonl", "".join(reversed(chat_of(30).splitlines(keepends=True))))
    toy.settle()
    assert toy.drops()[-1][1] == "admitted", "nothing of it is learnt yet"
    ask(toy, "queue.resume")
    toy.settle()
    number, found, why = last_job(toy)
    assert found == "cancelled" and "learnt all of it already" in why and number not in toy.engine.troubled
    assert len(toy.versions()) == 2 and not toy.home.staging_of(number).exists()


def test_of_a_file_that_is_mostly_known_only_the_rest_is_trained_and_repeats_once(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(60))
    toy.settle()
    known = trainable_rows(toy, "a.jsonl")
    toy.drop("b.jsonl", chat_of(60) + chat_of(8, seed=1000) * 3)
    toy.settle()
    record = find_version(toy.keeper.ledger, "v003_b").record
    new = trainable_rows(toy, "b.jsonl") - known
    assert 0 < new <= 8 and learnt_of(toy, "v003_b") == {"b.jsonl": new}
    assert record["skipped"]["known"] == known and record["skipped"]["repeated"] == 2 * new
    assert toy.drops()[-1][2] == f"{new} new examples, {known} were learnt before"


def test_rolled_back_data_trains_again_from_the_older_parent_when_it_is_dropped(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    again = ask(toy, "rollback", version=BASE)["trainable_again"]
    assert [(row["file"], row["examples"]) for row in again] == [("a.jsonl", trainable_rows(toy, "a.jsonl"))]
    toy.settle()
    assert len(toy.versions()) == 2, "a rollback re-queues nothing"
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert tip(toy) == "v003_a" and learnt_of(toy, "v003_a") == learnt_of(toy, "v002_a")
    assert find_version(toy.keeper.ledger, "v003_a").record["parent"] == BASE


def test_an_original_that_rotted_blocks_training_and_is_named(toy: Toy) -> None:
    ask(toy, "queue.pause")
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    stored = next(toy.home.files.glob("*/a.jsonl"))
    os.chmod(stored, 0o644)
    data = bytearray(stored.read_bytes())
    data[100] ^= 1
    stored.write_bytes(data)
    ask(toy, "queue.resume")
    toy.settle()
    _number, found, why = last_job(toy)
    assert found == "parked" and "the stored bytes changed: a.jsonl" in why
    assert toy.versions() == {BASE: "sealed"}


def test_an_original_that_vanished_blocks_training_and_is_named(toy: Toy) -> None:
    ask(toy, "queue.pause")
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    next(toy.home.files.glob("*/a.jsonl")).unlink()
    ask(toy, "queue.resume")
    toy.settle()
    assert last_job(toy)[1] == "parked" and "missing: a.jsonl" in last_job(toy)[2]


def test_a_rejected_file_that_was_fixed_is_admitted_and_its_rejection_remembered(toy: Toy) -> None:
    toy.drop("a.jsonl", '{"messages": 3}\n')
    toy.settle()
    assert toy.drops()[-1][1] == "rejected" and (toy.home.rejected / "a.jsonl.why.txt").exists()
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert [(name, found) for name, found, _why in toy.drops()] == [("a.jsonl", "rejected"), ("a.jsonl", "admitted")]
    assert tip(toy) == "v002_a" and (toy.home.rejected / "a.jsonl").read_text() == '{"messages": 3}\n'


def test_a_type_nobody_can_read_stays_where_it_is_and_says_why(toy: Toy) -> None:
    paths = [toy.drop(name, "x") for name in ("photo.png", "noextension", "preference/p.jsonl", "sft/plain.txt")]
    content = toy.drop("pairs.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    toy.settle()
    assert all(path.exists() for path in paths) and set(paths) <= set(toy.engine.intake.last.ignored)
    assert not content.exists() and toy.drops()[0][:2] == ("pairs.jsonl", "rejected")
    assert "stays where it is" not in (toy.home.rejected / "pairs.jsonl.why.txt").read_text()


# --- a full disk ----------------------------------------------------------------------------------------------------


def _free(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    monkeypatch.setattr("guard.home.Home.free_bytes", lambda _home: int(gigabytes * 1e9))


def test_a_disk_that_falls_below_the_reserve_pauses_training_which_goes_on_by_itself(
    begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = begin()
    plain.drop("a.jsonl", chat_of(60))
    plain.settle()
    toy = begin(disk__reserve_gb=10)
    _free(monkeypatch, 50)
    toy.drop("a.jsonl", chat_of(60))
    job = run_until(toy, "training")
    _free(monkeypatch, 9)
    toy.step()
    found = find_job(toy.keeper.ledger, job)
    assert found.state == "held" and "9.0 GB are free" in found.reason and toy.versions() == {BASE: "sealed"}
    told = compose(toy.keeper, {}, running=True)
    assert told["state"] == "held" and any("so training waits" in item["what"] for item in told["alerts"])
    for _turn in range(200):
        toy.step()
    assert state(toy, job) == "held" and toy.versions() == {BASE: "sealed"}
    _free(monkeypatch, 50)
    toy.step()
    toy.settle()
    assert state(toy, job) == "done" and toy.weights()["v002_a"] == plain.weights()["v002_a"]
    assert not any("so training waits" in item["what"] for item in compose(toy.keeper, {}, running=True)["alerts"])


def test_a_job_without_room_is_not_begun_and_begins_by_itself(begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    toy = begin(disk__reserve_gb=10)
    _free(monkeypatch, 10)
    toy.drop("a.jsonl", chat_of(60))
    toy.settle()
    assert last_job(toy)[1] == "held" and "Disk space" in last_job(toy)[2]
    _free(monkeypatch, 50)
    for _turn in range(80):
        toy.step()
    assert last_job(toy)[1] == "done" and "v002_a" in toy.versions()


def test_a_cancellation_is_not_taken_back_by_a_full_disk(begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    toy = begin(disk__reserve_gb=10)
    _free(monkeypatch, 50)
    toy.drop("a.jsonl", chat_of(60))
    job = run_until(toy, "training")
    ask(toy, "queue.cancel", job=job)
    _free(monkeypatch, 9)
    toy.step()
    assert state(toy, job) == "cancelled"


def test_the_status_says_how_many_forks_are_left_and_when_the_disk_is_full(
    begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = begin(disk__reserve_gb=10)
    _free(monkeypatch, 50)
    assert compose(toy.keeper, {}, running=True)["disk"]["full_on"] is None
    for seed in range(3):
        toy.drop(f"f{seed}.jsonl", chat_of(30, seed))
        toy.settle()
        toy.clock.advance(86400)
    disk = compose(toy.keeper, {}, running=True)["disk"]
    size = toy.keeper.ledger.value("SELECT avg(size_bytes) FROM versions WHERE parent_id IS NOT NULL")
    assert abs(disk["forks_left"] - 40e9 / (2 * size)) <= 1
    rate = toy.keeper.ledger.value("SELECT sum(size_bytes) * 2 FROM versions WHERE id > 2") / (3 * 86400)
    seconds = 40e9 / rate
    assert disk["full_on"] is None or disk["full_on"][:4] == utc_text(toy.clock.seconds + seconds)[:4]
    _free(monkeypatch, 10.001)
    near = compose(toy.keeper, {}, running=True)["disk"]
    assert near["full_on"] and near["full_on"] >= toy.clock.utc()[:10]


# --- what else went into a version --------------------------------------------------------------------------------------


def _with_inputs(monkeypatch: pytest.MonkeyPatch, *inputs: dict[str, str]) -> None:
    real = publish.forked_record
    monkeypatch.setattr(publish, "forked_record", lambda *args, **words: {**real(*args, **words), "inputs": list(inputs)})


def test_every_input_of_a_version_locks_deletion_like_a_parent(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    ask(toy, "rollback", version=BASE)
    _with_inputs(monkeypatch, {"role": "reference", "name": "v002_a"}, {"role": "index", "name": "v001"})
    toy.drop("b.jsonl", chat_of(30, 500))
    toy.settle()
    assert tip(toy) == "v003_b"
    with pytest.raises(Protected, match="v003_b stands on v002_a"):
        ask(toy, "delete", version="v002", force=True)
    told = ask(toy, "delete", version="v002", force=True, confirm_lineage=True, confirm="v002_a")
    assert told["dependants"] == ["v003_b"]


def test_a_version_with_an_input_nobody_knows_is_not_published(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_inputs(monkeypatch, {"role": "reward", "name": "v099_judge"})
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert last_job(toy)[1] == "failed" and "v099_judge" in last_job(toy)[2]
    assert toy.versions() == {BASE: "sealed"} and not (toy.home.models / "v002_a").exists()
