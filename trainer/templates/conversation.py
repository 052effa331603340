"""A conversation's fields, read once for every template that knows more than mypt: texts, tools, turns with their calls.

Also what people hand over by hand in the wider spelling of other programs: arguments as objects, OpenAI's nested calls.
Not here: what a row must hold to be admitted (`guard/checks/rows.py`), any format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guard.errors import DataFault
from trainer.templates.base import Example

__all__ = ["Call", "Conversation", "Turn", "as_turn", "compact", "is_learnt", "read_conversation"]


@dataclass(frozen=True)
class Call:
    """One tool call; `arguments` is JSON text with the keys in their order."""

    name: str
    arguments: str
    id: str = ""

    def as_dict(self) -> dict[str, str]:
        """As it stands in the fields of a row."""
        return {"name": self.name, "arguments": self.arguments, **({"id": self.id} if self.id else {})}


@dataclass(frozen=True)
class Turn:
    """One turn: role user, assistant or tool."""

    role: str
    content: str
    thinking: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""
    """Which call a tool's result answers."""
    name: str = ""
    learnt: bool = True
    """Whether an assistant turn is trained; one of weight 0 is not."""

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the fields of a row."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thinking:
            found["thinking"] = self.thinking
        if self.calls:
            found["tool_calls"] = [call.as_dict() for call in self.calls]
        if self.call_id:
            found["tool_call_id"] = self.call_id
        if self.name:
            found["name"] = self.name
        return found if self.learnt else {**found, "weight": "0"}


@dataclass(frozen=True)
class Conversation:
    """Everything a template may say."""

    turns: tuple[Turn, ...]
    system: str = ""
    developer: str = ""
    context: str = ""
    tools: tuple[Mapping[str, Any], ...] = field(default=())
    """Definitions of functions: {"name", "description"?, "parameters"?}, out of OpenAI's wrapping."""

    def as_fields(self) -> dict[str, Any]:
        """The fields of a row."""
        found: dict[str, Any] = {"messages": [turn.as_dict() for turn in self.turns]}
        for name in ("system", "developer", "context"):
            if getattr(self, name):
                found[name] = getattr(self, name)
        if self.tools:
            found["tools"] = compact([{"type": "function", "function": dict(tool)} for tool in self.tools])
        return found

    def called(self, position: int) -> str:
        """The name of the function whose result stands at that turn: by its id, else the first call yet unanswered.

        Raises DataFault when nothing was called.
        """
        turn = self.turns[position]
        start = position
        while start and self.turns[start].role == "tool":
            start -= 1
        calls = self.turns[start].calls
        by_id = next((call.name for call in calls if call.id and call.id == turn.call_id), "")
        place = position - start - 1
        name = by_id or turn.name or (calls[place].name if 0 <= place < len(calls) else "")
        if not name:
            raise DataFault(f"messages[{position}] is a tool's result, and no tool was called before it",
                            subject=f"messages[{position}]")  # fmt: skip
        return name


def compact(value: Any) -> str:
    """JSON text without white space, in the order of the keys."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataFault(f"{where} is {type(value).__name__}, expected text", subject=where)
    return value


def _call(value: Mapping[str, Any], where: str) -> Call:
    inner = value.get("function") if isinstance(value.get("function"), Mapping) else value
    assert isinstance(inner, Mapping)
    name, arguments = inner.get("name"), inner.get("arguments")
    if not isinstance(name, str) or not name:
        raise DataFault(f"{where} has no name", subject=where)
    if not isinstance(arguments, str):
        arguments = compact({} if arguments is None else arguments)
    return Call(name, arguments, str(value.get("id") or inner.get("id") or ""))


def is_learnt(turn: Mapping[str, Any]) -> bool:
    """Whether an assistant turn is trained: it has no weight of 0."""
    return turn.get("weight") not in ("0", 0)


def as_turn(value: Mapping[str, Any], position: int = 0) -> Turn:
    """One message, in the spelling of the fields or the wider one. Raises DataFault naming the place."""
    where = f"messages[{position}]"
    role = value.get("role")
    if role not in ("user", "assistant", "tool"):
        raise DataFault(f"{where}.role is {role!r}, expected user, assistant or tool (system and developer only first)",
                        subject=where)  # fmt: skip
    calls = tuple(_call(item, f"{where}.tool_calls[{number}]") for number, item in enumerate(value.get("tool_calls") or ()))
    thinking = value.get("thinking") or value.get("reasoning_content")
    if role != "assistant" and (calls or thinking):
        raise DataFault(f"{where}: only the assistant thinks and calls tools", subject=where)
    return Turn(str(role), _text(value.get("content"), f"{where}.content"), _text(thinking, f"{where}.thinking"), calls,
                str(value.get("tool_call_id") or ""), str(value.get("name") or ""),
                role != "assistant" or is_learnt(value))  # fmt: skip


def _tools(text: Any) -> tuple[Mapping[str, Any], ...]:
    if not text:
        return ()
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise DataFault(f"the field 'tools' is not JSON: {error}", subject="tools") from error
    if not isinstance(found, Sequence) or not all(isinstance(item, Mapping) for item in found):
        raise DataFault("the field 'tools' is no list of objects", subject="tools")
    inner = [item["function"] if isinstance(item.get("function"), Mapping) else item for item in found]
    if not all(isinstance(item.get("name"), str) and item["name"] for item in inner):
        raise DataFault("a tool has no name", subject="tools")
    return tuple({key: value for key, value in item.items() if key != "type"} for item in inner)


def read_conversation(example: Example) -> Conversation:
    """The fields of an example. Leading messages of the roles system and developer are the same as the fields.

    Raises DataFault for other roles, other types, or two different texts for one field.
    """
    texts = {name: _text(example.get(name), name) for name in ("system", "developer", "context")}
    messages = list(example.get("messages") or ())
    first = 0
    while first < min(2, len(messages)) and messages[first].get("role") in ("system", "developer"):
        role, content = messages[first]["role"], _text(messages[first].get("content"), f"messages[{first}].content")
        if texts[role] and texts[role] != content:
            raise DataFault(f"the row has a `{role}` field and another {role} message", subject=f"messages[{first}]",
                            hint="keep one of the two")  # fmt: skip
        texts[role] = content
        first += 1
    turns = tuple(as_turn(message, first + number) for number, message in enumerate(messages[first:]))
    return Conversation(turns, texts["system"], texts["developer"], texts["context"], _tools(example.get("tools")))
