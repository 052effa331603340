"""A row of a user's question file as a question: what is asked, what is expected, how the two are compared.

    {"question" | "prompt" | "messages", "answer"?, "match"?, "max_tokens"?, "system"?, "context"?, "id"?}

`answer` is a text, a number or a list of those, any of which is right. A conversation whose last turn is the assistant's
needs none: that turn is the expected answer (so is a chat row of training data). `match` is `numeric` where the expected
answer holds "####", else `exact`, unless the row or the caller says otherwise. Pure: knows no files and no models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guard.checks.answers import MATCHES, number_in
from guard.checks.jsonl import Fault
from guard.checks.rows import validate

__all__ = ["Question", "read_question"]

_ASKING = ("question", "prompt", "messages")
_FRAME = ("system", "context", "developer", "tools")
_MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class Question:
    """One question as it stands in its file."""

    line: int
    name: str
    """Its `id`, "" without one."""
    fields: Mapping[str, Any]
    """A conversation as rows of sft data have it, the expected answer its last turn."""
    expected: tuple[str, ...]
    match: str
    max_tokens: int | None
    """Of its own; None: the caller's."""

    @property
    def prompt(self) -> dict[str, Any]:
        """The conversation up to where the answer begins."""
        return {**self.fields, "messages": self.fields["messages"][:-1]}

    @property
    def asked(self) -> str:
        """The last user's turn, for people."""
        return str(self.fields["messages"][-2]["content"])


def read_question(row: Mapping[str, Any], line: int, match: str | None = None) -> Question | list[Fault]:
    """The question of a row, or every fault found in it. `match`: for rows that name none."""
    given = [name for name in _ASKING if row.get(name) is not None]
    if len(given) != 1:
        told = f"{' and '.join(given)} stand side by side" if given else "nothing is asked"
        return [Fault("question", told, "one of question, prompt, messages")]
    messages, answers = _turns(row, given[0])
    if isinstance(answers, Fault):
        return [answers]
    read = validate("sft", {**{name: row[name] for name in _FRAME if row.get(name) is not None},
                            "messages": [*messages, {"role": "assistant", "content": answers[0]}]})  # fmt: skip
    if not isinstance(read, dict):
        return [Fault(given[0] if fault.field.startswith("messages") and given[0] != "messages" else fault.field,
                      fault.reason, fault.expected) for fault in read]  # fmt: skip
    if len(read["messages"]) < 2 or read["messages"][-2]["role"] not in ("user", "tool"):
        return [Fault("messages", "no user's turn stands before the answer", "a conversation that ends with a question")]
    chosen, limit = _match(row, answers, match), _limit(row.get("max_tokens"))
    faults = [item for item in (chosen, limit) if isinstance(item, Fault)]
    if faults or isinstance(chosen, Fault) or isinstance(limit, Fault):
        return faults
    return Question(line, str(row.get("id") or ""), read, answers, chosen, limit)


def _turns(row: Mapping[str, Any], asking: str) -> tuple[list[Any], tuple[str, ...] | Fault]:
    """(the turns before the answer, the expected answers)."""
    wanted = "the expected answer: a text, a number, or a list of those"
    if asking != "messages":
        turns: list[Any] = [{"role": "user", "content": row[asking]}]
    elif not isinstance(row["messages"], list) or not row["messages"]:
        return [], Fault("messages", "Field 'messages' must be a list of turns", "turns with role and content")
    else:
        turns = list(row["messages"])
    answer = row.get("answer")
    if answer is None:
        last = turns[-1] if turns else None
        if asking == "messages" and isinstance(last, dict) and last.get("role") == "assistant":
            return turns[:-1], _texts(last.get("content"), wanted)
        return turns, Fault("answer", "Missing required field: 'answer'", wanted)
    return turns, _texts(answer, wanted)


def _texts(answer: Any, wanted: str) -> tuple[str, ...] | Fault:
    items = answer if isinstance(answer, list) else [answer]
    texts = []
    for item in items:
        number = isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)
        if not (number or (isinstance(item, str) and item.strip())):
            return Fault("answer", f"{item!r:.40} is no answer", wanted)
        texts.append(str(item))
    return tuple(texts) or Fault("answer", "the list of answers is empty", wanted)


def _match(row: Mapping[str, Any], answers: tuple[str, ...], default: str | None) -> str | Fault:
    match = row.get("match") or default or ("numeric" if any("####" in item for item in answers) else "exact")
    if match not in MATCHES:
        return Fault("match", f"{match!r:.40} is no way to compare", f"one of {', '.join(MATCHES)}")
    if match == "numeric" and any(number_in(item) is None for item in answers):
        return Fault("answer", "it holds no number, and match is numeric", "a number, or a text that ends in '#### 42'")
    return str(match)


def _limit(value: Any) -> int | Fault | None:
    if value is None or value == "":
        return None
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or not 1 <= int(text[:9]) <= _MOST_TOKENS or len(text) > 9:
        return Fault("max_tokens", f"{value!r:.40} is no number of tokens", "a whole number from 1 on")
    return int(text)
