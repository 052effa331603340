"""What is new in a drop is reckoned where it is read, for the line it is really for; the daemon's loop reckons nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import Toy, chat_of

from daemon.operations import perform
from guard import durable
from guard.store import decision
from guard.store.jobs import jobs_in
from guard.store.versions import find_version


@pytest.fixture
def toy(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """A home where the line `policy` has learnt twenty rows, and the line `other` still stands on the base."""
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    made = Toy(scratch / "home", backup__auto=False).make_base()
    made.drop("a.jsonl", chat_of(20))
    made.settle()
    with made.keeper.ledger.transaction():
        made.keeper.ledger.run("INSERT INTO lines VALUES ('other', ?, '')", (find_version(made.keeper.ledger, "v001").id,))
        made.keeper.ledger.set_meta("paused", "1")
    yield made
    made.die()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the daemon's own process was made to reckon."""
    found: list[Any] = []
    really = decision.judge_novelty
    monkeypatch.setattr(decision, "judge_novelty", lambda *rest: (found.append(rest), really(*rest))[1])
    return found


@pytest.mark.parametrize(("side", "state", "new", "known"), [
    ("line: other\n", "admitted", 24, 0), ("line: policy\n", "admitted", 6, 18), ("description: x\n", "admitted", 6, 18),
])  # fmt: skip
def test_the_reader_reckons_for_the_line_of_the_side_file(
    toy: Toy, asked: list[Any], side: str, state: str, new: int, known: int
) -> None:
    toy.drop("b.jsonl.meta.yaml", side)
    toy.drop("b.jsonl", chat_of(26))
    toy.settle()
    name, found, reason = toy.drops()[-1]
    assert (name, found) == ("b.jsonl", state) and asked == []
    assert reason == f"{new} new examples" + (f", {known} were learnt before" if known else "")
    assert [job.line for job in jobs_in(toy.keeper.ledger, "queued")] == ["other" if "other" in side else "policy"]


def test_a_file_that_is_registered_is_reckoned_for_its_side_files_line_too(toy: Toy, asked: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text(chat_of(26))
    path.with_name("b.jsonl.meta.yaml").write_text("line: other\n")
    perform(toy.engine, "register", {"paths": [str(path)], "queue": True})
    toy.settle()
    assert toy.drops()[-1][2] == "24 new examples" and asked == []
