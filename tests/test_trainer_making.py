"""Outputs that a person names: refused where nothing can be written, and what killed runs had left of them is removed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.main import main
from guard.errors import UsageError
from trainer.making import check_writable, made_beside


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.jsonl").write_text('{"text": "one two three"}\n' * 3 + '{"text": "four"}\n')
    (tmp_path / "p.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS: dict[str, Callable[[str], str]] = {
    "text": lambda out: f"prepare text --input a.jsonl --tokenization char --val-split 0 --output-dir {out}",
    "pack": lambda out: f"prepare pack --input a.jsonl --tokenization char --val-split 0 --seq-length 4 --output-dir {out}",
    "convert": lambda out: f"prepare convert a.jsonl {out}.csv",
    "tokenizer": lambda out: f"tokenizer train --input a.jsonl --vocab-size 300 --out-dir {out}",
    "prefs": lambda out: f"prepare prefs --input p.jsonl --output-dir {out}",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_where_no_file_can_be_is_refused_with_what_to_type(
        rows: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main(COMMANDS[command]("/proc/x/y").split()) == 2
    said = capsys.readouterr().err
    assert "nothing can be written into /proc" in said and "try: name an output in a folder of your own" in said
    assert "this should not have happened" not in said and "making" not in said and "/tmp" not in said


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_takes_nothing_is_told_and_a_full_disk_is_told_as_that(
        tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def refuse(dir: Path) -> Any:
        raise OSError(code, os.strerror(code), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError if code == errno.ENOSPC else UsageError) as told:
        check_writable(tmp_path / "missing" / "deeper")
    assert str(tmp_path) in str(told.value) and not (tmp_path / "missing").exists()
    if code == errno.EROFS:
        assert "read-only file system" in str(told.value)


@pytest.mark.parametrize("command", ["text", "pack", "convert", "tokenizer"])
def test_what_a_killed_run_left_is_removed_by_the_next_and_told(
        rows: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = "out.csv" if command == "convert" else "out"
    left = rows / f".{name}.{gone.pid}.making"
    (left / "train").mkdir(parents=True)
    (left / "train" / "half").write_text("x")
    others = [rows / f".{name}.{os.getppid()}.making", rows / f".other.{gone.pid}.making"]
    for other in others:
        other.mkdir()
    assert main(COMMANDS[command]("out").split()) == 0
    assert f"Removed {left.name}: a run that was killed had left it" in "".join(capsys.readouterr())
    assert (rows / name).exists() and not left.exists() and all(other.is_dir() for other in others)


@pytest.mark.parametrize("command", ["text", "pack"])
def test_a_folder_as_input_is_told_what_makes_a_file_of_it(
        rows: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (rows / "heap").mkdir()
    assert main(COMMANDS[command]("out").replace("a.jsonl", "heap").split()) == 2
    said = capsys.readouterr().err
    assert "heap is a folder" in said and "heirloom prepare convert" in said and "drop it whole" in said


def test_nothing_is_left_where_making_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), made_beside(tmp_path / ("é" * 120)) as making:
        making.path.mkdir()
        (making.path / "half").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
