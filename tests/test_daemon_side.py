"""Side files on a toy daemon: who comes first, what waits and says why, what is frozen, and where the bytes are at the end.

Not here: the same bytes under other columns, made again, mended or judged by (`test_daemon_side_bytes.py`).
"""

from __future__ import annotations

import os

import orjson
import pytest
from side_help import COLUMNS, QA, states, waiting
from toy import CONFIGS, Toy, chat_of, text_of
from toy_fixtures import _begin, _no_syncing, _template, _toy  # noqa: F401 - fixtures

from daemon.client import call_register
from daemon.rehearsal import rehearse_registration
from daemon.story import tell_story
from guard import failpoints
from guard.failpoints import Crash
from guard.store.files import find_file
from guard.store.intake import claim_many
from guard.store.verify import verify


def rounds(toy: Toy, count: int) -> None:
    for _ in range(count):
        toy.step()


# --- what it says is done, and frozen -----------------------------------------------------------------------------


def test_what_a_side_file_says_is_done_frozen_kept_and_told(toy: Toy) -> None:
    text = "description: sums of three\nrecipe: sft/micro\npriority: 5\nmax_steps: 2\ntraining: {learning_rate: 0.002}\n"
    (toy.home.configs / "sft").mkdir(exist_ok=True)
    (toy.home.configs / "sft" / "micro.yaml").write_text((CONFIGS / "sft" / "small.yaml").read_text())
    toy.drop("a.jsonl.meta.yaml", text + COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    assert states(toy) == {"a.jsonl": "admitted"} and list(toy.home.inbox.glob("a.jsonl*")) == []
    file = find_file(toy.keeper.ledger, "a.jsonl")
    folder = toy.home.files / file.sha256
    assert (folder / "meta.yaml").read_text() == text + COLUMNS and not (folder / "meta.yaml").stat().st_mode & 0o222
    assert file.record["reading"] == {"columns": {"q": "user", "a": "assistant"}, "roles": {}, "rules": 2}
    assert file.record["settings"]["recipe"] == "sft/micro" and file.description == "sums of three"
    plan = orjson.loads(toy.keeper.ledger.value("SELECT plan FROM jobs WHERE kind = 'train'"))["request"]
    assert plan["recipe"]["training"]["learning_rate"] == 0.002 and plan["max_steps"] == 2
    assert plan["files"][0]["reading"] == file.record["reading"]
    story = tell_story(toy.keeper, "a.jsonl", toy.home.inbox)
    assert story["drops"][0]["side"]["settings"]["priority"] == 5 and story["files"][0]["settings"]["max_steps"] == 2
    assert verify(toy.keeper, everything=True).damage == ()
    os.chmod(folder, 0o755)
    os.chmod(folder / "meta.yaml", 0o644)
    (folder / "meta.yaml").write_text("description: another\n")
    assert [item.file for item in verify(toy.keeper, everything=True).damage] == ["meta.yaml"]


def test_the_environment_and_flags_stand_above_a_side_file(toy: Toy) -> None:
    toy.flags["training.max_steps"] = 3
    toy.again()
    toy.drop("a.jsonl.meta.yaml", "max_steps: 1\n")
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    plan = orjson.loads(toy.keeper.ledger.value("SELECT plan FROM jobs WHERE kind = 'train'"))["request"]
    assert plan["max_steps"] == 3


def test_a_file_may_ask_only_to_be_known_and_text_may_ask_to_be_trained(toy: Toy) -> None:
    toy.drop("a.jsonl.meta.yml", "queue: false\n")
    toy.drop("a.jsonl", chat_of(9))
    toy.drop("b.txt.META.yaml", "kind: pretrain\n")
    toy.drop("b.txt", text_of(900))
    toy.settle()
    assert states(toy) == {"a.jsonl": "registered", "b.txt": "admitted"}
    assert find_file(toy.keeper.ledger, "b.txt").kind == "pretrain" and list(toy.home.inbox.glob("*.*m*l")) == []


def test_jobs_that_ask_for_other_training_are_not_batched_with_plain_ones(toy: Toy) -> None:
    toy.keeper.ledger._db.execute("INSERT INTO meta VALUES ('paused', '1')")
    toy.drop("a.jsonl.meta.yaml", "training: {epochs: 2}\n")
    for name, seed in (("a.jsonl", 1), ("b.jsonl", 2), ("c.jsonl", 3)):
        toy.drop(name, chat_of(20, seed))
    toy.settle()
    toy.keeper.ledger._db.execute("UPDATE meta SET value = '0' WHERE key = 'paused'")
    toy.flags["coalesce.after"] = 2
    toy.again().settle()
    names = sorted(name.split("_", 1)[1] for name in toy.versions())
    assert names == ["a", "b_and_1_more", "baseline"]


# --- who comes first ----------------------------------------------------------------------------------------------


def test_a_side_file_alone_waits_and_says_for_what(toy: Toy) -> None:
    toy.drop("a.jsonl.meta.yaml", "description: x\n")
    toy.drop("b.ipynb.meta.yaml", "description: x\n")
    toy.drop("b.ipynb", "x,y\n")
    toy.settle()
    told = waiting(toy)
    assert told["a.jsonl.meta.yaml"] == "it waits for a.jsonl to be dropped beside it"
    assert "which is ignored: .ipynb" in told["b.ipynb.meta.yaml"] and states(toy) == {}
    toy.drop("a.jsonl", chat_of(9))
    toy.settle()
    assert states(toy) == {"a.jsonl": "admitted"} and find_file(toy.keeper.ledger, "a.jsonl").description == "x"


def test_a_side_file_that_comes_while_the_data_settles_is_waited_for(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(9))
    rounds(toy, 2)
    side = toy.drop("a.jsonl.meta.yaml", "description: half writ")
    with side.open("a") as writer:
        rounds(toy, 10)
        assert states(toy) == {} and "still written to" in waiting(toy)["a.jsonl"]
        writer.write("ten\n")
    toy.engine.hint()
    toy.settle()
    assert states(toy) == {"a.jsonl": "admitted"}
    assert find_file(toy.keeper.ledger, "a.jsonl").description == "half written"


def test_a_side_file_that_appears_between_the_look_and_the_claim_is_not_left_behind(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.drop("a.jsonl", chat_of(9))
    ready = toy.engine.intake.sides.ready

    def late(item, sides, now):  # type: ignore[no-untyped-def]
        toy.drop("a.jsonl.meta.yaml", "description: late\n")
        monkeypatch.setattr(toy.engine.intake.sides, "ready", ready)
        return ready(item, sides, now)

    monkeypatch.setattr(toy.engine.intake.sides, "ready", late)
    toy.settle()
    assert find_file(toy.keeper.ledger, "a.jsonl").description == "late"


def test_a_side_file_that_changes_again_is_read_again(toy: Toy) -> None:
    toy.drop("a.jsonl.meta.yaml", "priority: soon\n")
    toy.drop("a.jsonl", chat_of(9))
    toy.settle()
    assert "whole number" in waiting(toy)["a.jsonl"] and states(toy) == {}
    toy.drop("a.jsonl.meta.yaml", "priority: 3\n")
    toy.settle()
    assert states(toy) == {"a.jsonl": "admitted"} and waiting(toy) == {}


def test_a_side_file_after_the_data_was_taken_waits_and_says_so(toy: Toy) -> None:
    toy.drop("a.jsonl", chat_of(9))
    toy.settle()
    side = toy.drop("a.jsonl.meta.yaml", "description: late\n")
    toy.settle()
    assert "which was taken before: drop that again" in waiting(toy)["a.jsonl.meta.yaml"]
    toy.drop("a.jsonl", chat_of(9))
    toy.settle()
    assert [state for _name, state, _reason in toy.drops()] == ["admitted", "duplicate"] and not side.exists()
    assert (toy.home.duplicates / "a.jsonl.meta.yaml").read_text() == "description: late\n"


# --- what is wrong waits or comes back, and is never lost ---------------------------------------------------------

WRONG: list[tuple[str, str]] = [
    ("line: nowhere\n", "lines: policy"), ("recipe: sft/none\n", "no recipe"), ("recipe: pretrain/small\n", "no recipe|is for"),
    ("training: {epoch: 2}\n", "unknown key"), ("volume: 11\n", "unknown key"),
    ("training: {epochs: -1}\n", "epochs"), ("kind: docs\n", "not a document|index"),
]  # fmt: skip


@pytest.mark.parametrize("text, words", WRONG)
def test_what_cannot_be_had_keeps_both_where_they_are_with_the_reason_until_it_is_mended(toy: Toy, text: str, words: str) -> None:
    toy.drop("sft/a.jsonl.meta.yaml" if "recipe" in text else "a.jsonl.meta.yaml", text)
    path = toy.drop("sft/a.jsonl" if "recipe" in text else "a.jsonl", chat_of(9))
    toy.settle()
    reason = waiting(toy)["a.jsonl"]
    assert any(word in reason for word in words.split("|")) and "a.jsonl.meta.yaml" in reason, reason
    assert states(toy) == {} and path.exists()
    path.with_name("a.jsonl.meta.yaml").write_text("description: mended\n")
    toy.engine.hint()
    toy.settle()
    assert states(toy) == {"a.jsonl": "admitted"}


@pytest.mark.parametrize(
    "what", ["link", "pipe", "folder", "huge", "utf16", "empty", "unreadable", "two", "contradicts"])  # fmt: skip
def test_a_side_file_that_is_none_keeps_its_data_waiting_and_others_go_on(toy: Toy, what: str) -> None:
    place = toy.home.inbox / ("pretrain" if what == "contradicts" else ".")
    place.mkdir(exist_ok=True)
    side = place / "a.jsonl.meta.yaml"
    if what == "link":
        side.symlink_to("/etc/hostname")
    elif what == "pipe":
        os.mkfifo(side)
    elif what == "folder":
        side.mkdir()
    else:
        side.write_bytes({"huge": b"#" * 30_000, "utf16": "kind: sft\n".encode("utf-16"), "empty": b"",
                          "contradicts": b"kind: sft\n"}.get(what, b"description: x\n"))  # fmt: skip
    if what == "two":
        (place / "a.jsonl.meta.yml").write_text("description: y\n")
    if what == "unreadable":
        side.chmod(0)
    data = place / "a.jsonl"
    data.write_text(chat_of(9))
    toy.drop("good.jsonl", chat_of(9, 5))
    toy.settle()
    assert states(toy) == {"good.jsonl": "admitted"} and data.exists() and os.path.lexists(side)
    assert "side file" in waiting(toy)["a.jsonl"], waiting(toy)


def test_a_side_file_spoilt_between_the_look_and_the_claim_comes_back_with_its_drop(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.drop("a.jsonl.meta.yaml", "description: x\n")
    toy.drop("a.jsonl", chat_of(9))
    claiming = claim_many

    def spoilt(keeper, wishes):  # type: ignore[no-untyped-def]
        (toy.home.inbox / "a.jsonl.meta.yaml").write_text("volume: 11\n")
        return claiming(keeper, wishes)

    monkeypatch.setattr("daemon.intake.claim_many", spoilt)
    toy.settle()
    assert states(toy) == {"a.jsonl": "rejected"} and "unknown key" in toy.drops()[0][2]
    assert (toy.home.rejected / "a.jsonl").read_text() == chat_of(9)
    assert (toy.home.rejected / "a.jsonl.meta.yaml").read_text() == "volume: 11\n"


def test_a_recipe_of_another_stage_is_refused_when_the_kind_is_known(toy: Toy) -> None:
    toy.drop("a.jsonl.meta.yaml", "recipe: pretrain/small\n")
    toy.drop("a.jsonl", chat_of(9))
    toy.settle()
    assert states(toy) == {"a.jsonl": "rejected"} and "recipe" in toy.drops()[0][2]
    assert (toy.home.rejected / "a.jsonl.meta.yaml").exists()


def test_a_side_file_that_goes_as_it_is_taken_lets_the_data_stay(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.drop("a.jsonl.meta.yaml", "description: x\n")
    toy.drop("a.jsonl", chat_of(9))
    claiming = claim_many

    def gone(keeper, wishes):  # type: ignore[no-untyped-def]
        (toy.home.inbox / "a.jsonl.meta.yaml").unlink()
        monkeypatch.setattr("daemon.intake.claim_many", claiming)
        return claiming(keeper, wishes)

    monkeypatch.setattr("daemon.intake.claim_many", gone)
    toy.settle()
    toy.engine.hint()
    toy.settle()
    assert [state for _name, state, _reason in toy.drops()] == ["gone", "admitted"]


@pytest.mark.parametrize("taken", [False, True])
def test_data_that_goes_after_its_side_file_was_taken_gives_the_side_file_back(toy: Toy, taken: bool) -> None:
    side = toy.drop("a.jsonl.meta.yaml", "description: x\n")
    path = toy.drop("a.jsonl", chat_of(9))
    failpoints.arm("claim.sided", "crash")
    with pytest.raises(Crash):
        toy.settle()
    failpoints.disarm()
    assert not side.exists()
    path.unlink()
    if taken:
        side.write_text("description: newer\n")
    toy.again().settle()
    assert states(toy) == {"a.jsonl": "gone"}
    back = toy.home.rejected / side.name if taken else side
    assert back.read_text() == "description: x\n" and list(toy.home.incoming.iterdir()) == []


def test_refused_data_comes_back_with_its_side_file_and_both_work_again_when_mended(toy: Toy) -> None:
    for number in (1, 2):
        toy.drop("a.jsonl.meta.yaml", f"description: {number}th\n")
        toy.drop("a.jsonl", f'{{"messages": {number}}}\n')
        toy.settle()
    assert sorted(path.name for path in toy.home.rejected.glob("a*")) == [
        "a (2).jsonl", "a (2).jsonl.meta.yaml", "a (2).jsonl.why.txt", "a.jsonl", "a.jsonl.meta.yaml",
        "a.jsonl.why.txt"]  # fmt: skip
    (toy.home.rejected / "a.jsonl.meta.yaml").rename(toy.home.inbox / "a.jsonl.meta.yaml")
    toy.drop("a.jsonl", chat_of(9))
    toy.settle()
    assert find_file(toy.keeper.ledger, "a.jsonl").description == "1th"


def test_a_copied_source_keeps_its_side_file_too(toy: Toy) -> None:
    folder = toy.home.root.parent / "elsewhere"
    folder.mkdir()
    (folder / "a.jsonl").write_text(QA)
    (folder / "a.jsonl.meta.yaml").write_text(COLUMNS + "description: from the side\n")
    toy.die()
    dry = rehearse_registration(toy.home, paths=[str(folder / "a.jsonl")])
    done = call_register(toy.home, paths=[str(folder / "a.jsonl")], description="from the flag")
    toy.begin()
    assert dry[0]["verdict"] == done[0]["verdict"] == "registered" and done[0]["kind"] == "sft", (dry, done)
    assert find_file(toy.keeper.ledger, "a.jsonl").description == "from the flag"
    assert sorted(os.listdir(folder)) == ["a.jsonl", "a.jsonl.meta.yaml"]
