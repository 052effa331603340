"""Folders that are one data set, dropped into the inbox: one drop, one original, one job, from the claim to the version."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from folder_help import contents, hub, saved, texts, write_files
from toy import Toy

from daemon.cli.files import register_lines, story_lines
from daemon.client import drop_result
from daemon.story import tell_story
from guard.bitmap import bitmap_flags
from guard.durable import sha256_file
from guard.store.files import find_file, stored_path
from guard.store.rebuild import rebuild
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.tars import stored_files
from trainer.dataset import ORDINAL, open_dataset


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    root = shared_scratch / "folders"
    Toy(root).make_base().die()
    return root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Toy:
    subprocess.run(["cp", "-a", "--", template, scratch / "home"], check=True)
    return Toy(scratch / "home")


def settle(toy: Toy) -> Toy:
    toy.engine.hint()
    return toy.settle()


def test_a_folder_is_one_drop_one_original_one_record_and_one_version(toy: Toy) -> None:
    folder = hub(toy.home.inbox / "sums")
    before = contents(folder)
    settle(toy)
    assert [drop[:2] for drop in toy.drops()] == [("sums", "admitted")]
    assert not folder.exists() and list(toy.home.incoming.iterdir()) == []
    file = find_file(toy.keeper.ledger, "sums")
    assert (file.kind, file.examples, file.record["stored_as"], file.description) == \
        ("pretrain", 80, "sums.tar", "Sums For trying things out.")  # fmt: skip
    assert [(item["split"], item["start"], item["count"]) for item in file.record["splits"]] == \
        [("train", 0, 30), ("train", 30, 30), ("val", 60, 20)]  # fmt: skip
    assert [name for name in toy.versions()] == ["v001_baseline", "v002_sums"]
    # Every byte that was dropped is in the original.
    unpacked = toy.home.root / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "xf", stored_path(toy.home, file), "-C", unpacked], check=True)
    assert contents(unpacked) == before
    assert verify(toy.keeper, everything=True).damage == ()


def test_what_a_folder_keeps_for_judging_is_held_out_and_never_learnt(toy: Toy) -> None:
    rows = texts("row", 50)
    # Two rows of the split stand among the train rows, too: they are kept back there as well.
    saved(toy.home.inbox / "set", {"train": [*rows, *texts("val", 2)], "validation": texts("val", 30)})
    settle(toy)
    file = find_file(toy.keeper.ledger, "set")
    learnt = toy.keeper.ledger.value("SELECT bitmap FROM learnt WHERE sha256 = ?", (file.sha256,))
    flags = bitmap_flags(learnt, file.examples)
    assert not flags[50:].any() and 40 <= flags.sum() <= 50
    [dataset] = [open_dataset(path) for path in toy.home.shards.iterdir()]
    assert set(range(50, 82)) <= set(np.asarray(dataset.val.examples)[:, ORDINAL].tolist())
    assert dataset.train.count + dataset.val.count == 82
    [parts] = tell_story(toy.keeper, "set", toy.home.root)["files"][0]["parts"].values()
    # Where every row went agrees with what was learnt and with what intake said was new.
    assert (parts["learnt"], parts["held_out"], parts["new"], parts["rows"]) == (flags.sum(), 82 - flags.sum(), 0, 82)
    assert toy.drops()[0][2] == f"{flags.sum()} new examples"


def test_a_folder_whose_rows_are_all_for_judging_has_nothing_to_train(toy: Toy) -> None:
    write_files(toy.home.inbox / "exam", {"test-00000-of-00001.jsonl": texts("exam", 12)})
    settle(toy)
    [(_name, state, reason)] = toy.drops()
    assert state == "registered" and "held out for judging" in reason and toy.jobs()[1:] == []


def test_the_same_folder_again_is_a_duplicate_and_comes_back_as_a_folder(toy: Toy) -> None:
    hub(toy.home.inbox / "sums")
    settle(toy)
    before = contents(hub(toy.home.inbox / "again"))
    settle(toy)
    assert [drop[:2] for drop in toy.drops()] == [("sums", "admitted"), ("again", "duplicate")]
    assert contents(toy.home.duplicates / "again") == before
    assert "nothing new" in (toy.home.duplicates / "again.why.txt").read_text()
    # A tar of the folder is the same file.
    subprocess.run(["cp", stored_path(toy.home, find_file(toy.keeper.ledger, "sums")), toy.home.inbox / "third.tar"], check=True)
    settle(toy)
    assert toy.drops()[2][:2] == ("third.tar", "duplicate")


def test_a_tar_made_by_tar_is_taken_and_has_the_same_examples(toy: Toy) -> None:
    folder = hub(toy.home.root / "made" / "sums")
    subprocess.run(["tar", "cf", toy.home.inbox / "sums.tar", "-C", folder.parent, "sums"], check=True)
    settle(toy)
    assert [drop[:2] for drop in toy.drops()] == [("sums.tar", "admitted")]
    assert find_file(toy.keeper.ledger, "sums.tar").examples == 80


def test_a_refused_folder_comes_back_whole_and_says_which_row_of_which_file(toy: Toy) -> None:
    rows = [*texts("train", 30), {"text": ""}, *texts("more", 3), {"text": 5}, {"other": "x"}]
    folder = write_files(toy.home.inbox / "bad", {"train/a.jsonl": rows, "val/b.jsonl": texts("val", 3), ".DS_Store": b"\1"})
    before = contents(folder)
    settle(toy)
    [(_name, state, reason)] = toy.drops()
    assert state == "rejected" and reason.startswith("3 of 39 rows cannot be trained on")
    assert contents(toy.home.rejected / "bad") == before
    why = (toy.home.rejected / "bad.why.txt").read_text()
    assert "train/a.jsonl:31, text: Field 'text' is empty" in why and "train/a.jsonl:36, text: Missing" in why
    assert "      train/a.jsonl:31, text" in "\n".join(story_lines(tell_story(toy.keeper, "bad", toy.home.root)))


@pytest.mark.parametrize(("change", "reason"), [
    (lambda folder: (folder / "data/train-00001-of-00002.parquet").unlink(), "it lacks data/train-00001-of-00002.parquet"),
    (lambda folder: (folder / "link").symlink_to("/etc/passwd"), "link in it is not a regular file"),
    (lambda folder: os.mkfifo(folder / "pipe"), "pipe in it is not a regular file"),
    (lambda folder: (folder / "data/x.parquet.part").write_text("x"), "data/x.parquet.part in it is an unfinished"),
    (lambda folder: [path.unlink() for path in folder.glob("data/*")], "it holds no file of rows yet"),
])  # fmt: skip
def test_a_folder_that_is_not_whole_waits_and_says_why(toy: Toy, change: object, reason: str) -> None:
    folder = hub(toy.home.inbox / "sums")
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text("{}")
    change(folder)  # type: ignore[operator]
    settle(toy)
    assert toy.drops() == []
    assert toy.engine.intake.settler.waiting()[str(folder)].startswith(reason)


def test_what_its_own_description_names_is_waited_for_however_long(toy: Toy) -> None:
    folder = saved(toy.home.inbox / "set", {"train": texts("row", 20), "test": texts("val", 4)})
    kept = (folder / "test/state.json").read_bytes()
    (folder / "test/state.json").unlink()
    settle(toy)
    toy.clock.advance(1000)
    settle(toy)
    assert toy.engine.intake.settler.waiting()[str(folder)] == "it lacks test/state.json"
    (folder / "test/state.json").write_bytes(kept)
    settle(toy)
    assert toy.drops()[0][:2] == ("set", "admitted")


def test_a_writer_on_any_file_of_it_keeps_a_folder_in_the_inbox(toy: Toy) -> None:
    folder = hub(toy.home.inbox / "sums")
    with (folder / "data/test-00000-of-00001.jsonl").open("a"):
        settle(toy)
        assert toy.drops() == []
        assert toy.engine.intake.settler.waiting()[str(folder)] == \
            "somebody still writes to data/test-00000-of-00001.jsonl in it"  # fmt: skip
    settle(toy)
    assert toy.drops()[0][:2] == ("sums", "admitted")


def test_a_part_of_a_larger_folder_is_not_taken_while_the_rest_of_it_still_comes(toy: Toy) -> None:
    whole = saved(toy.home.root / "made", {"train": texts("row", 20), "test": texts("val", 4)})
    target = toy.home.inbox / "set"
    target.mkdir()
    (whole / "train").rename(target / "train")  # a data set by itself
    toy.engine.hint()
    for number in range(12):
        write_files(target, {"test/data-00000-of-00001.arrow": b"x" * number})
        toy.step()
    assert toy.drops() == []
    (target / "test/data-00000-of-00001.arrow").unlink()
    (target / "test").rmdir()
    (whole / "test").rename(target / "test")
    (whole / "dataset_dict.json").rename(target / "dataset_dict.json")
    settle(toy)
    assert [drop[:2] for drop in toy.drops()] == [("set", "admitted")]


def test_domain_folders_are_a_drop_each_and_other_folders_stay_heaps_of_files(toy: Toy) -> None:
    write_files(toy.home.inbox, {
        "domain/coding/train/a.jsonl": texts("code", 20), "domain/coding/val/a.jsonl": texts("code val", 4),
        "domain/legal/train/a.jsonl": texts("law", 20), "domain/legal/val/a.jsonl": texts("law val", 4),
        "notes/a.jsonl": texts("note", 9), "notes/train/n.md": "# no data\n", "notes/val/x.jsonl": texts("x", 9)})  # fmt: skip
    settle(toy)
    names = {name: state for name, state, _reason in toy.drops()}
    assert names == dict.fromkeys(("coding", "legal", "a.jsonl", "x.jsonl", "n.md"), "admitted")


@pytest.mark.parametrize("files", [
    {"train.jsonl": "train", "test.jsonl": "val", "notes.txt": ""},
    {"train.jsonl": "train", "validation_matched.jsonl": "val", "eval-hard.jsonl": "val", "heldout.jsonl": "val",
     "devset.jsonl": "val", "testset.jsonl": "val"},
    {"train/a/x.jsonl": "train", "train/test_a/x.jsonl": "val", "val/a/x.jsonl": "val"},
])  # fmt: skip
def test_rows_that_a_name_keeps_for_judging_are_never_learnt_whatever_lies_beside_them(toy: Toy, files: dict[str, str]) -> None:
    write_files(toy.home.inbox / "heap", {name: texts(name, 20) if split else "a note\n" for name, split in files.items()})
    settle(toy)
    assert [drop[:2] for drop in toy.drops()] == [("heap", "admitted")]
    file = find_file(toy.keeper.ledger, "heap")
    told = {item["member"]: item["split"] for item in file.record["splits"]}
    assert told == {name: split for name, split in files.items() if split}
    learnt = bitmap_flags(toy.keeper.ledger.value("SELECT bitmap FROM learnt WHERE sha256 = ?", (file.sha256,)), file.examples)
    assert learnt[:20].any() and not learnt[20:].any()


def test_a_file_that_names_no_split_beside_splits_makes_the_folder_wait(toy: Toy) -> None:
    folder = write_files(toy.home.inbox / "heap", {name: texts(name, 9) for name in ("train.jsonl", "test.jsonl", "exam2.jsonl")})
    settle(toy)
    assert toy.drops() == []
    assert toy.engine.intake.settler.waiting()[str(folder)] == \
        "exam2.jsonl says neither train nor val beside train.jsonl and test.jsonl: rename it or take it out"  # fmt: skip
    (folder / "exam2.jsonl").rename(folder / "test-exam2.jsonl")
    settle(toy)
    assert [drop[:2] for drop in toy.drops()] == [("heap", "admitted")]


def test_a_folder_whose_other_split_is_still_on_its_way_waits_for_it_as_a_whole(toy: Toy) -> None:
    folder = write_files(toy.home.inbox / "set", {"train/a.jsonl": texts("row", 20), "val/.rv.jsonl.Xy12Zw": texts("val", 3)})
    settle(toy)
    assert toy.drops() == []
    assert toy.engine.intake.settler.waiting()[str(folder)].startswith("val/.rv.jsonl.Xy12Zw in it is a hidden file; rsync")
    (folder / "val/.rv.jsonl.Xy12Zw").rename(folder / "val/rv.jsonl")
    settle(toy)
    assert [drop[:2] for drop in toy.drops()] == [("set", "admitted")]
    assert find_file(toy.keeper.ledger, "set").record["splits"][1]["split"] == "val"


def test_later_files_of_a_folder_with_rows_to_train_start_its_waiting_anew(toy: Toy) -> None:
    folder = toy.home.inbox / "set"
    toy.engine.hint()
    for number in range(12):
        write_files(folder, {f"train/{number}.jsonl": texts(f"row {number}", 3)})
        toy.step()
    write_files(folder, {"val/a.jsonl": texts("val", 3)})
    assert toy.drops() == []
    settle(toy)
    assert [drop[:2] for drop in toy.drops()] == [("set", "admitted")]
    assert {item["split"] for item in find_file(toy.keeper.ledger, "set").record["splits"]} == {"train", "val"}


def test_files_in_a_folder_that_is_itself_called_train_are_a_drop_each(toy: Toy) -> None:
    write_files(toy.home.inbox / "train", {"a.jsonl": texts("a", 9), "b.jsonl": texts("b", 9)})
    settle(toy)
    assert sorted(drop[:2] for drop in toy.drops()) == [("a.jsonl", "admitted"), ("b.jsonl", "admitted")]


def test_arrow_files_that_the_description_does_not_name_are_not_learnt_and_told(toy: Toy) -> None:
    folder = saved(toy.home.inbox / "set", {"train": texts("row", 20), "test": texts("val", 4)})
    write_files(folder, {"train/data-00001-of-00003.arrow": texts("stale", 30), "train/cache-0a1b.arrow": texts("cache", 3)})
    settle(toy)
    assert [drop[:2] for drop in toy.drops()] == [("set", "admitted")]
    file = find_file(toy.keeper.ledger, "set")
    assert (file.examples, file.record["unread"]) == (24, ["train/data-00001-of-00003.arrow"])
    story = "\n".join(story_lines(tell_story(toy.keeper, "set", toy.home.root)))
    assert "not read, for its state.json does not name them: train/data-00001-of-00003.arrow" in story


def test_a_side_file_beside_a_folder_is_taken_with_it(toy: Toy) -> None:
    rows = [{"body": row["text"]} for row in texts("row", 30)]
    write_files(toy.home.inbox / "pretrain/set", {"train/a.jsonl": rows, "val/a.parquet": rows[:5]})
    (toy.home.inbox / "pretrain/set.meta.yaml").write_text("description: mine\ncolumns: {body: text}\n")
    settle(toy)
    assert toy.drops()[0][:2] == ("set", "admitted")
    file = find_file(toy.keeper.ledger, "set")
    assert (file.description, file.examples, file.record["reading"]["columns"]) == ("mine", 35, {"body": "text"})


def test_the_disk_is_asked_for_room_beforehand_and_nothing_fails(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub(toy.home.inbox / "sums")
    real = __import__("shutil").disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: real(path)._replace(free=100))
    settle(toy)
    assert toy.drops() == [] and "make room" in toy.engine.intake.settler.waiting()[str(folder)]
    monkeypatch.undo()
    settle(toy)
    assert toy.drops()[0][:2] == ("sums", "admitted")


def test_a_repository_s_history_is_left_out_and_not_lost(toy: Toy) -> None:
    folder = write_files(hub(toy.home.inbox / "sums"), {
        ".git/HEAD": "ref: refs/heads/main\n", ".git/own/.git/HEAD": "x", ".gitattributes": "*.parquet filter=lfs\n",
        ".DS_Store": b"\1",
        ".cache/huggingface/x.lock": b""})  # fmt: skip
    assert folder.is_dir()
    settle(toy)
    file = find_file(toy.keeper.ledger, "sums")
    assert file.record["left_out"] == [".DS_Store", ".cache/huggingface/x.lock", ".git/HEAD", ".git/own/.git/HEAD"]
    listed = subprocess.run(["tar", "tf", stored_path(toy.home, file)], check=True, capture_output=True, text=True).stdout.split()
    assert listed == [".gitattributes", "README.md", "data/test-00000-of-00001.jsonl", "data/train-00000-of-00002.parquet",
                      "data/train-00001-of-00002.parquet"]  # fmt: skip
    assert contents(toy.home.rejected / "sums.git").keys() == {"HEAD", "own/.git/HEAD"}
    assert "left out when it was packed: .DS_Store" in "\n".join(story_lines(tell_story(toy.keeper, "sums", toy.home.root)))


def test_verify_vault_and_rebuild_know_a_folder_s_original_as_they_know_a_file(toy: Toy, scratch: Path) -> None:
    hub(toy.home.inbox / "sums")
    settle(toy)
    run_backup(toy.keeper)
    file = find_file(toy.keeper.ledger, "sums")
    assert verify(toy.keeper, everything=True, backup=True).damage == ()
    assert sha256_file(toy.home.root / "backups/files" / file.sha256 / "sums.tar") == file.sha256
    stored = stored_path(toy.home, file)
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes()[:-700] + b"\1" + bytes(699))
    stored.chmod(0o444)
    assert [item.file for item in verify(toy.keeper, everything=True).damage] == ["sums.tar"]
    # The same folder dropped again mends it.
    hub(toy.home.inbox / "sums")
    settle(toy)
    assert verify(toy.keeper, everything=True).damage == () and sha256_file(stored) == file.sha256


def test_a_lost_ledger_knows_the_folder_again(toy: Toy) -> None:
    hub(toy.home.inbox / "sums")
    settle(toy)
    before = find_file(toy.keeper.ledger, "sums")
    toy.die()
    toy.home.ledger.unlink()
    rebuild(toy.home, clock=toy.clock, actor="tester")
    toy.begin()
    after = find_file(toy.keeper.ledger, "sums")
    assert (after.sha256, after.examples, after.description, after.record["splits"], after.record["stored_as"]) == \
        (before.sha256, before.examples, before.description, before.record["splits"], "sums.tar")  # fmt: skip
    toy.settle()
    assert verify(toy.keeper, everything=True).damage == ()


def test_a_registered_folder_stays_where_it_is_and_tells_kind_examples_and_splits(toy: Toy, scratch: Path) -> None:
    from daemon.operations import perform

    folder = write_files(hub(scratch / "elsewhere" / "sums"), {".git/HEAD": "x"})
    before = contents(folder)
    [drop] = perform(toy.engine, "register", {"paths": [str(folder)]})["drops"]
    settle(toy)
    assert contents(folder) == before and list(toy.home.incoming.iterdir()) == []
    row = toy.keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (drop,))
    result = drop_result(row["name"], row["state"], row["reason"], row["sha256"], json.loads(row["verdict"]))
    assert (result["kind"], result["examples"], result["splits"], result["status"]) == \
        ("pretrain", 80, {"train": 60, "val": 20}, "registered")  # fmt: skip
    assert "20 of them kept for judging (its own split)" in "\n".join(register_lines(result))
    assert not (toy.home.rejected / "sums.git").exists()


def test_names_that_are_no_utf8_cost_nothing(toy: Toy) -> None:
    odd = os.fsdecode(b"train/\xff.jsonl")
    rows = [*texts("train", 30), {"text": ""}]
    folder = write_files(toy.home.inbox / "odd", {odd: rows, "val/b.jsonl": texts("val", 3), os.fsdecode(b"._\xfe"): b"x"})
    write_files(toy.home.inbox / os.fsdecode(b"bad\xff"), {odd: [{"text": ""}] * 4, "val/b.jsonl": texts("val", 3)})
    before = contents(folder)
    settle(toy)
    file = find_file(toy.keeper.ledger, "odd")
    assert file.record["splits"][0]["member"] == "train/\\xff.jsonl" and file.record["left_out"] == ["._\\xfe"]
    assert [row["member"] for row in file.record["unusable_rows"]] == ["train/\\xff.jsonl"]
    assert verify(toy.keeper, everything=True).damage == ()
    assert dict(drop[:2] for drop in toy.drops()) == {"odd": "admitted", "bad\\xff": "rejected"}
    with stored_path(toy.home, file).open("rb") as stream:
        assert {item.name for item in stored_files(stream)} == before.keys() - {os.fsdecode(b"._\xfe")}
