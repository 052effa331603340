"""What tests of `heirloom eval` share: a home whose versions were really trained, and short ways to ask and to look.

Not a test itself.
"""

from __future__ import annotations

import functools
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from homes import copy_home
from toy import RECIPE, Toy, ToyServer, chat_of

from daemon.cli.main import main
from guard.store.jobs import add_job
from trainer.hardware import set_environment
from trainer.train_job import run_base, run_train

set_environment()
LONG = "How many eggs does the keeper of the old orchard collect on day"
Row = dict[str, Any]


def chat(number: int, answer: str = "") -> Row:
    return {"messages": [{"role": "user", "content": f"{LONG} {number}?"},
                         {"role": "assistant", "content": answer or f"It is {number * 7}."}]}  # fmt: skip


def jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


class _Real(ToyServer):
    """Trains with the real trainer, in place."""

    def _base(self, job: dict[str, Any]) -> None:
        run_base(job)

    def _train(self, job: dict[str, Any]) -> None:
        run_train(job)


@functools.cache
def _make(root: Path) -> Path:
    """v001 (base), v002 (40 conversations, 100 short sums), v003 (text): each really trained, 16 wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEIRLOOM_VALIDATION__FRACTION", "0.2")
        toy = Toy(root, backup__auto=False, validation__fraction=0.2, gate="off")
    toy.server = toy.engine.runner.server = _Real(toy.engine.runner._exited)  # type: ignore[assignment]
    with toy.keeper.ledger.transaction():
        recipe = {**RECIPE, "model": {**RECIPE["model"], "block_size": 256}}  # type: ignore[dict-item]
        add_job(toy.keeper.ledger, kind="base", stage="base", line="policy", slug="baseline",
                request={"recipe": recipe, "tokenization": "char", "origin": "init"})  # fmt: skip
    toy.settle()
    toy.drop("eggs.jsonl", "".join(json.dumps(chat(number)) + "\n" for number in range(40)) + chat_of(100))
    toy.settle()
    toy.drop("pretrain/tale.jsonl", "".join(json.dumps({"text": f"line {n} of a tale"}) + "\n" for n in range(80)))
    toy.settle()
    assert list(toy.versions()) == ["v001_baseline", "v002_eggs", "v003_tale"], toy.jobs()
    toy.die()
    return root


@pytest.fixture(scope="module", name="trained")
def _trained(shared_scratch: Path) -> Path:
    return _make(shared_scratch / "trained")  # once in a session, for every file that uses it


@pytest.fixture(name="home")
def _home(trained: Path, scratch: Path) -> Path:
    return copy_home(trained, scratch / "home")


def run(home: Path, capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Row:
    capsys.readouterr()
    found = main(["eval", *map(str, words), "--home", str(home), "--json", "--threads", "1"])
    told = json.loads(capsys.readouterr().out)
    assert found == code, told
    return told


def rows_of(home: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{home}/data/ledger.db?mode=ro", uri=True) as database:
        found = database.execute("SELECT kind, set_name, figures FROM evaluations ORDER BY id").fetchall()
    database.close()
    return found
