"""Data sets as folders and as tars of them: which folder is one by its names, the tar's bytes, and the rows read from it."""

from __future__ import annotations

import io
import os
import random
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folder_help import hub, saved, texts, write_files

from guard import tars
from guard.checks.folders import dataset_folders, is_junk, members_of, named_missing, waits_for
from guard.checks.identify import identify
from guard.checks.members import data_set_in, folder_rows
from guard.checks.rows import iter_examples
from guard.durable import sha256_file
from guard.errors import Damage, DataFault
from guard.splits import KeptBack, val_keys
from guard.tars import pack_folder, stored_files
from guard.untouchable import keys_of_file

SHARD = "train-00000-of-00001.parquet"


@pytest.mark.parametrize(("names", "found"), [
    (["dataset_dict.json", "train/state.json", "train/dataset_info.json"], [""]),
    (["a/state.json", "a/dataset_info.json", "a/data-00000-of-00001.arrow", "b.jsonl"], ["a"]),
    (["state.json", "data.jsonl"], []),
    ([f"data/{SHARD}", "README.md", "other/x.jsonl"], [""]),
    ([SHARD], [""]),
    (["train-00000-of-00001-0a1b2c.parquet"], [""]),
    ([f"x/{SHARD}.gz"], ["x"]),
    (["x/dev-00000-of-00001.jsonl.zst"], ["x"]),
    (["sales-00000-of-00001.parquet"], []),
    (["data/train_prefs-00000-of-00001-0a1b.parquet", "data/test_prefs-00000-of-00001-0a1b.parquet"], [""]),
    (["trainers-00000-of-00001.parquet"], []),
    (["train.jsonl", "test.jsonl", "README.md"], [""]),
    (["hh/harmless/train.jsonl.gz", "hh/harmless/test.jsonl.gz", "hh/README.md"], ["hh/harmless"]),
    (["data/train.tsv", "data/dev.ndjson", "notes.md"], [""]),
    (["train.jsonl", "test.jsonl", "notes.md"], [""]),
    (["heap/train.jsonl", "heap/test.jsonl", "heap/notes.txt", "heap/x.pdf"], ["heap"]),
    (["train.jsonl", "test_cases.jsonl"], [""]),
    (["train.jsonl", "validation_matched.jsonl", "eval-hard.jsonl", "odd.jsonl"], [""]),
    *((["train.jsonl", f"{word}.jsonl"], [""]) for word in ("heldout", "holdout", "held-out", "hold_out", "devset", "testset",
                                                            "valset", "evalset", "testing", "HELDOUT2")),
    (["trainset.jsonl", "testset.jsonl"], [""]),
    (["nest/train/a/x.jsonl", "nest/train/test_a/x.jsonl", "nest/val/a/x.jsonl"], ["nest"]),
    (["x/a/train.jsonl", "x/b/test.jsonl"], ["x"]),
    (["x/one/train/a.jsonl", "x/one/val/a.jsonl", "x/two/train.jsonl", "x/two/test.jsonl", "x/a.jsonl"], ["x/one", "x/two"]),
    (["x/one/train/a.jsonl", "x/one/val/a.jsonl", "x/test.jsonl"], ["x"]),
    (["x/train/train.jsonl", "x/train/test.jsonl"], ["x"]),
    (["data/train/a.jsonl", "data/val/a.jsonl", "README.md"], [""]),
    (["train.jsonl", "test.txt"], []),
    (["train.jsonl", "training.jsonl"], []),
    (["train/a.jsonl", "val/a.jsonl"], [""]),
    (["train/a.arrow", "train/state.json", "train/dataset_info.json", "validation/a.arrow"], [""]),
    (["coding/train/a.jsonl", "coding/val/a.jsonl", "legal/train/a.npy", "legal/val/a.npy"], ["coding", "legal"]),
    (["train_512/a.npy", "train_1024/a.npy"], [""]),
    (["train/a.jsonl"], [""]),
    (["x/train_a/deep/a.jsonl", "x/b.jsonl", "c.jsonl"], ["x"]),
    (["train/a.jsonl", "val/.a.jsonl.Xy12Zw"], [""]),
    (["a.jsonl", "b.jsonl"], []),
    (["train.jsonl"], []),
    (["val/a.jsonl", "test/a.jsonl"], []),
    (["train/a.jsonl", "val/notes.txt"], [""]),
    (["train/notes.txt", "val/a.jsonl"], []),
    (["training/a.jsonl", "validation/b.jsonl", "validation/.DS_Store"], [""]),
    (["trainers/a.jsonl", "valid/a.jsonl"], []),
    (["trains.jsonl", "values.jsonl"], []),
    (["deep/er/dataset_dict.json", "deep/er/train/dataset_dict.json"], ["deep/er"]),
    ([".git/train/a.jsonl", ".git/val/a.jsonl"], []),
])  # fmt: skip
def test_a_data_set_is_told_by_its_names_and_the_topmost_folder_is_the_drop(names: list[str], found: list[str]) -> None:
    assert sorted(dataset_folders(names)) == found


def test_train_is_read_first_and_lengths_ascend() -> None:
    names = ["val_512/a.npy", "train_2048/a.npy", "train_512/b.npy", "train_512/a.npy", "train_1024/a.npy", "README.md",
             "train_512/dataset_info.json", "settings.json", "train_512/cache-0123456789abcdef.arrow"]  # fmt: skip
    assert [(item.split, item.name) for item in members_of(names)] == [
        ("train", "train_512/a.npy"), ("train", "train_512/b.npy"), ("train", "train_1024/a.npy"),
        ("train", "train_2048/a.npy"), ("val", "val_512/a.npy")]  # fmt: skip


@pytest.mark.parametrize(("name", "split", "container"), [
    ("data/validation-00000-of-00001.parquet", "val", "parquet"), ("dev/train-of-thought.jsonl", "val", "jsonl"),
    ("data/test.csv.gz", "val", "csv.gz"), ("data-00000-of-00001.arrow", "train", "arrow"),
    ("train/test_cases.jsonl", "train", "jsonl"), ("eval-00000-of-00001.json", "val", "json"),
    ("data/developers.jsonl", "train", "jsonl"), ("data/test_gen-00000-of-00001.parquet", "val", "parquet"),
    ("heldout-3.csv", "val", "csv"), ("validation_matched.jsonl", "val", "jsonl"), ("holdouts.jsonl", "train", "jsonl"),
    ("train/test.jsonl", "val", "jsonl"), ("train/test-00000-of-00001.parquet", "val", "parquet"),
    ("train/test_a/x.jsonl", "val", "jsonl"), ("val/train.jsonl", "val", "jsonl"), ("valid.tsv", "val", "csv"),
    ("coding/val/x.jsonl.zst", "val", "jsonl.zst"),
])  # fmt: skip
def test_a_file_belongs_to_the_split_of_its_nearest_folder_else_of_its_name(name: str, split: str, container: str) -> None:
    assert members_of([name]) == [(name, split, container)]


def test_what_is_hidden_is_no_file_of_rows() -> None:
    names = ["train/a.jsonl", "train/.ipynb_checkpoints/a-checkpoint.jsonl", "val/.old.jsonl", "val/a.jsonl", "train/set.tar"]
    assert [item.name for item in members_of(names)] == ["train/a.jsonl", "val/a.jsonl"]


def test_what_is_missing_is_named() -> None:
    names = ["data/train-00000-of-00003.parquet", "data/test-00000-of-00001.parquet"]
    assert waits_for(names) == "it lacks data/train-00001-of-00003.parquet and 1 more"
    assert waits_for([*names, "data/train-00001-of-00003.parquet", "data/train-00002-of-00003.parquet"]) == ""
    assert named_missing("train", {"_data_files": [{"filename": "b.arrow"}]}, ["train/a.arrow"]) == "it lacks train/b.arrow"
    assert named_missing("", {"splits": ["train", "test"]}, ["train/state.json"]) == "it lacks test/state.json"
    for odd in (None, [], {"_data_files": 3, "splits": "x"}, {"_data_files": [{"filename": 3}, 4], "splits": [5]}):
        assert named_missing("", odd, []) == ""


def test_a_file_of_rows_that_names_no_split_beside_splits_keeps_the_set_waiting() -> None:
    names = ["train.jsonl", "test.jsonl", "notes.txt", "settings.json"]
    assert waits_for(names) == ""
    assert waits_for([*names, "exam2.jsonl"]) == \
        "exam2.jsonl says neither train nor val beside train.jsonl and test.jsonl: rename it or take it out"  # fmt: skip
    assert waits_for(["train/a.jsonl", "val/b.jsonl", "more/c.csv"]).startswith("more/c.csv says neither train nor val")
    assert waits_for(["train/a.jsonl", "more.jsonl"]) == ""
    pieces = [f"data/{name}-00000-of-00001.parquet" for name in ("train", "test", "unsupervised")]
    assert waits_for(pieces) == ""
    assert waits_for(["train/a.jsonl", "val/.a.jsonl.Xy12Zw"]).startswith("val/.a.jsonl.Xy12Zw in it is a hidden file; rsync")
    assert waits_for(["train/a.jsonl", "val/a.jsonl.part"]).startswith("val/a.jsonl.part in it is an unfinished")


def test_junk_is_what_systems_and_tools_leave_behind() -> None:
    assert [name for name in (".DS_Store", "a/._b", "x/.git/HEAD", ".cache/huggingface/a.lock", "Thumbs.db", ".cache/mine",
                              ".gitattributes", "data/a.jsonl") if is_junk(name)] == \
        [".DS_Store", "a/._b", "x/.git/HEAD", ".cache/huggingface/a.lock", "Thumbs.db"]  # fmt: skip


def test_the_same_folder_gives_the_same_tar_whatever_its_times_owners_modes_and_order(scratch: Path) -> None:
    first, second = hub(scratch / "one"), scratch / "other"
    names = [str(path.relative_to(first)) for path in first.rglob("*") if path.is_file()]
    random.Random(3).shuffle(names)
    write_files(second, {name: (first / name).read_bytes() for name in names})
    for path in second.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    (second / "empty").mkdir()
    told = [pack_folder(folder, scratch / f"{folder.name}.tar") for folder in (first, second)]
    assert sha256_file(scratch / "one.tar") == sha256_file(scratch / "other.tar")
    assert (told[0]["files"], told[0]["left_out"]) == (4, []) and told[0]["mark"] != told[1]["mark"]
    # Frozen: the bytes of a folder's tar may never change, for the same folder must be known again.
    small = write_files(scratch / "small", {"train/a.jsonl": '{"text": "a"}\n', f"val/{'n' * 120}.jsonl": '{"text": "b"}\n'})
    pack_folder(small, scratch / "small.tar")
    assert sha256_file(scratch / "small.tar") == "15fadbcbdd235918070bb411f146b666112493d5e5dce716ec819d5e478bcbcc"


def test_names_that_are_long_or_no_utf8_keep_their_bytes(scratch: Path) -> None:
    odd = os.fsdecode(b"train/\xff" + b"x" * 200 + b".jsonl")
    write_files(scratch / "set", {odd: '{"text": "a"}\n', "val/ü.jsonl": '{"text": "b"}\n'})
    pack_folder(scratch / "set", scratch / "set.tar")
    with (scratch / "set.tar").open("rb") as stream:
        assert [file.name for file in stored_files(stream)] == [odd, "val/ü.jsonl"]
        assert [row.value["text"] for row in folder_rows(stream) if row.value] == ["a", "b"]


@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda path: (path / "l").symlink_to("a"), "l in it is not a regular file"),
    (lambda path: os.mkfifo(path / "p"), "p in it is not a regular file"),
])  # fmt: skip
def test_a_folder_with_anything_but_files_is_not_packed(spoil: Callable[[Path], None], reason: str, scratch: Path) -> None:
    spoil(hub(scratch / "set"))
    with pytest.raises(DataFault, match=reason):
        pack_folder(scratch / "set", scratch / "set.tar")
    assert [path.name for path in scratch.iterdir()] == ["set"]


def test_what_was_packed_is_compared_with_the_folder(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(scratch / "set")
    real = tars._write

    def flawed(folder: Path, entries: list[tars.Entry], writer: io.BufferedWriter) -> None:
        real(folder, entries, writer)
        writer.seek(520)
        writer.write(b"?")

    monkeypatch.setattr(tars, "_write", flawed)
    with pytest.raises(Damage, match="is not what lies there"):
        pack_folder(scratch / "set", scratch / "set.tar")
    assert not (scratch / "set.tar").exists()


def test_a_folder_that_changes_while_it_is_packed_gives_no_tar(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(scratch / "set")
    monkeypatch.setattr(tars, "_compare", lambda folder, packed: write_files(folder, {"data/new.jsonl": texts("x", 1)}))
    with pytest.raises(DataFault, match="changed while it was packed"):
        pack_folder(scratch / "set", scratch / "set.tar")


def tar_of(path: Path, *files: tuple[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def link(name: str, kind: bytes) -> tuple[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return name, info


ROWS = b'{"text": "a row of a set"}\n'
WHOLE = (("set/train/a.jsonl", ROWS), ("set/val/a.jsonl", ROWS))


@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda path: tar_of(path, *WHOLE, link("set/l", tarfile.SYMTYPE)), "set/l in the tar is no plain file"),
    (lambda path: tar_of(path, *WHOLE, link("set/h", tarfile.LNKTYPE)), "set/h in the tar is no plain file"),
    (lambda path: tar_of(path, *WHOLE, link("set/d", tarfile.CHRTYPE)), "set/d in the tar is no plain file"),
    (lambda path: tar_of(path, *WHOLE, WHOLE[0]), "a name more than once"),
    (lambda path: tar_of(path, ("notes/a.jsonl", ROWS)), "the tar holds no data set"),
    (lambda path: tar_of(path, *WHOLE, ("b/train/a.jsonl", ROWS), ("b/val/a.jsonl", ROWS)), "the tar holds 2 data sets"),
    (lambda path: tar_of(path, ("train-00000-of-00002.jsonl", ROWS)), "it lacks train-00001-of-00002.jsonl"),
    (lambda path: path.write_bytes(tar_of(path, *WHOLE).read_bytes()[:1600]), "no tar that can be read|cut off"),
    (lambda path: path.write_bytes(tar_of(path, *WHOLE).read_bytes()[:2048]), "the tar is cut off"),
    (lambda path: path.write_bytes(tar_of(path, *WHOLE).read_bytes()[:1024] + b"?" * 512 + bytes(1024)), "near byte 1,024"),
    (lambda path: path.write_bytes(b"no tar at all, but long enough to be asked" * 30), "no tar that can be read"),
    (lambda path: tar_of(path, ("train/a.csv", b'text\n"a\n'), ("val/a.jsonl", ROWS)), "^train/a.csv: .*quote"),
    (lambda path: tar_of(path, ("train/a.parquet", b"PAR1 and no more"), ("val/a.jsonl", ROWS)), "^train/a.parquet: "),
    (lambda path: tar_of(path, ("train/a.arrow", b"ARROW1 and no more"), ("val/a.jsonl", ROWS)), "^train/a.arrow: "),
    (lambda path: tar_of(path, ("train/a.npy", b"\x93NUMPY\1\0v\0{"), ("val/a.jsonl", ROWS)), "^train/a.npy: .*cut short"),
])  # fmt: skip
def test_a_tar_that_is_no_whole_data_set_is_refused_with_the_reason(spoil: Callable[[Path], object], reason: str,
                                                                    scratch: Path) -> None:  # fmt: skip
    spoil(scratch / "a.tar")
    found = identify(scratch / "a.tar", "a.tar")
    assert found.verdict == "reject"
    assert re.search(reason, found.reason), found.reason


def test_no_bytes_of_a_broken_tar_raise_anything_but_a_refusal(scratch: Path) -> None:
    whole = tar_of(scratch / "a.tar", *WHOLE).read_bytes()[:4096]
    dice = random.Random(5)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(dice.randrange(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        (scratch / "b.tar").write_bytes(data[: dice.randrange(1, len(data) + 1)])
        assert identify(scratch / "b.tar", "b.tar").verdict in ("ok", "reject", "ignore", "wait")


def test_token_arrays_are_read_row_by_row_in_their_own_lengths(scratch: Path) -> None:
    made = {name: np.arange(rows * length, dtype=kind).reshape(rows, length)
            for name, rows, length, kind in (("train_8/a.npy", 600, 8, "<i8"), ("train_16/a.npy", 3, 16, "<u2"))}  # fmt: skip
    for name, array in made.items():
        (scratch / "set" / name).parent.mkdir(parents=True)
        np.save(scratch / "set" / name, array)
    pack_folder(scratch / "set", scratch / "set.tar")
    with (scratch / "set.tar").open("rb") as stream:
        rows = list(folder_rows(stream))
    assert [len(row.value["input_ids"]) for row in rows if row.value] == [8] * 600 + [16] * 3
    assert rows[599].value == {"input_ids": list(range(4792, 4800))} and rows[599].line_number == 600


def test_what_datasets_saves_is_read_as_what_it_was_made_of(scratch: Path) -> None:
    import datasets
    datasets.disable_progress_bars()
    rows = [{"messages": [{"role": "user", "content": f"{n} and 1?"}, {"role": "assistant", "content": str(n + 1)}]}
            for n in range(40)]  # fmt: skip
    whole = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows[:30]), "test": datasets.Dataset.from_list(rows[30:])})
    whole.save_to_disk(scratch / "real")
    by_hand = saved(scratch / "hand", {"train": rows[:30], "test": rows[30:]})
    prints = []
    for folder in (scratch / "real", by_hand):
        assert list(dataset_folders(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())) == [""]
        pack_folder(folder, folder.with_suffix(".tar"))
        found = identify(folder.with_suffix(".tar"), "set", container="tar", out_folder=scratch / f"{folder.name}-out")
        assert (found.verdict, found.kind, [item["count"] for item in found.splits]) == ("ok", "sft", [30, 10])
        prints.append((scratch / f"{folder.name}-out" / "examples.fp").read_bytes())
    assert prints[0] == prints[1] == b"".join(item.fingerprint for item in iter_examples(scratch / "real.tar", "sft"))
    keys, count = keys_of_file(scratch / "real.tar", "real.tar")
    assert count == 40 and len(keys) >= 40 * 16


def test_fingerprints_of_val_rows_and_of_their_copies_are_kept_back() -> None:
    prints = [bytes([number]) * 16 for number in range(6)]
    record = {"splits": [{"split": "train", "start": 0, "count": 3}, {"split": "val", "start": 3, "count": 2},
                         {"split": "train", "start": 5, "count": 1}]}  # fmt: skip
    keys = val_keys(record, b"".join(prints))
    assert keys == prints[3] + prints[4]
    asked = [prints[4], prints[0], prints[3], prints[3]]
    assert KeptBack(keys).mask(b"".join(asked)).tolist() == [True, False, True, True]
    assert KeptBack(b"").mask(b"".join(asked)).tolist() == [False] * 4
    assert val_keys({}, b"".join(prints)) == b""


def test_a_large_member_is_read_in_bounded_memory(scratch: Path) -> None:
    import tracemalloc

    row = {"text": "x" * 4000}
    write_files(scratch / "set", {"train/a.jsonl": [row | {"n": number} for number in range(3000)], "val/a.jsonl": [row]})
    pack_folder(scratch / "set", scratch / "set.tar")
    tracemalloc.start()
    with (scratch / "set.tar").open("rb") as stream:
        assert len(data_set_in(stream).members) == 2 and sum(1 for _ in folder_rows(stream)) == 3001
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9e6, f"{peak:,} bytes for a file of 12 MB"


@pytest.mark.parametrize(
    "names",
    [("dev/a.jsonl", "train/.b.jsonl.Xy12Zw"), ("test.jsonl", ".train.jsonl.Xy12Zw"), ("val/a.jsonl", "train/b.parquet.part"),
     ("data/test/a.jsonl", "data/train/.b.jsonl.Xy12Zw")],
)  # fmt: skip
def test_rows_to_judge_by_wait_for_rows_to_train_that_are_on_their_way(names: tuple[str, ...]) -> None:
    """Copied by name, `dev/` and `test/` come before `train/`: alone they would be drops to learn."""
    assert ("on their way" in dataset_folders(names)[""] and "transfer" in waits_for(names)) or "unfinished" in waits_for(names)
    assert dataset_folders([name for name in names if ".jsonl.X" not in name and not name.endswith(".part")]) == {}
    assert dataset_folders(["x/a.jsonl", "x/.y.jsonl.Xy12Zw"]) == {}
