"""The rules of a preference pair: what was asked, the answer that was preferred, the one that was not.

Fields: {"prefix": {"messages": [turn, ...], "system"?, ...}, "chosen": text, "rejected": text}; the prefix ends with the
user. Read are `prefix` or `prompt` beside two answers, and two whole conversations (lists of turns, transcripts, rendered
text) that are the same up to the last answer. However a pair is spelt, it gives the same fields. Ids, sources and scores
are not trained on. Not here: transcripts (`transcripts.py`), rendered text (`prerendered.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guard.checks.conversation import read_conversation
from guard.checks.field_faults import below, is_blank, missing, text_fault
from guard.checks.jsonl import Fault
from guard.checks.prerendered import messages_of, opens_rendered
from guard.checks.sft_rows import frame_of
from guard.checks.transcripts import opens_transcript, read_transcript
from guard.checks.turns import Turn
from guard.fingerprint import canonical_bytes, canonical_text

__all__ = ["validate_preference"]

Fields = dict[str, Any]
_SIDES = ("chosen", "rejected")
_PREFIX = 'the conversation up to the last question: {"messages": [...]}, or `prompt` as text'


class _Told(Exception):
    """Faults on their way out of the parts of a row; never further than `validate_preference`."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__()
        self.faults = list(faults)


def validate_preference(value: Mapping[str, Any]) -> Fields | list[Fault]:
    """A pair in any of its spellings, or every fault that was found before one made the rest unreadable."""
    value = {**value, **{side: [value[side]] for side in _SIDES if isinstance(value.get(side), Mapping)}}  # one turn, no list
    faults = [fault for side in _SIDES if (fault := _side_fault(value, side))]
    if faults:
        return faults
    try:
        prefix, answers = _whole(value) if _is_whole(value) else _split(value)
    except _Told as told:
        return told.faults
    if canonical_text(answers[0]) == canonical_text(answers[1]):
        return [Fault("rejected", "Responses are identical", "another answer than chosen")]
    return {"prefix": prefix, "chosen": answers[0], "rejected": answers[1]}


def _side_fault(value: Mapping[str, Any], side: str) -> Fault | None:
    expected = "the answer as text, or as turns"
    if isinstance(value.get(side), list):
        return None if value[side] else Fault(side, f"Field '{side}' is empty", expected)
    return text_fault(value, side, expected)


def _is_whole(value: Mapping[str, Any]) -> bool:
    """Whether both answers are whole conversations, each with the question in it."""
    return all(_holds_question(value[side]) for side in _SIDES)


def _holds_question(side: Any) -> bool:
    if isinstance(side, list):
        return any(isinstance(turn, Mapping) and turn.get("role") == "user" for turn in side)
    return opens_rendered(side) or opens_transcript(side)


# --- a prefix and two answers -----------------------------------------------------------------------------------------


def _split(value: Mapping[str, Any]) -> tuple[Fields, list[str]]:
    prefix = _prefix(value)
    return prefix, [_answer(value, side) for side in _SIDES]


def _prefix(value: Mapping[str, Any]) -> Fields:
    """The prefix of a row with `prefix` or `prompt`. Raises _Told."""
    given = [key for key in ("prefix", "prompt") if not is_blank(value.get(key)) and value[key] != []]
    if not given:
        present = next((key for key in ("prefix", "prompt") if key in value), None)
        raise _Told(Fault(present, f"Field '{present}' is empty after stripping", _PREFIX) if present and
                    isinstance(value[present], str) else missing("prefix", _PREFIX))  # fmt: skip
    if len(given) > 1:
        raise _Told(Fault("prompt", "Field 'prompt' beside 'prefix'", "one of the two"))
    key = given[0]
    source = value[key]
    row: dict[str, Any]
    if isinstance(source, Mapping):
        row = dict(source)
    elif isinstance(source, list):
        row = {"messages": source}
    else:
        row = {"messages": _prompt_turns(value, key)}
    if "messages" not in row:
        raise _Told(Fault(f"{key}.messages", "Missing required field 'messages'", _PREFIX))
    for outer in ("system", "context", "developer", "tools"):
        if not is_blank(value.get(outer)):
            if not is_blank(row.get(outer)):
                raise _Told(Fault(outer, f"Field '{outer}' beside '{key}.{outer}'", "one of the two"))
            row[outer] = value[outer]
    return _conversation(row, key, "user")


def _prompt_turns(value: Mapping[str, Any], key: str) -> list[dict[str, str]]:
    fault = text_fault(value, key, _PREFIX)
    if fault:
        raise _Told(fault)
    text = value[key]
    if opens_rendered(text):
        raise _Told(Fault(key, "a prompt of rendered text beside plain answers", "turns, or all three as whole conversations"))
    if not text.lstrip().startswith("Human:"):
        return [{"role": "user", "content": text}]
    turns = read_transcript(text, open_end=True)
    if isinstance(turns, Fault):
        raise _Told(turns._replace(field=key))
    return turns


def _conversation(row: Mapping[str, Any], place: str, ends_with: str) -> Fields:
    """The fields of a conversation, or of the beginning of one. Raises _Told."""
    fields, faults = frame_of(row)
    frame, turns, turn_faults = read_conversation(row["messages"], ends_with=ends_with)
    faults += turn_faults or [Fault(name, f"a {name} turn beside the field '{name}'", "one of the two")
                              for name in frame if name in fields]  # fmt: skip
    if faults:
        raise _Told(*below(place, faults))
    for turn in turns:
        turn.pop("weight", None)  # of a pair only the two answers are compared: nothing before them is learnt
    return {**fields, **frame, "messages": turns}


def _answer(value: Mapping[str, Any], side: str) -> str:
    """The text of an answer that stands by itself. Raises _Told."""
    found = value[side]
    if _holds_question(found):
        other = _SIDES[side == "chosen"]
        raise _Told(Fault(side, f"a whole conversation, and '{other}' is a single answer", "both alike"))
    if isinstance(found, str):
        return found
    if len(found) != 1:
        raise _Told(Fault(side, f"{len(found)} turns without a question", "one assistant turn, or the whole conversation"))
    # A question before it, so that the rules of a conversation judge the answer.
    turns = _conversation({"messages": [{"role": "user", "content": "?"}, *found]}, side, "assistant")["messages"]
    return _plain(turns[-1], side)


def _plain(turn: Turn, side: str) -> str:
    extra = next((key for key in ("tool_calls", "thinking") if key in turn), None)
    if extra:
        raise _Told(Fault(side, f"an answer with {extra}", "an answer that is text alone"))
    return str(turn["content"])


# --- two whole conversations ------------------------------------------------------------------------------------------


def _whole(value: Mapping[str, Any]) -> tuple[Fields, list[str]]:
    """Two conversations that are the same up to their last answer. Raises _Told."""
    rows = [_conversation(_row_of(value, side), side, "assistant") for side in _SIDES]
    prefixes = [{**row, "messages": row["messages"][:-1]} for row in rows]
    if any(prefix["messages"][-1]["role"] != "user" for prefix in prefixes):
        raise _Told(Fault("chosen", "the last answer follows a tool turn", "an answer to the user"))
    if canonical_bytes(prefixes[0]) != canonical_bytes(prefixes[1]):
        raise _Told(Fault("rejected", "the conversations differ before the last answer", "the same up to the last answer"))
    _check_prompt(value, prefixes[0])
    return prefixes[0], [_plain(row["messages"][-1], side) for row, side in zip(rows, _SIDES, strict=True)]


def _row_of(value: Mapping[str, Any], side: str) -> dict[str, Any]:
    found = value[side]
    frame = {key: value[key] for key in ("system", "context", "developer", "tools") if not is_blank(value.get(key))}
    if isinstance(found, list):
        return {**frame, "messages": found}
    row = messages_of(found) if opens_rendered(found) else read_transcript(found)
    if isinstance(row, Fault):
        raise _Told(row._replace(field=side))
    if isinstance(row, list):
        return {**frame, "messages": row}
    twice = next((key for key in frame if not is_blank(row.get(key))), None)
    if twice:
        raise _Told(Fault(twice, f"Field '{twice}' beside rendered text", "one of the two"))
    return {**frame, **row}


def _check_prompt(value: Mapping[str, Any], prefix: Fields) -> None:
    """What `prompt` or `prefix` says beside whole conversations must be in them. Raises _Told."""
    given = next((key for key in ("prefix", "prompt") if not is_blank(value.get(key)) and value[key] != []), None)
    if given is None:
        return
    if isinstance(value[given], str) and not value[given].lstrip().startswith("Human:"):
        asked = canonical_text(value[given])
        same = any(canonical_text(turn["content"]) == asked for turn in prefix["messages"] if turn["role"] == "user")
    else:
        told = _prefix({key: value[key] for key in (given,)})
        same = canonical_bytes(told["messages"]) == canonical_bytes(prefix["messages"])
    if not same:
        raise _Told(Fault(given, f"Field '{given}' is not what the conversations begin with", "the same, or leave it out"))
