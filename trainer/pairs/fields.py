"""A preference row of any spelling as its trained fields: `prefix` {messages}, `chosen`, `rejected`.

The rules are those of intake (`guard.checks.rows.validate`) wherever they know the kind; the spellings below are what
the public data sets are written in: a prefix, a prompt, turns on both sides, and transcripts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from guard.checks import rows
from guard.checks.jsonl import Fault

__all__ = ["pair_fields"]

Fields = dict[str, Any]
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def pair_fields(value: Mapping[str, Any]) -> Fields | list[Fault]:
    """The trained fields of a preference row, or every fault found in it."""
    try:
        return rows.validate("preference", value)
    except KeyError:  # rules that know no preference yet
        return _spelt(value)


def _spelt(value: Mapping[str, Any]) -> Fields | list[Fault]:
    faults = [Fault(name, f"Missing required field '{name}'", "the two answers") for name in ("chosen", "rejected")
              if value.get(name) is None]  # fmt: skip
    if faults:
        return faults
    if "prefix" in value or isinstance(value.get("prompt"), list):
        return _with_turns(value)
    if isinstance(value["chosen"], list) or isinstance(value["rejected"], list):
        return _from_turns(value["chosen"], value["rejected"])
    if "prompt" in value:
        return _with_prompt(value)
    return _from_transcripts(value["chosen"], value["rejected"])


def _judged(messages: list[dict[str, Any]], chosen: Any, rejected: Any) -> Fields | list[Fault]:
    """The pair when it is one: a prefix that ends with the user, and two answers that are text and differ."""
    faults = [fault for name, text in (("chosen", chosen), ("rejected", rejected)) if (fault := _text_fault(name, text))]
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    messages = messages[1:] if system else messages
    faults += _prefix_faults(messages)
    if not faults and chosen.strip() == rejected.strip():
        faults = [Fault("rejected", "Responses are identical", "two answers that differ")]
    prefix = {"messages": messages, **({"system": system} if system else {})}
    return faults or {"prefix": prefix, "chosen": chosen, "rejected": rejected}


def _text_fault(name: str, text: Any) -> Fault | None:
    if not isinstance(text, str):
        return Fault(name, f"Field '{name}' must be a string", "the text of an answer")
    if not text.strip():
        return Fault(name, f"Field '{name}' is empty after stripping", "the text of an answer")
    return Fault(name, f"Field '{name}' holds a NUL character", "text without NUL") if "\0" in text else None


def _prefix_faults(messages: list[dict[str, Any]]) -> list[Fault]:
    if not messages:
        return [Fault("prefix", "Field 'messages' is empty", "at least one user turn")]
    for place, turn in enumerate(messages):
        if turn["role"] != ("user", "assistant")[place % 2]:
            reason = "the first turn is from the assistant" if not place else f"two turns from the {turn['role']} in a row"
            return [Fault(f"prefix.messages[{place}].role", reason, "user and assistant in turn")]
        fault = _text_fault("content", turn["content"])
        if fault:
            return [fault._replace(field=f"prefix.messages[{place}].content")]
    if messages[-1]["role"] != "user":
        return [Fault("prefix", "the last turn is from the assistant", "a user turn at the end")]
    return []


def _turns(value: Any, name: str) -> list[dict[str, Any]] | Fault:
    """A list of turns with role and content, system first only."""
    if not isinstance(value, list):
        return Fault(name, f"Field '{name}' must be a list", "a list of turns")
    for place, turn in enumerate(value):
        known = isinstance(turn, Mapping) and turn.get("role") in ("user", "assistant", "system")
        if not known or (turn["role"] == "system" and place) or "content" not in turn:
            return Fault(f"{name}[{place}]", "a turn must have a role (user, assistant, system first) and a content",
                         '{"role": ..., "content": ...}')  # fmt: skip
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _with_turns(value: Mapping[str, Any]) -> Fields | list[Fault]:
    prefix = value["prefix"] if "prefix" in value else {"messages": value["prompt"]}
    if not isinstance(prefix, Mapping):
        return [Fault("prefix", "Field 'prefix' must be an object", '{"messages": [...]}')]
    if "messages" not in prefix:
        return [Fault("prefix.messages", "Missing required field 'messages'", "a list of turns")]
    turns = _turns(prefix["messages"], "messages")
    if isinstance(turns, Fault):
        return [turns]
    answers = [item[0]["content"] if isinstance(item, list) and len(item) == 1 and isinstance(item[0], Mapping)
               and item[0].get("role") == "assistant" and "content" in item[0] else item
               for item in (value["chosen"], value["rejected"])]  # fmt: skip
    return _judged(turns, *answers)


def _with_prompt(value: Mapping[str, Any]) -> Fields | list[Fault]:
    prompt = value["prompt"]
    fault = _text_fault("prompt", prompt)
    if fault:
        return [fault]
    if "\n\nAssistant:" in prompt and re.match(r"\s*Human:", prompt):
        turns = _transcript("\n\n" + prompt.strip(), "prompt")
        if isinstance(turns, Fault):
            return [turns]
        if turns[-1] == {"role": "assistant", "content": ""}:
            return _judged(turns[:-1], value["chosen"], value["rejected"])
    return _judged([{"role": "user", "content": prompt}], value["chosen"], value["rejected"])


def _from_turns(chosen: Any, rejected: Any) -> Fields | list[Fault]:
    """Two whole conversations with the same beginning; the last turn of each is the answer."""
    sides = [_turns(chosen, "chosen"), _turns(rejected, "rejected")]
    return [side for side in sides if isinstance(side, Fault)] or _split(*sides)  # type: ignore[arg-type]


def _from_transcripts(chosen: Any, rejected: Any) -> Fields | list[Fault]:
    faults = [fault for name, text in (("chosen", chosen), ("rejected", rejected)) if (fault := _text_fault(name, text))]
    if faults:
        return faults
    sides = [_transcript(chosen, "chosen"), _transcript(rejected, "rejected")]
    return [side for side in sides if isinstance(side, Fault)] or _split(*sides)  # type: ignore[arg-type]


def _split(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> Fields | list[Fault]:
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1]["role"] != "assistant":
            return [Fault(name, "the last turn is not the assistant's", "an answer at the end")]
    if chosen[:-1] != rejected[:-1]:
        return [Fault("rejected", "the two conversations differ before the last answer", "the same beginning")]
    return _judged(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"])


def _transcript(text: str, name: str) -> list[dict[str, Any]] | Fault:
    """The turns of a transcript, each begun by a line of its own that names the speaker; nothing may stand before."""
    expected = r"\n\nHuman: ...\n\nAssistant: ..."
    pieces = _TURN.split(text)
    if len(pieces) < 3 or pieces[0].strip() or pieces[1] != "Human":
        return Fault(name, r"is no transcript that begins with \n\nHuman:", expected)
    return [{"role": _ROLES[who], "content": said.strip()} for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]
