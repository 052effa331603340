"""What a person is told of the inbox: counts of what lies there, a README of one's own, a paused queue, a remedy for all."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from toy import Toy, chat_of

from daemon.cli.files import story_lines
from daemon.cli.homes import left_over_lines, paused_lines
from daemon.cli.main import main
from daemon.operations import perform
from daemon.report import compose, status
from daemon.scan import sweep
from daemon.story import tell_story
from guard.checks import kinds
from guard.checks.kinds import ignore_reason
from guard.checks.why import ignored_remedy, returned_text


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "home", backup__auto=False)


def inbox(toy: Toy) -> dict[str, int]:
    found: dict[str, int] = compose(toy.keeper, {}, running=False)["inbox"]
    return found


def test_the_counts_of_the_inbox_are_of_what_lies_there(toy: Toy, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("{broken\n")
    perform(toy.engine, "register", {"paths": [str(wrong)]})
    toy.settle()
    # A refused `register` leaves its file where it was: nothing of it is in inbox/rejected/.
    assert [state for _name, state, _reason in toy.drops()] == ["rejected"] and inbox(toy)["rejected"] == 0
    toy.drop("bad.jsonl", "{broken\n")
    toy.drop("bad.jsonl.meta.yaml", "description: mine\n")
    for _again in range(2):
        toy.drop("same.jsonl", chat_of(20))
        toy.settle()
    assert (inbox(toy)["rejected"], inbox(toy)["duplicates"]) == (1, 1)
    (toy.home.rejected / "bad.jsonl").unlink()
    assert inbox(toy)["rejected"] == 0


def test_a_readme_of_ones_own_becomes_a_document(toy: Toy) -> None:
    toy.drop("README.md", "# My project\n\nIt counts eggs.\n")
    assert status(toy.home)["inbox"]["waiting"] == 1
    toy.settle()
    assert toy.keeper.ledger.value("SELECT kind FROM files WHERE name = 'README.md'") == "docs"
    shipped = (Path(__file__).parent.parent / "inbox" / "README.md").read_bytes()
    toy.drop("README.md", shipped)
    assert status(toy.home)["inbox"]["waiting"] == 0
    toy.settle()
    assert (toy.home.inbox / "README.md").read_bytes() == shipped and len(toy.drops()) == 1


def test_a_paused_run_says_so_and_how_many_wait(toy: Toy, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    toy.make_base()
    perform(toy.engine, "queue.pause", {})
    toy.drop("a.jsonl", chat_of(20))
    toy.settle()
    toy.drop("empty.jsonl", "")
    toy.drop("photo.png", "x")
    toy.die()
    assert main(["--home", str(toy.home.root), "run", "--once"]) == 0
    out = capfdbinary.readouterr().out.decode()
    assert "nothing was new" not in out and "The queue is paused, so nothing is trained: 1 job waits" in out
    assert "heirloom queue resume" in out and "photo.png is ignored in the inbox: .png is an unknown type" in out
    assert "empty.jsonl waits in the inbox: it is empty" in out
    found = status(toy.home)
    assert (found["state"], found["paused"]) == ("stopped", True)
    main(["--home", str(toy.home.root), "status"])
    assert "the queue is paused: heirloom queue resume" in capfdbinary.readouterr().out.decode()


def test_what_is_left_is_told_briefly() -> None:
    assert paused_lines({}) == [] and paused_lines({"paused": 2_001})[0].endswith("2,001 jobs wait")
    many = {f"/inbox/{number}.png": ".png is an unknown type" for number in range(9)}
    lines = left_over_lines({"ignored": many, "waiting": {"/inbox/a.jsonl": "it is empty"}})
    assert lines[0].endswith("it is empty") and len([line for line in lines if "try:" in line]) == 5
    assert lines[-1] == "   and 4 more that are ignored (heirloom why FILE)"


NAMES = ("._a.jsonl", "Thumbs.db", "desktop.ini", ".syncthing.a.jsonl", ".nfs0001", ".a.jsonl.Xy12Zz", ".a.jsonl", "a.jsonl~",
         "#a.jsonl#", "a.jsonl.part", "a.jsonl.why.txt", "a.jsonl.meta.yaml", "rejected/a.jsonl", "duplicates/a.jsonl",
         "README.md", "a.ipynb", "a.gz", "a.pdf.zst", "photo.png", "noextension", "preference/a.txt", "docs/a.jsonl",
         "sft/a.txt", "sft/a.npy")  # fmt: skip


def test_every_reason_to_ignore_a_file_has_a_remedy_of_its_own() -> None:
    functions = (kinds.ignored_name, kinds.ignore_reason, kinds.container_reason, kinds.kind_reason)
    reached: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line" and frame.f_code.co_name in names:
            reached.add((frame.f_code.co_name, frame.f_lineno - frame.f_code.co_firstlineno + 1))
        return trace

    names, before = {function.__name__ for function in functions}, sys.gettrace()
    sys.settrace(trace)
    try:
        reasons = {ignore_reason(name) for name in NAMES}
    finally:
        sys.settrace(before)
    # These are all reasons there are: every `return` of one was reached by a name above.
    for function in functions:
        for node in ast.walk(ast.parse(inspect.getsource(function))):
            if isinstance(node, ast.Return) and not (isinstance(node.value, ast.Constant) and node.value.value == ""):
                assert (function.__name__, node.lineno) in reached
    reasons |= {"not a regular file", "this folder cannot be read: no permission",
                "settings for the file beside it, and not a regular file"}  # fmt: skip
    general = ignored_remedy("no such reason")
    assert all(reasons) and [reason for reason in reasons if ignored_remedy(reason) == general] == []


def test_why_tells_the_remedy_of_links_pipes_and_hidden_files(toy: Toy) -> None:
    toy.drop("docs/plain.md", "text\n")
    (toy.home.inbox / "link.jsonl").symlink_to(toy.home.inbox / "docs" / "plain.md")
    os.mkfifo(toy.home.inbox / "pipe.jsonl")
    toy.drop(".hidden.jsonl", "{}\n")
    assert len(sweep(toy.home).ignored) == 3
    for name, words in (("link.jsonl", "cp -L LINK inbox/"), ("pipe.jsonl", "never opened"), (".hidden.jsonl", "rename it")):
        story = tell_story(toy.keeper, name, toy.home.inbox)
        assert words in story["remedy"] and any(line.startswith("  try: ") and words in line for line in story_lines(story))
        assert story["reason"] != "it lies in the inbox and was not taken yet"


def test_every_text_beside_a_file_that_came_back_says_what_to_do(toy: Toy) -> None:
    cases = {"broken.jsonl": "{broken\n", "empty.md": " \n", "binary.md": b"\xff\xfe\x00",
             "chosen.jsonl": '{"chosen": "a", "rejected": "b"}\n', "zip.txt": b"PK\x03\x04" + b"\x00" * 50,
             "same.jsonl": chat_of(20), "other.jsonl": '{"nothing": 1}\n'}  # fmt: skip
    for name, content in cases.items():
        toy.drop(name, content)
    toy.settle()
    toy.drop("same2.jsonl", chat_of(20))
    toy.drop("sided.jsonl", chat_of(20))
    toy.drop("sided.jsonl.meta.yaml", "columns: {q: user, a: assistant}\n")
    toy.settle()
    folders = (toy.home.rejected, toy.home.duplicates)
    texts = {path.name: path.read_text() for folder in folders for path in folder.glob("*.why.txt")}
    assert len(texts) >= 6 and "same2.jsonl.why.txt" in texts and "sided.jsonl.why.txt" in texts
    assert [name for name, text in texts.items() if "\nWhat to do: " not in text or "\nWhy: " not in text] == []
    text = returned_text("a\x1b[31m", "was rejected", "so\x07")
    assert text.startswith("a\\x1b[31m was rejected.\n\nWhy: so\\x07\n\nWhat to do: ")


def test_nothing_in_intake_writes_a_reason_without_what_to_do() -> None:
    """Each text that goes with a file comes from `guard/checks/why.py`, which always says what to do."""
    import daemon.verdicts as intake

    tree = ast.parse(inspect.getsource(intake))
    texts = [node.args[3] for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
             and node.func.attr == "_return"]  # fmt: skip
    assert len(texts) >= 6 and not any(isinstance(text, ast.JoinedStr | ast.Constant) for text in texts)
    made = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "why"]
    assert made and all(isinstance(value, ast.Call) and getattr(value.func, "id", "") == "returned_text" for value in made)


def test_status_says_that_the_disk_is_full_or_that_the_daemon_is_silent(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.make_base()
    quiet = compose(toy.keeper, {"at": time.time()}, running=True)["alerts"]
    assert not [alert for alert in quiet if "may be old" in alert["what"]]
    silent = compose(toy.keeper, {"at": time.time() - 500}, running=True)["alerts"][0]
    assert "told nothing of itself for 500 s" in silent["what"] and silent["remedy"]
    monkeypatch.setattr(type(toy.home), "free_bytes", lambda _home: 4096)
    full = compose(toy.keeper, {"at": time.time()}, running=True)["alerts"][0]
    assert "is full" in full["what"] and "free space" in full["remedy"]
