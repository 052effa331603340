"""The forgetting matrix: written at birth, the same after a rebuild and a migration, quick in a long line, and readable."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import orjson
import pytest
from homes import add_version, make_home
from toy import Toy

from daemon.cli.main import main
from daemon.cli.matrix import matrix_lines
from guard.clock import ManualClock
from guard.errors import CheckFailed
from guard.store.evaluations import evaluations_of, same_evaluation
from guard.store.keeper import Keeper, open_reader
from guard.store.ledger import Ledger
from guard.store.matrix import forgetting_matrix, record_losses
from guard.store.rebuild import rebuild
from guard.store.schema import STEPS
from guard.store.versions import find_version


def figures(*losses: tuple[str, float | None], split: str = "val") -> list[dict[str, Any]]:
    """Rows of `metrics.evaluation`."""
    return [{"name": f"{name} held out ({name})", "role": "ancestry", "dataset": name, "split": split, "stage": "pretrain",
             "parent_loss": 5.0, "child_loss": loss, "tokens": 900, "loss_tokens": 800, "examples": 9}
            for name, loss in losses]  # fmt: skip


def measured(keeper: Keeper, slug: str, parent: str | None, evaluation: list[dict[str, Any]], **more: Any) -> str:
    """A version whose record says what it was measured on."""
    name = add_version(keeper, slug, parent, **more)
    record = find_version(keeper.ledger, name).record
    record["metrics"]["evaluation"] = evaluation
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE versions SET record = ? WHERE name = ?", (orjson.dumps(record).decode(), name))
        record_losses(keeper.ledger, record)
    return name


@pytest.fixture
def keeper(scratch: Path) -> Keeper:
    keeper = make_home(scratch / "home")
    base = measured(keeper, "base", None, [])
    text = measured(keeper, "text", base, figures(("t", 3.0)))
    code = measured(keeper, "code", text, figures(("c", 2.0), ("t", 3.3)))
    measured(keeper, "aside", text, figures(("t", 9.0)), line="other")
    measured(keeper, "chat", code, figures(("k", 1.0), ("t", 3.6), ("c", None), ("bad", float("nan")))
             + figures(("k", 0.9), split="train"))  # fmt: skip
    return keeper


def test_it_tells_best_newest_and_rise_of_every_held_out_set_of_the_ancestry(keeper: Keeper) -> None:
    found = forgetting_matrix(keeper.ledger, find_version(keeper.ledger, "v005"))
    assert [item["dataset"] for item in found["sets"]] == ["t", "c", "k"], "in the order they were learnt; training rows are not"
    assert found["versions"] == ["v002_text", "v003_code", "v005_chat"], "a sibling is no ancestor"
    text = found["sets"][0]
    assert (text["learnt_in"], text["before"]) == ("v002_text", 5.0)
    assert text["best"] == {"version": "v002_text", "loss": 3.0} and text["now"] == {"version": "v005_chat", "loss": 3.6}
    assert text["rise"] == pytest.approx(0.6) and text["rise_share"] == pytest.approx(0.2)
    assert [figure["loss"] for figure in text["losses"]] == [3.0, 3.3, 3.6]
    assert found["sets"][1]["rise"] == 0, "it was not measured since"
    sibling = forgetting_matrix(keeper.ledger, find_version(keeper.ledger, "v004"))
    assert [figure["loss"] for figure in sibling["sets"][0]["losses"]] == [3.0, 9.0]


def test_a_ledger_of_the_release_before_gets_it_from_its_versions(keeper: Keeper) -> None:
    wanted = keeper.ledger.rows("SELECT * FROM held_out_losses ORDER BY version_id, dataset, split")
    keeper.ledger.close()
    with sqlite3.connect(keeper.home.ledger) as database:
        database.executescript("DROP TABLE held_out_losses; DROP TABLE evaluations; DELETE FROM meta WHERE key IN "
                               "('digest:held_out_losses', 'digest:evaluations'); PRAGMA user_version=2")  # fmt: skip
    database.close()
    with open_reader(keeper.home) as reader, pytest.raises(CheckFailed, match="earlier release"):
        forgetting_matrix(reader.ledger, find_version(reader.ledger, "v005"))
    with open_reader(keeper.home) as reader:  # `heirloom eval` plans with a reader, and is told of no damage
        assert same_evaluation(reader.ledger, 5, "loss", "t", {}, "") is None and evaluations_of(reader.ledger, 5) == []
    migrated = Ledger(keeper.home.ledger, clock=ManualClock())
    found = migrated.rows("SELECT * FROM held_out_losses ORDER BY version_id, dataset, split")
    assert [tuple(row) for row in found] == [tuple(row) for row in wanted] and len(wanted) == 7
    assert migrated.changed_tables() == [] and len(STEPS) >= 3
    migrated.close()


def test_a_birth_writes_it_and_a_ledger_made_again_has_the_same(scratch: Path) -> None:
    toy = Toy(scratch / "home", backup__auto=False).make_base()
    for number in range(3):
        toy.drop(f"pretrain/rows{number}.jsonl",
                 "".join(f'{{"text": "file {number} row {row} and some words to fill it"}}\n' for row in range(80)))  # fmt: skip
        toy.settle()
    before = forgetting_matrix(toy.keeper.ledger, find_version(toy.keeper.ledger, "v004"))
    assert [len(item["losses"]) for item in before["sets"]] == [3, 2, 1]
    assert [item["learnt_in"][:4] for item in before["sets"]] == ["v002", "v003", "v004"]
    assert before["sets"][0]["best"]["loss"] == 2.0 and before["sets"][0]["now"]["loss"] == 2.02
    toy.die()
    toy.home.ledger.unlink()
    rebuild(toy.home, clock=toy.clock, actor="tester")
    toy.begin()
    assert forgetting_matrix(toy.keeper.ledger, find_version(toy.keeper.ledger, "v004")) == before
    toy.die()


def test_the_command_shows_it_for_people_and_as_json(keeper: Keeper, capsys: pytest.CaptureFixture[str]) -> None:
    keeper.ledger.close()
    home = ["--home", str(keeper.home.root)]
    assert main(["lineage", "--matrix", *home]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("t held out")]
    assert row.split()[-7:] == ["5.0000", "3.0000", "3.3000", "3.6000", "3.0000", "(v002)", "+20.0%"]
    assert main(["lineage", "v003", "--matrix", "--json", *home]) == 0
    told = orjson.loads(capsys.readouterr().out)
    assert told["version"] == "v003_code" and [item["dataset"] for item in told["sets"]] == ["t", "c"]
    assert main(["lineage", "v077", "--matrix", *home]) == 4


def test_of_a_long_line_the_newest_sets_and_columns_are_read_and_shown(scratch: Path) -> None:
    keeper, parent = make_home(scratch / "long"), None
    for number in range(12):
        parent = measured(keeper, "x", parent, figures((f"s{number:02d}", 1.0), ("s00", 1.5)))
    version = find_version(keeper.ledger, str(parent))
    matrix = forgetting_matrix(keeper.ledger, version, newest=4)
    assert matrix["older"] == 8 and [item["dataset"] for item in matrix["sets"]] == ["s08", "s09", "s10", "s11"]
    assert forgetting_matrix(keeper.ledger, version)["sets"][-4:] == matrix["sets"]
    assert "(8 older sets: --all)" in "\n".join(matrix_lines(matrix))
    whole = matrix_lines(forgetting_matrix(keeper.ledger, version))
    assert "v012" in whole[2] and "v007" in whole[2] and "v006" not in whole[2]
    assert "Nothing was measured" in matrix_lines({**matrix, "sets": []})[0]
