"""Power cuts while folders are on their way, on the simulated disk that keeps no more than was synced.

The scene: a data set that is stored and one that is given back. Not here: deaths that leave the page cache
(`test_daemon_folders_crash.py`).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import pytest
from faults import crash_at
from folder_help import contents, hub, texts, write_files
from playing import calls_of, cut_short, killed_then_cut
from scenes import Journey
from toy import Toy

from guard.tars import pack_folder


class Trip(Journey):
    """Two folders from the inbox to where they end; nothing is trained."""

    DROPS: ClassVar[dict[str, str]] = {}
    VERDICTS: ClassVar[dict[str, str]] = {"sums": "admitted", "bad": "rejected"}

    @staticmethod
    def template(root: Path) -> Path:
        toy = Toy(root, backup__auto=False).make_base()
        with toy.keeper.ledger.transaction():
            toy.keeper.ledger.set_meta("paused", "1")
        hub(toy.home.inbox / "sums", 12, 4)
        write_files(toy.home.inbox / "bad", {"train/a.jsonl": [{"text": ""}] * 3, "val/b.jsonl": texts("val", 3)})
        toy.die()
        pack_folder(root / "inbox/sums", root / "expected.tar")
        return root

    def prepare(self, progress: Any) -> None:
        self.dropped, self.sided = [], []

    def begin(self) -> None:
        self.toy = Toy.__new__(Toy)
        self.toy.__init__(self.root, backup__auto=False)  # type: ignore[misc]
        self.keeper = self.toy.keeper

    def play(self) -> None:
        self.toy.engine.hint()
        self.toy.settle()

    def specific(self) -> list[str]:
        states = {name: state for name, state, _reason in self.toy.drops()}
        found = [] if states == self.VERDICTS and len(self.toy.drops()) == 2 else [f"drops are {self.toy.drops()}"]
        known = self.keeper.ledger.value("SELECT sha256 FROM files WHERE name = 'sums'")
        stored = self.home.files / str(known) / "sums.tar"
        if not known or stored.read_bytes() != (self.root / "expected.tar").read_bytes():
            found.append("the folder that was stored is not what was dropped")
        back = contents(self.home.rejected / "bad") if (self.home.rejected / "bad").is_dir() else {}
        found += [] if len(back) == 2 else [f"what was refused came back as {sorted(back)}"]
        left = [path for path in (self.home.inbox / "sums", self.home.inbox / "bad") if path.exists()]
        return found + [f"{path} is still there" for path in left]


@pytest.fixture(scope="module")
def begun(shared_scratch: Path) -> tuple[Path, int]:
    """The home to begin from, and how many durable calls the scene makes."""
    template = Trip.template(shared_scratch / "trip")
    return template, len(calls_of(Trip, template, shared_scratch / "trip-undisturbed"))


@pytest.mark.parametrize("share", range(4))
def test_a_power_cut_on_a_folder_s_way_takes_nothing(share: int, begun: tuple[Path, int], scratch: Path) -> None:
    template, calls = begun
    assert calls > 100
    dice = random.Random(share) if share % 2 else None
    assert cut_short(Trip, template, scratch / "home", crash_at(1 + (calls * share + 3) // 4), dice=dice) == []


@pytest.mark.sweep
@pytest.mark.parametrize("way", ["killed", "cut", "cut with dice", "twice", "killed, then cut"])
def test_any_durable_call_on_a_folder_s_way_may_be_the_last(way: str, begun: tuple[Path, int], scratch: Path) -> None:
    template, calls = begun
    wrong = {}
    for number in range(1, calls + 1):
        if way == "killed, then cut":
            found = killed_then_cut(Trip, template, scratch / "home", number)
        else:
            found = cut_short(Trip, template, scratch / "home", crash_at(number), power=way != "killed",
                              dice=random.Random(number) if way == "cut with dice" else None,
                              again=crash_at(1 + number % 40) if way == "twice" else None)  # fmt: skip
        if found:
            wrong[number] = found[:3]
    assert wrong == {}
