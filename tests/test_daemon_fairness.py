"""Who waits for whom in the inbox: large files never starve small ones, and nothing is taken that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import Toy, chat_of

from daemon import intake, verdicts
from guard import failpoints


@pytest.fixture
def toy(scratch: Path) -> Iterator[Toy]:
    made = Toy(scratch / "home").make_base()
    yield made
    made.die()


def test_many_large_files_behind_one_that_is_not_finished_starve_no_small_one(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (intake, verdicts):
        monkeypatch.setattr(module, "SMALL_BYTES", 3000)
    monkeypatch.setattr(intake, "MOST_UNREAD", 16)
    really = toy.engine.pool.submit

    def submit(body: dict[str, Any], size: int, done: Callable[[dict[str, Any]], None]) -> None:
        if size <= 3000:
            really(body, size, done)  # the one reader of large files is busy for hours

    toy.engine.pool.submit = submit  # type: ignore[method-assign]
    for number in range(40):
        toy.drop(f"a{number:02}.jsonl", chat_of(60, seed=number))
    for number in range(30):
        toy.drop(f"b{number:02}.jsonl", chat_of(3, seed=100 + number))
    for _ in range(60):
        toy.step()
    states = [state for name, state, _reason in toy.drops() if name.startswith("b")]
    assert states == ["admitted"] * 30
    assert sum(name.startswith("a") for name, _state, _reason in toy.drops()) <= intake.MOST_LARGE


def test_while_nothing_can_be_read_the_inbox_keeps_its_files(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MOST_UNREAD", 16)
    for module in (intake, verdicts):
        monkeypatch.setattr(module, "TOGETHER", 8)
    really = toy.engine.pool.submit

    def submit(body: dict[str, Any], size: int, done: Callable[[dict[str, Any]], None]) -> None:
        sick = {"fault": "environment", "message": "no memory"}
        really(body, size, lambda answer: done(sick if body["task"] == "identify" else answer))

    toy.engine.pool.submit = submit  # type: ignore[method-assign]
    for number in range(60):
        toy.drop(f"{number:02}.jsonl", chat_of(3, seed=number))
    for _ in range(40):
        toy.step()
    assert 0 < len(toy.drops()) <= 24 and len(list(toy.home.inbox.glob("*.jsonl"))) >= 36


def test_a_full_disk_after_an_admission_was_recorded_holds_nobody(toy: Toy) -> None:
    failpoints.arm("admit.cleared", "enospc")
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert failpoints.hits("admit.cleared") == 1
    failpoints.disarm()
    assert not toy.engine.intake.held and toy.engine.intake.problem == ""
    assert [state for _name, state, _reason in toy.drops()] == ["admitted"]
    toy.again().settle()
    assert list(toy.home.incoming.iterdir()) == []
