"""What a reader's death costs the file it read: a chance when the file is to blame, nothing when the machine is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import Toy, chat_of

from guard import durable


class DyingReaders:
    """Stands in for the pool: the first so many readings end in a death."""

    def __init__(self, toy: Toy, deaths: int) -> None:
        self.pool, self.deaths, self.tried = toy.engine.pool, deaths, 0
        really = self.pool.submit

        def submit(body: dict[str, Any], size: int, done: Callable[[dict[str, Any]], None]) -> None:
            def crash(answer: dict[str, Any]) -> None:
                self.tried += body["task"] == "identify"
                dead = body["task"] == "identify" and self.tried <= self.deaths
                done({"fault": "crash", "message": "the reader ended with status -11"} if dead else answer)

            really(body, size, crash)

        self.pool.submit = submit  # type: ignore[assignment, method-assign]


@pytest.fixture
def toy(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    made = Toy(scratch / "home", backup__auto=False)
    made.keeper.ledger._db.execute("INSERT INTO meta VALUES ('paused', '1')")
    yield made
    made.die()


@pytest.mark.parametrize("deaths, state", [(2, "admitted"), (3, "rejected")])
def test_after_three_deaths_the_file_comes_back_and_not_before(toy: Toy, deaths: int, state: str) -> None:
    dying = DyingReaders(toy, deaths)
    toy.drop("a.jsonl", chat_of(5))
    toy.settle()
    assert [found for _name, found, _why in toy.drops()] == [state] and dying.tried == 3
    if state == "rejected":
        assert "(3 attempts)" in toy.drops()[0][2]
        assert (toy.home.rejected / "a.jsonl").read_text() == chat_of(5)
        assert "status -11" in (toy.home.rejected / "a.jsonl.why.txt").read_text()


def test_the_chances_of_a_file_outlive_the_daemon(toy: Toy) -> None:
    DyingReaders(toy, 1)
    toy.drop("a.jsonl", chat_of(5))
    while not toy.keeper.ledger.value("SELECT max(attempts) FROM drops"):
        toy.step()
    toy.again()
    DyingReaders(toy, 9)
    toy.settle()
    assert toy.drops()[0][1] == "rejected" and toy.keeper.ledger.value("SELECT attempts FROM drops") == 3


def test_a_fault_of_the_machine_while_reading_costs_no_chance(toy: Toy) -> None:
    pool, faults = toy.engine.pool, [5]
    really = pool.submit

    def submit(body: dict[str, Any], size: int, done: Callable[[dict[str, Any]], None]) -> None:
        def no_room(answer: dict[str, Any]) -> None:
            faults[0] -= body["task"] == "identify"
            held = body["task"] == "identify" and faults[0] >= 0
            done({"fault": "environment", "message": "No space left on device"} if held else answer)

        really(body, size, no_room)

    pool.submit = submit  # type: ignore[assignment, method-assign]
    toy.drop("a.jsonl", chat_of(5))
    for _ in range(6):
        toy.settle()
        toy.clock.advance(20)  # a held file is tried again by itself, and nobody waits for it
    assert toy.drops()[0][1] == "admitted" and toy.keeper.ledger.value("SELECT attempts FROM drops") == 0


def test_a_file_whose_reader_is_killed_again_and_again_waits_ever_longer_and_says_so(toy: Toy) -> None:
    really = toy.engine.pool.submit

    def submit(body: dict[str, Any], size: int, done: Callable[[dict[str, Any]], None]) -> None:
        killed = {"fault": "killed", "message": "killed from outside"}
        really(body, size, lambda answer: done(killed if body["task"] == "identify" else answer))

    toy.engine.pool.submit = submit  # type: ignore[method-assign]
    path = toy.drop("a.jsonl", chat_of(5))
    toy.step()
    toy.clock.advance(2)
    toy.step()
    toy.step()
    waits = []
    for _ in range(4):
        drop, due = next(iter(toy.engine.intake.verdicts.retry_at.items()))
        waits.append(due - toy.clock.monotonic())
        toy.clock.advance(waits[-1] + 0.1)
        toy.step()
        toy.step()
    assert waits == sorted(waits) and waits[-1] > 3 * waits[0] and "killed from outside" in toy.engine.intake.problem
    assert toy.keeper.ledger.value("SELECT attempts FROM drops WHERE id = ?", (drop,)) == 0 and not path.exists()


def test_an_end_that_the_machine_could_not_look_at_is_asked_about_again_and_costs_no_grace(toy: Toy) -> None:
    really, refused = toy.engine.pool.submit, []

    def submit(body: dict[str, Any], size: int, done: Callable[[dict[str, Any]], None]) -> None:
        if body["task"] == "tails" and not refused:
            refused.append(body)
            done({"fault": "environment", "message": "no reader could be started"})
        else:
            really(body, size, done)

    toy.engine.pool.submit = submit  # type: ignore[method-assign]
    path = toy.drop("a.jsonl", chat_of(5)[:-30])
    for _ in range(30):
        toy.step()
    assert refused and path.exists() and toy.drops() == [], "a cut-off end still has its minute"
    toy.clock.advance(120)
    toy.settle()
    assert [state for _name, state, _reason in toy.drops()] == ["rejected"]
