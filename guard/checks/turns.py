"""One turn of a conversation, from any usual spelling to one form.

The form: {"role": "user" | "assistant" | "tool" | "system" | "developer", "content"} and, where there are some,
"thinking", "tool_calls" [{"name", "arguments", "id"?}] and "weight" ("0": the turn is not learnt) of an assistant turn,
"tool_call_id" and "name" of a tool turn.
`arguments` is the JSON text of an object, without spaces, its keys in the order they came, its numbers as they were
written. What else a turn holds is not trained on and left out; what would have to be trained on and cannot be is a fault.
Not here: the order of turns (`conversation.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from guard.checks.field_faults import below, is_blank, missing, name_fault, text_fault
from guard.checks.jsonl import MAX_LINE_BYTES, Fault, read_row

__all__ = ["THINKING", "Turn", "compact_json", "compact_text", "object_of", "read_call", "read_turn"]

Turn = dict[str, Any]
THINKING = ("thinking", "reasoning_content", "reasoning")
_PLAIN = ("user", "assistant", "system")
_FRAME = ("user", "system", "developer")
_ROLES = "system or developer (first only), user, assistant or tool"
_PARTS = ("text", "input_text", "output_text")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[^" \t\n\r]+')
_CALL = '{"name": ..., "arguments": {...}}'


def read_turn(turn: Any) -> Turn | list[Fault]:
    """A turn in our form, or what is wrong with it; fields are named from the turn."""
    if type(turn) is dict and len(turn) == 2:
        content = turn.get("content")
        if type(content) is str and content and turn.get("role") in _PLAIN and not content.isspace() and "\0" not in content:
            return turn
    if not isinstance(turn, Mapping):
        return [Fault("", "a turn must be an object", '{"role": ..., "content": ...}')]
    role = turn.get("role")
    if role == "assistant":
        return _assistant(turn)
    if role in ("tool", "function"):
        return _tool(turn)
    if not isinstance(role, str) or role not in _FRAME:
        return [_role_fault(turn)]
    stray = next((key for key in (*THINKING, "tool_calls", "function_call") if turn.get(key)), None)
    if stray:
        return [Fault(stray, f"Field '{stray}' in a turn of the {role}", "only an assistant turn has it")]
    content, faults = _content(turn, may_be_empty=False)
    return faults or {"role": role, "content": content}


def _role_fault(turn: Mapping[str, Any]) -> Fault:
    if "role" not in turn:
        return missing("role", _ROLES)
    if not isinstance(turn["role"], str):
        return Fault("role", "Field 'role' must be a string", _ROLES)
    return Fault("role", f"unknown role {turn['role'][:40]!r}", _ROLES)


def _content(turn: Mapping[str, Any], *, may_be_empty: bool) -> tuple[str, list[Fault]]:
    """The text of a turn, also when it comes in parts."""
    content = turn.get("content")
    if content is None and may_be_empty:
        return "", []
    if isinstance(content, list) and content:
        pieces = [_part(part) for part in content]
        wrong = [fault for place, piece in enumerate(pieces) if isinstance(piece, Fault)
                 for fault in below(f"content[{place}]", [piece])]  # fmt: skip
        if wrong:
            return "", wrong
        turn = {"content": "".join(str(piece) for piece in pieces)}
    fault = text_fault(turn, "content", "the text of the turn", may_be_empty=may_be_empty)
    if fault:
        return "", [fault]
    text = str(turn["content"])
    return ("" if text.isspace() else text), []


def _part(part: Any) -> str | Fault:
    if not isinstance(part, Mapping):
        return Fault("", "a part of the content must be an object", '{"type": "text", "text": ...}')
    if part.get("type") not in _PARTS:
        return Fault("type", f"content of type {str(part.get('type'))[:40]!r} cannot be trained on", '"type": "text"')
    return text_fault(part, "text", "the text of the part", may_be_empty=True) or str(part["text"])


def _assistant(turn: Mapping[str, Any]) -> Turn | list[Fault]:
    thinking, faults = _thinking(turn)
    calls, call_faults = _calls(turn)
    content, content_faults = _content(turn, may_be_empty=bool(thinking or calls))
    weight, weight_faults = _weight(turn)
    faults = [*faults, *call_faults, *weight_faults]
    if faults:
        return faults
    if content_faults:
        return content_faults
    found: Turn = {"role": "assistant", "content": content}
    if thinking:
        found["thinking"] = thinking
    if calls:
        found["tool_calls"] = calls
    return {**found, **weight}


def _weight(turn: Mapping[str, Any]) -> tuple[dict[str, str], list[Fault]]:
    """{"weight": "0"} of an answer that is not to be learnt; text, so that it may stand in a canonical form."""
    given = turn.get("weight")
    if given is None or (not isinstance(given, bool) and given in (1, "1")):
        return {}, []
    if not isinstance(given, bool) and given in (0, "0"):
        return {"weight": "0"}, []
    return {}, [Fault("weight", f"the weight {given!r:.40} of a turn is not known", "0 (not learnt) or 1 (as without it)")]


def _thinking(turn: Mapping[str, Any]) -> tuple[str, list[Fault]]:
    given = {}
    for key in THINKING:
        if not turn.get(key) or is_blank(turn[key]):
            continue
        fault = text_fault(turn, key, "text, or leave it out")
        if fault:
            return "", [fault]
        given[key] = str(turn[key])
    if len(set(given.values())) > 1:
        first, second = list(given)[:2]
        return "", [Fault(second, f"Field '{second}' says something else than '{first}'", "one of the two")]
    return next(iter(given.values()), ""), []


def _calls(turn: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[Fault]]:
    """The calls of an assistant turn, also in the older form of a single `function_call`."""
    listed, single = turn.get("tool_calls") or None, turn.get("function_call") or None
    if listed is not None and single is not None:
        return [], [Fault("function_call", "Field 'function_call' beside 'tool_calls'", "one of the two")]
    if single is not None:
        call = read_call(single)
        return ([], below("function_call", call)) if isinstance(call, list) else ([call], [])
    if listed is None:
        return [], []
    if not isinstance(listed, list):
        return [], [Fault("tool_calls", "Field 'tool_calls' must be a list", f"[{_CALL}]")]
    calls: list[dict[str, str]] = []
    for place, item in enumerate(listed):
        call = read_call(item)
        if isinstance(call, list):
            return [], below(f"tool_calls[{place}]", call)
        if "id" in call and any(call["id"] == other.get("id") for other in calls):
            return [], [Fault(f"tool_calls[{place}].id", f"the id {call['id'][:40]!r} is given to two calls", "an id for each")]
        calls.append(call)
    return calls, []


def read_call(item: Any) -> dict[str, str] | list[Fault]:
    """A tool call, flat or with its name and arguments below `function`; its arguments an object or the JSON text of one."""
    if not isinstance(item, Mapping):
        return [Fault("", "a tool call must be an object", _CALL)]
    if item.get("type") not in (None, "function"):
        return [Fault("type", f"a call of type {str(item['type'])[:40]!r} is not known", '"type": "function"')]
    inner, place = (item["function"], "function") if item.get("function") is not None else (item, "")
    if not isinstance(inner, Mapping):
        return [Fault("function", "Field 'function' must be an object", _CALL)]
    fault = name_fault(inner, "name")
    if not fault and not is_blank(item.get("id")):
        fault = text_fault(item, "id", "text, or leave it out")
        if fault:
            return [fault]
    arguments = object_of(inner.get("arguments"), "arguments")
    if fault or isinstance(arguments, Fault):
        found = fault or arguments
        assert isinstance(found, Fault)
        return below(place, [found]) if place else [found]
    call = {"name": str(inner["name"]), "arguments": arguments}
    return call if is_blank(item.get("id")) else {**call, "id": str(item["id"])}


def object_of(value: Any, key: str) -> str | Fault:
    """The compact JSON text of an object that is given as one, or as JSON text; `{}` where nothing is given."""
    expected = "an object, or the JSON text of one"
    if is_blank(value):
        return "{}"
    if isinstance(value, str):
        row = read_row(2, value.encode("utf-8"), False, MAX_LINE_BYTES, True)
        if row is None or row.value is None:
            why = row.fault.reason if row and row.fault else "empty"
            return Fault(key, f"Field '{key}' must be an object: {why}", expected)
        return compact_text(value)
    if not isinstance(value, Mapping):
        return Fault(key, f"Field '{key}' must be an object", expected)
    return compact_json(value, key, expected)


def compact_text(text: str) -> str:
    """JSON text that was found sound, without white space outside of its strings, and those in the one way `compact_json`
    writes them. Numbers stay as they are written: `1.10` and `1e5` are what the model is to say."""
    return "".join(orjson.dumps(orjson.loads(token)).decode() if token[0] == '"' else token for token in _TOKEN.findall(text))


def compact_json(value: Any, key: str, expected: str) -> str | Fault:
    """JSON text without spaces, keys in the order they came; a fault for what JSON cannot hold."""
    try:
        return orjson.dumps(value).decode("utf-8")
    except TypeError as error:
        return Fault(key, f"Field '{key}' holds what JSON cannot: {error}", expected)


def _tool(turn: Mapping[str, Any]) -> Turn | list[Fault]:
    """A tool's answer, which may be empty: a command may have nothing to say."""
    if turn.get("content") is None:  # tables know null alone, and say by it that nothing is there
        return [missing("content", "what the tool said")]
    stray = next((key for key in (*THINKING, "tool_calls", "function_call") if turn.get(key)), None)
    if stray:
        return [Fault(stray, f"Field '{stray}' in a turn of the tool", "only an assistant turn has it")]
    content, faults = _content(turn, may_be_empty=True)
    found: Turn = {"role": "tool", "content": content}
    for key in ("tool_call_id", "name"):
        if not is_blank(turn.get(key)):
            fault = name_fault(turn, key) if key == "name" else text_fault(turn, key, "text, or leave it out")
            faults += [fault] if fault else []
            found[key] = turn[key]
    return faults or found
