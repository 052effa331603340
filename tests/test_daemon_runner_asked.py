"""The queue in a person's hands: pause, cancel, move, retry, roll back, plans on lines and numbers of their own."""

from __future__ import annotations

from typing import Any

import pytest
from runner_help import Deaths, ask, last_job, run_until, state, tip
from toy import Toy, chat_of
from toy_fixtures import _begin, _no_syncing, _template, _toy  # noqa: F401 - fixtures

from daemon.cli.versions import version_lines
from guard.errors import CheckFailed, NotFound, UsageError
from guard.store.jobs import find_job
from guard.store.versions import find_version

BASE = "v001_baseline"


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


def test_what_was_asked_for_again_is_told_as_trained_again_and_not_as_passed_over(toy: Toy) -> None:
    register(toy, "a.jsonl", chat_of(30))
    for number, again in ((1, False), (2, True)):
        assert plan(toy, f"v{number:03d}", "a.jsonl", f"round_{number}", allow_repeat=again)["job"]
        toy.settle()
    record = find_version(toy.keeper.ledger, "v003").record
    known = record["skipped"]["known"]
    assert known > 20 and record["data"][0]["examples"] == 0
    told = "\n".join(version_lines(record))
    assert f"Trained again, as was asked: {known} examples learnt before" in told
    assert told.count("learnt before") == 1
