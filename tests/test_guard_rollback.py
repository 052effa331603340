"""Rollback: the tip moves to a proven version, nothing is deleted or queued, and what was forgotten is told exactly."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import add_job_row, add_original, add_version, clone, keeper_of, small_family

from guard import durable, failpoints
from guard.bitmap import unpack_bitmap
from guard.errors import CheckFailed, Damage, NotFound, UsageError
from guard.failpoints import Crash
from guard.store import views
from guard.store.jobs import find_job
from guard.store.keeper import Keeper
from guard.store.rollback import finish_rollbacks, forgotten, rollback, trainable_again
from guard.store.trash import delete
from guard.store.verify import verify
from guard.store.versions import ancestors, find_version, learnt_by, line_tip, tokens_trained

POINTS = [name for name in failpoints.POINTS if name.startswith("rollback.")]
BASE, SYLLO, REASONING, TIP = "v001_baseline", "v002_syllo", "v003_reasoning", "v004_full_stack"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rollback") / "home"
    keeper = small_family(root)
    add_version(keeper, "branch", SYLLO, line="experiment")
    add_version(keeper, "poison", TIP, state="quarantined")
    views.refresh(keeper)
    keeper.ledger.close()
    return root


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


@pytest.fixture
def keeper(template: Path, tmp_path: Path) -> Iterator[Keeper]:
    yield clone(template, tmp_path / "home")
    failpoints.disarm()


def tip_of(keeper: Keeper, line: str = "policy") -> str:
    tip = line_tip(keeper.ledger, line)
    assert tip is not None
    return tip.name


def test_the_tip_moves_and_everything_else_stays(keeper: Keeper) -> None:
    told = rollback(keeper, "v002", reason="it forgot its manners")
    assert (told["line"], told["from"], told["to"], told["changed"]) == ("policy", TIP, SYLLO, True)
    assert tip_of(keeper) == SYLLO and tip_of(keeper, "experiment") == "v005_branch"
    assert {find_version(keeper.ledger, name).state for name in (REASONING, TIP)} == {"sealed"}
    assert keeper.ledger.rows("SELECT * FROM jobs") == []
    assert verify(keeper, everything=True).ok


def test_history_says_who_when_from_where_to_where_and_why(keeper: Keeper) -> None:
    rollback(keeper, BASE, reason="start over")
    event = keeper.ledger.row("SELECT * FROM events WHERE verb = 'line.rolled_back'")
    assert event is not None and event["actor"] == "tester" and event["utc"] == keeper.clock.utc()
    assert all(word in event["payload"] for word in (TIP, BASE, "start over")) and event["subject"] == "policy"


def test_what_became_trainable_again_is_counted_per_file(keeper: Keeper) -> None:
    told = rollback(keeper, REASONING)["trainable_again"]
    # v004 learnt ordinals 5..7 of reasoning and all of math; 0..4 of reasoning belong to v003 and stay known.
    assert [(row["file"], row["examples"]) for row in told] == [("math.jsonl", 10), ("reasoning.jsonl", 3)]
    assert all(len(row["sha256"]) == 64 and row["objective"] == "pretrain" for row in told)
    assert tokens_trained(keeper.ledger, find_version(keeper.ledger, REASONING).id) == 300


def test_what_was_forgotten_is_exactly_what_the_new_ancestry_lacks(keeper: Keeper) -> None:
    """Checked against plain sets of (file, ordinal) over every pair of versions."""
    ledger = keeper.ledger

    def known(name: str) -> set[tuple[str, int]]:
        rows = learnt_by(ledger, find_version(ledger, name).id, "pretrain")
        return {(row["sha256"], ordinal) for row in rows for ordinal in unpack_bitmap(row["bitmap"])}

    repeated = add_original(keeper, "repeated.jsonl")
    first = add_version(keeper, "once", TIP, learnt={repeated: [0, 1, 2]})
    add_version(keeper, "twice", first, learnt={repeated: [2, 3, 4]})
    names = [row[0] for row in ledger.rows("SELECT name FROM versions ORDER BY id")]
    for old in names:
        for new in names:
            told = trainable_again(ledger, find_version(ledger, old).id, find_version(ledger, new).id)
            lost = Counter(sha256 for sha256, _ordinal in known(old) - known(new))
            assert {row["sha256"]: row["examples"] for row in told} == dict(lost)


def test_forgotten_is_pure_and_keeps_objectives_apart() -> None:
    abandoned = {("a", "sft"): {1, 2}, ("a", "dpo"): {1}, ("b", "sft"): {0}}
    kept = {("a", "sft"): {2, 3}, ("b", "sft"): {0, 1}}
    assert forgotten(abandoned, kept) == {("a", "sft"): {1}, ("a", "dpo"): {1}}


def test_a_rollback_can_be_taken_back_and_forgets_nothing_then(keeper: Keeper) -> None:
    rollback(keeper, SYLLO)
    told = rollback(keeper, TIP)
    assert told["trainable_again"] == [] and tip_of(keeper) == TIP


def test_rolling_back_to_the_tip_changes_nothing(keeper: Keeper) -> None:
    before = keeper.ledger.sequence()
    told = rollback(keeper, TIP, park=lambda: pytest.fail("nothing may be parked"))
    assert told["changed"] is False and keeper.ledger.sequence() == before


def test_a_dry_run_only_tells(keeper: Keeper) -> None:
    before = keeper.ledger.sequence()
    told = rollback(keeper, SYLLO, dry_run=True, park=lambda: pytest.fail("nothing may be parked"))
    assert told["changed"] is True and len(told["trainable_again"]) == 2
    assert keeper.ledger.sequence() == before and tip_of(keeper) == TIP


REFUSALS = (
    ("v006_poison", None, CheckFailed, "its loss rose"),
    ("v005_branch", "policy", CheckFailed, "born on experiment"),
    (TIP, "experiment", CheckFailed, "no ancestor"),
    (SYLLO, "reward", UsageError, "no line"),
    ("v099", None, NotFound, "v099"),
)


def test_what_cannot_become_active_is_refused_with_the_reason(keeper: Keeper) -> None:
    before = keeper.ledger.sequence()
    for version, line, error, why in REFUSALS:
        with pytest.raises(error, match=why):
            rollback(keeper, version, line)
    assert keeper.ledger.sequence() == before and tip_of(keeper) == TIP


def test_another_line_goes_back_to_a_shared_ancestor(keeper: Keeper) -> None:
    assert rollback(keeper, SYLLO, "experiment")["from"] == "v005_branch"
    assert tip_of(keeper, "experiment") == SYLLO and tip_of(keeper) == TIP


def test_a_trashed_version_must_be_restored_first(keeper: Keeper) -> None:
    rollback(keeper, REASONING)
    delete(keeper, TIP, force=True, confirm_lineage=True, confirm=TIP)
    with pytest.raises(CheckFailed, match="trashed"):
        rollback(keeper, TIP)


def test_a_damaged_target_is_refused(keeper: Keeper) -> None:
    path = keeper.home.models / SYLLO / "model.safetensors"
    os.chmod(path, 0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(Damage, match=r"model\.safetensors"):
        rollback(keeper, SYLLO)
    assert tip_of(keeper) == TIP


def test_a_running_job_is_parked_by_the_hook_before_the_tip_moves(keeper: Keeper) -> None:
    job = add_job_row(keeper, "training", started=True)
    seen = []

    def park() -> int:
        seen.append(tip_of(keeper))
        with keeper.ledger.transaction():
            keeper.ledger.run("UPDATE jobs SET state = 'parked' WHERE id = ?", (job,))
        return job

    assert rollback(keeper, SYLLO, park=park)["parked_job"] == job
    assert seen == [TIP]


def test_jobs_built_on_the_abandoned_tip_are_parked_and_the_others_left_alone(keeper: Keeper) -> None:
    started = {state: add_job_row(keeper, state, started=True) for state in ("preparing", "training", "held", "queued")}
    fresh = add_job_row(keeper, "queued")
    elsewhere = add_job_row(keeper, "training", line="experiment", started=True)
    over = add_job_row(keeper, "done", started=True)
    told = rollback(keeper, SYLLO, reason="poison")
    assert told["parked_job"] == started["preparing"]
    assert {find_job(keeper.ledger, job).state for job in started.values()} == {"parked"}
    assert "rolled back to v002_syllo" in find_job(keeper.ledger, started["held"]).reason
    assert [find_job(keeper.ledger, job).state for job in (fresh, elsewhere, over)] == ["queued", "training", "done"]
    assert keeper.ledger.value("SELECT count(*) FROM jobs") == 7


@pytest.mark.parametrize("point", POINTS)
def test_a_rollback_that_dies_at_any_step_is_finished_by_recovery(keeper: Keeper, point: str) -> None:
    job = add_job_row(keeper, "training", started=True)
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        rollback(keeper, SYLLO, reason="x")
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    after = keeper_of(keeper.home.root)
    finish_rollbacks(after)
    views.refresh(after)
    assert finish_rollbacks(after) == []
    assert tip_of(after) == SYLLO and find_job(after.ledger, job).state == "parked"
    assert after.ledger.value("SELECT count(*) FROM events WHERE verb = 'line.rolled_back'") == 1
    assert verify(after, everything=True).ok


def test_an_interrupted_rollback_to_what_is_damaged_now_is_taken_back(keeper: Keeper) -> None:
    failpoints.arm("rollback.intended", "crash")
    with pytest.raises(Crash):
        rollback(keeper, SYLLO)
    failpoints.disarm()
    durable.remove_tree(keeper.home.models / SYLLO)
    after = keeper_of(keeper.home.root)
    assert "taken back" in finish_rollbacks(after)[0]
    assert tip_of(after) == TIP and ancestors(after.ledger, 4) == [4, 3, 2, 1]
