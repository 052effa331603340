"""Files that are links, as the hub's cache has them: what a link is called says what it holds, not where it points."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_data import chat_row, jsonl, text_rows

from trainer.convert import convert
from trainer.dataset import open_dataset
from trainer.pack import PackPlan, pack_folder
from trainer.pairs.prepare import prepare_pairs
from trainer.prepare_folder import prepare_folder
from trainer.tokenizer import load_tokenizer
from trainer.tokenizer_train import train_tokenizer
from trainer.validate import validate_path


def linked(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> tuple[Path, Path]:
    """(a file under its own name, a link of that name to the same bytes under a name that says nothing)."""
    for place in ("blobs", "snapshot", "plain"):
        (folder / place).mkdir()
    for path in (folder / "blobs" / "5f3a09c1", folder / "plain" / name):
        path.write_bytes(jsonl(rows))
    os.symlink("../blobs/5f3a09c1", folder / "snapshot" / name)
    return folder / "plain" / name, folder / "snapshot" / name


@pytest.mark.parametrize(("kind", "rows"), [("chat", [chat_row(n) for n in range(9)]), ("text", text_rows(9))])
def test_a_link_is_prepared_as_the_file_it_is_called(kind: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    made = [prepare_folder(kind, [path], tmp_path / f"out-{place}", "char", 0.0)
            for place, path in enumerate(linked(tmp_path, rows))]  # fmt: skip
    assert made[1]["train"] == made[0]["train"] and made[1]["train"]["examples"] == 9
    assert made[1]["dataset_id"] == made[0]["dataset_id"]
    one, other = (open_dataset(tmp_path / f"out-{place}").train for place in (0, 1))
    assert (one.fingerprints == other.fingerprints).all()


def test_rows_that_cannot_be_used_are_told_of_a_link_too(tmp_path: Path) -> None:
    _plain, link = linked(tmp_path, [*text_rows(9), {"text": " "}])
    assert prepare_folder("text", [link], tmp_path / "out", "char", 0.0)["skipped"][0]["line"] == 10


def _pack(path: Path, out: Path) -> Any:
    found = pack_folder([path], out, load_tokenizer("char"), PackPlan((16,), "npy", 0.0, 0))
    return {name: split["tokens"] for name, split in found["splits"].items()}


def _convert(path: Path, out: Path) -> Any:
    return convert(path, out.with_suffix(".parquet"))["rows"]


def _learn(path: Path, out: Path) -> Any:
    train_tokenizer([path], 300, out)
    return json.loads((out / "tokenizer.json").read_text())["model"]


def _validate(path: Path, _out: Path) -> Any:
    return {key: value for key, value in validate_path(path).items() if key != "path"}


@pytest.mark.parametrize("use", [_pack, _convert, _learn, _validate])
def test_every_other_command_reads_a_link_so_too(use: Callable[[Path, Path], Any], tmp_path: Path) -> None:
    plain, link = linked(tmp_path, [{"text": f"{number} some words to learn from, and more words"} for number in range(30)])
    assert use(link, tmp_path / "link") == use(plain, tmp_path / "plain-out")


def test_pairs_behind_a_link_are_pairs(tmp_path: Path) -> None:
    _plain, link = linked(tmp_path, [{"prompt": f"q{number}", "chosen": "a", "rejected": "b"} for number in range(5)])
    assert prepare_pairs([link], None)["pairs"] == 5
