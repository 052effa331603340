"""Giving back: under a name that nothing has, with its reason, and without asking for every name that is taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import make_home

from guard import durable
from guard.store.intake import claim
from guard.store.keeper import Keeper
from guard.store.returning import give_back

MANY = 3000


@pytest.fixture
def keeper(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    opened = make_home(scratch / "home")
    yield opened
    opened.ledger.close()


def returned(keeper: Keeper, name: str, content: bytes = b"bad", side: str = "") -> Path:
    """Claim a file and give it back; where it lies now."""
    path = keeper.home.inbox / name
    path.write_bytes(content)
    options: dict[str, object] = {}
    if side:
        path.with_name(name + side).write_text("description: x\n")
        options["side"] = {"source": os.fsencode(path.with_name(name + side)).hex()}
    target = give_back(keeper, claim(keeper, path, options=options), "rejected", "bad", "why\n", {})
    assert target is not None and target.read_bytes() == content
    assert target.with_name(f"{target.name}.why.txt").read_text() == "why\n"
    return target


def looks_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every name of a folder that is asked for from now on."""
    asked, really = [], os.path.lexists

    def noted(path: str | Path) -> bool:
        if Path(path).parent == folder:
            asked.append(Path(path).name)
        return really(path)

    monkeypatch.setattr(os.path, "lexists", noted)
    return asked


def test_the_thousandth_file_of_one_name_is_given_back_after_a_few_looks(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, MANY + 1):
        (keeper.home.rejected / ("a.jsonl" if number == 1 else f"a ({number}).jsonl")).touch()
    asked = looks_below(keeper.home.rejected, monkeypatch)
    for number in range(MANY + 1, MANY + 4):
        del asked[:]
        assert returned(keeper, "a.jsonl").name == f"a ({number}).jsonl"
        assert len(asked) < 100


def test_a_side_file_that_goes_back_alone_asks_for_few_names_too(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its drop was copied, and another side file of its name came meanwhile: it goes among what was refused."""
    name, path = "a.jsonl.meta.yaml", keeper.home.inbox / "a.jsonl"
    for number in range(1, MANY + 1):
        (keeper.home.rejected / (name if number == 1 else f"{number} {name}")).touch()
    path.write_bytes(b"bad")
    side = path.with_name(name)
    side.write_text("description: x\n")
    drop = claim(keeper, path, move=True, options={"side": {"source": os.fsencode(side).hex()}})
    side.write_text("description: another\n")
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE drops SET mode = 'copy' WHERE id = ?", (drop,))
    asked = looks_below(keeper.home.rejected, monkeypatch)
    assert give_back(keeper, drop, "rejected", "bad", "why\n", {}) is None
    assert (keeper.home.rejected / f"{MANY + 1} {name}").read_text() == "description: x\n" and len(asked) < 100


@pytest.mark.parametrize("beside", ["a.jsonl.why.txt", "a.jsonl.meta.yaml", "a.jsonl.meta.yml"])
def test_a_name_whose_reason_or_side_file_is_there_is_taken(keeper: Keeper, beside: str) -> None:
    (keeper.home.rejected / beside).write_text("older")
    assert returned(keeper, "a.jsonl", side=".meta.yaml").name == "a (2).jsonl"
    assert (keeper.home.rejected / beside).read_text() == "older"
    assert (keeper.home.rejected / "a (2).jsonl.meta.yaml").read_text() == "description: x\n"


def test_a_name_that_was_freed_is_given_again_and_nothing_is_replaced(keeper: Keeper) -> None:
    first, second, third = (returned(keeper, "a.jsonl", content) for content in (b"1", b"2", b"3"))
    assert [path.name for path in (first, second, third)] == ["a.jsonl", "a (2).jsonl", "a (3).jsonl"]
    for path in (first, first.with_name("a.jsonl.why.txt")):
        path.unlink()
    assert returned(keeper, "a.jsonl", b"4").name == "a.jsonl"
    assert (second.read_bytes(), third.read_bytes()) == (b"2", b"3")
