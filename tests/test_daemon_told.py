"""What a person is told of the inbox: counts of what lies there, a README of one's own, a paused queue, a remedy for all."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import Toy, chat_of

from daemon.operations import perform
from daemon.report import compose, status


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "home", backup__auto=False)


def inbox(toy: Toy) -> dict[str, int]:
    found: dict[str, int] = compose(toy.keeper, {}, running=False)["inbox"]
    return found


def test_the_counts_of_the_inbox_are_of_what_lies_there(toy: Toy, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("{broken\n")
    perform(toy.engine, "register", {"paths": [str(wrong)]})
    toy.settle()
    # A refused `register` leaves its file where it was: nothing of it is in inbox/rejected/.
    assert [state for _name, state, _reason in toy.drops()] == ["rejected"] and inbox(toy)["rejected"] == 0
    toy.drop("bad.jsonl", "{broken\n")
    toy.drop("bad.jsonl.meta.yaml", "description: mine\n")
    for _again in range(2):
        toy.drop("same.jsonl", chat_of(20))
        toy.settle()
    assert (inbox(toy)["rejected"], inbox(toy)["duplicates"]) == (1, 1)
    (toy.home.rejected / "bad.jsonl").unlink()
    assert inbox(toy)["rejected"] == 0


def test_a_readme_of_ones_own_becomes_a_document(toy: Toy) -> None:
    toy.drop("README.md", "# My project\n\nIt counts eggs.\n")
    assert status(toy.home)["inbox"]["waiting"] == 1
    toy.settle()
    assert toy.keeper.ledger.value("SELECT kind FROM files WHERE name = 'README.md'") == "docs"
    shipped = (Path(__file__).parent.parent / "inbox" / "README.md").read_bytes()
    toy.drop("README.md", shipped)
    assert status(toy.home)["inbox"]["waiting"] == 0
    toy.settle()
    assert (toy.home.inbox / "README.md").read_bytes() == shipped and len(toy.drops()) == 1
