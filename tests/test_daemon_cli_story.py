"""`why` has an answer for every file that ever came, by name, by path, by hash and by where it was given back to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from homes import add_job_row, small_family

from daemon.cli.files import story_lines
from daemon.story import tell_story
from guard.durable import remove_tree
from guard.errors import NotFound
from guard.store.keeper import Keeper


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = small_family(tmp_path / "home")
    yield made
    made.ledger.close()
    remove_tree(tmp_path / "home")


def _drop(keeper: Keeper, name: str, state: str, sha256: str | None, reason: str, returned_to: str | None = None) -> None:
    verdict = orjson.dumps({"why": f"{name} was refused\n\n1 row:\n  line 2: no\n"}).decode()
    with keeper.ledger.transaction():
        keeper.ledger.run(
            "INSERT INTO drops (name, source, origin, mode, state, sha256, reason, verdict, returned_to, seen, updated) "
            "VALUES (?, ?, 'inbox', 'move', ?, ?, ?, ?, ?, '2026', '2026')",
            (name, name.encode(), state, sha256, reason, verdict, returned_to))  # fmt: skip
        keeper.ledger.event(f"drop.{state}", name)


def _hash(keeper: Keeper, name: str) -> str:
    return keeper.ledger.value("SELECT sha256 FROM files WHERE name = ?", (name,))


def test_a_trained_file_names_the_versions_that_learnt_it(keeper: Keeper) -> None:
    sha256 = _hash(keeper, "reasoning.jsonl")
    _drop(keeper, "reasoning.jsonl", "admitted", sha256, "10 new examples")
    job = add_job_row(keeper, "failed")
    with keeper.ledger.transaction():
        keeper.ledger.run("INSERT INTO job_files VALUES (?, 0, ?)", (job, sha256))
    story = tell_story(keeper, "reasoning.jsonl", Path("/"))
    assert (story["status"], story["reason"]) == ("trained", "10 new examples")
    assert [item["name"] for item in story["versions"]] == ["v003_reasoning", "v004_full_stack"]
    assert [item["id"] for item in story["jobs"]] == [job]
    assert {"drop.admitted", "version.sealed"} <= {event["verb"] for event in story["events"]}
    assert any("v004_full_stack" in line for line in story_lines(story))


@pytest.mark.parametrize("digits", [64, 12, 8])
def test_a_hash_or_its_start_is_enough(keeper: Keeper, digits: int) -> None:
    sha256 = _hash(keeper, "math.jsonl")
    assert tell_story(keeper, sha256[:digits], Path("/"))["name"] == "math.jsonl"


def test_a_copy_under_another_name_is_known_by_its_bytes(keeper: Keeper, tmp_path: Path) -> None:
    stored = keeper.home.files / _hash(keeper, "math.jsonl") / "math.jsonl"
    (tmp_path / "copy.jsonl").write_bytes(stored.read_bytes())
    assert tell_story(keeper, "copy.jsonl", tmp_path)["files"][0]["name"] == "math.jsonl"


def test_a_duplicate_stays_a_duplicate_and_the_original_trained(keeper: Keeper) -> None:
    sha256 = _hash(keeper, "math.jsonl")
    _drop(keeper, "math.jsonl", "admitted", sha256, "10 new")
    _drop(keeper, "again.jsonl", "duplicate", sha256, "the same bytes", "/somewhere/again.jsonl")
    assert tell_story(keeper, "again.jsonl", Path("/"))["status"] == "duplicate"
    assert tell_story(keeper, "math.jsonl", Path("/"))["status"] == "trained"
    assert tell_story(keeper, sha256, Path("/"))["status"] == "trained"


def test_rows_that_were_left_out_are_listed_and_counted(keeper: Keeper) -> None:
    fault = {"line": 8, "field": "text", "reason": "empty", "expected": ""}
    sha256 = _hash(keeper, "math.jsonl")
    with keeper.ledger.transaction():
        facts = {"bad_rows": [fault], "bad_rows_count": 30, "unusable_rows": [fault], "unusable_rows_count": 1}
        for path, value in facts.items():
            keeper.ledger.run("UPDATE files SET record = json_set(record, ?, json(?)) WHERE sha256 = ?",
                              (f"$.{path}", orjson.dumps(value).decode(), sha256))  # fmt: skip
    lines = story_lines(tell_story(keeper, "math.jsonl", Path("/")))
    at = lines.index("    30 rows skipped:")
    assert lines[at : at + 5] == ["    30 rows skipped:", "      line 8, text: empty", "      and 29 more",
                                  "    1 row that cannot be trained on:", "      line 8, text: empty"]  # fmt: skip


def test_a_refused_file_is_found_where_it_lies_now(keeper: Keeper) -> None:
    where = str(keeper.home.rejected / "bad (2).jsonl")
    _drop(keeper, "bad.jsonl", "rejected", "d" * 64, "1 of 2 rows cannot be read", where)
    story = tell_story(keeper, "bad (2).jsonl", Path("/"))
    assert (story["name"], story["status"]) == ("bad.jsonl", "rejected")
    lines = story_lines(story)
    assert f"    given back as {where}" in lines and "      line 2: no" in lines


def test_a_fixed_file_shows_its_refusal_and_where_it_stands(keeper: Keeper) -> None:
    _drop(keeper, "math.jsonl", "rejected", "d" * 64, "torn", str(keeper.home.rejected / "math.jsonl"))
    _drop(keeper, "math.jsonl", "admitted", _hash(keeper, "math.jsonl"), "10 new")
    story = tell_story(keeper, "math.jsonl", Path("/"))
    assert story["status"] == "trained" and [drop["state"] for drop in story["drops"]] == ["rejected", "admitted"]
    _drop(keeper, "math.jsonl", "rejected", "e" * 64, "torn again")
    assert tell_story(keeper, "math.jsonl", Path("/"))["status"] == "rejected"


def test_a_file_that_still_lies_in_the_inbox_says_why(keeper: Keeper) -> None:
    (keeper.home.inbox / "new.jsonl").write_text("")
    (keeper.home.inbox / "half.part").write_text("x")
    told = {"live": {"waiting": {str(keeper.home.inbox / "new.jsonl"): "it is empty"}}}
    assert tell_story(keeper, "new.jsonl", Path("/"))["reason"] == "it lies in the inbox and was not taken yet"
    keeper.home.status_file.write_bytes(orjson.dumps(told))
    assert tell_story(keeper, "new.jsonl", Path("/"))["reason"] == "it is empty"
    assert tell_story(keeper, "half.part", Path("/"))["reason"]


def test_a_side_file_says_whose_it_is_and_why_it_waits(keeper: Keeper) -> None:
    side = keeper.home.inbox / "math.jsonl.meta.yaml"
    side.write_text("priority: 3\n")
    _drop(keeper, "math.jsonl", "admitted", _hash(keeper, "math.jsonl"), "10 new")
    story = tell_story(keeper, side.name, Path("/"))
    assert (story["status"], story["side_of"]) == ("waiting", "math.jsonl")
    assert "came too late: math.jsonl was taken without it" in story["reason"] and "Drop math.jsonl again" in story["reason"]
    # The story of its file tells the same, and no more that it is "settings for the file beside it".
    assert [item["reason"] for item in tell_story(keeper, "math.jsonl", Path("/"))["waits"]] == [story["reason"]]
    alone = keeper.home.inbox / "docs" / "none.md.meta.yml"
    alone.parent.mkdir(exist_ok=True)
    alone.write_text("priority: 3\n")
    assert "no none.md lies beside it" in tell_story(keeper, str(alone), Path("/"))["reason"]
    alone.with_name("none.md").write_text("")
    told = {"live": {"waiting": {str(alone.with_name("none.md")): "it is empty"}}}
    keeper.home.status_file.write_bytes(orjson.dumps(told))
    assert tell_story(keeper, alone.name, Path("/"))["reason"] == "it goes with none.md, and is taken with it: it is empty"


def test_a_side_file_that_was_taken_leads_to_the_story_of_its_file(keeper: Keeper) -> None:
    _drop(keeper, "math.jsonl", "admitted", _hash(keeper, "math.jsonl"), "10 new")
    with keeper.ledger.transaction():
        options = orjson.dumps({"side": {"name": "math.jsonl.meta.yaml", "settings": {"priority": 3}}}).decode()
        keeper.ledger.run("UPDATE drops SET options = ?", (options,))
    story = tell_story(keeper, "math.jsonl.meta.yaml", Path("/"))
    assert (story["name"], story["status"], story["side_of"]) == ("math.jsonl", "trained", "math.jsonl")
    assert story_lines(story)[0] == "math.jsonl.meta.yaml was taken with math.jsonl, whose settings it held:"
    with pytest.raises(NotFound):
        tell_story(keeper, "other.jsonl.meta.yaml", Path("/"))


def test_a_file_that_never_came_is_not_found(keeper: Keeper) -> None:
    with pytest.raises(NotFound):
        tell_story(keeper, "nothing.jsonl", Path("/"))
