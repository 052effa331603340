"""What tests of evaluation sets share: a toy home whose every training request is taken apart, and rows to feed it.

Whatever token range a request feeds, new, repeated or replayed, is traced back to the examples it covers. Not a test itself.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from toy import RECIPE, Toy

from daemon.operations import perform
from guard.fingerprint import example_fingerprint
from guard.heldout import is_held_out
from guard.store.jobs import add_job
from guard.untouchable import evaluation_keys
from trainer.dataset import LENGTH, START, open_dataset
from trainer.selection import load_selection

QUESTION = "How many eggs does the keeper of the old orchard collect on day"
Row = dict[str, Any]


def chat(number: int, answer: str = "", **more: str) -> Row:
    return {"messages": [{"role": "user", "content": f"{QUESTION} {number}?"},
                         {"role": "assistant", "content": answer or f"It is {number * 7} in all."}], **more}  # fmt: skip


def text(number: int) -> Row:
    return {"text": f"line {number} of a long tale about orchards, keepers and the eggs they count {number * 3}"}


def jsonl(rows: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class Watched:
    """A toy home whose every training request is taken apart."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.toy = Toy(root / "home", backup__auto=False, validation__fraction=0.1, **settings)
        self.root = root
        recipe = {**RECIPE, "model": {**RECIPE["model"], "block_size": 512}}  # type: ignore[dict-item]
        with self.toy.keeper.ledger.transaction():
            add_job(self.toy.keeper.ledger, kind="base", stage="base", line="policy", slug="baseline",
                    request={"recipe": recipe, "tokenization": "char", "origin": "init"})  # fmt: skip
        self.toy.settle()
        self.fed: list[set[bytes]] = []
        self.watch()

    def watch(self) -> None:
        self.toy.server.spoil = self._take_apart

    def _take_apart(self, job: dict[str, Any], _result: dict[str, Any]) -> None:
        if job["task"] != "train":
            return
        selection = load_selection(Path(job["staging"]))
        found: set[bytes] = set()
        for number, folder in enumerate(selection.datasets):
            split = open_dataset(folder).train
            keys = split.fingerprints.tobytes()  # of the array: a single S16 loses zero bytes at its end
            ranges = selection.ranges[selection.ranges[:, 0] == number]
            for row in range(split.count):
                start, length = int(split.examples[row, START]), int(split.examples[row, LENGTH])
                if ((ranges[:, 1] < start + length) & (ranges[:, 1] + ranges[:, 2] > start)).any():
                    found.add(keys[16 * row : 16 * row + 16])
        self.fed.append(found)

    @property
    def all_fed(self) -> set[bytes]:
        return set().union(*self.fed)

    def held_out(self, fingerprint: bytes) -> bool:
        fraction = float(self.toy.keeper.ledger.meta("validation_fraction") or 0.1)
        return is_held_out(fingerprint, self.toy.keeper.salt, fraction)

    def register(self, name: str, rows: list[Row] | str, **more: object) -> dict[str, Any]:
        path = self.root / name
        path.write_text(rows if isinstance(rows, str) else jsonl(rows))
        [drop] = perform(self.toy.engine, "register", {"paths": [str(path)], "untouchable": True, **more})["drops"]
        self.toy.settle()
        row = self.toy.keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (drop,))
        assert row is not None
        return dict(row)

    def drop(self, name: str, rows: list[Row]) -> sqlite3.Row:
        self.toy.drop(name, jsonl(rows))
        self.toy.settle()
        row = self.toy.keeper.ledger.row("SELECT * FROM drops WHERE name = ? ORDER BY id DESC", (name,))
        assert row is not None
        return row


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def keys_of(rows: list[Row]) -> set[bytes]:
    return {key for row in rows for key in evaluation_keys(row)}


def fingerprints(rows: list[Row]) -> set[bytes]:
    return {example_fingerprint(row) for row in rows}
