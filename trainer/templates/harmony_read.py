"""Harmony text, simplified and real, read back into a conversation, and one converted into the other.

Strict: text that is not exactly what the templates render is refused with the reason, for a guess would move the mask. Text
alone cannot tell a control token from one that was written in a message; rows with `messages` never have that doubt.
Real Harmony has no ids of calls, so they are lost on the way there. Not here: rendering.
"""

from __future__ import annotations

import json
import re
from typing import Any

from guard.errors import DataFault
from trainer.templates.base import text_of
from trainer.templates.conversation import Call, Conversation, Turn, compact
from trainer.templates.harmony import HarmonyTemplate
from trainer.templates.harmony_simple import HARMONY_SIMPLE, SIMPLE_TOKENS

__all__ = ["read_harmony", "read_harmony_simple", "to_harmony", "to_harmony_simple"]

_SIMPLE = re.compile("(" + "|".join(map(re.escape, SIMPLE_TOKENS)) + ")")
_MESSAGE = re.compile(r"<\|start\|>(?P<head>(?:(?!<\|message\|>|<\|start\|>).)*)<\|message\|>"
                      r"(?P<body>(?:(?!<\|(?:start|end|return|call|message|channel|constrain)\|>).)*)"
                      r"<\|(?P<end>end|return|call)\|>", re.DOTALL)  # fmt: skip
_HEAD = re.compile(r"(?P<role>[^\s<]+)(?: to=(?P<to>[^\s<]+))?"
                   r"(?:<\|channel\|>(?P<channel>\w+)(?: to=(?P<to2>[^\s<]+))? ?(?:<\|constrain\|>(?P<type>\w+))?)?")  # fmt: skip
_SYSTEM = re.compile(r"(?P<identity>[^\n]*)\nKnowledge cutoff: (?P<cutoff>[^\n]*)(?:\nCurrent date: (?P<date>[^\n]*))?\n\n"
                     r"Reasoning: (?P<effort>\w+)\n\n# Valid channels: (?P<channels>[\w, ]+)\. Channel must be included for every"
                     r" message\.(?:\nCalls to these tools must go to the commentary channel: 'functions'\.)?")  # fmt: skip


def _wrong(what: str) -> DataFault:
    return DataFault(f"this is not Harmony text: {what}", subject="text", hint="give the row `messages` instead")


# --- simplified ----------------------------------------------------------------------------------------------------------


def read_harmony_simple(text: str) -> Conversation:
    """A conversation out of simplified Harmony text. Raises DataFault where it is not exactly that."""
    pieces = _SIMPLE.split(text.removesuffix("\n"))
    if pieces[0] or len(pieces) < 3 or pieces[-2] != "<|endoftext|>" or pieces[-1]:
        raise _wrong("it does not open with a tag and end with <|endoftext|>")
    elements = list(zip(pieces[1:-2:2], pieces[2:-2:2], strict=True))
    heads: dict[str, str] = {}
    while elements and elements[0][0] in ("<|system|>", "<|developer|>") and elements[0][0][2:-2] not in heads:
        tag, body = elements.pop(0)
        heads[tag[2:-2]] = _inner(tag, body)
    turns: list[Turn] = []
    for tag, body in elements:
        _take(turns, tag, _inner(tag, body))
    return Conversation(tuple(turns), heads.get("system", ""), heads.get("developer", ""))


def _inner(tag: str, body: str) -> str:
    if len(body) < 2 or body[0] != "\n" or body[-1] != "\n":
        raise _wrong(f"the text of {tag} does not stand between two newlines")
    return body[1:-1]


def _take(turns: list[Turn], tag: str, text: str) -> None:
    """Put one element behind the turns: thinking, answer and calls in that order are one turn."""
    last = turns[-1] if turns else None
    open_turn = last if last and last.role == "assistant" else None
    if tag == "<|user|>":
        turns.append(Turn("user", text))
    elif tag == "<|thinking|>":
        turns.append(Turn("assistant", "", thinking=text))
    elif tag == "<|assistant|>":
        if open_turn and open_turn.thinking and not open_turn.content and not open_turn.calls:
            turns[-1] = Turn("assistant", text, open_turn.thinking)
        else:
            turns.append(Turn("assistant", text))
    elif tag == "<|tool_call|>":
        before = open_turn or Turn("assistant", "")
        turns[-1 if open_turn else len(turns) :] = [Turn("assistant", before.content, before.thinking,
                                                         (*before.calls, _read_call(text)))]  # fmt: skip
    elif tag == "<|tool_result|>":
        turns.append(Turn("tool", text, call_id=_answered(turns)))
    else:
        raise _wrong(f"{tag} stands in the middle")


def _answered(turns: list[Turn]) -> str:
    """The id of the call that the next result answers: they come in the order of the calls."""
    start = len(turns)
    while start and turns[start - 1].role == "tool":
        start -= 1
    calls = turns[start - 1].calls if start else ()
    if len(turns) - start >= len(calls):
        raise _wrong("a <|tool_result|> answers no <|tool_call|>")
    return calls[len(turns) - start].id


def _read_call(text: str) -> Call:
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise _wrong(f"a <|tool_call|> is not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or set(value) - {"id", "name", "arguments"}:
        raise _wrong("a <|tool_call|> is not an object of name, arguments and perhaps id")
    arguments = value.get("arguments", {})
    return Call(value["name"], arguments if isinstance(arguments, str) else compact(arguments), str(value.get("id") or ""))


# --- real ----------------------------------------------------------------------------------------------------------------


def read_harmony(text: str) -> tuple[Conversation, HarmonyTemplate]:
    """A conversation out of real Harmony text, and the template whose system block stands there (the usual one when none
    does). Raises DataFault where it is not exactly that."""
    template, developer, position = HarmonyTemplate(), "", 0
    turns: list[Turn] = []
    for found in _MESSAGE.finditer(text):
        if found.start() != position:
            break
        position, head = found.end(), _HEAD.fullmatch(found["head"])
        if head is None:
            raise _wrong(f"the header {found['head'][:40]!r} is not understood")
        role, body = head["role"], found["body"]
        if role == "system" and not turns:
            template = _read_system(body)
        elif role == "developer" and not turns:
            developer = body.removeprefix("# Instructions\n\n")
        else:
            _take_real(turns, head, body)
    if position != len(text.removesuffix("\n")):
        raise _wrong(f"at character {position + 1} no message begins")
    return Conversation(tuple(turns), "", developer), template


def _read_system(body: str) -> HarmonyTemplate:
    found = _SYSTEM.fullmatch(body)
    if found is None:
        raise _wrong("the system block has another form")
    return HarmonyTemplate(found["date"] or "", found["effort"], found["cutoff"], found["identity"],
                           tuple(found["channels"].split(", ")))  # fmt: skip


def _take_real(turns: list[Turn], head: re.Match[str], body: str) -> None:
    role, channel, to = head["role"], head["channel"], head["to"] or head["to2"] or ""
    last = turns[-1] if turns and turns[-1].role == "assistant" else None
    if role == "user":
        turns.append(Turn("user", body))
    elif role == "assistant" and to.startswith("functions."):
        before = last or Turn("assistant", "")
        calls = (*before.calls, Call(to.removeprefix("functions."), body))
        turns[-1 if last else len(turns) :] = [Turn("assistant", before.content, before.thinking, calls)]
    elif role == "assistant" and channel == "analysis" and not to:
        turns.append(Turn("assistant", "", thinking=body))
    elif role == "assistant" and channel in ("final", "commentary") and not to:
        if last and last.thinking and not last.content and not last.calls:
            turns[-1] = Turn("assistant", body, last.thinking)
        else:
            turns.append(Turn("assistant", body))
    elif role.startswith("functions."):
        turns.append(Turn("tool", body, name=role.removeprefix("functions.")))
    else:
        raise _wrong(f"a message of {role} to {to or 'nobody'} on the channel {channel}")


# --- one into the other --------------------------------------------------------------------------------------------------


def to_harmony(text: str, template: HarmonyTemplate | None = None) -> str:
    """Simplified Harmony text as real Harmony. Raises DataFault."""
    return text_of((template or HarmonyTemplate()).parts(read_harmony_simple(text).as_fields()))


def to_harmony_simple(text: str) -> str:
    """Real Harmony text as simplified Harmony; the system block, which has no place there, is left out. Raises DataFault."""
    return text_of(HARMONY_SIMPLE.parts(read_harmony(text)[0].as_fields()))
