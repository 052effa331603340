"""Numbers and names as people read them, and the one object of --json."""

from __future__ import annotations

import io
import json

import pytest

from daemon.cli.output import (
    Console,
    bar,
    human_bytes,
    human_duration,
    human_tokens,
    moment,
    plural,
    short_duration,
    table,
    to_json,
    visible,
)
from guard.errors import NotFound


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (812, "812"), (999.7, "1K"), (1500, "1.5K"), (50_000_000, "50M"), (49_960_000, "50M"), (123_456_789, "123M"),
     (999_999_999, "1B"), (1e12, "1T"), (2.5e15, "2500T")],
)  # fmt: skip
def test_tokens(number: float, words: str) -> None:
    assert human_tokens(number) == words


def test_bytes_and_plurals() -> None:
    assert human_bytes(127e9) == "127 GB" and human_bytes(5) == "5 bytes" and human_bytes(1_234_567) == "1.2 MB"
    assert plural(1, "file") == "1 file" and plural(2000, "file") == "2,000 files"


@pytest.mark.parametrize(
    ("seconds", "long", "short"),
    [(0, "0 seconds", "0s"), (0.2, "less than a second", "0s"),
     (1, "1 second", "1s"), (45, "45 seconds", "45s"), (725, "12 minutes", "12m 05s"),
     (6 * 3600, "6 hours", "6h 00m"), (5400, "1 hour 30 minutes", "1h 30m"), (76 * 3600, "3 days 4 hours", "3d 4h"),
     (22.8 * 365.25 * 86400, "22.8 years", "8327d 16h"), (None, "unknown", "?"), (float("inf"), "unknown", "?")],
)  # fmt: skip
def test_durations(seconds: float | None, long: str, short: str) -> None:
    assert human_duration(seconds) == long
    assert short_duration(seconds) == short


def test_a_recorded_moment_is_readable() -> None:
    assert moment("2026-11-21T03:18:49.123Z") == "2026-11-21 03:18:49 UTC" and moment(None) == ""


def test_a_bar_is_as_full_as_the_work() -> None:
    assert bar(0.0, 4) == "[░░░░]" and bar(0.5, 4) == "[██░░]" and bar(7.0, 4) == "[████]"


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "bell\a", "\u202edesrever", "odd\udcff", "tab\t", "\x9b2J"])
def test_a_file_name_never_writes_to_the_terminal(name: str) -> None:
    shown = visible(name)
    assert shown.isprintable() and shown != name
    assert all(cell.isprintable() for cell in table([(name, name)]))


def test_ordinary_names_are_shown_as_they_are() -> None:
    assert visible("größe 数据 🎉.jsonl") == "größe 数据 🎉.jsonl"


def test_json_is_one_object_whatever_is_in_it() -> None:
    found = json.loads(to_json({"name": "odd\udcff", "loss": float("nan"), "list": ("a", 1)}))
    assert found == {"schema": 1, "name": "odd\\udcff", "loss": None, "list": ["a", 1]}


def _console(**options: bool) -> tuple[Console, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Console(out=out, err=err, **options), out, err


def test_with_json_nothing_but_the_object_is_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out, err = _console(json=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    console.say("words")
    console.note("words")
    console.progress("words")
    assert console.ask("Proceed? ") == "yes"
    console.emit({"a": 1})
    assert json.loads(out.getvalue()) == {"schema": 1, "a": 1}
    assert err.getvalue() == "Proceed? "


def test_quiet_keeps_what_was_asked_for() -> None:
    console, out, err = _console(quiet=True)
    console.note("nice to know")
    console.progress("under way")
    console.say("the answer")
    assert (out.getvalue(), err.getvalue()) == ("the answer\n", "")


def test_nobody_to_answer_is_not_an_empty_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    console, _out, _err = _console()
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert console.ask("? ") == ""
    assert console.ask("? ") is None


def test_an_error_says_what_why_and_what_to_type() -> None:
    console, out, err = _console()
    console.fail(NotFound("no such\x1b[2J thing", hint="heirloom lineage", cause=OSError("the disk is gone")))
    assert err.getvalue() == "error: no such\\x1b[2J thing\n  why: the disk is gone\n  try: heirloom lineage\n"
    assert out.getvalue() == ""


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_no_colours_unless_a_terminal_wants_them(environment: dict[str, str]) -> None:
    console = Console.for_terminal(json=False, quiet=False, environment=environment)
    assert console.style("text", "red") == "text"
    assert Console(colour=True).style("text", "red") == "\x1b[31mtext\x1b[0m"
