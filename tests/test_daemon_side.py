"""Side files on a toy daemon: who comes first, what waits and says why, what is frozen, and where the bytes are at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from toy import CONFIGS, Toy, chat_of, text_of

from daemon.client import call_register
from daemon.mending import rebuild_home
from daemon.rehearsal import rehearse_registration
from daemon.remake import _prepare_request
from daemon.story import tell_story
from guard import durable, failpoints
from guard.checks.columns import Reading
from guard.durable import sha256_file
from guard.failpoints import Crash
from guard.home import Home
from guard.store.files import find_file
from guard.store.intake import claim_many
from guard.store.verify import verify
from guard.store.versions import find_version, line_tip
from trainer.prepare import SourceFile, planned_id
from trainer.tokenizer import load_tokenizer

QA = "".join(json.dumps({"q": f"what is 3 plus {row}?", "a": f"{3 + row}"}) + "\n" for row in range(30))
COLUMNS = "columns: {q: user, a: assistant}\n"


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    Toy(shared_scratch / "sides", backup__auto=False).make_base().die()
    return shared_scratch / "sides"


@pytest.fixture
def toy(template: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    import subprocess

    subprocess.run(["cp", "-a", "--", template, scratch / "home"], check=True)
    made = Toy(scratch / "home", backup__auto=False)
    yield made
    made.die()


def waiting(toy: Toy) -> dict[str, str]:
    return {Path(path).name: reason for path, reason in toy.engine.intake.settler.waiting().items()}


def states(toy: Toy) -> dict[str, str]:
    return {name: state for name, state, _reason in toy.drops()}


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
    assert file.record["reading"] == {"columns": {"q": "user", "a": "assistant"}, "roles": {}}
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
    toy.drop("b.csv.meta.yaml", "description: x\n")
    toy.drop("b.csv", "x,y\n")
    toy.settle()
    told = waiting(toy)
    assert told["a.jsonl.meta.yaml"] == "it waits for a.jsonl to be dropped beside it"
    assert "which is ignored: .csv" in told["b.csv.meta.yaml"] and states(toy) == {}
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
    ("training: {epoch: 2}\n", "unknown key"), ("volume: 11\n", "unknown key"), ("kind: task\n", "cannot|not a kind"),
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


# --- the same bytes, read in another way --------------------------------------------------------------------------


def test_the_same_bytes_under_other_columns_are_refused_and_under_none_read_as_they_were(toy: Toy) -> None:
    toy.drop("a.jsonl.meta.yaml", COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    toy.drop("b.jsonl.meta.yaml", "columns: {q: assistant, a: user}\n")
    toy.drop("b.jsonl", QA)
    toy.drop("c.jsonl", QA)
    toy.drop("pretrain/d.jsonl", QA)
    toy.settle()
    assert states(toy) == {"a.jsonl": "admitted", "b.jsonl": "rejected", "c.jsonl": "duplicate", "d.jsonl": "rejected"}
    reasons = {name: reason for name, _state, reason in toy.drops()}
    assert "stored as sft with q as user, a as assistant" in reasons["b.jsonl"] and "echo >> FILE" in reasons["b.jsonl"]
    assert "trained in" in reasons["c.jsonl"] and (toy.home.rejected / "b.jsonl.meta.yaml").exists()
    toy.drop("e.jsonl.meta.yaml", "columns: {q: assistant, a: user}\n")
    toy.drop("e.jsonl", QA + "\n")
    toy.settle()
    assert states(toy)["e.jsonl"] == "admitted"


def test_the_same_bytes_forced_to_another_kind_are_refused(toy: Toy) -> None:
    rows = [{"text": f"row {row}", **json.loads(line)} for row, line in enumerate(chat_of(9).splitlines())]
    both = "".join(json.dumps(row) + "\n" for row in rows)
    toy.drop("a.jsonl", both)
    toy.settle()
    toy.drop("pretrain/a.jsonl", both)
    toy.settle()
    assert [state for _name, state, _reason in toy.drops()] == ["admitted", "rejected"]
    assert [row[2] for row in toy.jobs() if row[1] == "train"] == ["done"]


def test_columns_are_part_of_what_a_dataset_is(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(QA)
    how = {"stage": "sft", "shard_size_tokens": 1000, "salt": "x", "validation_fraction": 0.0}
    sources = [SourceFile(sha256_file(path), "a.jsonl", path, None, reading) for reading in (
        Reading(), Reading({"q": "user", "a": "assistant"}), Reading({"a": "user", "q": "assistant"}))]  # fmt: skip
    tokenizer = load_tokenizer("char")
    assert len({planned_id([source], tokenizer, **how) for source in sources}) == 3  # type: ignore[arg-type]
    plain = planned_id([SourceFile(sources[0].sha256, "a.jsonl", path)], tokenizer, **how)  # type: ignore[arg-type]
    assert plain == planned_id([sources[0]], tokenizer, **how)  # type: ignore[arg-type]


def test_a_version_is_made_again_with_the_columns_it_was_made_with(toy: Toy, tmp_path: Path) -> None:
    toy.drop("a.jsonl.meta.yaml", COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    tip = line_tip(toy.keeper.ledger, "policy")
    assert tip is not None and tip.parent_id is not None
    request = _prepare_request(toy.keeper, tip, find_version(toy.keeper.ledger, "v001"), tmp_path, lambda _folder: None)
    assert request["files"][0]["reading"]["columns"] == {"q": "user", "a": "assistant"}
    # Prepared again from nothing (its shards are gone), the list is the one that was trained.
    from trainer.prepare_job import run_prepare

    durable.remove_tree(toy.home.shards)
    toy.home.shards.mkdir()
    assert run_prepare(request)["selection_sha256"] == tip.record["selection_sha256"]


def test_a_ledger_that_is_made_again_knows_columns_settings_and_side_files(toy: Toy) -> None:
    toy.drop("a.jsonl.meta.yaml", COLUMNS + "description: sums\n")
    toy.drop("a.jsonl", QA)
    toy.settle()
    before = find_file(toy.keeper.ledger, "a.jsonl")
    toy.die()
    Home(toy.home.root).ledger.unlink()
    assert rebuild_home(toy.home, dry_run=False)["rebuilt"]
    toy.begin()
    after = find_file(toy.keeper.ledger, "a.jsonl")
    assert (after.record["reading"], after.record["settings"], after.description) == (
        before.record["reading"], before.record["settings"], "sums")  # fmt: skip
    assert after.record["sidecars"] == before.record["sidecars"] and "meta.yaml" in after.record["sidecars"]
    assert verify(toy.keeper, everything=True).damage == ()
    toy.drop("b.jsonl", QA)
    toy.settle()
    assert states(toy)["b.jsonl"] == "duplicate"


def test_the_side_file_goes_to_the_vault_with_its_original(toy: Toy) -> None:
    from guard.store.vault import run_backup

    toy.drop("a.jsonl.meta.yaml", COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    run_backup(toy.keeper)
    sha256 = find_file(toy.keeper.ledger, "a.jsonl").sha256
    assert (toy.home.root / "backups" / "files" / sha256 / "meta.yaml").read_text() == COLUMNS


def test_a_good_copy_under_another_name_mends_the_bytes_and_keeps_columns_and_side_file(toy: Toy) -> None:
    toy.drop("a.jsonl.meta.yaml", COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    folder = toy.home.files / find_file(toy.keeper.ledger, "a.jsonl").sha256
    os.chmod(folder / "a.jsonl", 0o644)
    (folder / "a.jsonl").write_text(QA[:-5])
    toy.drop("b.jsonl", QA)
    toy.settle()
    assert states(toy)["b.jsonl"] == "registered" and (folder / "meta.yaml").read_text() == COLUMNS
    assert verify(toy.keeper, everything=True).damage == ()


def test_a_side_file_makes_an_evaluation_set_and_columns_hide_no_row_from_it(toy: Toy) -> None:
    exam = "".join(QA.splitlines(keepends=True)[:12])
    toy.drop("exam.jsonl.meta.yaml", "untouchable: true\n" + COLUMNS)
    toy.drop("exam.jsonl", exam)
    toy.settle()
    assert states(toy)["exam.jsonl"] == "registered" and toy.versions() == {"v001_baseline": "sealed"}
    toy.drop("a.jsonl.meta.yaml", COLUMNS)
    toy.drop("a.jsonl", QA)
    toy.settle()
    told = next(reason for name, _state, reason in toy.drops() if name == "a.jsonl")
    assert "12 of its rows are in the evaluation set exam.jsonl: kept out" in told
    record = orjson.loads(toy.keeper.ledger.value("SELECT record FROM versions ORDER BY id DESC LIMIT 1"))
    assert record["data"][0]["examples"] <= 30 - 12
