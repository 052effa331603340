"""How rows of one build become canonical forms: learnt from a row, by the careful way itself.

Rows of one file are built alike and differ in their texts. The first rows of a build go the careful way (`jsonl.py`,
`rows.py`, `fingerprint.py`), once more with marks in place of their texts: what comes out is a form into which only the
texts have to be put to give the canonical form of every row of that build. So the rules stand in one place, and nothing
here knows kinds or fields. Parts are what stands between the quotes of a row, outside and inside in turn.
Rows of a block are matched with plans in `quick_rows.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

from guard.checks.block_marks import shown
from guard.checks.columns import Reading
from guard.checks.jsonl import read_row
from guard.checks.rows import read_fields
from guard.fingerprint import canonical_bytes

__all__ = ["Plan", "Planner", "form_bytes"]

# Rows of these kinds may have a plan: where the rules ask of a text only that it is not blank, which text it is changes
# nothing but the text. Where they look into it (a call's arguments, rendered text, token ids) there is none: `_is_opaque`.
KINDS = ("pretrain", "sft")
_FRAME = frozenset(("messages", "system", "context", "developer"))
_MOST_LEARNT = 4000  # a file whose rows are all built differently gains nothing from being remembered
_OUTSIDE_BYTES, _ROLES_BYTES = 8192, 1024
_NUMBER = re.compile(rb"(?<=[:,\[ ])-?(?:0|[1-9]\d{0,14})(?:\.\d{1,15})?(?=[,}\] ])")
_MARK = re.compile(rb"@(\d+)@")


def form_bytes(fields: dict[str, Any]) -> int:
    """How many bytes of an example's canonical form are names and punctuation and not its texts."""
    if fields.keys() == {"text"}:
        return len('{"text":""}')
    if not _is_opaque(fields):
        return len(canonical_bytes(_emptied(fields)))
    # A question and its answer: {"content":"","role":"user"},{"content":"","role":"assistant"},
    frame = 12 * ("system" in fields) + 13 * ("context" in fields) + 15 * ("developer" in fields)
    return 14 + 63 * (len(fields["messages"]) // 2) + frame


def _is_opaque(fields: dict[str, Any]) -> bool:
    """Whether an example holds texts that no rule looked into, and nothing else."""
    if "messages" not in fields:
        return fields.keys() == {"text"}
    return fields.keys() <= _FRAME and all(len(turn) == 2 for turn in fields["messages"])


def _has_weight(value: Any, below: bool = False) -> bool:
    """Whether a turn may have a weight: the only number of which rules ask more than whether it is zero."""
    if isinstance(value, dict):
        return (below and "weight" in value) or any(_has_weight(item, True) for item in value.values())
    return isinstance(value, list) and any(_has_weight(item, True) for item in value)


def _emptied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item if key == "role" else _emptied(item) for key, item in value.items()}
    return [_emptied(item) for item in value] if isinstance(value, list) else ""


@dataclass(frozen=True)
class Plan:
    """How the canonical form of a row is put together from its parts."""

    form: list[bytes]
    """Names and punctuation at the even places; the texts go between them."""
    trained: tuple[int, ...]
    """The parts that are trained on, in the order of the form."""
    texts: tuple[int, ...]
    """All parts that are texts, in the order of the row. Those not trained on are looked at, and left out."""
    runs: tuple[bytes, ...]
    """What the row it was learnt from holds before, between and after its texts; their own quotes belong to neither."""
    quotes: int
    """How many quotes such a row has."""
    overhead: int
    """Bytes of the form that are not texts."""


_Outside = tuple[bytes, tuple[int, ...]]
"""(what stands outside of quotes, which parts inside of quotes are empty: rules tell an empty text from another)"""


def _numbers_alike(outside: bytes) -> bytes:
    return _NUMBER.sub(lambda found: b"1" if float(found[0]) else b"0", outside)


class _Frame:
    """Rows with the same bytes outside of quotes and the same empty texts. Which part is a key depends on nothing else."""

    def __init__(self, parts: list[bytes]) -> None:
        self.size = len(parts)
        self.keys = [at for at in range(1, len(parts), 2) if parts[at + 1].lstrip().startswith(b":")]
        self.names: Callable[[list[bytes]], Any] = itemgetter(*self.keys or [0])
        self.builds: dict[Any, _Build] = {}


class _Build:
    """Rows of one frame with the same keys. Roles are words of the rules and not texts: for each choice a plan."""

    def __init__(self, frame: _Frame, parts: list[bytes], role_keys: frozenset[bytes]) -> None:
        keys = set(frame.keys)
        roles = [at for at in range(3, frame.size, 2) if at not in keys and at - 2 in keys and parts[at - 2] in role_keys]
        self.texts = [at for at in range(1, frame.size, 2) if parts[at] and at not in keys and at not in roles]
        self.roles: Callable[[list[bytes]], Any] = itemgetter(*roles) if roles else lambda _parts: None
        self.plans: dict[Any, Plan | None] = {}


class Planner:
    """The plans of the rows of one kind, read as `reading` says. What it remembers is bounded."""

    def __init__(self, kind: str, reading: Reading | None) -> None:
        self._kind, self._reading = kind, reading
        named = [key.rpartition(".")[2] for key, name in reading.columns.items() if name == "messages.role"] if reading else []
        self._role_keys = frozenset(name.encode() for name in ("role", *named))
        self._frames: dict[_Outside, _Frame | None] = {}
        self._room = _MOST_LEARNT
        self.learnt: list[Plan] = []
        """Every plan, oldest first."""

    def find(self, parts: list[bytes]) -> Plan | None:
        """The plan for a row, learnt from it if need be; None where it takes the careful way."""
        outside = b'"'.join(parts[::2]), tuple(at for at in range(1, len(parts), 2) if not parts[at])
        frame = self._frames.get(outside) or self._like(outside)
        if frame is None or frame.size != len(parts):  # of a row with a quote too many the last part is not outside
            self._meet(outside, parts)
            return None
        build = frame.builds.get(frame.names(parts))
        plan = build.plans.get(build.roles(parts)) if build else None
        return plan or self._learn(frame, build, parts)

    def _like(self, outside: _Outside) -> _Frame | None:
        """The frame of rows that differ from this one in numbers only: of most, rules ask at most whether it is zero."""
        return self._frames.get((_numbers_alike(outside[0]), outside[1])) if len(outside[0]) <= _OUTSIDE_BYTES else None

    def _meet(self, outside: _Outside, parts: list[bytes]) -> None:
        """A frame is remembered the first time, and worth the work from the second time on."""
        if len(outside[0]) > _OUTSIDE_BYTES or len(parts) % 2 == 0:
            return
        outside = _numbers_alike(outside[0]), outside[1]
        if outside in self._frames and self._frames[outside] is None:
            frame = _Frame(parts)
            self._frames[outside] = frame if frame.keys else None
        elif self._has_room():
            self._frames.setdefault(outside, None)

    def _has_room(self) -> bool:
        self._room -= self._room > 0
        return self._room > 0

    def _learn(self, frame: _Frame, build: _Build | None, parts: list[bytes]) -> Plan | None:
        if build is None:
            if sum(len(parts[at]) for at in frame.keys) > _OUTSIDE_BYTES or not self._has_room():
                return None
            build = frame.builds[frame.names(parts)] = _Build(frame, parts, self._role_keys)
        roles = build.roles(parts)
        size = sum(map(len, roles)) if isinstance(roles, tuple) else len(roles or b"")
        if roles not in build.plans and size <= _ROLES_BYTES and self._has_room():
            plan = build.plans[roles] = self._plan(build.texts, parts)
            self.learnt += [plan] if plan else []
        return build.plans.get(roles)

    def _plan(self, texts: list[int], parts: list[bytes]) -> Plan | None:
        """What the careful way makes of this row with a mark in place of every text."""
        marked = [b"@%d@" % at if at in texts else shown(part) for at, part in enumerate(parts)]
        line = b'"'.join(marked)
        row = read_row(2, line, False, len(line), False)
        if row is None or row.value is None or _has_weight(row.value):
            return None
        fields = read_fields(self._kind, row.value, self._reading)
        if not isinstance(fields, dict) or not _is_opaque(fields):
            return None
        form = _MARK.split(canonical_bytes(fields))
        if not (all(piece.endswith(b':"') for piece in form[:-1:2]) and all(piece.startswith(b'"') for piece in form[2::2])):
            return None  # a trained text that is put together from several
        trained = tuple(int(at) for at in form[1::2])
        bounds = [-1, *texts, len(parts)]
        runs = tuple(b'"'.join(parts[left + 1 : right]) for left, right in pairwise(bounds))
        return Plan(form, trained, tuple(texts), runs, len(parts) - 1, form_bytes(fields)) if trained else None
