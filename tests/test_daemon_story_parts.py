"""Where every row of a file went: `why` and `show` tell parts that add up, too long and untouchable rows among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluation_help import Watched, chat, jsonl, text
from toy import Toy

from daemon.cli.files import story_lines
from daemon.cli.main import main
from daemon.story import tell_story
from daemon.story_parts import PARTS
from guard.durable import remove_tree
from guard.store.jobs import add_job


def story_of(toy: Toy, name: str) -> dict[str, Any]:
    return tell_story(toy.keeper, name, Path("/nowhere"))


def parts_of(toy: Toy, name: str) -> dict[str, Any]:
    story = story_of(toy, name)
    [file] = story["files"]
    found: dict[str, Any] = file["parts"]["policy"]
    assert sum(found[part] for part in PARTS) == found["rows"] and file["left"] == {"policy": found["new"]}
    return found


def show(toy: Toy, what: str, capfdbinary: pytest.CaptureFixture[bytes], *more: str) -> str:
    assert main(["--home", str(toy.home.root), "show", what, *more]) == 0
    return capfdbinary.readouterr().out.decode()


def test_every_row_of_a_file_is_in_one_part_and_they_add_up(tmp_path: Path) -> None:
    home = Watched(tmp_path)
    home.register("exam.jsonl", [text(number) for number in range(5)])
    home.drop("first.jsonl", [text(number) for number in range(20, 40)])
    rows = [text(number) for number in (*range(5), *range(20, 30), *range(40, 80))] + [text(50), text(50)]
    home.toy.drop("mixed.jsonl", jsonl(rows) + '{"text": ""}\n{"text": 3}\n' + "\n")
    home.toy.settle()
    found = parts_of(home.toy, "mixed.jsonl")
    record = json.loads(home.toy.keeper.ledger.value("SELECT record FROM files WHERE name = 'mixed.jsonl'"))
    assert found["rows"] == record["rows"] == 59
    assert found["untouchable"] in (4, 5) and found["held_out"] > 0 and found["repeated"] in (0, 2)
    # Everything that may be learnt was: nothing of the evaluation set is "left to learn".
    assert found["new"] == 0 and found["learnt"] > 30 and found["bad"] + found["unusable"] == 2
    exam = parts_of(home.toy, "exam.jsonl")
    assert (exam["rows"], exam["held_out"] + exam["untouchable"], exam["new"]) == (5, 5, 0)
    [line] = [line for line in story_lines(story_of(home.toy, "mixed.jsonl")) if "left to learn for policy" in line]
    assert line.startswith("    left to learn for policy: 0 of 59 rows; ") and f"{found['held_out']} held out" in line
    assert f"{found['untouchable']} in an evaluation set" in line


def test_what_a_later_set_keeps_out_is_not_left_to_learn(tmp_path: Path) -> None:
    home = Watched(tmp_path)
    home.toy.keeper.ledger._db.execute("INSERT OR REPLACE INTO meta VALUES ('paused', '1')")
    home.toy.drop("chats.jsonl", jsonl([chat(number) for number in range(20)]))
    home.toy.settle()
    before = parts_of(home.toy, "chats.jsonl")
    home.register("exam.jsonl", [chat(number, "Another answer.") for number in range(6)])
    after = parts_of(home.toy, "chats.jsonl")
    assert (before["untouchable"], before["rows"]) == (0, 20) and 4 <= after["untouchable"] <= 6
    assert after["new"] == before["new"] - after["untouchable"]


@pytest.fixture
def short(tmp_path: Path) -> Toy:
    """A toy whose window is 32 tokens, one of them a byte."""
    return Toy(tmp_path / "home", backup__auto=False).make_base()


def talk(number: int, words: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a" * words + str(number)}]}


def test_rows_longer_than_the_window_are_told_with_their_reason(short: Toy, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    rows = [talk(number, 3) for number in range(30)] + [talk(number, 80) for number in range(30, 37)]
    short.drop("talks.jsonl", jsonl(rows))
    short.settle()
    found = parts_of(short, "talks.jsonl")
    assert found["too_long"] + found["held_out"] + found["learnt"] == 37 and found["too_long"] >= 5
    assert (found["new"], found["window"]) == (0, 32)
    lines = "\n".join(story_lines(story_of(short, "talks.jsonl")))
    assert f"{found['too_long']} too long (longer than the model's window of 32 tokens: split or shorten them)" in lines
    name = list(short.versions())[-1]
    out = show(short, name, capfdbinary)
    assert "Passed over" in out and f"{found['too_long']} examples longer than its window of 32 tokens" in out
    assert f"{found['held_out']} example" in out and "held out for judging" in out
    assert f"{found['too_long']} rows: longer than the window of {name} (32 tokens)" in show(short, "talks.jsonl", capfdbinary)
    told = json.loads(show(short, "talks.jsonl", capfdbinary, "--json"))["too_long"]
    assert told == [{"version": name, "window": 32, "examples": found["too_long"]}]
    # Without the shards the record of its version says how many.
    for folder in short.home.shards.iterdir():
        remove_tree(folder)
    assert parts_of(short, "talks.jsonl") == found


def test_of_several_files_in_one_job_each_is_told_its_own(short: Toy) -> None:
    short.keeper.ledger._db.execute("INSERT OR REPLACE INTO meta VALUES ('paused', '1')")
    short.drop("a.jsonl", jsonl([talk(number, 3) for number in range(20)] + [talk(number, 80) for number in range(20, 26)]))
    short.drop("b.jsonl", jsonl([talk(number, 3) for number in range(30, 50)] + [talk(99, 90)]))
    short.settle()
    ledger = short.keeper.ledger
    hashes = [ledger.value("SELECT sha256 FROM files WHERE name = ?", (name,)) for name in ("a.jsonl", "b.jsonl")]
    with ledger.transaction():
        ledger.run("UPDATE jobs SET state = 'cancelled' WHERE kind = 'train' AND state = 'queued'")
        add_job(ledger, kind="train", stage="sft", line="policy", slug="both", files=hashes,
                request={"recipe": "", "origin": "drop"})  # fmt: skip
        ledger.set_meta("paused", "0")
    short.settle()
    for name, most in (("a.jsonl", 6), ("b.jsonl", 1)):
        found = parts_of(short, name)
        assert found["new"] == 0 and found["learnt"] and most - 2 <= found["too_long"] <= most
        assert found["too_long"] + found["learnt"] + found["held_out"] == found["rows"]
