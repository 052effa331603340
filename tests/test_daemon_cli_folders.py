"""Folders on the command line: register, its rehearsal, why and status, with real reader children."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folder_help import contents, hub, write_files
from homes import make_home

from daemon.cli import main as cli


@pytest.fixture
def home(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_home(scratch / "home").ledger.close()
    monkeypatch.setenv("HEIRLOOM_HOME", str(scratch / "home"))
    return scratch / "home"


def test_a_folder_is_registered_as_one_and_its_rehearsal_says_the_same(
    home: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hub(scratch / "sums")
    before = contents(folder)
    assert cli.main(["register", "--dry-run", "--json", str(folder)]) == 0
    rehearsed = json.loads(capsys.readouterr().out)
    assert cli.main(["register", "--json", f"{folder}/"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["examples"], told["splits"], told["name"], told["status"]) == \
        ("pretrain", 80, {"train": 60, "val": 20}, "sums", "registered")  # fmt: skip
    assert {key: rehearsed[key] for key in told if key != "schema"} == {key: told[key] for key in told if key != "schema"}
    assert contents(folder) == before and list((home / "data/.incoming").iterdir()) == []
    assert cli.main(["show", "sums"]) == 0 and "sums.tar" in capsys.readouterr().out
    assert cli.main(["show", "sums", "--sample"]) == 0 and "train 0: a heirloom keeps" in capsys.readouterr().out
    assert cli.main(["why", "sums"]) == 0
    assert "a folder of data/train-00000-of-00002.parquet (train, 30), " in capsys.readouterr().out


def test_what_is_no_data_set_or_not_whole_is_refused_with_what_to_type(
    home: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub(scratch / "many" / "one")
    broken = hub(scratch / "broken")
    (broken / "data/train-00000-of-00002.parquet").unlink()
    assert cli.main(["register", str(scratch / "many")]) == 2
    assert f"heirloom register {scratch / 'many' / 'one'}" in capsys.readouterr().err
    assert cli.main(["register", str(broken)]) == 2
    assert "it lacks data/train-00000-of-00002.parquet" in capsys.readouterr().err


def test_what_lies_in_the_inbox_is_counted_and_told_without_a_daemon(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub(home / "inbox/sums")
    write_files(home / "inbox/heap", {"a.jsonl": '{"text": "a"}\n', "b.jsonl": '{"text": "b"}\n'})
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inbox"]["waiting"] == 3
    assert cli.main(["why", "sums"]) == 0 and "was not taken yet" in capsys.readouterr().out
    assert cli.main(["why", "heap"]) == 0 and "a plain folder: every file in it" in capsys.readouterr().out
