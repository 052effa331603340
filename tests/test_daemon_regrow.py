"""Regrow: a file was wrong and versions stand on it; the line is grown again without it, and nothing else changes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import copy_home, known_fingerprints, no_syncing, read_sidecar
from toy import Toy, chat_of, text_of

from daemon.control import ControlServer
from daemon.control import ask as ask_socket
from daemon.operations import begin, perform
from daemon.story import tell_story
from guard import failpoints
from guard.durable import remove_tree, sha256_file
from guard.errors import CheckFailed, Damage, NotFound, Protected, UsageError
from guard.failpoints import Crash
from guard.store.files import find_file, stored_path
from guard.store.jobs import find_job
from guard.store.lineage import lineage
from guard.store.verify import verify
from guard.store.versions import ancestors, find_version, line_tip, version_by_id

BASE = "v001_baseline"
NEW = "policy_without_b"


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncing(monkeypatch)


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    """A base, and four files learnt one after the other: a, b, c (chats) and d (text)."""
    root = shared_scratch / "regrow-template"
    toy = Toy(root, backup__auto=False).make_base()
    for seed, name in enumerate(("a.jsonl", "b.jsonl", "c.jsonl")):
        toy.drop(name, chat_of(40, 100 * seed + 1))
        toy.settle()
    toy.drop("pretrain/d.txt", text_of(1500))
    toy.settle()
    toy.die()
    return root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Iterator[Toy]:
    copy_home(template, scratch / "home")
    toy = Toy(scratch / "home", backup__auto=False)
    yield toy
    failpoints.disarm()
    toy.die()


def ask(toy: Toy, operation: str, **arguments: object) -> dict[str, Any]:
    return perform(toy.engine, operation, arguments)


def tip(toy: Toy, line: str) -> str:
    version = line_tip(toy.keeper.ledger, line)
    assert version is not None
    return version.name


def names(toy: Toy, version: str) -> list[str]:
    """A version and its ancestors, newest first."""
    ledger = toy.keeper.ledger
    return [version_by_id(ledger, number).name for number in ancestors(ledger, find_version(ledger, version).id)]


def knows(toy: Toy, version: str, file: str) -> int:
    """How many examples of a file a version's ancestry has learnt, asked of the fingerprints."""
    stored = find_file(toy.keeper.ledger, file)
    known = set(known_fingerprints(toy.keeper, find_version(toy.keeper.ledger, version).id, stored.kind))
    return len(known & set(read_sidecar(toy.home.files / stored.sha256)))


def states(toy: Toy, jobs: list[int]) -> list[str]:
    return [find_job(toy.keeper.ledger, number).state for number in jobs]


def test_the_plan_starts_from_the_last_version_that_has_not_seen_the_file(toy: Toy) -> None:
    before = toy.keeper.ledger.sequence()
    plan = ask(toy, "regrow", without="b.jsonl", dry_run=True)
    assert (plan["base"], plan["line"], plan["new_line"]) == ("v002_a", "policy", NEW)
    assert plan["affected"] == ["v003_b", "v004_c", "v005_d"] and plan["skipped"] == ["v003_b"]
    assert [(step["replaces"], [item["file"] for item in step["files"]]) for step in plan["steps"]] == [
        ("v004_c", ["c.jsonl"]), ("v005_d", ["d.txt"])]  # fmt: skip
    assert plan["ok"] and plan["jobs"] == [] and all(step["estimate"]["tokens"] > 0 for step in plan["steps"])
    assert plan["estimate"]["bytes"] == sum(step["estimate"]["bytes"] for step in plan["steps"])
    sealed = find_version(toy.keeper.ledger, "v004_c").record
    assert plan["steps"][0]["seed"] == sealed["seed"] and plan["steps"][0]["recipe"] == sealed["recipe"]["name"]
    assert toy.keeper.ledger.sequence() == before


def test_the_new_line_has_no_trace_of_the_file_and_the_old_one_is_untouched(toy: Toy) -> None:
    before = {name: toy.weights()[name] for name in toy.versions()}
    jobs = ask(toy, "regrow", without="b.jsonl")["jobs"]
    toy.settle()
    assert states(toy, jobs) == ["done", "done"]
    new = tip(toy, NEW)
    assert names(toy, new) == ["v007_d", "v006_c", "v002_a", BASE] and tip(toy, "policy") == "v005_d"
    assert knows(toy, new, "b.jsonl") == 0 and knows(toy, "v005_d", "b.jsonl") > 30
    for file in ("a.jsonl", "c.jsonl", "d.txt"):
        assert knows(toy, new, file) == knows(toy, "v005_d", file) > 0
    for name in ("v006_c", "v007_d"):
        record = find_version(toy.keeper.ledger, name).record
        old = find_version(toy.keeper.ledger, name.replace("v006", "v004").replace("v007", "v005")).record
        assert (record["recipe"], record["seed"], record["line"]) == (old["recipe"], old["seed"], NEW)
        # Not in the data, and not among what is replayed or measured either.
        assert find_file(toy.keeper.ledger, "b.jsonl").sha256 not in json.dumps(record)
        b_dataset = find_version(toy.keeper.ledger, "v003_b").record["dataset"]["id"]
        assert b_dataset not in json.dumps(record) and b_dataset in json.dumps(old)
    assert {name: toy.weights()[name] for name in before} == before and verify(toy.keeper, everything=True).ok


def test_the_story_of_the_file_says_where_it_was_left_out(toy: Toy) -> None:
    ask(toy, "regrow", without="b.jsonl")
    toy.settle()
    story = tell_story(toy.keeper, "b.jsonl", toy.home.root)
    assert story["left_out"] == [{"line": NEW, "of": "policy", "base": "v002_a"}]
    assert any(item["verb"] == "file.left_out" and item["payload"]["line"] == NEW for item in story["events"])
    assert {item["line"] for item in story["versions"]} == {"policy"}
    assert tell_story(toy.keeper, "c.jsonl", toy.home.root)["left_out"] == []


def test_a_line_follows_its_regrown_one_and_comes_back(toy: Toy) -> None:
    ask(toy, "regrow", without="b.jsonl")
    toy.settle()
    told = ask(toy, "rollback", version="v007", line="policy", reason="b was wrong")
    assert (told["from"], told["to"], told["changed"]) == ("v005_d", "v007_d", True)
    assert [item["file"] for item in told["trainable_again"]] == ["b.jsonl"]
    toy.drop("e.jsonl", chat_of(30, 900))
    toy.settle()
    assert names(toy, tip(toy, "policy"))[:3] == ["v008_e", "v007_d", "v006_c"]
    assert ask(toy, "rollback", version="v005", line="policy")["to"] == "v005_d"
    with pytest.raises(CheckFailed):  # the other way round nobody asked for: the regrown line is no parent of the old
        ask(toy, "rollback", version="v005", line=NEW)


def test_the_file_may_be_named_by_its_hash_and_a_file_nobody_learnt_is_nothing_to_regrow(toy: Toy) -> None:
    sha256 = find_file(toy.keeper.ledger, "b.jsonl").sha256
    assert ask(toy, "regrow", without=sha256, dry_run=True)["affected"] == ["v003_b", "v004_c", "v005_d"]
    ask(toy, "regrow", without="b.jsonl")
    toy.settle()
    again = ask(toy, "regrow", without="b.jsonl", line=NEW)
    assert again["affected"] == [] and again["steps"] == [] and again["ok"] and again["jobs"] == []
    with pytest.raises(NotFound):
        ask(toy, "regrow", without="nobody.jsonl")
    with pytest.raises(UsageError, match="nowhere"):
        ask(toy, "regrow", without="b.jsonl", line="nowhere")


def test_the_newest_file_leaves_nothing_to_train(toy: Toy) -> None:
    plan = ask(toy, "regrow", without="d.txt")
    assert plan["affected"] == ["v005_d"] and plan["steps"] == [] and plan["base"] == "v004_c" and plan["jobs"] == []


def test_the_same_regrow_is_not_queued_twice(toy: Toy) -> None:
    ask(toy, "regrow", without="b.jsonl")
    with pytest.raises(CheckFailed, match="already"):
        ask(toy, "regrow", without="b.jsonl")
    toy.settle()
    assert ask(toy, "regrow", without="b.jsonl", dry_run=True)["new_line"] == f"{NEW}_2"


def test_its_base_is_locked_while_the_jobs_wait(toy: Toy) -> None:
    ask(toy, "rollback", version=BASE)
    ask(toy, "rollback", version="v005")
    ask(toy, "regrow", without="b.jsonl")
    with pytest.raises(Protected, match="unfinished job"):
        ask(toy, "delete", version="v002", force=True, confirm_lineage=True, confirm="v002_a")


def test_a_missing_original_queues_nothing(toy: Toy) -> None:
    file = find_file(toy.keeper.ledger, "c.jsonl")
    remove_tree(stored_path(toy.home, file))
    plan = ask(toy, "regrow", without="b.jsonl")
    assert not plan["ok"] and plan["jobs"] == []
    assert [check["name"] for check in plan["checks"] if check["ok"] is False] == ["Data verified"]
    remove_tree(toy.home.files / file.sha256)
    with pytest.raises(Damage):
        ask(toy, "regrow", without="b.jsonl")
    assert len(toy.jobs()) == 5


@pytest.mark.parametrize(("point", "visit"), [("regrow.queueing", 1), ("regrow.queueing", 2), ("regrow.queued", 1)])
@pytest.mark.parametrize("action", ["crash", "enospc"])
def test_a_death_in_the_middle_of_queueing_queues_all_or_nothing(toy: Toy, point: str, visit: int, action: str) -> None:
    failpoints.arm(point, action, visit)
    with pytest.raises((Crash, OSError)):
        ask(toy, "regrow", without="b.jsonl")
    assert failpoints.hits(point) == visit
    failpoints.disarm()
    toy.again()
    assert len(toy.jobs()) == (7 if point == "regrow.queued" else 5)
    if point != "regrow.queued":
        assert ask(toy, "regrow", without="b.jsonl")["new_line"] == NEW
    toy.settle()
    assert names(toy, tip(toy, NEW))[0] == "v007_d" and verify(toy.keeper, everything=True).ok


def test_a_job_that_fails_parks_those_after_it_until_a_person_retries(toy: Toy) -> None:
    first, second = ask(toy, "regrow", without="b.jsonl")["jobs"]
    toy.server.spoil = lambda job, result: result.update(steps_executed=0)
    toy.settle()
    assert states(toy, [first, second]) == ["failed", "parked"]
    assert f"job {first}" in find_job(toy.keeper.ledger, second).reason
    assert line_tip(toy.keeper.ledger, NEW) is None and tip(toy, "policy") == "v005_d"
    toy.server.spoil = lambda job, result: None
    ask(toy, "queue.retry", job=first)
    toy.settle()
    assert states(toy, [first, second]) == ["done", "parked"]
    ask(toy, "queue.retry", job=second)
    toy.settle()
    assert states(toy, [first, second]) == ["done", "done"] and names(toy, tip(toy, NEW))[2:] == ["v002_a", BASE]


def test_one_whose_turn_came_early_waits_for_the_one_before_it(toy: Toy) -> None:
    first, second = ask(toy, "regrow", without="b.jsonl")["jobs"]
    ask(toy, "queue.move", job=second, to=1)
    toy.settle()
    assert states(toy, [first, second]) == ["done", "done"]
    assert [name.split("_")[1] for name in names(toy, tip(toy, NEW))] == ["d", "c", "a", "baseline"]


def test_one_that_has_nothing_new_is_passed_over(toy: Toy) -> None:
    """c2 repeats the rows of c under another name; after `retry` its own job has nothing left to learn."""
    jobs = ask(toy, "regrow", without="b.jsonl")["jobs"]
    with toy.keeper.ledger.transaction():  # make the first job one that trains what its base knows already
        toy.keeper.ledger.run("UPDATE job_files SET sha256 = ? WHERE job_id = ?",
                              (find_file(toy.keeper.ledger, "a.jsonl").sha256, jobs[0]))  # fmt: skip
    toy.settle()
    assert states(toy, jobs) == ["cancelled", "done"]
    assert [name.split("_")[1] for name in names(toy, tip(toy, NEW))] == ["d", "a", "baseline"]


def test_the_lineage_shows_both_lines(toy: Toy) -> None:
    ask(toy, "regrow", without="b.jsonl")
    toy.settle()
    found = {item["name"]: item for item in lineage(toy.keeper)}
    assert found["v006_c"]["parent"] == "v002_a" == found["v003_b"]["parent"]
    assert found["v007_d"]["active"] and found["v005_d"]["active"]
    files = {item["file"] for name in names(toy, "v007_d") for item in found[name]["training_data"]}
    assert files == {"a.jsonl", "c.jsonl", "d.txt"}


# --- rollback with a running job, through the socket -------------------------------------------------------------------


def test_a_rollback_over_the_socket_snapshots_and_parks_what_runs(toy: Toy, tmp_path: Path) -> None:
    control = ControlServer(tmp_path / "s", toy.reactor, lambda request: begin(toy.engine, request["operation"],
                                                                                 request["arguments"]))  # fmt: skip
    toy.drop("e.jsonl", chat_of(30, 900))
    for _turn in range(60):
        toy.clock.advance(0.5)
        toy.engine.loop(toy.clock.monotonic())
        running = toy.engine.runner.current
        if running is not None and find_job(toy.keeper.ledger, running).state == "training":
            break
        toy.server.deliver()
    assert running is not None
    answers: list[dict[str, Any]] = []
    question = {"operation": "rollback", "arguments": {"version": "v003", "reason": "too far"}, "actor": "me"}
    client = threading.Thread(target=lambda: answers.append(ask_socket(tmp_path / "s", question)))
    client.start()
    while client.is_alive():
        control.tick()
        toy.reactor.poll(0.05)
    client.join()
    control.close()
    assert answers[0]["result"]["parked_job"] == running and answers[0]["result"]["to"] == "v003_b"
    assert toy.server.finished == [(running, 75)]  # asked to take its snapshot and stop
    toy.settle()
    job = find_job(toy.keeper.ledger, running)
    assert job.state == "parked" and "rolled back" in job.reason and tip(toy, "policy") == "v003_b"
    assert os.path.isdir(toy.home.staging_of(running))
    assert sha256_file(toy.home.models / "v003_b" / "SHA256SUMS") == find_version(toy.keeper.ledger, "v003").sums_sha256
    history = [item for item in toy.keeper.ledger.rows("SELECT * FROM events WHERE verb = 'line.rolled_back'")]
    facts = json.loads(history[-1]["payload"])
    assert (facts["before"], facts["after"], facts["why"]) == ("v005_d", "v003_b", "too far")
