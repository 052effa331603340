"""Rows under other names: which key of a row is which trained field, as a side file says it.

A `Reading` turns a row into the row it would have been had it used our own names, before anything is detected,
validated or fingerprinted. With one, only what it names is read. It belongs to how a file's examples are counted, so
it is frozen into the file's record and used wherever rows are read again.
Pure: the side file itself is parsed in `side.py`, rows are judged in `rows.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guard.checks.jsonl import Fault
from guard.errors import DataFault

__all__ = ["FIELDS", "PLAIN", "RULES_VERSION", "Reading", "reading_of"]

RULES_VERSION = 2
"""Of the rules of rows (`rows.py`). 1: files admitted before rows with tool calls, thinking and other forms were examples."""
_FRAME = ("system", "context", "developer", "tools")
_TURN_PARTS = ("role", "content", "thinking", "tool_calls", "tool_call_id", "name")
_TURNS = ("messages", *(f"messages.{part}" for part in _TURN_PARTS))
# What makes a row together: (kind, the fields that may be named, the ones of which one must be).
_TOGETHER: tuple[tuple[str, frozenset[str], tuple[str, ...]], ...] = (
    ("pretrain", frozenset({"text"}), ("text",)),
    ("pretrain", frozenset({"input_ids"}), ("input_ids",)),
    ("preference", frozenset({"chosen", "rejected", "prompt", "prefix", *_FRAME}), ("chosen", "rejected")),
    ("task", frozenset({"description", "tests", "starter_code"}), ("description", "tests", "starter_code")),
    ("mutation", frozenset({"buggy_code", "error_message", "fixed_code", "repo", "file"}),
     ("buggy_code", "error_message", "fixed_code")),
    ("sft", frozenset({"user", "assistant", *_FRAME}), ("user", "assistant")),
    ("sft", frozenset({*_TURNS, *_FRAME}), ("messages",)),
)  # fmt: skip
FIELDS = ("text", "input_ids", *_TURNS, *_FRAME, "user", "assistant", "prompt", "prefix", "chosen", "rejected", "description",
          "tests", "starter_code", "buggy_code", "error_message", "fixed_code", "repo", "file")  # fmt: skip
ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_PARTS = 16
_MISSING: Any = object()
_EXAMPLE = "columns: {question: user, answer: assistant}"


@dataclass(frozen=True)
class Reading:
    """How rows are read: `columns` {key or dotted path of a row: field}, `roles` {word in the rows: role}, and by which
    version of the rules they are judged. A record that names no version is of a file that was admitted under the first."""

    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    rules: int = 1

    def __bool__(self) -> bool:
        """Whether rows are read under other names."""
        return bool(self.columns or self.roles)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for records, which `Reading(**values)` takes back."""
        names = {"columns": dict(self.columns), "roles": dict(self.roles)} if self else {}
        return names if self.rules == 1 else {**names, "rules": self.rules}

    @property
    def digest(self) -> str:
        """Equal digest, equal names; "" for rows that are read under their own. The rules are not in it."""
        if not self:
            return ""
        names = {"columns": dict(self.columns), "roles": dict(self.roles)}
        text = json.dumps(names, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def kind(self) -> str:
        """The kind that the fields belong to; "" when only roles are named."""
        named = set(self.columns.values())
        return next((kind for kind, _may, needs in _TOGETHER if named & set(needs)), "")

    def fits(self, kind: str) -> bool:
        """Whether rows of this kind can be read so: text may also be rendered conversations."""
        return self.kind() in ("", kind) or (kind == "sft" and "text" in self.columns.values())

    def apply(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """The row under our own names. What it does not name is left out; what the row lacks stays missing."""
        source = {name: key for key, name in self.columns.items()}
        if not source:
            row = dict(value)
        else:
            row = {name: found for name, key in source.items()
                   if "." not in name and (found := _look_up(value, key)) is not _MISSING}  # fmt: skip
        if "user" in source:
            turns = [{"role": role, "content": row.pop(role)} for role in ("user", "assistant") if role in row]
            row["messages"] = turns
        elif isinstance(row.get("messages"), list):
            names = [(part, _below(source, part)) for part in _TURN_PARTS
                     if part in ("role", "content") or f"messages.{part}" in source]  # fmt: skip
            row["messages"] = [self._turn(turn, names) for turn in row["messages"]]
        return row

    def _turn(self, turn: Any, names: list[tuple[str, str]]) -> Any:
        if not isinstance(turn, dict):
            return turn
        # What is named is moved; a turn's other keys stay, so that tool calls are told and never dropped silently.
        taken = {key.split(".")[0] for _part, key in names}
        row = {key: item for key, item in turn.items() if key not in taken}
        row |= {part: found for part, key in names if (found := _look_up(turn, key)) is not _MISSING}
        role = row.get("role")
        if isinstance(role, str) and role in self.roles:
            row["role"] = self.roles[role]
        return row

    def told(self, faults: list[Fault]) -> list[Fault]:
        """The faults of a row with the row's own names beside ours."""
        source = {name: key for key, name in self.columns.items()}
        return [item._replace(reason=f"{item.reason} (columns: {source[name]} is {name})")
                if (name := item.field.split("[")[0].split(".")[0]) in source else item for item in faults]  # fmt: skip


def _below(source: Mapping[str, str], part: str) -> str:
    """The path of a turn's part within the turn; its own name where nothing else was said."""
    path = source.get(f"messages.{part}")
    return path.removeprefix(source["messages"] + ".") if path else part


def _look_up(value: Any, key: str) -> Any:
    """A key of a row, or where none is called exactly so, what a dotted path leads to."""
    if isinstance(value, Mapping) and key in value:
        return value[key]
    for part in key.split("."):
        if isinstance(value, Mapping):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isascii() and part.isdecimal() and len(part) < 10:
            value = value[int(part)] if int(part) < len(value) else _MISSING
        else:
            return _MISSING
    return value


def reading_of(columns: object, roles: object = None) -> Reading:
    """A reading from plain values (a side file, a record). Raises DataFault naming what is wrong and what to write."""
    if not columns and not roles:
        return PLAIN
    fields = _text_mapping(columns, "columns", _EXAMPLE)
    words = _text_mapping(roles, "roles", "roles: {human: user, gpt: assistant}")
    for key, name in fields.items():
        if name not in FIELDS:
            raise DataFault(f"columns: {key!r} is said to be {name!r}, which is no field",
                            hint=f"the fields are {', '.join(FIELDS)}; e.g. {_EXAMPLE}")  # fmt: skip
        if len(key.split(".")) > MAX_PARTS:
            raise DataFault(f"columns: the path {key[:60]!r} has more than {MAX_PARTS} parts", hint="name a nearer key")
    for word, role in words.items():
        if role not in ROLES:
            raise DataFault(f"roles: {word!r} is said to be {role!r}, which is no role", hint=f"the roles are {', '.join(ROLES)}")
    if fields:
        _check_together(fields)
    return Reading(fields, words, RULES_VERSION)


PLAIN = Reading(rules=RULES_VERSION)
"""Rows of a new file, under their own names."""


def _text_mapping(value: object, name: str, example: str) -> dict[str, str]:
    if value is None or value == {}:
        return {}
    if not isinstance(value, dict):
        raise DataFault(f"{name} must be a mapping", hint=f"write {example}")
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str) or not key or not item:
            raise DataFault(f"{name}: {key!r}: {item!r} is not a name and a name", hint=f"put both in quotes; e.g. {example}")
    return dict(value)


def _check_together(fields: Mapping[str, str]) -> None:
    """Fields that make one example together, each once. Raises DataFault."""
    names = list(fields.values())
    source = {name: key for key, name in fields.items()}
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        keys = [key for key, name in fields.items() if name == twice]
        raise DataFault(f"columns: {' and '.join(keys)} are both {twice}", hint="name one key for each field")
    if "user" in source and any(name.startswith("messages") for name in names):
        raise DataFault("columns: messages and user do not go together", hint="name the list, or the two texts")
    for part in _TURN_PARTS:
        name = f"messages.{part}"
        if name in source and not source[name].startswith(source.get("messages", "\0") + "."):
            raise DataFault(f"columns: {source[name]} is said to be {name} and does not lie below the list that is messages",
                            hint="columns: {conversation: messages, conversation.from: messages.role, "
                            "conversation.value: messages.content}")  # fmt: skip
    may = next((may for _kind, may, needs in _TOGETHER if source.keys() & set(needs)), None)
    if may is None:
        raise DataFault("columns name nothing that can be trained on: with columns only what they name is read",
                        hint=f"add text, messages, or user and assistant; e.g. {_EXAMPLE}")  # fmt: skip
    if other := next((name for name in names if name not in may), None):
        raise DataFault(f"columns: {next(name for name in names if name in may)} and {other} do not go together",
                        hint="text alone, or messages, or user and assistant, or the fields of one kind (docs/FORMATS.md)",
                        )  # fmt: skip
    for one, two in (("user", "assistant"), ("chosen", "rejected")):
        if (one in source) != (two in source):
            hint = f"write {_EXAMPLE}" if one == "user" else "name both: one of them alone is no pair"
            raise DataFault(f"columns: {one} and {two} go together", hint=hint)
