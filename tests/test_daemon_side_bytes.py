"""Bytes whose columns a side file named: the same ones in another way, trained, rebuilt, backed up, mended, kept out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import orjson
from side_help import COLUMNS, QA, states
from toy import Toy, chat_of
from toy_fixtures import _begin, _no_syncing, _template, _toy  # noqa: F401 - fixtures

from daemon.mending import rebuild_home
from daemon.remake import _prepare_request
from guard import durable
from guard.checks.columns import PLAIN, Reading
from guard.durable import sha256_file
from guard.home import Home
from guard.store.files import find_file
from guard.store.verify import verify
from guard.store.versions import find_version, line_tip
from trainer.prepare import SourceFile, planned_id
from trainer.tokenizer import load_tokenizer


def test_the_same_bytes_under_other_columns_are_refused_and_under_none_read_as_they_were(toy: Toy) -> None:
    toy.drop("a.jsonl.meta.yaml", COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    toy.drop("b.jsonl.meta.yaml", "columns: {q: assistant, a: user}\n")
    toy.drop("b.jsonl", QA)
    toy.drop("c.jsonl", QA)
    toy.drop("pretrain/d.jsonl", QA)
    toy.settle()
    assert states(toy) == {"a.jsonl": "admitted", "b.jsonl": "rejected", "c.jsonl": "duplicate", "d.jsonl": "rejected"}
    reasons = {name: reason for name, _state, reason in toy.drops()}
    assert "stored as sft with q as user, a as assistant" in reasons["b.jsonl"] and "echo >> FILE" in reasons["b.jsonl"]
    assert "trained in" in reasons["c.jsonl"] and (toy.home.rejected / "b.jsonl.meta.yaml").exists()
    toy.drop("e.jsonl.meta.yaml", "columns: {q: assistant, a: user}\n")
    toy.drop("e.jsonl", QA + "\n")
    toy.settle()
    assert states(toy)["e.jsonl"] == "admitted"


def test_the_same_bytes_forced_to_another_kind_are_refused(toy: Toy) -> None:
    rows = [{"text": f"row {row}", **json.loads(line)} for row, line in enumerate(chat_of(9).splitlines())]
    both = "".join(json.dumps(row) + "\n" for row in rows)
    toy.drop("a.jsonl", both)
    toy.settle()
    toy.drop("pretrain/a.jsonl", both)
    toy.settle()
    assert [state for _name, state, _reason in toy.drops()] == ["admitted", "rejected"]
    assert [row[2] for row in toy.jobs() if row[1] == "train"] == ["done"]


def test_columns_are_part_of_what_a_dataset_is(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(QA)
    how = {"stage": "sft", "shard_size_tokens": 1000, "salt": "x", "validation_fraction": 0.0}
    sources = [SourceFile(sha256_file(path), "a.jsonl", path, None, reading) for reading in (
        PLAIN, Reading({"q": "user", "a": "assistant"}), Reading({"a": "user", "q": "assistant"}))]  # fmt: skip
    tokenizer = load_tokenizer("char")
    assert len({planned_id([source], tokenizer, **how) for source in sources}) == 3  # type: ignore[arg-type]
    plain = planned_id([SourceFile(sources[0].sha256, "a.jsonl", path)], tokenizer, **how)  # type: ignore[arg-type]
    assert plain == planned_id([sources[0]], tokenizer, **how)  # type: ignore[arg-type]


def test_a_version_is_made_again_with_the_columns_it_was_made_with(toy: Toy, tmp_path: Path) -> None:
    toy.drop("a.jsonl.meta.yaml", COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    tip = line_tip(toy.keeper.ledger, "policy")
    assert tip is not None and tip.parent_id is not None
    request = _prepare_request(toy.keeper, tip, find_version(toy.keeper.ledger, "v001"), tmp_path, lambda _folder: None)
    assert request["files"][0]["reading"]["columns"] == {"q": "user", "a": "assistant"}
    # Prepared again from nothing (its shards are gone), the list is the one that was trained.
    from trainer.prepare_job import run_prepare

    durable.remove_tree(toy.home.shards)
    toy.home.shards.mkdir()
    assert run_prepare(request)["selection_sha256"] == tip.record["selection_sha256"]


def test_a_ledger_that_is_made_again_knows_columns_settings_and_side_files(toy: Toy) -> None:
    toy.drop("a.jsonl.meta.yaml", COLUMNS + "description: sums\n")
    toy.drop("a.jsonl", QA)
    toy.settle()
    before = find_file(toy.keeper.ledger, "a.jsonl")
    toy.die()
    Home(toy.home.root).ledger.unlink()
    assert rebuild_home(toy.home, dry_run=False)["rebuilt"]
    toy.begin()
    after = find_file(toy.keeper.ledger, "a.jsonl")
    assert (after.record["reading"], after.record["settings"], after.description) == (
        before.record["reading"], before.record["settings"], "sums")  # fmt: skip
    assert after.record["sidecars"] == before.record["sidecars"] and "meta.yaml" in after.record["sidecars"]
    assert verify(toy.keeper, everything=True).damage == ()
    toy.drop("b.jsonl", QA)
    toy.settle()
    assert states(toy)["b.jsonl"] == "duplicate"


def test_the_side_file_goes_to_the_vault_with_its_original(toy: Toy) -> None:
    from guard.store.vault import run_backup

    toy.drop("a.jsonl.meta.yaml", COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    run_backup(toy.keeper)
    sha256 = find_file(toy.keeper.ledger, "a.jsonl").sha256
    assert (toy.home.root / "backups" / "files" / sha256 / "meta.yaml").read_text() == COLUMNS


def test_a_good_copy_under_another_name_mends_the_bytes_and_keeps_columns_and_side_file(toy: Toy) -> None:
    toy.drop("a.jsonl.meta.yaml", COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    folder = toy.home.files / find_file(toy.keeper.ledger, "a.jsonl").sha256
    os.chmod(folder / "a.jsonl", 0o644)
    (folder / "a.jsonl").write_text(QA[:-5])
    toy.drop("b.jsonl", QA)
    toy.settle()
    assert states(toy)["b.jsonl"] == "registered" and (folder / "meta.yaml").read_text() == COLUMNS
    assert verify(toy.keeper, everything=True).damage == ()


def test_a_side_file_makes_an_evaluation_set_and_columns_hide_no_row_from_it(toy: Toy) -> None:
    exam = "".join(QA.splitlines(keepends=True)[:12])
    toy.drop("exam.jsonl.meta.yaml", "untouchable: true\n" + COLUMNS)
    toy.drop("exam.jsonl", exam)
    toy.settle()
    assert states(toy)["exam.jsonl"] == "registered" and toy.versions() == {"v001_baseline": "sealed"}
    toy.drop("a.jsonl.meta.yaml", COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    told = next(reason for name, _state, reason in toy.drops() if name == "a.jsonl")
    assert "12 of its rows are in the evaluation set exam.jsonl: kept out" in told
    record = orjson.loads(toy.keeper.ledger.value("SELECT record FROM versions ORDER BY id DESC LIMIT 1"))
    assert record["data"][0]["examples"] <= 30 - 12
