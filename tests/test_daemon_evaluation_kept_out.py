"""Held-out rows and untouchable evaluation sets are never fed, however they come: looked for in what jobs really feed.

Every training request of a toy home is taken apart (`evaluation_help.py`). Not here: how sets are registered and what they
survive (`test_daemon_evaluation_sets.py`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_help import QUESTION, Watched, _home, chat, fingerprints, jsonl, keys_of, text  # noqa: F401 - fixtures

from daemon.cli.files import story_lines
from daemon.operations import perform
from daemon.story import tell_story
from guard.fingerprint import example_fingerprint
from guard.store.evaluation import evaluation_sets, learnt_before, protected_for
from guard.store.verify import verify
from guard.untouchable import asks
from trainer.prepare_folder import prepare_folder


def last_record(home: Watched) -> Mapping[str, Any]:
    record: Mapping[str, Any] = json.loads(home.toy.keeper.ledger.value("SELECT record FROM versions ORDER BY id DESC LIMIT 1"))
    return record


def test_a_drop_that_holds_rows_of_a_set_says_so_and_trains_the_rest(home: Watched) -> None:
    assert "40 rows are never trained" in home.register("exam.jsonl", [chat(number) for number in range(40)])["reason"]
    drop = home.drop("mixed.jsonl", [chat(number) for number in range(28, 100)])
    assert drop["state"] == "admitted" and "12 of its rows are in the evaluation set exam.jsonl: kept out" in drop["reason"]
    assert home.all_fed and not home.all_fed & keys_of([chat(number) for number in range(40)])
    expected = {key for key in fingerprints([chat(number) for number in range(40, 100)]) if not home.held_out(key)}
    assert home.all_fed == expected
    skipped = last_record(home)["skipped"]
    out = [number for number in range(28, 40) if not home.held_out(example_fingerprint(chat(number)))]
    assert skipped["untouchable"] == len(out) and last_record(home)["planned"]["untouchable_sets"] == [
        item["sha256"] for item in evaluation_sets(home.toy.keeper.ledger)]  # fmt: skip


def test_another_answer_frame_or_spelling_of_the_question_is_kept_out_too(home: Watched) -> None:
    home.register("exam.jsonl", [chat(number) for number in range(3)])
    asked_later = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."},
                                *chat(2, "Guess.")["messages"]]}  # fmt: skip
    leaks = [chat(0, "Another answer."), chat(1, system="Be brief."), chat(1, context="A page."), asked_later]
    drop = home.drop("leaks.jsonl", [*leaks, *(chat(number) for number in range(50, 80))])
    assert "4 of its rows are in the evaluation set exam.jsonl" in drop["reason"]
    assert not home.all_fed & fingerprints(leaks) and home.all_fed
    texts = [{"text": chat(0)["messages"][0]["content"]}, {"text": f"{QUESTION} 1?\n\nIt is 7 in all."}]
    drop = home.drop("texts.jsonl", [*texts, *(text(number) for number in range(30))])
    assert "2 of its rows" in drop["reason"] and not home.all_fed & fingerprints(texts)
    # What everybody says is nobody's: "Hi" is asked in the file above and stays trainable.
    assert not list(asks({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}))


def test_a_file_wholly_inside_a_set_is_kept_and_never_trained(home: Watched) -> None:
    home.register("exam.jsonl", [chat(number) for number in range(20)])
    drop = home.drop("inside.jsonl", [chat(number) for number in range(5, 15)])
    assert drop["state"] == "registered" and "all 10 examples are in the evaluation set exam.jsonl" in drop["reason"]
    again = home.drop("exam_again.jsonl", [chat(number) for number in range(20)])
    assert again["state"] == "registered" and not home.fed


def test_rows_learnt_before_are_reported_and_neither_repeated_nor_replayed(home: Watched) -> None:
    toy = home.toy
    home.drop("first.jsonl", [chat(number) for number in range(60)])
    learnt = home.all_fed
    home.register("exam.jsonl", [chat(number) for number in range(10)])
    [exam] = evaluation_sets(toy.keeper.ledger)
    [found] = learnt_before(toy.keeper, exam["sha256"])
    before = learnt & fingerprints([chat(number) for number in range(10)])
    assert (found["file"], found["examples"]) == ("first.jsonl", len(before)) and before
    story = tell_story(toy.keeper, "exam.jsonl", Path("/"))
    assert story["evaluation"][0]["learnt"] == [found] and any("learnt by" in line for line in story_lines(story))
    home.fed.clear()
    toy.flags["replay.fraction"] = 1.0
    toy.again()
    home.watch()
    home.drop("second.jsonl", [chat(number) for number in range(60, 100)])
    replayed = home.all_fed & learnt
    assert replayed and not home.all_fed & keys_of([chat(number) for number in range(10)])
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("INSERT INTO jobs (kind, state, position, stage, line, slug, request, created, updated) "
                              "VALUES ('train', 'queued', 99, 'sft', 'policy', 'again', ?, '', '')",
                              (json.dumps({"allow_repeat": True}),))  # fmt: skip
        toy.keeper.ledger.run("INSERT INTO job_files SELECT max(j.id), 0, f.sha256 FROM jobs j, files f "
                              "WHERE f.name = 'first.jsonl'")  # fmt: skip
    home.fed.clear()
    toy.settle()
    assert home.all_fed & learnt and not home.all_fed & keys_of([chat(number) for number in range(10)])


def test_what_asks_a_question_of_a_set_in_other_words_around_it_is_not_replayed(home: Watched) -> None:
    """The set holds the questions with other answers: no fingerprint of what was learnt is a key of it."""
    toy = home.toy
    framed = [chat(number, system="Be brief.") for number in range(10, 20)]
    home.drop("first.jsonl", [*(chat(number) for number in range(10)), *framed, *(chat(number) for number in range(20, 60))])
    learnt = home.all_fed
    leaks = fingerprints([*(chat(number) for number in range(10)), *framed])
    home.register("exam.jsonl", [*(chat(number, "Nobody knows.") for number in range(10)), *(chat(n) for n in range(10, 20))])
    assert learnt & leaks and not leaks & keys_of([chat(number, "Nobody knows.") for number in range(10)])
    home.fed.clear()
    toy.flags["replay.fraction"] = 1.0
    toy.again()
    home.watch()
    home.drop("second.jsonl", [chat(number) for number in range(60, 200)])
    assert home.all_fed & learnt == learnt - leaks, "all the rest of it is drawn from"
    assert last_record(home)["planned"]["replay_rules"] == 4
    # Without the original nobody can say what its rows ask: nothing of it is replayed, and the version says so.
    folder = toy.home.files / toy.keeper.ledger.value("SELECT sha256 FROM files WHERE name = 'first.jsonl'")
    folder.chmod(0o755)
    (folder / "first.jsonl").unlink()
    home.fed.clear()
    home.drop("third.jsonl", [chat(number) for number in range(200, 240)])
    assert home.all_fed and not home.all_fed & learnt
    plan = json.loads(toy.keeper.ledger.value("SELECT plan FROM jobs ORDER BY id DESC LIMIT 1"))
    assert any("no replay from first.jsonl" in text for text in plan["train"]["prepared"]["warnings"])


def test_a_set_that_comes_while_a_job_prepares_still_counts(home: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = home.toy
    path = home.root / "exam.jsonl"
    path.write_text(jsonl([chat(number) for number in range(10)]))
    frozen = toy.engine.runner._prepared
    came = []

    def prepared(job: Any) -> None:
        if not came:
            came.append(perform(toy.engine, "register", {"paths": [str(path)], "untouchable": True}))
            for _ in range(3):
                toy.engine.intake.take_up(toy.clock.monotonic())
                toy.engine.pool.tick(toy.clock.monotonic())
        frozen(job)

    monkeypatch.setattr(toy.engine.runner, "_prepared", prepared)
    home.drop("data.jsonl", [chat(number) for number in range(40)])
    assert came and home.all_fed and not home.all_fed & keys_of([chat(number) for number in range(10)])


def test_a_home_whose_list_cannot_be_read_trains_nothing(home: Watched) -> None:
    toy = home.toy
    home.register("exam.jsonl", [chat(number) for number in range(10)])
    [exam] = evaluation_sets(toy.keeper.ledger)
    for key in (f"evaluation-keys:{exam['sha256']}:0", f"evaluation:{exam['sha256']}"):
        kept = toy.keeper.ledger.meta(key)
        assert kept
        with toy.keeper.ledger.transaction():
            toy.keeper.ledger.run("DELETE FROM meta WHERE key = ?", (key,))
        assert [item.what for item in verify(toy.keeper).damage if item.what != "ledger"] == ["evaluation"]
        toy.again()
        home.watch()
        home.drop(f"data_{len(key)}.jsonl", [chat(number) for number in range(len(key), len(key) + 30)])
        *_, (_job, _kind, state, reason) = toy.jobs()
        assert (state, home.fed) == ("failed", []) and "untouchable evaluation sets are damaged" in reason
        with toy.keeper.ledger.transaction():
            toy.keeper.ledger.set_meta(key, kept)
    # The same file once more mends it.
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.set_meta(f"evaluation-keys:{exam['sha256']}:0", "AAAA")
    toy.again()
    home.watch()
    home.register("exam.jsonl", [chat(number) for number in range(10)])
    assert protected_for(toy.keeper, home.root / "list.fp") is not None
    perform(toy.engine, "queue.retry", {"job": toy.jobs()[-1][0]})
    toy.settle()
    assert home.all_fed and not home.all_fed & keys_of([chat(number) for number in range(10)])


@pytest.mark.parametrize("seed", range(3))
def test_nothing_held_out_or_untouchable_is_fed_whatever_happens(tmp_path: Path, seed: int) -> None:
    """Files, kinds, lines, re-drops, batches, rollbacks, prepared folders, regrowing: chosen by a die, in one home."""
    dice = random.Random(seed)
    home = Watched(tmp_path, coalesce__after=3, replay__fraction=0.5, gate="off")
    toy = home.toy
    barred = keys_of([chat(number) for number in range(300, 330)]) | keys_of([text(number) for number in range(300, 330)])
    home.register("chats.jsonl", [chat(number) for number in range(300, 330)])
    home.register("texts.jsonl", [text(number) for number in range(300, 330)])
    names: list[str] = []

    def some_file(name: str) -> None:
        make = dice.choice([chat, text])
        rows = [make(number) for number in dice.sample(range(330), dice.randrange(20, 60))]
        toy.drop(name, jsonl(rows))
        names.append(name)

    for turn in range(7):
        act = ["drop", "batch", "drop", "rollback", "prepared", "regrow", "batch"][turn]
        if act == "drop":
            some_file(f"f{turn}.jsonl")
        elif act == "batch":
            for place in range(4):
                some_file(f"f{turn}_{place}.jsonl")
            toy.drop(f"again_{turn}.jsonl", (tmp_path / "chats.jsonl").read_text())
        elif act == "rollback":
            perform(toy.engine, "rollback", {"version": "v002", "line": "policy", "reason": "a try"})
            some_file(f"f{turn}.jsonl")
        elif act == "prepared":
            source = tmp_path / "by_hand.jsonl"
            source.write_text(jsonl([chat(number) for number in dice.sample(range(330), 120)]))
            prepare_folder("chat", [source], tmp_path / "by_hand", "char", 0.1)
            perform(toy.engine, "train", {"dataset_dir": str(tmp_path / "by_hand"), "model_name": "hand",
                                          "config_file": str(toy.home.configs / "sft" / "small.yaml"),
                                          "init_from_model": "v001"})  # fmt: skip
        else:
            learnt = toy.keeper.ledger.value("SELECT f.name FROM learnt l JOIN files f ON f.sha256 = l.sha256 "
                                             "WHERE l.count > 0 ORDER BY l.version_id LIMIT 1")  # fmt: skip
            perform(toy.engine, "regrow", {"without": learnt})
        toy.settle(600)
    assert len(home.fed) >= 5 and all(state != "failed" for _job, _kind, state, _reason in toy.jobs()), toy.jobs()
    assert not home.all_fed & barred
    assert not [key for key in home.all_fed if home.held_out(key)]
    assert np.mean([home.held_out(key) for key in fingerprints([chat(number) for number in range(330)])]) > 0.03
