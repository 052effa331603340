"""Batches prepared ahead: the same ones, at the same step, with the same faults, and a thread that ends."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from guard.errors import Damage
from trainer.ahead import Ahead


class Shelf:
    """A source that remembers what it was asked, in which thread, and can be told to wait or to fail."""

    def __init__(self, fails_at: int = -1) -> None:
        self.asked: list[int] = []
        self.threads: set[int] = set()
        self.fails_at = fails_at
        self.inside = 0

    def step(self, step: int) -> Any:
        self.inside += 1
        assert self.inside == 1, "two threads are in one source"
        self.asked.append(step)
        self.threads.add(threading.get_ident())
        self.inside -= 1
        if step == self.fails_at:
            raise Damage(f"the shard of step {step} is torn")
        return f"batch {step}"


def test_every_step_gets_its_own_batch_and_nothing_is_prepared_beyond_the_last() -> None:
    shelf = Shelf()
    with Ahead(shelf, 5) as ahead:
        assert [ahead.step(step) for step in range(5)] == [f"batch {step}" for step in range(5)]
    assert shelf.asked == [0, 1, 2, 3, 4]


def test_a_step_is_being_prepared_before_it_is_asked_for() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Shelf):
        def step(self, step: int) -> Any:
            if step == 1:
                begun.set()
                assert go_on.wait(60)
            return super().step(step)

    with Ahead(Slow(), 2) as ahead:
        assert ahead.step(0) == "batch 0"
        assert begun.wait(60), "step 1 was not begun while the caller is still busy with step 0"
        go_on.set()
        assert ahead.step(1) == "batch 1"


def test_a_step_that_its_thread_has_not_begun_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never(ThreadPoolExecutor):
        """Its only thread is never given a core."""

        def submit(self, *_call: Any) -> Future[Any]:  # type: ignore[override]
            return Future()

    monkeypatch.setattr("trainer.ahead.ThreadPoolExecutor", Never)
    shelf = Shelf()
    with Ahead(shelf, 5) as ahead:
        assert [ahead.step(step) for step in range(5)] == [f"batch {step}" for step in range(5)]
    assert shelf.threads == {threading.get_ident()}


def test_a_fault_comes_with_its_own_step_and_not_before() -> None:
    with Ahead(Shelf(fails_at=2), 9) as ahead:
        assert [ahead.step(0), ahead.step(1)] == ["batch 0", "batch 1"]
        with pytest.raises(Damage, match="step 2 is torn"):
            ahead.step(2)


def test_a_fault_that_nobody_asked_for_is_nobody_s() -> None:
    with Ahead(Shelf(fails_at=1), 9) as ahead:
        assert ahead.step(0) == "batch 0"


def test_a_run_may_begin_and_go_on_at_any_step() -> None:
    shelf = Shelf()
    with Ahead(shelf, 100) as ahead:
        assert [ahead.step(step) for step in (40, 41, 7, 8)] == ["batch 40", "batch 41", "batch 7", "batch 8"]
    assert set(shelf.asked) <= {40, 41, 42, 7, 8, 9}


def test_its_thread_ends_with_it_also_when_the_loop_fails() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), Ahead(Shelf(), 9) as ahead:
        ahead.step(0)
        raise ZeroDivisionError
    assert threading.active_count() == before


def test_a_job_of_one_step_needs_no_thread() -> None:
    shelf = Shelf()
    with Ahead(shelf, 1) as ahead:
        assert ahead.step(0) == "batch 0" and threading.get_ident() in shelf.threads
    assert len(shelf.threads) == 1
