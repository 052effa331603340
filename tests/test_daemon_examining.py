"""Known bytes dropped again: their stored copy is read in slices, once, and everything else goes on meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import Toy, chat_of

from daemon import examining
from guard import durable
from guard.durable import sha256_bytes
from guard.steps import Steps, advance
from guard.store import originals, sums

LARGE = chat_of(400)


@pytest.fixture
def toy(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """A home that knows LARGE, read in forty steps, one in every round."""
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    made = Toy(scratch / "home", backup__auto=False).make_base()
    made.drop("large.jsonl", LARGE)
    made.settle()
    monkeypatch.setattr(sums, "STEP_BYTES", len(LARGE) // 40)
    monkeypatch.setattr(examining, "SLICE_SECONDS", -1.0)
    monkeypatch.setattr(examining, "advance", lambda steps, clock, _seconds: advance(steps, clock, -1.0))
    yield made
    made.die()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of stored copies that were read, step by step."""
    found: list[int] = []
    really = originals.hash_steps

    def counting(path: Path) -> Steps[str]:
        steps = really(path)
        while True:
            try:
                count = next(steps)
            except StopIteration as done:
                return str(done.value)
            found.append(count)
            yield

    monkeypatch.setattr(originals, "hash_steps", counting)
    return found


def stored(toy: Toy) -> Path:
    return toy.home.files / sha256_bytes(LARGE.encode())


def test_a_large_duplicate_is_read_in_slices_while_other_files_are_taken(toy: Toy, read: list[int]) -> None:
    toy.drop("again.jsonl", LARGE)
    toy.until(lambda: toy.engine.intake.verdicts.examining.busy)
    assert toy.engine.wait_seconds(toy.clock.monotonic()) == 0.0, "the loop does not sleep over it"
    toy.drop("small.jsonl", chat_of(5, seed=77))
    rounds = 0
    while toy.engine.intake.verdicts.examining.busy:
        toy.step()
        rounds += 1
        assert len(read) <= rounds + 2, "one piece in every round"
        assert max(read, default=0) <= len(LARGE) // 40
    states = {name: state for name, state, _reason in toy.drops()}
    assert rounds >= 40 and states["small.jsonl"] == "admitted"
    toy.settle()
    assert {name: state for name, state, _reason in toy.drops()}["again.jsonl"] == "duplicate"
    parts = sum(path.stat().st_size for path in stored(toy).iterdir())
    assert sum(read) == parts, "every byte of it once, and not again for the verdict"


def test_a_damaged_copy_is_found_and_mended_without_reading_it_again_in_one_piece(toy: Toy, read: list[int]) -> None:
    os.chmod(stored(toy) / "large.jsonl", 0o644)
    (stored(toy) / "large.jsonl").write_text(LARGE[:-3] + "xx\n")
    toy.drop("again.jsonl", LARGE)
    toy.settle(400)
    assert toy.drops()[-1][1] == "registered" and "mended: the stored copy was damaged (bytes)" in toy.drops()[-1][2]
    assert (stored(toy) / "large.jsonl").read_text() == LARGE
    before = len(read)
    toy.drop("third.jsonl", LARGE)
    toy.settle(400)
    assert toy.drops()[-1][1] == "duplicate" and len(read) > before + 39, "each arrival has it read anew"


def test_a_disk_that_does_not_answer_holds_the_drop_and_no_other(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def sick(_path: Path) -> Steps[str]:
        yield 1
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(originals, "hash_steps", sick)
        toy.drop("again.jsonl", LARGE)
        toy.until(lambda: toy.engine.intake.held)
        assert "Input/output error" in toy.engine.intake.problem and not toy.engine.intake.verdicts.in_flight
        toy.drop("small.jsonl", chat_of(5, seed=77))
        toy.until(lambda: dict((item[0], item[1]) for item in toy.drops()).get("small.jsonl") == "admitted")
    toy.clock.advance(20.0)
    toy.settle(400)
    assert {name: state for name, state, _reason in toy.drops()}["again.jsonl"] == "duplicate"


def test_what_was_written_to_since_it_was_read_is_read_again(toy: Toy, read: list[int]) -> None:
    from guard.store.files import find_file
    from guard.store.originals import damaged_parts, examine_steps

    file = find_file(toy.keeper.ledger, "large.jsonl")
    found: Any = None
    for _ in examine_steps(toy.home, file):
        found = True
    count = len(read)
    assert found and damaged_parts(toy.home, file) == [] and len(read) == count
    os.chmod(stored(toy) / "examples.fp", 0o644)
    (stored(toy) / "examples.fp").write_bytes(bytes((stored(toy) / "examples.fp").stat().st_size))
    assert damaged_parts(toy.home, file) == ["examples.fp"] and len(read) > count
