"""OpenAI's Harmony as rendered text, taken apart message by message.

A message is `<|start|>`, a header, `<|message|>`, its content, and `<|end|>`, `<|return|>` or `<|call|>`. The header names
who speaks, to whom (`to=functions.x`, before or after the channel), the channel and a content type. Of an assistant turn
`analysis` is the thinking, `commentary` to a function a call, `final` (or commentary to nobody) the content; they follow
each other in this order and make one turn. `functions.x to=assistant` is a tool's answer. The system block stays text as
it is; of the developer block the headline `# Instructions` is taken away and the rest, tools included, stays text.
Source: the format's published guide. Not here: other formats (`prerendered.py`), the rules of a conversation.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from guard.checks.rendered_faults import Unreadable

__all__ = ["INSTRUCTIONS", "read_harmony"]

INSTRUCTIONS = "# Instructions\n\n"
_START, _MIDDLE = "<|start|>", "<|message|>"
_TAG = re.compile(r"<\|[A-Za-z0-9_]+\|>")
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_FUNCTION = "functions."
_HEADER = re.compile(
    r"(?P<author>[A-Za-z0-9_.-]+)(?: to=(?P<to>[A-Za-z0-9_.-]+))?"
    r"(?:<\|channel\|>(?P<channel>[a-z]+)(?: to=(?P<late>[A-Za-z0-9_.-]+))?"
    r"(?: ?(?:<\|constrain\|>)?(?P<kind>[A-Za-z0-9_./-]+))?)?"
)


class _Message(NamedTuple):
    author: str
    to: str
    channel: str
    content: str
    end: str
    place: int


def read_harmony(text: str) -> dict[str, Any]:
    """The conversation as a row with `messages`. Raises Unreadable where the text is not Harmony."""
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None
    place = 0
    while place < len(text):
        message, place = _message(text, place)
        if message.end == "<|return|>" and place < len(text):
            raise Unreadable("<|return|> before the end", message.place, "<|end|>")
        if message.author != "assistant":
            messages.append(_other(message))
            turn = None
            continue
        part, value = _part(message)
        if turn is None or _comes_late(turn, part):
            turn = {"role": "assistant", "content": None}
            messages.append(turn)
        if part == "tool_calls":
            turn.setdefault(part, []).append(value)
        else:
            turn[part] = value
    return {"messages": messages}


def _message(text: str, place: int) -> tuple[_Message, int]:
    """The message that starts at `place`, and where it ends."""
    if not text.startswith(_START, place):
        raise Unreadable("text between two messages", place, _START)
    start = place + len(_START)
    middle = text.find(_MIDDLE, start)
    if middle < 0:
        raise Unreadable("a message without <|message|>", place, "a header and <|message|>")
    header = _HEADER.fullmatch(text, start, middle)
    if header is None:
        raise Unreadable(f"a header that is none: {text[start:middle][:60]!r}", start, "a role, and a channel of the assistant")
    if header["to"] and header["late"]:
        raise Unreadable("a message to two", start, "one to=")
    first = middle + len(_MIDDLE)
    tag = _TAG.search(text, first)
    if tag is None:
        raise Unreadable("a message that does not end", place, " or ".join(_ENDS))
    if tag[0] not in _ENDS:
        raise Unreadable(f"{tag[0]} inside a message", tag.start(), " or ".join(_ENDS))
    told = _Message(header["author"], header["to"] or header["late"] or "", header["channel"] or "",
                    text[first : tag.start()], tag[0], place)  # fmt: skip
    return told, tag.end()


def _other(message: _Message) -> dict[str, Any]:
    """A message that the assistant did not write."""
    if message.end != "<|end|>":
        raise Unreadable(f"{message.end} ends a message of the {message.author}", message.place, "<|end|>")
    if message.author.startswith(_FUNCTION):
        if message.to != "assistant" or message.channel != "commentary":
            raise Unreadable("a tool's answer that is not to=assistant in commentary", message.place,
                             "<|start|>functions.x to=assistant<|channel|>commentary<|message|>")  # fmt: skip
        return {"role": "tool", "name": message.author.removeprefix(_FUNCTION), "content": message.content}
    if message.author not in ("system", "developer", "user"):
        raise Unreadable(f"{message.author[:40]!r} speaks", message.place, "system, developer, user, assistant or functions.x")
    if message.to or message.channel:
        raise Unreadable(f"a message of the {message.author} with a channel or a recipient", message.place, "its role alone")
    content = message.content
    return {"role": message.author, "content": content.removeprefix(INSTRUCTIONS) if message.author == "developer" else content}


def _part(message: _Message) -> tuple[str, Any]:
    """(which part of an assistant turn a message is, what it holds)."""
    if message.to:
        if not message.to.startswith(_FUNCTION) or message.channel != "commentary":
            raise Unreadable(f"a call to {message.to[:40]!r} in {message.channel or 'no channel'}", message.place,
                             "functions.x in commentary: built-in tools cannot be read")  # fmt: skip
        if message.end != "<|call|>":
            raise Unreadable(f"a call that ends with {message.end}", message.place, "<|call|>")
        return "tool_calls", {"name": message.to.removeprefix(_FUNCTION), "arguments": message.content}
    if message.end == "<|call|>":
        raise Unreadable("<|call|> ends a message that is no call", message.place, "<|end|> or <|return|>")
    if message.channel not in ("", "analysis", "commentary", "final"):
        raise Unreadable(f"the channel {message.channel!r}", message.place, "analysis, commentary or final")
    return ("thinking" if message.channel == "analysis" else "content"), message.content


def _comes_late(turn: dict[str, Any], part: str) -> bool:
    """Whether a part cannot belong to the turn any more: it or a later one is there already."""
    order = ("thinking", "content", "tool_calls")
    return any(turn.get(later) is not None for later in order[order.index(part) + (part == "tool_calls") :])
