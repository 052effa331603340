"""The rules of a conversation row: what is trained on, however it is spelt, or every fault in it.

Fields: {"messages": [turn, ...], "system"?, "context"?, "developer"?, "tools"?}; a turn as in `turns.py` without system and
developer; `tools` is JSON text: a list of {"type": "function", "function": {"name", ...}}. All spellings of one
conversation give the same fields. Not here: other shapes of rows (`forms.py`), rendered text (`prerendered.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from guard.checks.conversation import FRAME, read_conversation
from guard.checks.field_faults import below, is_blank, name_fault, optional_texts
from guard.checks.forms import as_conversation
from guard.checks.jsonl import MAX_LINE_BYTES, Fault, read_row
from guard.checks.turns import compact_json

__all__ = ["frame_of", "tools_text", "validate_sft"]

Fields = dict[str, Any]
_TOOLS = '[{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}]'


def validate_sft(value: Mapping[str, Any]) -> Fields | list[Fault]:
    """A conversation: `messages` (or another form of them), and optionally `system`, `context`, `developer` and `tools`.

    A first message of role `system` or `developer` is the field of that name: both spellings are the same example.
    """
    row = value if isinstance(value.get("messages"), list) else as_conversation(value)
    if isinstance(row, list):
        return row
    fields, faults = frame_of(row)
    frame, turns, turn_faults = read_conversation(row["messages"])
    if not turn_faults:
        turn_faults = [Fault(f"messages[{place}].role", f"a {name} turn beside the field '{name}'", "one of the two")
                       for place, name in enumerate(frame) if name in fields]  # fmt: skip
    if faults or turn_faults:
        return faults + turn_faults
    if "weight" in turns[-1] and all("weight" in turn for turn in turns if turn["role"] == "assistant"):
        return [Fault("messages", "no answer is trained: every weight is 0", '"weight": 1 for an answer, or leave it out')]
    return {**fields, **frame, "messages": turns}


def frame_of(value: Mapping[str, Any]) -> tuple[Fields, list[Fault]]:
    """What stands around the turns of a row: system, context, developer and tools."""
    fields: Fields
    fields, faults = optional_texts(value, ("system", "context", *FRAME[1:]))
    for key in ("tools", "functions"):
        tools = tools_text(value.get(key), key)
        if isinstance(tools, Fault):
            faults.append(tools)
        elif tools:
            if "tools" in fields:
                faults.append(Fault(key, f"Field '{key}' beside 'tools'", "one of the two"))
            fields["tools"] = tools
    return fields, faults


def tools_text(value: Any, key: str = "tools") -> str | Fault:
    """The definitions of tools as JSON text in one form, "" where there are none; given as a list or as its JSON text."""
    if not value or is_blank(value):
        return ""
    if isinstance(value, str):
        row = read_row(2, b'{"tools":' + value.encode("utf-8") + b"}", False, MAX_LINE_BYTES, False)
        if row is None or row.value is None or len(row.value) != 1:
            return Fault(key, f"Field '{key}' must be a list, or the JSON text of one", _TOOLS)
        value = row.value["tools"]
    if not isinstance(value, list):
        return Fault(key, f"Field '{key}' must be a list", _TOOLS)
    found = []
    for place, item in enumerate(value):
        tool = _tool(item)
        if isinstance(tool, Fault):
            return below(f"{key}[{place}]", [tool])[0]
        found.append(tool)
    return compact_json(found, key, _TOOLS) if found else ""


def _tool(item: Any) -> dict[str, Any] | Fault:
    if not isinstance(item, Mapping):
        return Fault("", "a tool must be an object", _TOOLS)
    if item.get("type") not in (None, "function"):
        return Fault("type", f"a tool of type {str(item['type'])[:40]!r} is not known", '"type": "function"')
    inner = item["function"] if item.get("function") is not None else {key: item[key] for key in item if key != "type"}
    if not isinstance(inner, Mapping):
        return Fault("function", "Field 'function' must be an object", _TOOLS)
    fault = name_fault(inner, "name")
    if fault:
        return fault
    given = {key: part for key, part in inner.items() if part is not None}
    if isinstance(given.get("parameters"), str):  # tables hold it as text
        try:
            given["parameters"] = orjson.loads(given["parameters"])
        except orjson.JSONDecodeError:
            return Fault("parameters", "Field 'parameters' must be an object", "a JSON schema")
    if not isinstance(given.get("parameters", {}), Mapping):
        return Fault("parameters", "Field 'parameters' must be an object", "a JSON schema")
    return {"type": "function", "function": given}
