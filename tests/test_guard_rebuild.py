"""`doctor --rebuild`: a ledger that is lost, cut short, changed or old is made again from what else is on the disk."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import copy_home, known_fingerprints, no_syncing, settings_from_outside
from toy import SETTINGS, Toy, chat_of, text_of

from daemon.mending import rebuild_home
from guard import durable, failpoints
from guard.clock import ManualClock
from guard.errors import Damage
from guard.failpoints import POINTS, Crash
from guard.home import Home
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger
from guard.store.lineage import lineage
from guard.store.rollback import rollback
from guard.store.trash import delete
from guard.store.verify import verify
from guard.store.versions import reserve_number, tips

ROUNDS = [name for name in POINTS if name.startswith("rebuild.")]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncing(monkeypatch)
    settings_from_outside(monkeypatch, SETTINGS)


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    """A base, three forks (one of them in the trash, the line rolled back), a document, a duplicate and a refusal."""
    toy = Toy(shared_scratch / "rebuild").make_base()
    toy.drop("a.jsonl", chat_of(60))
    toy.settle()
    shutil.copy(toy.home.ledger, toy.home.root / "older.db")
    toy.drop("pretrain/b.txt", text_of(2000))
    toy.drop("guide.md", "# Guide\n\nKeep the home on a disk of its own.\n")
    toy.drop("broken.jsonl", '{"messages": 3}\n')
    toy.settle()
    toy.drop("again.jsonl", chat_of(60))
    toy.drop("c.jsonl", chat_of(40, seed=7))
    toy.settle()
    rollback(toy.keeper, "v003")
    delete(toy.keeper, "v004", force=True)
    toy.die()
    return toy.home.root


def facts(keeper: Keeper) -> dict[str, Any]:
    """Everything a rebuilt ledger has to answer as the lost one did."""
    ledger = keeper.ledger
    learnt = {version: sorted(known_fingerprints(keeper, version, objective))
              for version, objective in ((1, "sft"), (3, "sft"), (3, "pretrain"), (4, "sft"))}  # fmt: skip
    rows = {
        "files": "SELECT sha256, name, kind, size_bytes, examples, tokens_approx, first_seen, current_doc FROM files",
        "learnt": "SELECT * FROM learnt", "lines": "SELECT name, tip_id FROM lines",
        "versions": "SELECT * FROM versions", "jobs": "SELECT id, kind, state, line, slug, created FROM jobs",
        "drops": "SELECT id, name, state, reason, sha256, source, mode, options FROM drops",
        "job_files": "SELECT * FROM job_files", "indexes": "SELECT id, state FROM indexes",
        "meta": "SELECT * FROM meta WHERE key NOT LIKE 'digest:%' AND key NOT LIKE 'trash:%' AND key != 'events_written'",
        "events": "SELECT * FROM events WHERE verb NOT LIKE 'home.re%'",
    }  # fmt: skip
    found = {name: [tuple(row) for row in ledger.rows(f"{query} ORDER BY 1, 2")] for name, query in rows.items()}
    found["meta"] = [row for row in found["meta"] if not (row[0].startswith("reserved:") or row == ("paused", "0"))]
    return {**found, "lineage": lineage(keeper), "known": learnt, "tips": {line: tip.name for line, tip in tips(ledger).items()}}


@pytest.fixture
def home(template: Path, scratch: Path) -> Iterator[Home]:
    copy_home(template, scratch / "home")
    yield Home(scratch / "home")


def opened(home: Home) -> Keeper:
    return Toy(home.root).keeper


def expected(home: Home) -> dict[str, Any]:
    toy = Toy(home.root)
    try:
        return facts(toy.keeper)
    finally:
        toy.die()


def delete_it(home: Home) -> None:
    home.ledger.unlink()


def truncate_it(home: Home) -> None:
    os.truncate(home.ledger, home.ledger.stat().st_size // 2)


def garble_it(home: Home) -> None:
    home.ledger.write_bytes(b"no database at all" * 500)


def put_an_older_copy(home: Home) -> None:
    shutil.copy(home.root / "older.db", home.ledger)


def change_a_row(home: Home) -> None:
    with sqlite3.connect(home.ledger) as database:
        database.execute("UPDATE versions SET parent_id = 1 WHERE id = 3")
    database.close()


DISASTERS = [delete_it, truncate_it, garble_it, put_an_older_copy, change_a_row]


@pytest.mark.parametrize("disaster", DISASTERS)
def test_a_ledger_that_is_made_again_answers_as_the_lost_one_did(home: Home, disaster: Callable[[Home], None]) -> None:
    before = expected(home)
    disaster(home)
    would = rebuild_home(home, dry_run=True, clock=ManualClock())
    assert would["problem"] and not would["rebuilt"] and not list(home.data.glob("ledger.db.damaged-*"))
    done = rebuild_home(home, dry_run=False, clock=ManualClock())
    assert done["rebuilt"] and done["versions"] == 4
    if disaster is not delete_it:
        assert any(name.startswith("ledger.db.damaged-1") for name in done["moved_aside"])
    keeper = opened(home)
    after = facts(keeper)
    for name in before:
        assert after[name] == before[name], name
    report = verify(keeper, everything=True)
    assert report.damage == ()
    with keeper.ledger.transaction():
        assert reserve_number(keeper) == 5


@pytest.mark.parametrize("disaster", [delete_it, put_an_older_copy])
@pytest.mark.parametrize("name", ROUNDS)
def test_a_crash_in_the_middle_of_making_it_again_costs_nothing(home: Home, name: str, disaster: Callable[[Home], None]) -> None:
    before = expected(home)
    disaster(home)
    failpoints.arm(name)
    with pytest.raises(Crash):
        rebuild_home(home, dry_run=False, clock=ManualClock())
    assert failpoints.hits(name) == 1
    failpoints.disarm()
    rebuild_home(home, dry_run=False, clock=ManualClock())
    keeper = opened(home)
    after = facts(keeper)
    assert {key: after[key] for key in before if key != "events"} == {key: before[key] for key in before if key != "events"}
    assert after["events"][: len(before["events"])] == before["events"]
    assert verify(keeper, everything=True).damage == ()


def test_a_sound_ledger_is_never_replaced_by_a_poorer_one(home: Home) -> None:
    before = home.ledger.read_bytes()
    home.registry.unlink()
    done = rebuild_home(home, dry_run=False, clock=ManualClock())
    assert not done["rebuilt"] and done["problem"] == "" and home.registry.exists()
    assert not list(home.data.glob("*.damaged-*")) and len(home.ledger.read_bytes()) == len(before)


def test_nothing_is_built_on_an_older_copy_of_the_ledger(home: Home) -> None:
    put_an_older_copy(home)
    (home.data / "ledger.db.closed").unlink()
    with pytest.raises(Damage, match="the export knows event"):
        Ledger(home.ledger)


def test_a_ledger_without_any_export_is_told_from_the_folders_alone(home: Home) -> None:
    """Folders know versions, what was learnt, and files; the salt comes from whatever older ledger is left."""
    before = expected(home)
    shutil.rmtree(home.events)
    durable.remove_tree(home.root / "backups")
    garble_it(home)
    with pytest.raises(Damage, match="held out"):
        rebuild_home(home, dry_run=True, clock=ManualClock())
    shutil.copy(home.root / "older.db", home.data / "ledger.db.damaged-7")
    rebuild_home(home, dry_run=False, clock=ManualClock())
    keeper = opened(home)
    after = facts(keeper)
    assert after["known"] == before["known"] and after["learnt"] == before["learnt"]
    assert [item["name"] for item in after["lineage"]] == [item["name"] for item in before["lineage"]]
    assert [row[:6] for row in after["files"]] == [row[:6] for row in before["files"]]
    assert keeper.salt == "toy"


def test_an_export_that_was_damaged_is_kept_aside_and_made_again(home: Home) -> None:
    segment = next(home.events.iterdir())
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:5], b"x" + lines[5], *lines[6:]]))
    done = rebuild_home(home, dry_run=False, clock=ManualClock())
    assert done["moved_aside"] == ["events.damaged-1"]
    assert segment.read_bytes().splitlines(keepends=True)[: len(lines)] == lines


def test_both_lost_the_ledger_and_the_folder_of_a_version_the_lineage_still_knows_it(home: Home) -> None:
    names = {path.name for path in home.models.iterdir()}
    name = next(name for name in names if name.startswith("v002"))
    durable.remove_tree(home.models / name)
    delete_it(home)
    done = rebuild_home(home, dry_run=False, clock=ManualClock())
    assert any(name in note for note in done["notes"])
    keeper = opened(home)
    assert [item["name"] for item in lineage(keeper)][1] == name
    assert {item.name for item in verify(keeper).damage} == {name}


def test_what_was_under_way_begins_again_and_nothing_dropped_is_lost(template: Path, scratch: Path) -> None:
    """The ledger is lost while a drop is claimed, one is queued and one trains."""
    copy_home(template, scratch / "home")
    toy = Toy(scratch / "home")
    toy.drop("d.jsonl", chat_of(50, seed=11))
    toy.drop("e.jsonl", chat_of(50, seed=12))
    for _round in range(40):
        toy.step()
        if any(row[2] in ("preparing", "training") for row in toy.jobs()):
            break
    toy.drop("f.jsonl", chat_of(50, seed=13))
    claimed: list[Any] = []
    while not claimed:
        toy.clock.advance(0.5)
        toy.engine.pool.tick(toy.clock.monotonic())  # a look at its end
        toy.engine.sweep(toy.clock.monotonic())
        claimed = [row for row in toy.drops() if row[1] == "claimed"]
    assert any(row[2] in ("preparing", "training") for row in toy.jobs())
    toy.die()
    delete_it(toy.home)
    rebuild_home(toy.home, dry_run=False, clock=ManualClock())
    again = Toy(toy.home.root).settle()
    assert {name.split("_", 1)[1] for name in again.versions()} >= {"d", "e", "f"}
    assert verify(again.keeper, everything=True).damage == ()
