"""One line of a session log as pieces: what was said, thought, called and answered, in the log's order.

Understood are messages as OpenAI's chat interface has them (`role`, `content`, `tool_calls`, `tool_call_id`), items of its
responses interface as Codex logs them (`function_call`, `function_call_output`, `reasoning`, alone or as `payload`), and
events with content blocks as Claude Code logs them (`tool_use`, `tool_result`, `thinking`). What is only bookkeeping gives
nothing. Not here: what makes a whole session (`session.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Piece", "Unreadable", "pieces_of", "session_key", "starts_session", "whole_session"]

SESSION_KEYS = ("session", "session_id", "sessionId", "conversation_id")
WHOLE_KEYS = ("messages", "turns", "events", "conversation")
_SPEAKERS = ("user", "assistant", "system", "developer")
_TEXTS = ("text", "input_text", "output_text")
_CALLS = ("tool_use", "tool_call", "function_call", "custom_tool_call", "local_shell_call")
_RESULTS = ("tool_result", "tool_call_output", "function_call_output", "custom_tool_call_output", "local_shell_call_output")
_THOUGHTS = ("thinking", "reasoning")
_UNSEEN = ("redacted_thinking", "summary_text")


class Piece(NamedTuple):
    """What one event adds: `kind` is user, assistant, system, developer, thinking, call or result."""

    kind: str
    text: str = ""
    name: str = ""
    identity: str = ""
    arguments: dict[str, Any] | None = None


class Unreadable(Exception):
    """A session holds something that is no text; the reason is its message."""


def session_key(value: Mapping[str, Any]) -> str | None:
    """The session an event says it belongs to; None when it says none."""
    return next((str(value[key]) for key in SESSION_KEYS if isinstance(value.get(key), str | int)), None)


def starts_session(value: Mapping[str, Any]) -> bool:
    """Whether an event opens a new session, whatever came before."""
    return value.get("type") in ("session_meta", "session_start")


def whole_session(value: Mapping[str, Any]) -> list[Any] | None:
    """The events of a row that is a whole session; None when the row is one event."""
    return next((value[key] for key in WHOLE_KEYS if isinstance(value.get(key), list)), None)


def pieces_of(value: Any) -> Iterator[Piece]:
    """The pieces of one event. Raises Unreadable."""
    if not isinstance(value, Mapping):
        raise Unreadable("an event that is no object")
    if value.get("isMeta") or value.get("isSidechain"):
        return  # the program's own words, and what its helpers did on the side
    if isinstance(value.get("payload"), Mapping):
        if value.get("type") == "response_item":
            yield from pieces_of(value["payload"])
        return
    kind = value.get("type")
    if kind in _CALLS:
        yield _call(value)
    elif kind in _RESULTS:
        yield _result(value)
    elif kind in _THOUGHTS:
        yield Piece("thinking", _thought(value))
    elif kind in ("user", "assistant") and isinstance(value.get("message"), Mapping):
        yield from _message(value["message"], str(value["message"].get("role") or kind))
    elif value.get("role"):
        yield from _message(value, str(value["role"]))
    elif kind in _SPEAKERS and not (kind == "system" and "subtype" in value):
        yield from _message(value, str(kind))


def _message(value: Mapping[str, Any], role: str) -> Iterator[Piece]:
    """A message with its role: thoughts first, then what was said, then what was called."""
    if role in ("tool", "function"):
        yield _result(value)
        return
    if role not in _SPEAKERS:
        raise Unreadable(f"unknown role {role[:40]!r}")
    thought = value.get("thinking") or value.get("reasoning_content") or value.get("reasoning")
    if isinstance(thought, str):
        yield Piece("thinking", thought)
    content = next((value[key] for key in ("content", "text", "message") if value.get(key) is not None), None)
    yield from _content(role, content)
    for call in [*(value.get("tool_calls") or []), *([value["function_call"]] if value.get("function_call") else [])]:
        if not isinstance(call, Mapping):
            raise Unreadable("a tool call that is no object")
        yield _call(call)


def _content(role: str, content: Any) -> Iterator[Piece]:
    if isinstance(content, str):
        yield Piece(role, content)
        return
    for block in content or []:
        kind = block.get("type") if isinstance(block, Mapping) else "text" if isinstance(block, str) else None
        if kind in _TEXTS:
            yield Piece(role, block if isinstance(block, str) else str(block.get("text") or ""))
        elif kind in _CALLS:
            yield _call(block)
        elif kind in _RESULTS:
            yield _result(block)
        elif kind in _THOUGHTS:
            yield Piece("thinking", _thought(block))
        elif kind not in _UNSEEN:
            raise Unreadable(f"a piece of type {str(kind)[:40]!r}, which is no text")


def _call(value: Mapping[str, Any]) -> Piece:
    """A call in any spelling: flat, nested under `function`, with `input`, or a shell call with its `action`."""
    inner = value["function"] if isinstance(value.get("function"), Mapping) else value
    name = inner.get("name") or value.get("tool") or ("local_shell" if value.get("type") == "local_shell_call" else "")
    if not isinstance(name, str) or not name:
        raise Unreadable("a tool call without a name")
    found: Any = next((inner[key] for key in ("arguments", "input", "parameters", "action") if inner.get(key) is not None), {})
    identity = value.get("call_id") or value.get("id") or value.get("tool_call_id") or value.get("tool_use_id") or ""
    free = value.get("type") == "custom_tool_call" and isinstance(found, str)
    return Piece("call", name=name, identity=str(identity), arguments={"input": found} if free else _arguments(found))


def _arguments(found: Any) -> dict[str, Any]:
    if isinstance(found, str):
        try:
            found = json.loads(found or "{}", parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise Unreadable("arguments of a tool call that are no JSON object") from error
    if not isinstance(found, dict):
        raise Unreadable("arguments of a tool call that are no JSON object")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _result(value: Mapping[str, Any]) -> Piece:
    identity = value.get("tool_call_id") or value.get("tool_use_id") or value.get("call_id") or value.get("id") or ""
    found = next((value[key] for key in ("content", "output", "result") if value.get(key) is not None), "")
    return Piece("result", _plain(found), str(value.get("name") or ""), str(identity))


def _plain(found: Any) -> str:
    """The text of a tool's answer. Raises Unreadable for an image and the like."""
    if isinstance(found, str):
        return found
    if isinstance(found, Mapping):
        return _plain(found["content"] if "content" in found else found.get("output", ""))
    if isinstance(found, list):
        return "\n".join(piece.text for piece in _content("result", found) if piece.kind == "result")
    raise Unreadable("an answer of a tool that is no text")


def _thought(value: Mapping[str, Any]) -> str:
    for key in ("thinking", "text", "content", "summary"):
        found = value.get(key)
        if isinstance(found, str) and found:
            return found
        if isinstance(found, list) and found:
            return "\n\n".join(str(item.get("text") or "") for item in found if isinstance(item, Mapping)).strip()
    return ""
