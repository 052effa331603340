"""Untouchable evaluation sets are registered, by hand and by command, and survive deaths, the ledger and their own files.

Not here: what is kept out of training because of them (`test_daemon_evaluation_kept_out.py`).
"""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest
from evaluation_help import QUESTION, Watched, _home, chat, jsonl, keys_of  # noqa: F401 - fixtures

from daemon.cli.main import main
from guard import failpoints
from guard.durable import remove_tree
from guard.errors import Damage
from guard.failpoints import Crash
from guard.store.evaluation import evaluation_sets, protected_for
from guard.store.rebuild import rebuild
from guard.store.vault import run_backup


def test_a_set_of_other_rules_of_identity_protects_nothing_and_is_not_believed(
    home: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.register("exam.jsonl", [chat(number) for number in range(10)])
    monkeypatch.setattr("guard.store.evaluation.CANONICAL_VERSION", 99)
    with pytest.raises(Damage, match="other rules of identity"):
        protected_for(home.toy.keeper, home.root / "list.fp")


@pytest.mark.parametrize("point", ["admit.intended", "admit.stored", "admit.sidecars", "admit.renamed", "admit.recorded"])
def test_a_death_while_a_set_is_registered_loses_nothing_of_it(home: Watched, point: str) -> None:
    failpoints.arm(point)
    with pytest.raises(Crash):
        home.register("exam.jsonl", [chat(number) for number in range(10)])
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    home.toy.again().settle()
    home.watch()
    [exam] = evaluation_sets(home.toy.keeper.ledger)
    assert (exam["name"], exam["rows"]) == ("exam.jsonl", 10)
    assert protected_for(home.toy.keeper, home.root / "list.fp") is not None


def test_a_set_survives_the_ledger_its_own_file_and_the_vault(home: Watched) -> None:
    toy = home.toy
    home.register("exam.jsonl", [chat(number) for number in range(10)])
    [exam] = evaluation_sets(toy.keeper.ledger)
    run_backup(toy.keeper)
    newest = max((toy.home.root / "backups" / "ledger").glob("ledger-*.db"))
    with sqlite3.connect(newest) as copy:
        assert copy.execute("SELECT count(*) FROM meta WHERE key LIKE 'evaluation%'").fetchone()[0] == 2
    for lost in ("", "events"):
        toy.die()
        toy.home.ledger.unlink()
        if lost:
            remove_tree(toy.home.events)  # then the vault's copies alone tell of it
            remove_tree(toy.home.root / "backups" / "events")
        assert rebuild(toy.home, clock=toy.clock, actor="tester")["rebuilt"]
        toy.begin()
        home.watch()
        assert evaluation_sets(toy.keeper.ledger) == [exam]
    remove_tree(toy.home.files / exam["sha256"])
    (toy.home.state / "untouchable.fp").unlink(missing_ok=True)
    drop = home.drop("leak.jsonl", [chat(number) for number in range(30)])
    assert "10 of its rows are in the evaluation set exam.jsonl" in drop["reason"] and len(home.all_fed) >= 15
    assert not home.all_fed & keys_of([chat(number) for number in range(10)])


def test_a_person_registers_a_set_by_command(home: Watched, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    home.toy.die()
    path = home.root / "exam.jsonl"
    path.write_text(jsonl([chat(number) for number in range(10)]))
    command = ["--home", str(home.toy.home.root), "register", str(path)]
    assert main([*command, "--untouchable", "--queue"]) == 2
    assert main([*command, "--untouchable", "--dry-run", "--json"]) == 0
    told = json.loads(capfdbinary.readouterr().out)
    assert (told["evaluation_rows"], told["status"], told["dry_run"]) == (10, "registered", True)
    assert main([*command, "--untouchable"]) == 0
    assert "its 10 rows are never trained" in capfdbinary.readouterr().out.decode()
    assert main(["--home", str(home.toy.home.root), "register", str(path), "--dry-run", "--json"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["untouchable"] == 10
    home.toy.begin()
    [exam] = evaluation_sets(home.toy.keeper.ledger)
    assert (exam["name"], exam["rows"]) == ("exam.jsonl", 10)


def test_plain_text_and_documents_can_be_sets(home: Watched) -> None:
    tale = "\n\n".join(" ".join(random.Random(place).choices(QUESTION.split(), k=90)) for place in range(60))
    assert home.register("tale.txt", tale)["state"] == "registered"
    assert home.register("page.md", "# A page\n\nIt is about orchards.\n")["state"] == "registered"
    toy = home.toy
    toy.drop("pretrain/more.txt", tale)
    toy.drop("pretrain/longer.txt", tale + "\n\nAnd one more paragraph that nobody has ever read before.\n" * 40)
    toy.settle()
    states = {name: (state, reason) for name, state, reason in toy.drops()}
    assert "in the evaluation set tale.txt" in states["longer.txt"][1] and states["more.txt"][0] == "registered"
    assert not home.all_fed & {key for item in evaluation_sets(toy.keeper.ledger) if item["name"] == "tale.txt"
                               for key in _kept_keys(home, item["sha256"])}  # fmt: skip


def _kept_keys(home: Watched, sha256: str) -> set[bytes]:
    protected = protected_for(home.toy.keeper, home.root / "kept.fp", [sha256])
    assert protected is not None
    data = Path(protected["path"]).read_bytes()
    return {data[start : start + 16] for start in range(0, len(data), 20)}
