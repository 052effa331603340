"""A stored file whose fingerprints cannot be read holds the jobs that train it, and no other; and everybody is told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import Toy, chat_of

from daemon import upkeep
from daemon.cli.files import story_lines
from daemon.operations import perform
from daemon.report import compose, live_facts
from daemon.story import tell_story
from guard import durable, failpoints
from guard.durable import remove_tree, sha256_bytes
from guard.store.jobs import add_job
from guard.store.standing import standing_damage

OLD = chat_of(30)


@pytest.fixture
def toy(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """A home that learnt OLD, whose fingerprints are gone."""
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    made = Toy(scratch / "home", backup__auto=False, replay__fraction=0).make_base()
    made.drop("old.jsonl", OLD)
    made.settle()
    folder = stored(made)
    os.chmod(folder, 0o755)
    (folder / "examples.fp").unlink()
    made.again()
    yield made
    made.die()


def stored(toy: Toy) -> Path:
    return toy.home.files / sha256_bytes(OLD.encode())


def learnt(toy: Toy) -> dict[str, int]:
    return {row[0]: row[1] for row in toy.keeper.ledger.rows(
        "SELECT v.name, sum(l.count) FROM learnt l JOIN versions v ON v.id = l.version_id GROUP BY v.id")}  # fmt: skip


def alerts(toy: Toy) -> list[str]:
    status: dict[str, Any] = compose(toy.keeper, live_facts(toy.engine), running=True)
    return [item["what"] for item in status["alerts"]]


def test_its_rows_are_recognised_by_the_dataset_they_were_prepared_into(toy: Toy) -> None:
    before = learnt(toy)["v002_old"]
    toy.drop("more.jsonl", OLD + chat_of(10, seed=900))
    toy.settle()
    assert toy.jobs()[-1][2] == "done"
    assert learnt(toy)["v003_more"] <= 10 and before + learnt(toy)["v003_more"] <= 40, "nothing was learnt twice"
    assert not standing_damage(toy.keeper) and not any("recognised" in text for text in alerts(toy))


def test_other_files_go_on_and_status_and_story_say_what_to_type(toy: Toy) -> None:
    for folder in list(toy.home.shards.iterdir()):
        remove_tree(folder)
    toy.drop("other.jsonl", chat_of(10, seed=900))
    toy.drop("third.jsonl", chat_of(10, seed=950))
    toy.settle()
    assert [row[2] for row in toy.jobs()] == ["done"] * 4 and "v004_third" in toy.versions()
    [told] = [text for text in alerts(toy) if "old.jsonl" in text]
    assert "is missing" in told and f"cp {stored(toy) / 'old.jsonl'} into inbox/" in told
    story = tell_story(toy.keeper, "old.jsonl", Path("/"))
    assert "inbox/" in story["files"][0]["damage"] and any("damaged:" in line and "inbox/" in line for line in story_lines(story))
    assert [event["verb"] for event in story["events"]].count("known.lost") == 1, "told once, not by every job"


def test_a_job_that_trains_that_very_file_waits_for_a_person_and_goes_on_when_it_was_mended(toy: Toy) -> None:
    sha256 = sha256_bytes(OLD.encode())
    with toy.keeper.ledger.transaction():
        add_job(toy.keeper.ledger, kind="train", stage="sft", line="policy", slug="again", files=[sha256],
                request={"allow_repeat": True})  # fmt: skip
    toy.drop("other.jsonl", chat_of(10, seed=900))
    toy.settle()
    (again,) = [row for row in toy.jobs() if row[2] == "parked"]
    assert f"heirloom queue retry {again[0]}" in again[3] and "drop the same bytes again" in again[3]
    assert "v003_other" in toy.versions(), "what came behind it was trained"
    assert any("inbox/" in text for text in alerts(toy))
    shutil.copy(stored(toy) / "old.jsonl", toy.home.inbox / "old.jsonl")
    toy.engine.hint()
    toy.settle()
    assert "mended" in toy.drops()[-1][2] and (stored(toy) / "examples.fp").is_file()
    perform(toy.engine, "queue.retry", {"job": again[0]})
    toy.settle()
    assert dict((row[0], row[2]) for row in toy.jobs())[again[0]] == "done"
    assert not any("inbox/" in text for text in alerts(toy)) and not standing_damage(toy.keeper)
    assert tell_story(toy.keeper, "old.jsonl", Path("/"))["files"][0]["damage"] == ""


def test_a_batch_with_such_a_file_is_split_and_the_others_are_trained(toy: Toy) -> None:
    toy.flags["coalesce.after"] = 2
    toy.again()
    perform(toy.engine, "queue.pause", {})
    for number in range(3):
        toy.drop(f"f{number}.jsonl", chat_of(9, seed=1000 * (number + 1)))
    toy.settle()
    rotten = toy.home.files / sha256_bytes(chat_of(9, seed=2000).encode())
    os.chmod(rotten, 0o755)
    (rotten / "examples.fp").unlink()
    perform(toy.engine, "queue.resume", {})
    toy.settle()
    assert sorted(row[2] for row in toy.jobs() if "together" not in row[3] and "split" not in row[3]) == [
        "done", "done", "done", "done", "parked"]  # fmt: skip


def test_an_index_that_cannot_be_written_is_told_until_it_can(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "CALM_FILES", 1)
    failpoints.arm("known.published", "enospc")
    toy.drop("other.jsonl", chat_of(10, seed=900))
    toy.settle()
    toy.clock.advance(upkeep.LOOK_SECONDS)
    toy.until(lambda: toy.engine.upkeep.problem)
    assert any("the index of known examples was not brought up to date" in text for text in alerts(toy))
    failpoints.disarm()
    toy.clock.advance(upkeep.LOOK_SECONDS)
    toy.until(lambda: not toy.engine.upkeep.problem)
    assert not any("index of known examples" in text for text in alerts(toy))
