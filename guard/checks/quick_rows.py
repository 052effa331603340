"""The quick way through rows of the usual shape: raw line in, fingerprint out, or None when it takes a careful look.

Most rows of most files are chats of plain turns or plain texts. For those this file answers what the careful way
(`jsonl.py`, `rows.py`, `fingerprint.py`) answers, at several times its speed; whatever is not surely of that shape is
None here and goes the careful way, which alone knows what a fault is. A test feeds both ways the same rows.
Nothing is refused here, and nothing is decided about a file.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import orjson

from guard.fingerprint import new_hash

__all__ = ["Quick", "QuickReader", "form_bytes", "quick_reader"]

Quick = tuple[bytes, int]
"""(fingerprint of 16 bytes, bytes of the trained texts as they stand in the canonical form)"""
QuickReader = Callable[[bytes], Quick | None]

_TRAINED = frozenset({"text", "messages", "system", "context"})
_loads, _dumps, _normal = orjson.loads, orjson.dumps, unicodedata.normalize
_SORTED = orjson.OPT_SORT_KEYS


class _Careful(Exception):
    """This row takes a careful look; not an error."""


def quick_reader(kind: str | None) -> QuickReader | None:
    """The quick way for rows of a kind, None where there is none."""
    return {"sft": _chat, "pretrain": _text}.get(kind or "")


def _no_string_lost(raw: bytes, strings: int) -> bool:
    """Whether the line holds no more strings than were kept, as it does when a key was written twice.

    Every string has two quotes of its own, and a quote inside one is escaped: a backslash before it that is not itself
    escaped. Backslashes escape each other in pairs from the left, which is how `replace` takes them away.
    """
    quotes = raw.count(b'"')
    if quotes == 2 * strings:
        return True
    if b"\\\\" in raw:
        raw = raw.replace(b"\\\\", b"")
    return quotes - raw.count(b'\\"') == 2 * strings


def _other_strings(value: dict[str, Any]) -> int:
    """How many strings stand among the values that are not trained on. Raises _Careful where one is not plain."""
    strings = 0
    for name, item in value.items():
        if name not in _TRAINED:
            if type(item) is str:
                strings += 1
            elif type(item) is dict or type(item) is list:
                raise _Careful
    return strings


def _clean(text: str) -> str:
    """A text in canonical form. Raises _Careful where that takes more than these few steps, AttributeError for no text."""
    text = text.strip() if text.isascii() else _normal("NFC", text).strip()
    if not text or "\0" in text or "\r" in text:
        raise _Careful
    return text


def form_bytes(fields: dict[str, Any]) -> int:
    """How many bytes of an example's canonical form are names and punctuation and not its texts."""
    if "text" in fields:
        return len('{"text":""}')
    # A question and its answer: {"content":"","role":"user"},{"content":"","role":"assistant"},
    return 14 + 63 * (len(fields["messages"]) // 2) + 12 * ("system" in fields) + 13 * ("context" in fields)


def _fingerprint(fields: dict[str, Any]) -> Quick:
    form = _dumps(fields, None, _SORTED)
    digest = new_hash()
    digest.update(form)
    return digest.digest(), len(form) - form_bytes(fields)


def _text(raw: bytes) -> Quick | None:
    try:
        value = _loads(raw)
        if not _no_string_lost(raw, len(value) + 1 + (_other_strings(value) if len(value) > 1 else 0)):
            return None
        if len(value) > 1 and ("messages" in value or "system" in value or "context" in value):
            return None
        return _fingerprint({"text": _clean(value["text"])})
    except (_Careful, ValueError, KeyError, TypeError, AttributeError):
        return None


def _chat(raw: bytes) -> Quick | None:
    try:
        value = _loads(raw)
        turns = value["messages"]
        # Each turn: two keys, two values. Each field of the row: a key, and a value unless it is the list of turns.
        strings, known = len(value) + 4 * len(turns), 1
        fields: dict[str, Any] = {}
        for name in ("context", "system"):
            if name in value:
                strings, known = strings + 1, known + 1
                fields[name] = _clean(value[name])
        if turns[0]["role"] == "system":
            if "system" in fields or len(turns[0]) != 2:
                return None
            fields["system"], turns = _clean(turns[0]["content"]), turns[1:]
        for place in range(0, len(turns), 2):
            question, answer = turns[place], turns[place + 1]
            if question["role"] != "user" or answer["role"] != "assistant" or len(question) != 2 or len(answer) != 2:
                return None
            asked, said = question["content"], answer["content"]
            # What `_clean` does, written out for the commonest case: this is where the time goes.
            if asked.isascii() and said.isascii():
                question["content"], answer["content"] = asked.strip(), said.strip()
                if "\0" in asked or "\r" in asked or "\0" in said or "\r" in said:
                    return None
                if not question["content"] or not answer["content"]:
                    return None
            else:
                question["content"], answer["content"] = _clean(asked), _clean(said)
        if len(value) > known:
            strings += _other_strings(value)
        if not turns or type(turns) is not list or "text" in value or not _no_string_lost(raw, strings):
            return None
        fields["messages"] = turns
        return _fingerprint(fields)
    except (_Careful, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
