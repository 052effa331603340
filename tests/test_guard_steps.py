"""Long work in slices: drained at once, or a little at a time, with the same result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guard.steps import Steps, advance, drain, on_breath


def count(most: int) -> Steps[int]:
    total = 0
    for number in range(most):
        total += number
        yield number
    return total


@pytest.fixture
def breaths() -> Iterator[list[int]]:
    taken: list[int] = []
    on_breath(lambda: taken.append(1))
    yield taken
    on_breath(None)


def test_slices_end_in_the_result_of_doing_it_at_once() -> None:
    ticks = iter(range(1000))
    steps, rounds = count(10), 0
    done, result = False, None
    while not done:
        done, result = advance(steps, lambda: float(next(ticks)), seconds=3.0)
        rounds += 1
    assert result == drain(count(10)) == 45 and 1 < rounds < 10


def test_work_without_end_to_a_slice_is_at_least_one_piece_further() -> None:
    steps = count(3)
    assert [advance(steps, lambda: 0.0, seconds=0.0)[0] for _ in range(4)] == [False, False, False, True]


def test_whoever_waits_is_told_of_every_piece(breaths: list[int]) -> None:
    drain(count(7))
    assert len(breaths) == 7
    on_breath(None)
    drain(count(7))
    assert len(breaths) == 7


def test_a_fault_goes_up_from_either() -> None:
    def broken() -> Steps[int]:
        yield
        raise OSError(5, "Input/output error")

    for work in (lambda: drain(broken()), lambda: advance(broken(), lambda: 0.0, seconds=1.0)):
        with pytest.raises(OSError, match="Input/output"):
            work()
