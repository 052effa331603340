"""A side file, `<name>.meta.yaml` beside a drop: what a person says about it, parsed and checked key by key.

It is dropped data like any other, so it is parsed only in the reader child. Refused with a reason that says what to
type: what is not UTF-8, too long, too deep, aliases and anchors (a few lines of them grow without end), tags that ask
for objects, a key given twice, unknown keys, wrong types. Whether a line or a recipe of that name exists is not known
here: the daemon asks the ledger and the home's configs (`daemon/sides.py`).
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guard.checks.columns import Reading, reading_of
from guard.checks.jsonl import foreign_bytes
from guard.checks.kinds import KINDS, SIDE_SUFFIXES
from guard.checks.made_with import NAMED, said_by_side
from guard.errors import DataFault
from guard.plain_yaml import repeated_key

__all__ = ["KEYS", "MAX_BYTES", "parse_side", "read_side", "reading_in", "sides_beside"]

MAX_BYTES = 16 << 10
MAX_DEPTH = 8
MAX_PRIORITY = 1000
MAX_STEPS = 10**9
_LISTS, _MOST_ITEMS = ("curriculum", "curriculum_shares"), 16
"""What in `training` is a list of numbers."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
_RECIPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*(/[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*)?")


def _text(value: object) -> str:
    if not isinstance(value, str):
        return "must be text; put it in quotes"
    return "holds control characters" if any(letter < " " and letter not in "\n\t" for letter in value) else ""


def _whole(low: int, high: int) -> Callable[[object], str]:
    def check(value: object) -> str:
        sound = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return "" if sound else f"must be a whole number from {low} to {high}"

    return check


def _line(value: object) -> str:
    return "" if isinstance(value, str) and _NAME.fullmatch(value) else "must be the name of a line, such as policy"


def _recipe(value: object) -> str:
    sound = isinstance(value, str) and _RECIPE.fullmatch(value)
    if sound and str(value).endswith((".yaml", ".yml", ".json")):
        return "names a recipe in configs/ without .yaml"
    return "" if sound else "must be the name of a recipe in configs/, such as sft/small"


def _kind(value: object) -> str:
    return "" if value in KINDS else f"must be one of {', '.join(KINDS)}"


def _tokenization(value: object) -> str:
    sound = isinstance(value, str) and said_by_side(value)
    return "" if sound else f"must be {', '.join(NAMED)}, or the first digits of a tokenizer's hash in quotes"


def _yes_or_no(value: object) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def _small(value: object) -> bool:
    """Text, or a number that JSON keeps as it is."""
    return isinstance(value, str) or (isinstance(value, bool | int | float) and abs(value) < 2**53)


def _items(key: str, value: object) -> list[object]:
    return value if key in _LISTS and isinstance(value, list) and len(value) <= _MOST_ITEMS else [value]


def _training(value: object) -> str:
    plain = isinstance(value, dict) and all(isinstance(key, str) and all(map(_small, _items(key, item)))
                                            for key, item in value.items())  # fmt: skip
    return "" if plain else "must be a mapping of a recipe's training keys, such as {epochs: 2}"


_CHECKS: dict[str, Callable[[object], str]] = {
    "description": _text, "recipe": _recipe, "priority": _whole(-MAX_PRIORITY, MAX_PRIORITY), "line": _line, "kind": _kind,
    "queue": _yes_or_no, "untouchable": _yes_or_no, "max_steps": _whole(1, MAX_STEPS), "training": _training,
    "columns": lambda _value: "", "roles": lambda _value: "", "tokenization": _tokenization,
}  # fmt: skip
KEYS = tuple(_CHECKS)


def sides_beside(data: Path) -> list[Path]:
    """The side files that lie beside a file or folder now, whatever they are."""
    named = [data.with_name(data.name + suffix) for suffix in SIDE_SUFFIXES if len(os.fsencode(data.name)) + len(suffix) < 256]
    return [path for path in named if os.path.lexists(path)]


def read_side(path: Path | str) -> dict[str, Any]:
    """The settings in a side file. Raises DataFault for what it says wrongly, OSError as the disk says."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise DataFault("it is not a regular file", hint="put a plain file in its place")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        return parse_side(handle.read(MAX_BYTES + 1))


def parse_side(data: bytes) -> dict[str, Any]:
    """Settings by key, each checked; {} when nothing is set. Raises DataFault."""
    if len(data) > MAX_BYTES:
        raise DataFault(f"it is longer than {MAX_BYTES} bytes", hint="it holds settings, not data")
    foreign = foreign_bytes(data[:16])
    if foreign:
        raise DataFault(foreign.reason, hint="save it as UTF-8 text")
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataFault(f"it is not UTF-8 (byte {error.start + 1})", hint="save it as UTF-8 text") from error
    values = _load(text)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise DataFault("it holds no keys", hint="write lines such as `description: letters of 1890`")
    for key, value in values.items():
        _check(key, value)
    reading_in(values)
    try:
        json.dumps(values, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        raise DataFault("it holds half a character, or a number that is none", hint="write plain text and numbers") from error
    return values


def _check(key: object, value: object) -> None:
    if not isinstance(key, str) or key not in _CHECKS:
        near = difflib.get_close_matches(str(key)[:40], KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(KEYS)}"
        raise DataFault(f"unknown key {str(key)[:40]!r}", hint=hint)
    problem = _CHECKS[key](value)
    if problem:
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**12 else "a very large number"
        raise DataFault(f"{key}: {shown[:60]} {problem}", hint=f"correct {key}, or take the line out")


def reading_in(values: dict[str, Any]) -> Reading:
    """How the rows beside it are read. Raises DataFault, also where kind and columns contradict each other."""
    reading = reading_of(values.get("columns"), values.get("roles"))
    kind = values.get("kind")
    if kind and not reading.fits(kind):
        raise DataFault(f"kind says {kind} and the columns are those of {reading.kind()}", hint="take one of the two out")
    return reading


def _load(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML without aliases, deep nests and repeated keys. Nodes are made one by one, so a bomb ends at its first."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.events.AliasEvent) or getattr(event, "anchor", None):
                raise DataFault("it uses anchors or aliases (& and *)", hint="write the value out")
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise DataFault(f"it is nested deeper than {MAX_DEPTH} levels", hint="settings are one or two levels deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            if (key := repeated_key(node)) is not None:
                raise DataFault(f"the key {key.value[:40]!r} is given twice", hint="keep one of the two lines")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        where = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataFault(f"it is not valid YAML{where}: {error.problem}", hint="e.g. `description: letters of 1890`") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        told = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise DataFault(f"it is not valid YAML: {told}", hint="put the value in quotes") from error
