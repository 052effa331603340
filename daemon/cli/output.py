"""Saying things: numbers and names in words a person reads, and the one object of `--json`.

Names come from files that anybody may drop: whatever is printed for a person goes through `visible`, so that a name
can never move the cursor, colour the screen or fake a line. JSON is written as UTF-8 bytes whatever the terminal is.
Not here: what a command says (the files beside this one), or turning errors into exit codes (`main.py`).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import orjson

from guard.errors import HeirloomError

__all__ = [
    "SCHEMA",
    "Console",
    "bar",
    "human_bytes",
    "human_count",
    "human_duration",
    "human_tokens",
    "moment",
    "plural",
    "short_duration",
    "short_hash",
    "table",
    "tick",
    "to_json",
    "visible",
    "visible_lines",
]

SCHEMA = 1
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


def visible(value: object) -> str:
    """Text that is safe on a terminal and stays on its line: everything unprintable is written as an escape."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def human_count(number: float) -> str:
    """`50,000`."""
    return f"{number:,.0f}"


def _scaled(number: float, units: Sequence[str], step: float = 1000.0) -> str:
    """At most three digits and one decimal: `812`, `1.5K`, `50M`, `1T`."""
    place = 0
    while round(abs(number)) >= step and place < len(units) - 1:
        number, place = number / step, place + 1
    digits = f"{number:.1f}" if place and abs(number) < 99.95 else f"{number:.0f}"
    return digits.removesuffix(".0") + units[place]


def human_tokens(number: float) -> str:
    """`50M`, as in "50M tokens"."""
    return _scaled(number, ("", "K", "M", "B", "T"))


def human_bytes(number: float) -> str:
    """`127 GB` (powers of ten, as disks are sold)."""
    return _scaled(number, (" bytes", " kB", " MB", " GB", " TB", " PB"))


def plural(number: int, word: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def human_duration(seconds: float | None) -> str:
    """`45 seconds`, `12 minutes`, `6 hours`, `1 hour 30 minutes`, `3 days 4 hours`, `22.8 years`."""
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    if 0 < seconds < 1:
        return "less than a second"
    if seconds < 60:
        return plural(max(0, round(seconds)), "second")
    minutes = round(seconds / 60)
    if minutes < 60:
        return plural(minutes, "minute")
    if minutes < 48 * 60:
        return _two(minutes // 60, "hour", minutes % 60, "minute")
    hours = round(seconds / 3600)
    if hours < 365 * 24:
        return _two(hours // 24, "day", hours % 24, "hour")
    return f"{hours / 24 / 365.25:,.1f} years"


def _two(first: int, first_word: str, second: int, second_word: str) -> str:
    return plural(first, first_word) + (f" {plural(second, second_word)}" if second else "")


def short_duration(seconds: float | None) -> str:
    """`45s`, `12m 05s`, `1h 23m`, `3d 4h`."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 48 * 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def short_hash(digest: object) -> str:
    """`0123456789ab...`: enough to name a file with."""
    return f"{visible(str(digest)[:12])}..."


def tick(ok: bool | None) -> str:
    """The mark of a check: passed, failed, or not applicable."""
    return "➖" if ok is None else "✅" if ok else "❌"


def moment(utc: object) -> str:
    """`2026-11-21 03:18:49 UTC` of a recorded moment; "" of none."""
    text = visible(utc or "")
    return f"{text[:19].replace('T', ' ')} UTC" if text else ""


def bar(share: float, width: int = 24) -> str:
    """`[██████░░░░]` for a share between 0 and 1."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "[" + "█" * full + "░" * (width - full) + "]"


def table(rows: Iterable[Sequence[object]], indent: str = "") -> list[str]:
    """Rows in columns, two spaces apart; the last column is not padded."""
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]]) for row in cells]
    return [(indent + line).rstrip() for line in lines]


def _plain(value: Any) -> Any:
    """The value with lone surrogates (odd file names) escaped, which JSON could not hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value


def _known(value: Any) -> Any:
    """What orjson does not write by itself: other mappings and sets as `_plain` has them, the rest as text."""
    return _plain(value) if isinstance(value, Mapping | set | frozenset) else str(value)


def to_json(value: Mapping[str, Any], *, indent: bool = True) -> bytes:
    """The object as UTF-8 JSON with `schema` first; not-a-number becomes null, paths become text."""
    whole = {"schema": SCHEMA, **value}
    option = orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if indent else 0)
    try:
        return orjson.dumps(whole, option=option, default=_known)
    except TypeError:  # a name that is no UTF-8 somewhere in it: the slow way, five seconds for 10,000 versions
        return orjson.dumps(_plain(whole), option=option, default=str)


def _write_bytes(stream: TextIO, data: bytes) -> None:
    stream.flush()
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        stream.write(data.decode("utf-8"))
    else:
        buffer.write(data)
    stream.flush()


@dataclass
class Console:
    """Where a command speaks: results and JSON on `out`, errors and prompts beside a JSON object on `err`."""

    json: bool = False
    quiet: bool = False
    colour: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)

    @classmethod
    def for_terminal(cls, *, json: bool, quiet: bool, environment: Mapping[str, str] | None = None) -> Console:
        """A console on the real streams: colours only on a terminal and never against NO_COLOR."""
        known = os.environ if environment is None else environment
        for stream in (sys.stdout, sys.stderr):
            # An emoji on an ASCII terminal, or an odd file name, must not end a command.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        plain = known.get("NO_COLOR") or known.get("TERM") == "dumb" or not sys.stdout.isatty()
        return cls(json=json, quiet=quiet, colour=not plain)

    def style(self, text: str, *names: str) -> str:
        """The text in a style where colours are wanted."""
        if not self.colour or not text:
            return text
        return f"\x1b[{';'.join(_STYLES[name] for name in names)}m{text}\x1b[0m"

    def say(self, *lines: str) -> None:
        """What was asked for. Silent with `--json`: the object says it."""
        if not self.json:
            for line in lines:
                print(line, file=self.out)

    def note(self, *lines: str) -> None:
        """What is good to know; silent with `--quiet`."""
        if not self.quiet:
            self.say(*lines)

    def progress(self, line: str) -> None:
        """Where a longer act stands, on the error stream, so that results can be piped."""
        if not self.quiet and not self.json:
            print(line, file=self.err, flush=True)

    def emit(self, value: Mapping[str, Any], *, indent: bool = True) -> None:
        """The object of `--json`; silent without."""
        if self.json:
            _write_bytes(self.out, to_json(value, indent=indent))

    def ask(self, question: str) -> str | None:
        """One typed line without its end; None when there is nobody to answer."""
        stream = self.err if self.json else self.out
        print(question, end="", file=stream, flush=True)
        answer = sys.stdin.readline() if sys.stdin is not None else ""
        if not answer.endswith("\n"):
            print(file=stream)
        return answer.rstrip("\r\n") if answer else None

    def fail(self, error: HeirloomError) -> None:
        """An error for a person (what, why, what to type) or, with `--json`, as the one object."""
        if self.json:
            self.emit(error.as_dict())
            return
        print(self.style(f"error: {visible_lines(error.message)}", "red"), file=self.err)
        if error.__cause__ is not None and str(error.__cause__) not in error.message:
            print(f"  why: {visible(error.__cause__)}", file=self.err)
        if error.hint:
            print(f"  try: {visible_lines(error.hint)}", file=self.err)


def visible_lines(text: str) -> str:
    """Like `visible`, but our own line breaks stay; continued lines are indented."""
    return "\n    ".join(visible(line) for line in text.split("\n"))
