"""The data of the next job is tokenised while one trains; what it learns is still decided when it starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runner_help import ask, learnt_of, run_until, state, tip
from toy import Toy, chat_of, text_of
from toy_fixtures import _begin, _no_syncing, _template  # noqa: F401 - fixtures

from daemon import ahead
from daemon.schedule import coming_next
from guard import failpoints
from guard.failpoints import Crash
from guard.store.jobs import find_job
from trainer.prepare_job import run_dataset


@pytest.fixture
def toy(begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    monkeypatch.setattr(ahead, "LEAST_TOKENS", 0)
    yield begin()
    failpoints.disarm()


def two_drops(toy: Toy) -> tuple[int, int]:
    """Two jobs, of which the first is in training; (first, second)."""
    toy.drop("pretrain/a.txt", text_of(1500, seed=1))
    toy.drop("pretrain/b.txt", text_of(1500, seed=2))
    ask(toy, "queue.pause")
    toy.settle()
    ask(toy, "queue.resume")
    first = run_until(toy, "training")
    second = next(number for number, kind, found, _why in toy.jobs() if found == "queued" and kind == "train")
    return first, second


def look(toy: Toy) -> None:
    """A round of the daemon, and no news of any child."""
    toy.clock.advance(ahead.LOOK_SECONDS)
    toy.engine.loop(toy.clock.monotonic())


def shards(toy: Toy) -> set[str]:
    return set(os.listdir(toy.home.shards))


def staged(toy: Toy) -> list[str]:
    return sorted(path.name for path in toy.home.staging.iterdir())


def prepared_of(toy: Toy, number: int) -> dict[str, Any]:
    return find_job(toy.keeper.ledger, number).plan["train"]["prepared"]  # type: ignore[no-any-return]


def test_the_next_jobs_dataset_lies_ready_when_it_starts_and_it_learns_the_same(toy: Toy, begin: Callable[..., Toy]) -> None:
    first, second = two_drops(toy)
    before = shards(toy)
    look(toy)
    assert toy.engine.runner.ahead.job == second and state(toy, first) == "training"
    toy.server.finished.reverse()  # the data is ready before the training ends
    toy.server.deliver()
    made = shards(toy) - before
    assert len(made) == 1 and not any(name.startswith("ahead") for name in staged(toy))
    toy.settle()
    assert state(toy, first) == state(toy, second) == "done"
    prepared = prepared_of(toy, second)
    assert prepared["dataset_made"] is False and {prepared["dataset_id"]} == made
    assert toy.keeper.ledger.meta(f"dataset:{prepared['dataset_id']}"), "noted like any other"

    plain = begin()
    plain.engine.runner.ahead.due = lambda _now: None  # type: ignore[method-assign]
    one, two = two_drops(plain)
    plain.settle()
    assert prepared_of(plain, two)["dataset_made"] is True
    for key in ("dataset_id", "selection_sha256", "consumed_sha256", "learnt"):
        assert prepared_of(plain, two)[key] == prepared[key], key
    assert plain.weights()[tip(plain)] == toy.weights()[tip(toy)] and one == first


def test_what_is_new_is_decided_at_the_start_against_what_was_learnt_meanwhile(toy: Toy) -> None:
    rows = chat_of(40)
    toy.drop("a.jsonl", rows)
    toy.drop("b.jsonl", rows + chat_of(20, seed=9000))
    ask(toy, "queue.pause")
    toy.settle()
    ask(toy, "queue.resume")
    run_until(toy, "training")
    look(toy)
    toy.server.finished.reverse()
    toy.settle()
    assert prepared_of(toy, toy.jobs()[-1][0])["dataset_made"] is False
    learnt = [learnt_of(toy, name) for name in list(toy.versions())[1:]]
    assert learnt[0].keys() == {"a.jsonl"} and learnt[1]["b.jsonl"] <= 20, "the rows of a.jsonl are not learnt twice"


def test_a_job_waits_for_its_own_data_in_the_making_and_not_for_anybody_elses(toy: Toy) -> None:
    first, second = two_drops(toy)
    look(toy)
    late = [item for item in toy.server.finished if item[0] < 0]
    toy.server.finished = [item for item in toy.server.finished if item[0] > 0]
    toy.server.deliver()
    assert state(toy, first) == "done"
    for _ in range(3):
        toy.step()
    assert state(toy, second) == "queued" and toy.engine.runner.busy and not toy.engine.idle
    toy.server.finished = late
    toy.settle()
    assert state(toy, second) == "done" and prepared_of(toy, second)["dataset_made"] is False


def test_a_cancelled_job_stops_the_making_and_leaves_no_staging(toy: Toy) -> None:
    first, second = two_drops(toy)
    look(toy)
    ask(toy, "queue.cancel", job=second)
    look(toy)
    assert dict(toy.server.finished)[-second] == 75, "asked to stop, like a person's own cancellation"
    toy.settle()
    assert state(toy, first) == "done" and staged(toy) == [] and toy.engine.runner.ahead.job is None


def test_a_making_that_fails_costs_the_job_nothing(toy: Toy) -> None:
    _first, second = two_drops(toy)
    look(toy)
    toy.server.finished = [(number, 1 if number < 0 else status) for number, status in toy.server.finished]
    toy.settle()
    assert state(toy, second) == "done" and prepared_of(toy, second)["dataset_made"] is True and staged(toy) == []
    assert find_job(toy.keeper.ledger, second).attempts == 0


def test_a_disk_that_takes_nothing_stops_the_making_and_not_the_daemon(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ahead, "write_json", full)
    first, second = two_drops(toy)
    look(toy)
    assert toy.engine.runner.ahead.job is None and state(toy, first) == "training"
    monkeypatch.undo()
    toy.settle()
    assert state(toy, second) == "done"


def test_data_that_cannot_take_its_place_is_told_and_the_job_makes_it_itself(toy: Toy) -> None:
    _first, second = two_drops(toy)
    look(toy)
    failpoints.arm("prepare.intended", "enospc")
    toy.server.finished.reverse()
    toy.server.deliver()
    failpoints.disarm()
    told = toy.keeper.ledger.rows("SELECT payload FROM events WHERE verb = 'dataset.not_ahead'")
    assert len(told) == 1 and "no space left" in json.loads(told[0][0])["reason"]
    toy.settle()
    assert state(toy, second) == "done"


@pytest.mark.parametrize("point", ["prepare.intended", "prepare.renamed"])
def test_a_death_while_data_takes_its_place_ahead_is_recovered(toy: Toy, point: str) -> None:
    first, second = two_drops(toy)
    look(toy)
    failpoints.arm(point)
    toy.server.finished.reverse()
    with pytest.raises(Crash):
        toy.server.deliver()
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    toy.again()
    assert not any(name.startswith("ahead") for name in staged(toy))
    toy.settle()
    assert state(toy, first) == state(toy, second) == "done"
    assert toy.keeper.ledger.meta(f"dataset:{prepared_of(toy, second)['dataset_id']}") and staged(toy) == []


def test_a_death_while_data_is_being_made_leaves_nothing(toy: Toy) -> None:
    two_drops(toy)
    look(toy)
    assert any(name.startswith("ahead") for name in staged(toy))
    toy.again()
    assert not any(name.startswith("ahead") for name in staged(toy))


def nothing_begun(toy: Toy) -> ahead.Ahead:
    """As if the daemon had not looked at the queue yet."""
    toy.server.finished = [item for item in toy.server.finished if item[0] > 0]
    runner = toy.engine.runner
    runner.ahead = ahead.Ahead(toy.keeper, runner.ends)
    return runner.ahead


@pytest.mark.parametrize("why", ["paused", "no room", "a trifle", ""])
def test_nothing_is_made_ahead_when_paused_below_the_reserve_or_for_a_trifle(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    two_drops(toy)
    made = nothing_begun(toy)
    if why == "paused":
        monkeypatch.setattr(type(toy.engine.runner), "paused", True)
    elif why == "no room":
        monkeypatch.setattr(toy.engine.runner.ends, "short_of_room", lambda: "full")
        monkeypatch.setattr(toy.engine.runner, "_watch_room", lambda _number: None)
    elif why == "a trifle":
        monkeypatch.setattr(ahead, "LEAST_TOKENS", 1 << 40)
    look(toy)
    assert (made.job is None) is bool(why)


def test_what_will_be_a_batch_is_not_guessed(begin: Callable[..., Toy]) -> None:
    toy = begin(coalesce__after=3)
    ask(toy, "queue.pause")
    for number in range(2):
        toy.drop(f"f{number}.jsonl", chat_of(8, seed=number * 100))
    toy.settle()
    coming = coming_next(toy.keeper)
    assert coming is not None and len(coming.files) == 1
    toy.drop("f3.jsonl", chat_of(8, seed=900))
    toy.settle()
    assert coming_next(toy.keeper) is None


def test_the_child_makes_no_dataset_that_is_there(toy: Toy, tmp_path: Path) -> None:
    _first, second = two_drops(toy)
    before = shards(toy)
    look(toy)
    request = json.loads((toy.engine.runner.ahead.staging(second) / "job.json").read_text())
    toy.server.finished.reverse()
    toy.server.deliver()
    told = run_dataset({**request, "staging": str(tmp_path)})
    assert told == {"schema": 1, "dataset_id": (shards(toy) - before).pop(), "dataset_made": False}
    assert os.listdir(tmp_path) == ["dataset.json"]
