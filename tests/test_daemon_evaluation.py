"""Held-out rows and untouchable evaluation sets are never fed, however they come: looked for in what jobs really feed.

Every training request of a toy home is taken apart: whatever token range it feeds, new, repeated or replayed, is traced
back to the examples it covers.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import RECIPE, Toy

from daemon.cli.files import story_lines
from daemon.cli.main import main
from daemon.operations import perform
from daemon.story import tell_story
from guard import failpoints
from guard.durable import remove_tree
from guard.errors import Damage
from guard.failpoints import Crash
from guard.fingerprint import example_fingerprint
from guard.heldout import is_held_out
from guard.store.evaluation import evaluation_sets, learnt_before, protected_for
from guard.store.jobs import add_job
from guard.store.rebuild import rebuild
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.untouchable import asks, evaluation_keys
from trainer.dataset import LENGTH, START, open_dataset
from trainer.prepare_folder import prepare_folder
from trainer.selection import load_selection

QUESTION = "How many eggs does the keeper of the old orchard collect on day"
Row = dict[str, Any]


def chat(number: int, answer: str = "", **more: str) -> Row:
    return {"messages": [{"role": "user", "content": f"{QUESTION} {number}?"},
                         {"role": "assistant", "content": answer or f"It is {number * 7} in all."}], **more}  # fmt: skip


def text(number: int) -> Row:
    return {"text": f"line {number} of a long tale about orchards, keepers and the eggs they count {number * 3}"}


def jsonl(rows: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class Watched:
    """A toy home whose every training request is taken apart."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.toy = Toy(root / "home", backup__auto=False, validation__fraction=0.1, **settings)
        self.root = root
        recipe = {**RECIPE, "model": {**RECIPE["model"], "block_size": 512}}  # type: ignore[dict-item]
        with self.toy.keeper.ledger.transaction():
            add_job(self.toy.keeper.ledger, kind="base", stage="base", line="policy", slug="baseline",
                    request={"recipe": recipe, "tokenization": "char", "origin": "init"})  # fmt: skip
        self.toy.settle()
        self.fed: list[set[bytes]] = []
        self.watch()

    def watch(self) -> None:
        self.toy.server.spoil = self._take_apart

    def _take_apart(self, job: dict[str, Any], _result: dict[str, Any]) -> None:
        if job["task"] != "train":
            return
        selection = load_selection(Path(job["staging"]))
        found: set[bytes] = set()
        for number, folder in enumerate(selection.datasets):
            split = open_dataset(folder).train
            keys = split.fingerprints.tobytes()  # of the array: a single S16 loses zero bytes at its end
            ranges = selection.ranges[selection.ranges[:, 0] == number]
            for row in range(split.count):
                start, length = int(split.examples[row, START]), int(split.examples[row, LENGTH])
                if ((ranges[:, 1] < start + length) & (ranges[:, 1] + ranges[:, 2] > start)).any():
                    found.add(keys[16 * row : 16 * row + 16])
        self.fed.append(found)

    @property
    def all_fed(self) -> set[bytes]:
        return set().union(*self.fed)

    def held_out(self, fingerprint: bytes) -> bool:
        fraction = float(self.toy.keeper.ledger.meta("validation_fraction") or 0.1)
        return is_held_out(fingerprint, self.toy.keeper.salt, fraction)

    def register(self, name: str, rows: list[Row] | str, **more: object) -> dict[str, Any]:
        path = self.root / name
        path.write_text(rows if isinstance(rows, str) else jsonl(rows))
        [drop] = perform(self.toy.engine, "register", {"paths": [str(path)], "untouchable": True, **more})["drops"]
        self.toy.settle()
        row = self.toy.keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (drop,))
        assert row is not None
        return dict(row)

    def drop(self, name: str, rows: list[Row]) -> sqlite3.Row:
        self.toy.drop(name, jsonl(rows))
        self.toy.settle()
        row = self.toy.keeper.ledger.row("SELECT * FROM drops WHERE name = ? ORDER BY id DESC", (name,))
        assert row is not None
        return row


@pytest.fixture
def home(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def keys_of(rows: list[Row]) -> set[bytes]:
    return {key for row in rows for key in evaluation_keys(row)}


def fingerprints(rows: list[Row]) -> set[bytes]:
    return {example_fingerprint(row) for row in rows}


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


def test_a_set_of_other_rules_of_identity_protects_nothing_and_is_not_believed(
    home: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.register("exam.jsonl", [chat(number) for number in range(10)])
    monkeypatch.setattr("guard.store.evaluation.CANONICAL_VERSION", 99)
    with pytest.raises(Damage, match="other rules of identity"):
        protected_for(home.toy.keeper, home.root / "list.fp")


@pytest.mark.parametrize("point", ["admit.intended", "admit.stored", "admit.sidecars", "admit.renamed", "admit.recorded"])
def test_a_death_while_a_set_is_registered_loses_nothing_of_it(home: Watched, point: str) -> None:
    failpoints.arm(point)
    with pytest.raises(Crash):
        home.register("exam.jsonl", [chat(number) for number in range(10)])
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    home.toy.again().settle()
    home.watch()
    [exam] = evaluation_sets(home.toy.keeper.ledger)
    assert (exam["name"], exam["rows"]) == ("exam.jsonl", 10)
    assert protected_for(home.toy.keeper, home.root / "list.fp") is not None


def test_a_set_survives_the_ledger_its_own_file_and_the_vault(home: Watched) -> None:
    toy = home.toy
    home.register("exam.jsonl", [chat(number) for number in range(10)])
    [exam] = evaluation_sets(toy.keeper.ledger)
    run_backup(toy.keeper)
    newest = max((toy.home.root / "backups" / "ledger").glob("ledger-*.db"))
    with sqlite3.connect(newest) as copy:
        assert copy.execute("SELECT count(*) FROM meta WHERE key LIKE 'evaluation%'").fetchone()[0] == 2
    for lost in ("", "events"):
        toy.die()
        toy.home.ledger.unlink()
        if lost:
            remove_tree(toy.home.events)  # then the vault's copies alone tell of it
            remove_tree(toy.home.root / "backups" / "events")
        assert rebuild(toy.home, clock=toy.clock, actor="tester")["rebuilt"]
        toy.begin()
        home.watch()
        assert evaluation_sets(toy.keeper.ledger) == [exam]
    remove_tree(toy.home.files / exam["sha256"])
    (toy.home.state / "untouchable.fp").unlink(missing_ok=True)
    drop = home.drop("leak.jsonl", [chat(number) for number in range(30)])
    assert "10 of its rows are in the evaluation set exam.jsonl" in drop["reason"] and len(home.all_fed) >= 15
    assert not home.all_fed & keys_of([chat(number) for number in range(10)])


def test_a_person_registers_a_set_by_command(home: Watched, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    home.toy.die()
    path = home.root / "exam.jsonl"
    path.write_text(jsonl([chat(number) for number in range(10)]))
    command = ["--home", str(home.toy.home.root), "register", str(path)]
    assert main([*command, "--untouchable", "--queue"]) == 2
    assert main([*command, "--untouchable", "--dry-run", "--json"]) == 0
    told = json.loads(capfdbinary.readouterr().out)
    assert (told["evaluation_rows"], told["status"], told["dry_run"]) == (10, "registered", True)
    assert main([*command, "--untouchable"]) == 0
    assert "its 10 rows are never trained" in capfdbinary.readouterr().out.decode()
    assert main(["--home", str(home.toy.home.root), "register", str(path), "--dry-run", "--json"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["untouchable"] == 10
    home.toy.begin()
    [exam] = evaluation_sets(home.toy.keeper.ledger)
    assert (exam["name"], exam["rows"]) == ("exam.jsonl", 10)


def test_plain_text_and_documents_can_be_sets(home: Watched) -> None:
    tale = "\n\n".join(" ".join(random.Random(place).choices(QUESTION.split(), k=90)) for place in range(60))
    assert home.register("tale.txt", tale)["state"] == "registered"
    assert home.register("page.md", "# A page\n\nIt is about orchards.\n")["state"] == "registered"
    toy = home.toy
    toy.drop("pretrain/more.txt", tale)
    toy.drop("pretrain/longer.txt", tale + "\n\nAnd one more paragraph that nobody has ever read before.\n" * 40)
    toy.settle()
    states = {name: (state, reason) for name, state, reason in toy.drops()}
    assert "in the evaluation set tale.txt" in states["longer.txt"][1] and states["more.txt"][0] == "registered"
    assert not home.all_fed & {key for item in evaluation_sets(toy.keeper.ledger) if item["name"] == "tale.txt"
                               for key in _kept_keys(home, item["sha256"])}  # fmt: skip


def _kept_keys(home: Watched, sha256: str) -> set[bytes]:
    protected = protected_for(home.toy.keeper, home.root / "kept.fp", [sha256])
    assert protected is not None
    data = Path(protected["path"]).read_bytes()
    return {data[start : start + 16] for start in range(0, len(data), 20)}


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
