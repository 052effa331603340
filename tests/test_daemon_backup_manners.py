"""A backup gives way: to a job that is about to start altogether, to one that trains most of the time, for a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from runner_help import ask, run_until
from toy import Toy, chat_of, text_of
from toy_fixtures import _begin, _no_syncing, _template  # noqa: F401 - fixtures

from daemon import engine


@pytest.fixture
def toy(begin: Callable[..., Toy]) -> Toy:
    return begin(backup__auto=True)


def endless(toy: Toy, slices: list[float], seconds: float = 0.05) -> Iterator[str]:
    """A backup that never ends; each of its steps takes so long."""
    while True:
        slices.append(toy.clock.monotonic())
        toy.clock.advance(seconds)
        yield "a piece"


def with_backup(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slices: list[float] = []
    monkeypatch.setattr(engine, "backup_steps", lambda _keeper: endless(toy, slices))
    toy.engine._backup, toy.engine._backup_due = None, 0.0
    return slices


def test_no_slice_of_a_backup_comes_before_the_next_job_has_started(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = with_backup(toy, monkeypatch)
    monkeypatch.setattr("daemon.runner.advance", lambda _steps, _clock: (False, None))
    toy.drop("a.jsonl", chat_of(30))
    toy.until(lambda: toy.engine.runner.judging is not None)
    before = len(slices)
    for _ in range(5):
        toy.engine.loop(toy.clock.monotonic())
    assert before and len(slices) == before and toy.engine.runner.getting_ready
    ask(toy, "queue.pause")
    toy.engine.loop(toy.clock.monotonic())
    assert len(slices) == before + 1, "nothing starts while it is paused: there is nothing to give way to"


def test_beside_a_training_job_it_rests_three_times_as_long_as_it_works(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.drop("pretrain/a.txt", text_of(1500))
    run_until(toy, "training")
    slices = with_backup(toy, monkeypatch)
    begun = toy.clock.monotonic()
    while toy.clock.monotonic() < begun + 20:
        toy.engine.loop(toy.clock.monotonic())
        wait = toy.engine.wait_seconds(toy.clock.monotonic())
        assert wait <= 0.25
        toy.clock.advance(max(wait, 0.01))
    share = 0.05 * len(slices) / (toy.clock.monotonic() - begun)
    assert 0.15 < share < 0.3


def test_after_a_minute_it_rests_no_more_and_without_a_job_never(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.drop("pretrain/a.txt", text_of(1500))
    run_until(toy, "training")
    slices = with_backup(toy, monkeypatch)
    toy.engine.loop(toy.clock.monotonic())
    toy.clock.advance(engine.BACKUP_PATIENCE_SECONDS + 1)
    for _ in range(3):
        toy.engine.loop(toy.clock.monotonic())
        assert toy.engine.wait_seconds(toy.clock.monotonic()) == 0.0
    assert len(slices) == 4

    toy.engine.runner.current = None
    toy.engine._backup_rests_until = toy.clock.monotonic() + 100
    toy.engine._back_up(toy.clock.monotonic())
    assert len(slices) == 5
