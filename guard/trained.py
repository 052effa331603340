"""What of an example is trained, whatever its kind: its texts in their order, and the conversation a mutation becomes.

Fields come from `guard/checks/rows.py`. Not here: templates, which make text of a conversation (`trainer/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from guard.checks.task_rows import mutation_conversation

__all__ = ["questions_of", "texts_of", "trained_fields"]


def trained_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that the trainer makes text of: those of a mutation are told as a conversation."""
    return mutation_conversation(fields) if "buggy_code" in fields else fields


def texts_of(fields: Mapping[str, Any]) -> Iterator[str]:
    """The trained texts in their order: text; or what frames a conversation, then its turns; or the parts of a pair or task.

    Of a turn first the thinking, then the content, then name and arguments of each call.
    """
    fields = trained_fields(fields)
    if "prefix" in fields:
        yield from texts_of(fields["prefix"])
    yield from (fields[name] for name in ("text", "input_ids", "system", "developer", "tools", "context", "description",
                                          "starter_code", "tests", "chosen", "rejected") if fields.get(name))  # fmt: skip
    for turn in fields.get("messages", ()):
        if turn.get("thinking"):
            yield turn["thinking"]
        if turn["content"] or len(turn) == 2:
            yield turn["content"]
        for call in turn.get("tool_calls", ()):
            yield from (call["name"], call["arguments"])


def questions_of(fields: Mapping[str, Any]) -> list[str]:
    """What an example asks: the user's turns of a conversation or of a pair's prefix, the description of a task."""
    if "description" in fields:
        return [fields["description"]]
    turns = trained_fields(fields.get("prefix") or fields).get("messages", ())
    return [turn["content"] for turn in turns if turn["role"] == "user"]
