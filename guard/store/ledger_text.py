"""Text for the ledger: whatever bytes a name is made of, SQLite and JSON get real text, with odd bytes shown escaped.

Pure. Not here: names on the disk (`guard/names.py`), which keep their bytes.
"""

from __future__ import annotations

from typing import Any

import orjson

__all__ = ["clean_text", "payload_text", "text_only"]


def clean_text(text: str) -> str:
    """Names with bytes that are not UTF-8 are shown escaped: SQLite and JSON hold only real text."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a character, from somebody's JSON
        return text.encode("utf-8", "backslashreplace").decode()


def payload_text(payload: dict[str, object]) -> str:
    """JSON of an event's payload. orjson refuses what is no text, and only then every text in it is cleaned."""
    try:
        return orjson.dumps(payload, option=orjson.OPT_SORT_KEYS, default=str).decode()
    except TypeError:
        return orjson.dumps(text_only(payload), option=orjson.OPT_SORT_KEYS, default=str).decode()


def text_only(value: Any) -> Any:
    """The value with every text in it cleaned: a message that names an odd file must not stop what it tells of."""
    if isinstance(value, str):
        return value if value.isascii() else clean_text(value)
    if isinstance(value, list | tuple):
        return [text_only(item) for item in value]
    return {key: text_only(item) for key, item in value.items()} if isinstance(value, dict) else value
