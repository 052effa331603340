"""What a job may train on and with: the same data again, lost originals, a full disk, and what locks deletion afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from runner_help import ask, last_job, learnt_of, run_until, state, tip, trainable_rows
from toy import Toy, chat_of
from toy_fixtures import _begin, _no_syncing, _template, _toy  # noqa: F401 - fixtures

from daemon import publish
from daemon.report import compose
from guard.clock import utc_text
from guard.errors import Protected
from guard.store.jobs import find_job
from guard.store.versions import find_version

BASE = "v001_baseline"


# --- the same data again ------------------------------------------------------------------------------------------


def test_the_same_bytes_under_another_name_come_back_as_a_duplicate(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    toy.drop("sft/other.jsonl", chat_of(30))
    toy.settle()
    name, found, why = toy.drops()[-1]
    assert (name, found) == ("other.jsonl", "duplicate") and "trained in v002_a" in why
    assert (toy.home.duplicates / "other.jsonl").read_text() == chat_of(30)
    assert "v002_a" in (toy.home.duplicates / "other.jsonl.why.txt").read_text()
    assert len(toy.versions()) == 2


def test_the_same_examples_in_another_dress_are_nothing_new(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    rows = [json.loads(line) for line in reversed(chat_of(30).splitlines())]
    toy.drop("dressed.jsonl", "".join(json.dumps({"source": "web", **row}, indent=None, separators=(" ,", " : ")) + "\r\n"
                                      for row in rows))  # fmt: skip
    toy.settle()
    assert toy.drops()[-1][1:] == ("duplicate", "nothing new for policy: every example in it was learnt from other files; "
                                    "heirloom seen - < FILE names them")
    assert len(toy.versions()) == 2


def test_a_queued_file_whose_examples_were_learnt_meanwhile_is_let_go_and_bothers_nobody(toy: Toy) -> None:
    ask(toy, "queue.pause")
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    toy.drop("b.jsonl", "".join(reversed(chat_of(30).splitlines(keepends=True))))
    toy.settle()
    assert toy.drops()[-1][1] == "admitted", "nothing of it is learnt yet"
    ask(toy, "queue.resume")
    toy.settle()
    number, found, why = last_job(toy)
    assert found == "cancelled" and "learnt all of it already" in why and number not in toy.engine.troubled
    assert len(toy.versions()) == 2 and not toy.home.staging_of(number).exists()


def test_of_a_file_that_is_mostly_known_only_the_rest_is_trained_and_repeats_once(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(60))
    toy.settle()
    known = trainable_rows(toy, "a.jsonl")
    toy.drop("b.jsonl", chat_of(60) + chat_of(8, seed=1000) * 3)
    toy.settle()
    record = find_version(toy.keeper.ledger, "v003_b").record
    new = trainable_rows(toy, "b.jsonl") - known
    assert 0 < new <= 8 and learnt_of(toy, "v003_b") == {"b.jsonl": new}
    assert record["skipped"]["known"] == known and record["skipped"]["repeated"] == 2 * new
    assert toy.drops()[-1][2] == f"{new} new examples, {known} were learnt before"


def test_rolled_back_data_trains_again_from_the_older_parent_when_it_is_dropped(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    again = ask(toy, "rollback", version=BASE)["trainable_again"]
    assert [(row["file"], row["examples"]) for row in again] == [("a.jsonl", trainable_rows(toy, "a.jsonl"))]
    toy.settle()
    assert len(toy.versions()) == 2, "a rollback re-queues nothing"
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert tip(toy) == "v003_a" and learnt_of(toy, "v003_a") == learnt_of(toy, "v002_a")
    assert find_version(toy.keeper.ledger, "v003_a").record["parent"] == BASE


def test_an_original_that_rotted_blocks_training_and_is_named(toy: Toy) -> None:
    ask(toy, "queue.pause")
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    stored = next(toy.home.files.glob("*/a.jsonl"))
    os.chmod(stored, 0o644)
    data = bytearray(stored.read_bytes())
    data[100] ^= 1
    stored.write_bytes(data)
    ask(toy, "queue.resume")
    toy.settle()
    _number, found, why = last_job(toy)
    assert found == "parked" and "the stored bytes changed: a.jsonl" in why
    assert toy.versions() == {BASE: "sealed"}


def test_an_original_that_vanished_blocks_training_and_is_named(toy: Toy) -> None:
    ask(toy, "queue.pause")
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    next(toy.home.files.glob("*/a.jsonl")).unlink()
    ask(toy, "queue.resume")
    toy.settle()
    assert last_job(toy)[1] == "parked" and "missing: a.jsonl" in last_job(toy)[2]


def test_a_rejected_file_that_was_fixed_is_admitted_and_its_rejection_remembered(toy: Toy) -> None:
    toy.drop("a.jsonl", '{"messages": 3}\n')
    toy.settle()
    assert toy.drops()[-1][1] == "rejected" and (toy.home.rejected / "a.jsonl.why.txt").exists()
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert [(name, found) for name, found, _why in toy.drops()] == [("a.jsonl", "rejected"), ("a.jsonl", "admitted")]
    assert tip(toy) == "v002_a" and (toy.home.rejected / "a.jsonl").read_text() == '{"messages": 3}\n'


def test_a_type_nobody_can_read_stays_where_it_is_and_says_why(toy: Toy) -> None:
    paths = [toy.drop(name, "x") for name in ("photo.png", "noextension", "preference/p.txt", "sft/plain.txt")]
    content = toy.drop("pairs.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    toy.settle()
    assert all(path.exists() for path in paths) and set(paths) <= set(toy.engine.intake.last.ignored)
    assert not content.exists() and toy.drops()[0][:2] == ("pairs.jsonl", "rejected")
    assert "stays where it is" not in (toy.home.rejected / "pairs.jsonl.why.txt").read_text()


# --- a full disk ----------------------------------------------------------------------------------------------------


def _free(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    monkeypatch.setattr("guard.home.Home.free_bytes", lambda _home: int(gigabytes * 1e9))


def test_a_disk_that_falls_below_the_reserve_pauses_training_which_goes_on_by_itself(
    begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = begin()
    plain.drop("a.jsonl", chat_of(60))
    plain.settle()
    toy = begin(disk__reserve_gb=10)
    _free(monkeypatch, 50)
    toy.drop("a.jsonl", chat_of(60))
    job = run_until(toy, "training")
    _free(monkeypatch, 9)
    toy.step()
    found = find_job(toy.keeper.ledger, job)
    assert found.state == "held" and "9.0 GB are free" in found.reason and toy.versions() == {BASE: "sealed"}
    told = compose(toy.keeper, {}, running=True)
    assert told["state"] == "held" and any("so training waits" in item["what"] for item in told["alerts"])
    for _turn in range(200):
        toy.step()
    assert state(toy, job) == "held" and toy.versions() == {BASE: "sealed"}
    _free(monkeypatch, 50)
    toy.step()
    toy.settle()
    assert state(toy, job) == "done" and toy.weights()["v002_a"] == plain.weights()["v002_a"]
    assert not any("so training waits" in item["what"] for item in compose(toy.keeper, {}, running=True)["alerts"])


def test_a_job_without_room_is_not_begun_and_begins_by_itself(begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    toy = begin(disk__reserve_gb=10)
    _free(monkeypatch, 10)
    toy.drop("a.jsonl", chat_of(60))
    toy.settle()
    assert last_job(toy)[1] == "held" and "Disk space" in last_job(toy)[2]
    _free(monkeypatch, 50)
    for _turn in range(80):
        toy.step()
    assert last_job(toy)[1] == "done" and "v002_a" in toy.versions()


def test_a_cancellation_is_not_taken_back_by_a_full_disk(begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    toy = begin(disk__reserve_gb=10)
    _free(monkeypatch, 50)
    toy.drop("a.jsonl", chat_of(60))
    job = run_until(toy, "training")
    ask(toy, "queue.cancel", job=job)
    _free(monkeypatch, 9)
    toy.step()
    assert state(toy, job) == "cancelled"


def test_the_status_says_how_many_forks_are_left_and_when_the_disk_is_full(
    begin: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = begin(disk__reserve_gb=10)
    _free(monkeypatch, 50)
    assert compose(toy.keeper, {}, running=True)["disk"]["full_on"] is None
    for seed in range(3):
        toy.drop(f"f{seed}.jsonl", chat_of(30, seed))
        toy.settle()
        toy.clock.advance(86400)
    disk = compose(toy.keeper, {}, running=True)["disk"]
    size = toy.keeper.ledger.value("SELECT avg(size_bytes) FROM versions WHERE parent_id IS NOT NULL")
    assert abs(disk["forks_left"] - 40e9 / (2 * size)) <= 1
    rate = toy.keeper.ledger.value("SELECT sum(size_bytes) * 2 FROM versions WHERE id > 2") / (3 * 86400)
    seconds = 40e9 / rate
    if disk["full_on"] is not None:  # thousands of years ahead, reckoned from two averages of the same sizes
        assert abs(int(disk["full_on"][:4]) - int(utc_text(toy.clock.seconds + seconds)[:4])) <= 1
    _free(monkeypatch, 10.001)
    near = compose(toy.keeper, {}, running=True)["disk"]
    assert near["full_on"] and near["full_on"] >= toy.clock.utc()[:10]


# --- what else went into a version --------------------------------------------------------------------------------------


def _with_inputs(monkeypatch: pytest.MonkeyPatch, *inputs: dict[str, str]) -> None:
    real = publish.forked_record
    monkeypatch.setattr(publish, "forked_record", lambda *args, **words: {**real(*args, **words), "inputs": list(inputs)})


def test_every_input_of_a_version_locks_deletion_like_a_parent(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    ask(toy, "rollback", version=BASE)
    _with_inputs(monkeypatch, {"role": "reference", "name": "v002_a"}, {"role": "index", "name": "v001"})
    toy.drop("b.jsonl", chat_of(30, 500))
    toy.settle()
    assert tip(toy) == "v003_b"
    with pytest.raises(Protected, match="v003_b stands on v002_a"):
        ask(toy, "delete", version="v002", force=True)
    told = ask(toy, "delete", version="v002", force=True, confirm_lineage=True, confirm="v002_a")
    assert told["dependants"] == ["v003_b"]


def test_a_version_with_an_input_nobody_knows_is_not_published(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_inputs(monkeypatch, {"role": "reward", "name": "v099_judge"})
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    assert last_job(toy)[1] == "failed" and "v099_judge" in last_job(toy)[2]
    assert toy.versions() == {BASE: "sealed"} and not (toy.home.models / "v002_a").exists()
