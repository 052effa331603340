"""Transcripts: conversations as one text in which `Human:` and `Assistant:` take turns, each after an empty line.

The form of the HH-RLHF data set. Who speaks stands at the beginning of a paragraph and nowhere else; white space around
what is said belongs to the form. Not here: what a pair makes of two of them (`preference_rows.py`).
"""

from __future__ import annotations

import re

from guard.checks.jsonl import Fault

__all__ = ["opens_transcript", "read_transcript"]

_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def opens_transcript(text: str) -> bool:
    """Whether a text is a transcript: it opens with `Human:`, and an `Assistant:` follows."""
    text = text.lstrip()
    return text.startswith("Human:") and any(found[1] == "Assistant" for found in _SPEAKER.finditer(text))


def read_transcript(text: str, *, open_end: bool = False) -> list[dict[str, str]] | Fault:
    """The turns of a transcript. `open_end`: it ends with an empty `Assistant:`, which is left out, as a prompt does."""
    text = text.lstrip()
    found = list(_SPEAKER.finditer(text))
    if not found or found[0].start() != 0:
        return Fault("", "the transcript does not open with 'Human:'", "Human: ... Assistant: ... in turn")
    ends = [*(item.start() for item in found[1:]), len(text)]
    turns = [{"role": _ROLES[item[1]], "content": text[item.end() : end].strip()} for item, end in zip(found, ends, strict=True)]
    if not open_end:
        return turns
    if turns[-1]["role"] != "assistant" or turns[-1]["content"]:
        return Fault("", "the transcript does not end with an open 'Assistant:'", "'Assistant:' at the end, and nothing after it")
    return turns[:-1]
