"""Conversations in other shapes: ShareGPT, Alpaca, prompt and completion as turns, rendered text. Each becomes `messages`.

Only what cannot be meant otherwise: a question under one key and an answer under another may be anything, and is read when
a side file says so (`columns.py`). Nothing is judged here: `sft_rows.py` does that with what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from guard.checks.field_faults import is_blank, missing, text_fault
from guard.checks.jsonl import MAX_LINE_BYTES, Fault, read_row
from guard.checks.prerendered import messages_of

__all__ = ["SPEAKERS", "as_conversation", "columns_hint"]

_ASKED = ("question", "instruction", "query", "input", "context", "text")

SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "model": "assistant",
    "system": "system", "developer": "developer", "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""Who speaks in a ShareGPT turn; `function_call` is an assistant turn that holds a call."""
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"), ("input", "output"),
          ("instruction", "response"))  # fmt: skip


def as_conversation(value: Mapping[str, Any]) -> dict[str, Any] | list[Fault]:
    """A row as one with `messages` in place of the shape it has, or what is wrong; for rows without a list of `messages`."""
    for key, read in _SHAPES.items():
        if value.get("messages") is None and value.get(key) is not None:
            return read(value)
    if isinstance(value.get("messages"), str) and value["messages"].lstrip().startswith("["):
        return _messages(value)
    if "messages" in value:
        return [Fault("messages", "Field 'messages' must be a list", "a list of user and assistant turns")]
    return [missing("messages", "a list of user and assistant turns")]


def columns_hint(columns: list[str]) -> str:
    """What to write beside a file whose columns look like a question and its answer, or answers; "" for any other."""
    if {"chosen", "rejected"} <= set(columns):
        asked = next((name for name in _ASKED if name in columns), "QUESTION")
        named = f"{{{asked}: prompt, {'system: system, ' * ('system' in columns)}chosen: chosen, rejected: rejected}}"
        return f"say in FILE.meta.yaml beside it what was asked: columns: {named}"
    pair = next(((ask, answer) for ask, answer in _PAIRS if ask in columns and answer in columns), None)
    if pair is None:
        return ""
    named = f"{{{pair[0]}: user, {pair[1]}: assistant}}"
    return f"if these are question and answer, write beside it in FILE.meta.yaml: columns: {named}"


def _messages(value: Mapping[str, Any]) -> dict[str, Any] | list[Fault]:
    """A list of turns as JSON text: a cell of a CSV file can hold nothing else."""
    row = read_row(2, b'{"messages":' + value["messages"].encode("utf-8") + b"}", False, MAX_LINE_BYTES, True)
    found = row and row.value
    if found and len(found) == 1 and isinstance(found["messages"], list):
        return {**value, **found}
    why = f": {row.fault.reason}" if row and row.fault else ""
    return [Fault("messages", f"Field 'messages' must be a list, or the JSON text of one{why}",
                  'a list of user and assistant turns, or its JSON text: [{"role": ..., "content": ...}, ...]')]  # fmt: skip


def _conversations(value: Mapping[str, Any]) -> dict[str, Any] | list[Fault]:
    """ShareGPT: [{"from", "value"}], or turns as in `messages` under that name."""
    turns = value["conversations"]
    if not isinstance(turns, list):
        return [Fault("conversations", "Field 'conversations' must be a list", '[{"from": "human", "value": ...}, ...]')]
    messages = []
    for place, turn in enumerate(turns):
        message = _shared(turn) if isinstance(turn, Mapping) and "from" in turn else turn
        if isinstance(message, Fault):
            return [message._replace(field=f"conversations[{place}].{message.field}")]
        messages.append(message)
    return {**value, "messages": messages}


def _shared(turn: Mapping[str, Any]) -> dict[str, Any] | Fault:
    speaker = turn["from"]
    if speaker == "function_call":
        fault = text_fault(turn, "value", 'the call: {"name": ..., "arguments": {...}}')
        try:
            call = None if fault else orjson.loads(turn["value"])
        except orjson.JSONDecodeError:
            fault = Fault("value", "a function_call must be JSON", '{"name": ..., "arguments": {...}}')
        return fault or {"role": "assistant", "content": None, "tool_calls": call if isinstance(call, list) else [call]}
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        return Fault("from", f"unknown speaker {str(speaker)[:40]!r}", "human, gpt, system, tool, function_call or observation")
    rest = {key: item for key, item in turn.items() if key not in ("from", "value", "role", "content")}
    return {**rest, "role": SPEAKERS[speaker], **({"content": turn["value"]} if "value" in turn else {})}


def _instruction(value: Mapping[str, Any]) -> dict[str, Any] | list[Fault]:
    """Alpaca: instruction, an input below it after an empty line, output; pairs of earlier turns in `history`."""
    faults = [fault for key, what in (("instruction", "what is asked"), ("output", "the answer"))
              if (fault := text_fault(value, key, what))]  # fmt: skip
    if not is_blank(value.get("input")) and (fault := text_fault(value, "input", "text, or leave it out")):
        faults.append(fault)
    history = value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        faults.append(Fault("history", "Field 'history' must be a list of pairs", '[["question", "answer"], ...]'))
    if faults:
        return faults
    asked = value["instruction"] if is_blank(value.get("input")) else f"{value['instruction']}\n\n{value['input']}"
    turns = [text for pair in [*history, [asked, value["output"]]] for text in pair]
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
    return {**value, "messages": messages}


def _prompt(value: Mapping[str, Any]) -> dict[str, Any] | list[Fault]:
    """Prompt and completion as lists of turns. As texts they may be anything: a side file says what they are."""
    prompt, completion = value["prompt"], value.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return {**value, "messages": [*prompt, *completion]}
    hint = columns_hint(list(value)) or "columns: {prompt: user, ANSWER: assistant} in FILE.meta.yaml"
    return [Fault("messages", "Missing required field 'messages'", f"a list of turns; {hint}")]


def _text(value: Mapping[str, Any]) -> dict[str, Any] | list[Fault]:
    """Rendered text: what its tags say, and nothing else, is the conversation."""
    fault = text_fault(value, "text", "a conversation with its tags")
    found = fault or messages_of(value["text"])
    if isinstance(found, Fault):
        return [found._replace(field="text")]
    beside = next((key for key in ("system", "context", "developer", "tools") if not is_blank(value.get(key))), None)
    if beside:
        return [Fault(beside, f"Field '{beside}' beside rendered text", "in the text, or not at all")]
    return found


_SHAPES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | list[Fault]]] = {
    "conversations": _conversations, "instruction": _instruction, "prompt": _prompt, "text": _text,
}  # fmt: skip
