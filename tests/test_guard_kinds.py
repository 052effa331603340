"""Which names are never data, and what kind the columns say."""

from __future__ import annotations

import pytest

from guard.checks.kinds import (
    KINDS,
    ROW_KINDS,
    container_of,
    container_reason,
    detect_columns,
    forced_kind_of,
    holds_rows,
    ignore_reason,
    ignored_name,
    kind_reason,
    kinds_of,
    name_for,
    registered_reason,
    stage_of,
    unpacked_container,
)

JUNK = [
    ".DS_Store",
    "._x",
    "Thumbs.db",
    "desktop.ini",
    "lost+found",
    ".nfs0000000012ab",
    ".rows.jsonl.a1B2c3",
    "rows.part",
    "rows.jsonl.crdownload",
    "rows.TMP",
    "rows.jsonl~",
    ".rows.jsonl.swp",
    ".syncthing.rows.jsonl.tmp",
    "~syncthing~x.tmp",
    "rows.jsonl.why.txt",
    "rows.jsonl.meta.yaml",
    "#rows.jsonl#",
    "~$letter.docx",
    ".hidden.jsonl",
]


@pytest.mark.parametrize("name", JUNK)
def test_temporary_and_system_names_are_never_data_at_any_depth(name: str) -> None:
    assert ignored_name(name)
    assert ignore_reason(name) == ignore_reason(f"sft/deep/{name}") == ignore_reason(f"{name}/inside.jsonl") != ""


@pytest.mark.parametrize(
    "name",
    ["rows.jsonl", "a\nb\t\"c'.jsonl", "-rf.jsonl", "\U0001f600.txt", "\udcff.jsonl", "x" * 249 + ".jsonl", "party.md"],
)
def test_odd_names_may_be_data(name: str) -> None:
    assert ignore_reason(name) == ""
    assert container_of(name)


def test_only_the_inboxs_own_readme_is_ignored() -> None:
    assert ignore_reason("README.md")
    assert ignore_reason("docs/README.md") == ""
    assert ignored_name("README.md") == ""


def test_what_came_back_is_not_taken_again() -> None:
    assert ignore_reason("rejected/rows.jsonl")
    assert ignore_reason("duplicates/rows.jsonl")


def test_the_first_folder_forces_a_kind() -> None:
    assert [forced_kind_of(f"{kind}/x.jsonl") for kind in KINDS] == list(KINDS)
    assert forced_kind_of("project/sft/x.jsonl") is None
    assert forced_kind_of("sft") is None


def test_suffixes_are_read_in_any_case() -> None:
    assert container_of("A.JSONL") == "jsonl"
    assert container_of("A.Md") == container_of("a.txt") == "text"
    assert container_of("X.PARQUET") == "parquet" and container_of("data.Jsonl.GZ") == "jsonl.gz"
    assert container_of("a.pdf") == container_of("a.b") == container_of("noextension") == container_of("jsonl") == ""
    assert container_of("a.gz") == container_of("a.pdf.zst") == container_of(".gz") == container_of("a.jsonl.gz.gz") == ""


def test_a_name_for_a_container_says_that_container() -> None:
    names = ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.npy", "a.md"]
    for container in map(container_of, [*names, *(name + packing for name in names for packing in (".gz", ".zst"))]):
        assert container and container_of(name_for(container)) == container
        assert holds_rows(container) == (unpacked_container(container) != "text")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.ipynb", "not a kind this version can read yet"),
        ("a.pdf.gz", ".pdf.gz files are not a kind this version can read yet"),
        ("a.gz", "whose name does not say what is in it"),
        ("a.xyz", "unknown type"),
        ("noextension", "no extension"),
    ],
)
def test_what_cannot_be_read_says_so_and_says_what_can(name: str, words: str) -> None:
    assert words in container_reason(name)
    assert ".jsonl" in container_reason(name)


@pytest.mark.parametrize(
    ("row", "kind", "form"),
    [
        ({"chosen": "a", "rejected": "b", "messages": []}, "preference", "chosen and rejected"),
        ({"chosen": "a", "rejected": None, "messages": []}, "sft", "messages"),
        ({"tests": "t", "description": "d"}, "task", "tests"),
        ({"buggy_code": "a", "fixed_code": "b", "text": "c"}, "mutation", "buggy_code and fixed_code"),
        ({"messages": [], "text": "x"}, "sft", "messages"),
        ({"conversations": []}, "sft", "conversations"),
        ({"instruction": "a", "output": "b"}, "sft", "instruction and output"),
        ({"prompt": [], "completion": []}, "sft", "prompt and completion"),
        ({"text": "plain"}, "pretrain", "text"),
        ({"text": " <|system|>You are helpful."}, "sft", "text that opens with a chat tag"),
        ({"text": "<myPT_user>x</myPT_user>"}, "sft", "text that opens with a chat tag"),
        ({"text": "about <myPT_user>"}, "pretrain", "text"),
        ({"text": 5}, "pretrain", "text"),
        ({"input_ids": [1]}, "pretrain", "input_ids"),
    ],
)
def test_the_columns_say_the_kind(row: dict[str, object], kind: str, form: str) -> None:
    assert detect_columns(row) == (kind, form)


def test_every_kind_has_a_stage_or_says_what_it_is_kept_for() -> None:
    assert [stage_of(kind) for kind in KINDS] == ["pretrain", "sft", "", "", "sft", ""]
    assert [kind for kind in ROW_KINDS if not stage_of(kind) and not registered_reason(kind)] == []
    assert kinds_of({"text": "<|user|>a", "messages": []}) == ["sft", "pretrain"]


def test_columns_nobody_knows_say_nothing() -> None:
    assert detect_columns({"chosen": "without the other"}) is None
    assert detect_columns({}) is None


def test_a_kind_in_the_wrong_container_is_told() -> None:
    assert kind_reason("sft", "jsonl") == kind_reason("pretrain", "text") == kind_reason("docs", "text") == ""
    assert "plain text" in kind_reason("sft", "text")
    assert kind_reason("docs", "text.gz") == kind_reason("pretrain", "npy") == kind_reason("sft", "parquet.zst") == ""
    assert "plain text" in kind_reason("sft", "text.zst") and "token ids" in kind_reason("sft", "npy.gz")
    assert "document" in kind_reason("docs", "jsonl") and "document" in kind_reason("docs", "csv.gz")
    assert kind_reason("preference", "jsonl") == kind_reason("pretrain", "text.gz") == ""
    assert "needs rows" in kind_reason("preference", "text") and "document" in kind_reason("docs", "csv")
