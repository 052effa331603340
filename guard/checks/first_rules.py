"""The rules of rows, version 1: those under which files were admitted before version 2. Frozen for ever.

A stored file's ordinals count the rows that were usable when it was admitted. Under these rules a conversation with tool
calls or thinking was no example, so such a file is read by them whenever it is read again. New files are not:
`rows.py` chooses. Nothing here may change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from guard.checks.jsonl import Fault

__all__ = ["FIRST_RULES"]

_ROLES = ("system", "user", "assistant")
_UNTRAINED_YET = ("tool_calls", "function_call", "thinking", "reasoning_content")
Fields = dict[str, Any]


def _pretrain(value: Mapping[str, Any]) -> Fields | list[Fault]:
    """A row of pretraining text: `text`, not empty."""
    fault = _text_fault(value, "text", "the text to learn")
    return [fault] if fault else {"text": value["text"]}


def _sft(value: Mapping[str, Any]) -> Fields | list[Fault]:
    """A conversation: `messages`, and optionally `system` and `context`.

    A first message of role `system` becomes the field `system`: both spellings are the same example.
    """
    faults: list[Fault] = []
    fields: Fields = {}
    for name in ("system", "context"):
        text = value.get(name)
        if text is None or (isinstance(text, str) and (not text or text.isspace())):
            continue
        fault = _text_fault(value, name, "text, or leave it out")
        if fault:
            faults.append(fault)
        else:
            fields[name] = text
    messages: list[dict[str, Any]] = value.get("messages", [])
    turn_faults = _list_faults(value) or _message_faults(messages) or _order_faults(messages)
    if not turn_faults and messages[0]["role"] == "system":
        if "system" in fields:
            turn_faults = [Fault("messages[0].role", "a system turn beside the field 'system'", "one of the two")]
        fields["system"] = messages[0]["content"]
        messages = messages[1:]
    if faults or turn_faults:
        return faults + turn_faults
    fields["messages"] = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    return fields


FIRST_RULES: dict[str, Callable[[Mapping[str, Any]], Fields | list[Fault]]] = {
    "pretrain": _pretrain,
    "sft": _sft,
}


def _text_fault(value: Mapping[str, Any], key: str, expected: str) -> Fault | None:
    if key not in value:
        return Fault(key, f"Missing required field '{key}'", expected)
    text = value[key]
    if not isinstance(text, str):
        return Fault(key, f"Field '{key}' must be a string", expected)
    if not text or text.isspace():
        return Fault(key, f"Field '{key}' is empty after stripping", expected)
    if "\0" in text:
        return Fault(key, f"Field '{key}' holds a NUL character", expected)
    return None


def _list_faults(value: Mapping[str, Any]) -> list[Fault]:
    expected = "a list of user and assistant turns"
    if "messages" not in value:
        return [Fault("messages", "Missing required field 'messages'", expected)]
    if not isinstance(value["messages"], list):
        return [Fault("messages", "Field 'messages' must be a list", expected)]
    if not value["messages"]:
        return [Fault("messages", "Field 'messages' is empty", expected)]
    return []


def _message_faults(messages: list[Any]) -> list[Fault]:
    """Faults of single turns: their shape, role and content."""
    faults = []
    for index, turn in enumerate(messages):
        fault = _turn_fault(turn)
        if fault:
            where = f"messages[{index}].{fault.field}" if fault.field else f"messages[{index}]"
            faults.append(fault._replace(field=where))
    return faults


def _turn_fault(turn: Any) -> Fault | None:
    if not isinstance(turn, dict):
        return Fault("", "a turn must be an object", '{"role": ..., "content": ...}')
    role = turn.get("role")
    if role not in _ROLES or not isinstance(role, str):
        return _role_fault(turn)
    if len(turn) > 2:
        untrained = next((key for key in _UNTRAINED_YET if turn.get(key)), None)
        if untrained:
            return Fault(untrained, f"Field '{untrained}' cannot be trained on yet", "role and content")
    return _text_fault(turn, "content", "the text of the turn")


def _role_fault(turn: Mapping[str, Any]) -> Fault:
    expected = "system (first only), user or assistant"
    if "role" not in turn:
        return Fault("role", "Missing required field 'role'", expected)
    if not isinstance(turn["role"], str):
        return Fault("role", "Field 'role' must be a string", expected)
    return Fault("role", f"unknown role {turn['role'][:40]!r}", expected)


def _order_faults(messages: list[dict[str, Any]]) -> list[Fault]:
    """Faults of the conversation: system first, then user and assistant in turn, the last word the assistant's."""
    roles = [turn["role"] for turn in messages]
    start = 1 if roles[0] == "system" else 0
    if start == len(roles):
        return [Fault("messages", "there is only a system turn", "a user turn and an assistant turn")]
    for index in range(start, len(roles)):
        if roles[index] == "system":
            return [Fault(f"messages[{index}].role", "a system turn after the first turn", "system first only")]
        if index > start and roles[index] == roles[index - 1]:
            reason = f"two turns from the {roles[index]} in a row"
            return [Fault(f"messages[{index}].role", reason, "user and assistant in turn")]
    if roles[start] == "assistant":
        return [Fault(f"messages[{start}].role", "the first turn is from the assistant", "a user turn first")]
    if roles[-1] == "user":
        return [Fault(f"messages[{len(roles) - 1}].role", "the last turn is from the user", "an answer at the end")]
    return []
