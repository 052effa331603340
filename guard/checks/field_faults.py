"""The single fields of a row: is it there, is it text, does it say anything. In the words of the data-format guide.

Every rule of a row is made of these. Not here: what a row is for (`sft_rows.py` and its neighbours).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from guard.checks.jsonl import Fault

__all__ = ["below", "is_blank", "missing", "name_fault", "optional_texts", "text_fault"]


_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


def is_blank(value: object) -> bool:
    """Whether a value says nothing: absent, null, or text of white space."""
    return value is None or (isinstance(value, str) and (not value or value.isspace()))


def missing(key: str, expected: str) -> Fault:
    """The fault of a row without a field it needs."""
    return Fault(key, f"Missing required field '{key}'", expected)


def text_fault(value: Mapping[str, Any], key: str, expected: str, *, may_be_empty: bool = False) -> Fault | None:
    """What is wrong with a field that must be text; None when nothing is."""
    if key not in value:
        return missing(key, expected)
    text = value[key]
    if not isinstance(text, str):
        return Fault(key, f"Field '{key}' must be a string", expected)
    if not may_be_empty and (not text or text.isspace()):
        return Fault(key, f"Field '{key}' is empty after stripping", expected)
    if "\0" in text:
        return Fault(key, f"Field '{key}' holds a NUL character", expected)
    return None


def name_fault(value: Mapping[str, Any], key: str) -> Fault | None:
    """What is wrong with the name of a tool: templates write it among their tags, where a space or a tag would say more."""
    fault = text_fault(value, key, "the name of the tool")
    if fault is None and not _NAME.fullmatch(value[key]):
        return Fault(key, f"{value[key]!r:.60} is no name of a tool", "1 to 128 letters, digits and _ . : / -")
    return fault


def optional_texts(value: Mapping[str, Any], keys: Iterable[str]) -> tuple[dict[str, str], list[Fault]]:
    """Those of the fields that say something, and a fault for each that is no text. White space alone says nothing."""
    fields: dict[str, str] = {}
    faults = []
    for key in keys:
        if is_blank(value.get(key)):
            continue
        fault = text_fault(value, key, "text, or leave it out")
        if fault:
            faults.append(fault)
        else:
            fields[key] = value[key]
    return fields, faults


def below(place: str, faults: Iterable[Fault]) -> list[Fault]:
    """Faults of a part, named from the whole: `content` of `messages[0]` is `messages[0].content`."""
    return [fault._replace(field=f"{place}.{fault.field}" if fault.field and fault.field[0] != "[" else f"{place}{fault.field}")
            for fault in faults]  # fmt: skip
