"""Conversations that come as rendered text: taken apart strictly by their tags, or refused with the column.

A format is known by the tag the text opens with: `<myPT_*>` to the letter of this project's own template, the simplified
Harmony of `<|system|>` to `<|endoftext|>`, OpenAI's Harmony (`harmony_text.py`), and ChatML and Llama 3, whose turns stand
between an opening and a closing tag. Anything the format does not say is refused, never guessed: an unknown tag, an
element that does not end, text between elements, a tag where only content may stand. Columns count characters from 1.
What comes out is a row with `messages`; the rules for it are those of every conversation (`sft_rows.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from guard.checks.harmony_text import read_harmony
from guard.checks.jsonl import Fault
from guard.checks.rendered_faults import Unreadable

__all__ = ["TAGS", "messages_of", "opens_rendered"]

Row = dict[str, Any]
_TAG = re.compile(r"<\|[A-Za-z0-9_]+\|>")
_MYPT = re.compile(r"</?myPT_[A-Za-z0-9_]*>")
_MYPT_KINDS = ("system", "user_context", "user", "assistant")
_SIMPLE = ("system", "developer", "user", "assistant", "tool_call", "tool_result", "thinking", "endoftext")


class _Framed(NamedTuple):
    """A format whose turns stand between tags: opening, the end of the role's name, the closing tag."""

    opening: str
    header_end: str
    closing: str
    ends: tuple[str, ...]
    """What may stand after the last turn."""


_CHATML = _Framed("<|im_start|>", "\n", "<|im_end|>", ("", "<|endoftext|>"))
_LLAMA = _Framed("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", ("", "<|end_of_text|>"))


def opens_rendered(text: str) -> bool:
    """Whether a text opens with the tag of a format for conversations."""
    return text.lstrip().startswith(TAGS)


def messages_of(text: str) -> Row | Fault:
    """A rendered conversation as a row with `messages`, or the first place that its format does not allow."""
    start = len(text) - len(text.lstrip())
    body = text.strip()
    read = next((read for tag, read in _READERS.items() if body.startswith(tag)), None)
    if read is None:
        return Fault("", "the text does not open with the tag of a known chat format", f"one of {' '.join(TAGS)}")
    try:
        return read(body)
    except Unreadable as found:
        return Fault("", f"{found.reason} at column {start + found.place + 1}", found.expected)


def _mypt(text: str) -> Row:
    """Elements joined by one line feed: system, context, user and assistant in turn, the end mark."""
    row: Row = {"messages": []}
    place = 0
    while not text.startswith("<myPT_eot>", place):
        kind, content, place = _mypt_element(text, place)
        if kind in ("system", "user_context"):
            key = "system" if kind == "system" else "context"
            if row["messages"] or "context" in row or key in row:
                raise Unreadable(f"<myPT_{kind}> out of its place", place, "system, context, then user and assistant")
            row[key] = content
        else:
            row["messages"].append({"role": kind, "content": content})
        if not text.startswith("\n", place):
            reason = "text between two elements" if place < len(text) else "the end mark is missing"
            raise Unreadable(reason, place, "one line feed, then the next element or <myPT_eot>")
        place += 1
    if place + len("<myPT_eot>") != len(text):
        raise Unreadable("text after <myPT_eot>", place + len("<myPT_eot>"), "nothing")
    return row


def _mypt_element(text: str, place: int) -> tuple[str, str, int]:
    """(kind, content, where it ends) of the element that opens at `place`."""
    kind = next((kind for kind in _MYPT_KINDS if text.startswith(f"<myPT_{kind}>", place)), "")
    if not kind:
        raise Unreadable("no element opens", place, " or ".join(f"<myPT_{kind}>" for kind in _MYPT_KINDS))
    start = place + len(f"<myPT_{kind}>")
    tag = _MYPT.search(text, start)
    if tag is None:
        raise Unreadable(f"<myPT_{kind}> is never closed", place, f"</myPT_{kind}>")
    if tag[0] != f"</myPT_{kind}>":
        raise Unreadable(f"{tag[0]} inside <myPT_{kind}>", tag.start(), f"</myPT_{kind}>")
    content = text[start : tag.start()]
    if kind == "user_context":
        if len(content) < 2 or content[0] != "\n" or content[-1] != "\n":
            raise Unreadable("the context has no line of its own", start, "a line feed before and after it")
        content = content[1:-1]
    return kind, content, tag.end()


def _simple(text: str) -> Row:
    """Simplified Harmony: each tag opens what stands up to the next one; a line feed beside a tag belongs to it."""
    tags = list(_TAG.finditer(text))
    row: Row = {"messages": []}
    turn: Row | None = None
    """The assistant turn that is being put together: thinking, then content, then calls."""
    for number, tag in enumerate(tags):
        name = tag[0][2:-2]
        if name not in _SIMPLE:
            raise Unreadable(f"the unknown tag {tag[0]}", tag.start(), " ".join(f"<|{known}|>" for known in _SIMPLE))
        end = tags[number + 1].start() if number + 1 < len(tags) else len(text)
        content = text[tag.end() : end].removeprefix("\n").removesuffix("\n")
        if name == "endoftext":
            if tag.end() != len(text):
                raise Unreadable("text after <|endoftext|>", tag.end(), "nothing")
            break
        turn = _simple_element(row, turn, name, content, tag.start())
    return row


def _simple_element(row: Row, turn: Row | None, name: str, content: str, place: int) -> Row | None:
    """Put one element into the row; returns the assistant turn that is open after it."""
    if name not in ("thinking", "assistant", "tool_call"):
        role = "tool" if name == "tool_result" else name
        row["messages"].append({"role": role, "content": content})
        return None
    key = {"thinking": "thinking", "assistant": "content", "tool_call": "tool_calls"}[name]
    order = ("thinking", "content", "tool_calls")
    later = order[order.index(key) + (key == "tool_calls") :]
    if turn is None or any(turn.get(part) is not None for part in later):
        turn = {"role": "assistant", "content": None}
        row["messages"].append(turn)
    if key == "tool_calls":
        turn.setdefault("tool_calls", []).append(_simple_call(content, place))
    else:
        turn[key] = content
    return turn


def _simple_call(content: str, place: int) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"<|tool_call|> holds no JSON ({error.msg})", place, '{"name": ..., "arguments": {...}}') from error


def _framed(form: _Framed, text: str, place: int = 0) -> Row:
    """Turns between an opening and a closing tag, a line feed at most between them."""
    messages = []
    while text.startswith(form.opening, place):
        start = place + len(form.opening)
        middle = text.find(form.header_end, start)
        if middle < 0:
            raise Unreadable("the name of the role does not end", start, f"a role and {form.header_end!r}")
        first = middle + len(form.header_end)
        tag = _TAG.search(text, first)
        if tag is None:
            raise Unreadable(f"{form.opening} is never closed", place, form.closing)
        if tag[0] != form.closing:
            raise Unreadable(f"{tag[0]} inside a turn", tag.start(), form.closing)
        role = text[start:middle]
        content = text[first : tag.start()]
        messages.append({"role": role, "content": content.removesuffix("\n") if form is _CHATML else content})
        place = tag.end() + (form is _CHATML and text.startswith("\n", tag.end()))
    if text[place:] not in form.ends:
        raise Unreadable("text between two turns", place, f"{form.opening}, or the end")
    return {"messages": messages}


def _llama(text: str) -> Row:
    return _framed(_LLAMA, text, len("<|begin_of_text|>"))


_READERS: dict[str, Callable[[str], Row]] = {
    "<myPT_system>": _mypt, "<myPT_user_context>": _mypt, "<myPT_user>": _mypt,
    "<|system|>": _simple, "<|developer|>": _simple, "<|user|>": _simple,
    "<|start|>": read_harmony, "<|im_start|>": lambda text: _framed(_CHATML, text), "<|begin_of_text|>": _llama,
}  # fmt: skip
TAGS = tuple(_READERS)
"""What a rendered conversation may open with; text that opens otherwise is text."""
