"""What a row must hold to be trained on, and the usable examples of a stored file in their order for ever.

`validate_*` turn one JSON object into its trained fields, or into faults in the words of the data-format guide.
Bad rows (no JSON object there) and unusable rows (an object that cannot be trained on) are told apart by the caller.
Keys that are not trained on are ignored; keys that would have to be trained on and cannot be are faults, so that
nothing is dropped silently. The position of an example here is its ORDINAL: what counts as usable may never change
without a new version of the rules, since ledgers and datasets point at ordinals.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from guard.checks.columns import Reading
from guard.checks.jsonl import MAX_LINE_BYTES, Fault, Row, foreign_bytes, read_rows
from guard.errors import DataFault
from guard.fingerprint import example_fingerprint
from guard.segment import iter_segments

__all__ = [
    "ROLES", "RULES_VERSION", "Example", "Fault", "Fields", "Row", "has_rows", "iter_examples", "iter_rows", "open_regular",
    "text_chunks", "text_examples", "validate", "validate_pretrain", "validate_sft",
]  # fmt: skip

RULES_VERSION = 1
ROLES = ("system", "user", "assistant")
_UNTRAINED_YET = ("tool_calls", "function_call", "thinking", "reasoning_content")
_READ_BYTES = 1 << 20

Fields = dict[str, Any]  # {"text"} or {"messages": [{"role", "content"}, ...], "system"?, "context"?}


class Example(NamedTuple):
    """One usable example: its position in the file, its identity, what is trained on, and where it starts."""

    ordinal: int
    fingerprint: bytes
    fields: Fields
    line_number: int


def validate(kind: str, value: Mapping[str, Any]) -> Fields | list[Fault]:
    """The trained fields of a row of this kind, or every fault found in it."""
    return _VALIDATORS[kind](value)


def validate_pretrain(value: Mapping[str, Any]) -> Fields | list[Fault]:
    """A row of pretraining text: `text`, not empty."""
    fault = _text_fault(value, "text", "the text to learn")
    return [fault] if fault else {"text": value["text"]}


def validate_sft(value: Mapping[str, Any]) -> Fields | list[Fault]:
    """A conversation: `messages`, and optionally `system` and `context`.

    A first message of role `system` becomes the field `system`: both spellings are the same example.
    """
    faults: list[Fault] = []
    fields: Fields = {}
    for name in ("system", "context"):
        text = value.get(name)
        if text is None or (isinstance(text, str) and (not text or text.isspace())):
            continue
        fault = _text_fault(value, name, "text, or leave it out")
        if fault:
            faults.append(fault)
        else:
            fields[name] = text
    messages: list[dict[str, Any]] = value.get("messages", [])
    turn_faults = _list_faults(value) or _message_faults(messages) or _order_faults(messages)
    if not turn_faults and messages[0]["role"] == "system":
        if "system" in fields:
            turn_faults = [Fault("messages[0].role", "a system turn beside the field 'system'", "one of the two")]
        fields["system"] = messages[0]["content"]
        messages = messages[1:]
    if faults or turn_faults:
        return faults + turn_faults
    fields["messages"] = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    return fields


_VALIDATORS: dict[str, Callable[[Mapping[str, Any]], Fields | list[Fault]]] = {
    "pretrain": validate_pretrain,
    "sft": validate_sft,
}


def _text_fault(value: Mapping[str, Any], key: str, expected: str) -> Fault | None:
    if key not in value:
        return Fault(key, f"Missing required field '{key}'", expected)
    text = value[key]
    if not isinstance(text, str):
        return Fault(key, f"Field '{key}' must be a string", expected)
    if not text or text.isspace():
        return Fault(key, f"Field '{key}' is empty after stripping", expected)
    if "\0" in text:
        return Fault(key, f"Field '{key}' holds a NUL character", expected)
    return None


def _list_faults(value: Mapping[str, Any]) -> list[Fault]:
    expected = "a list of user and assistant turns"
    if "messages" not in value:
        return [Fault("messages", "Missing required field 'messages'", expected)]
    if not isinstance(value["messages"], list):
        return [Fault("messages", "Field 'messages' must be a list", expected)]
    if not value["messages"]:
        return [Fault("messages", "Field 'messages' is empty", expected)]
    return []


def _message_faults(messages: list[Any]) -> list[Fault]:
    """Faults of single turns: their shape, role and content."""
    faults = []
    for index, turn in enumerate(messages):
        fault = _turn_fault(turn)
        if fault:
            where = f"messages[{index}].{fault.field}" if fault.field else f"messages[{index}]"
            faults.append(fault._replace(field=where))
    return faults


def _turn_fault(turn: Any) -> Fault | None:
    if not isinstance(turn, dict):
        return Fault("", "a turn must be an object", '{"role": ..., "content": ...}')
    role = turn.get("role")
    if role not in ROLES or not isinstance(role, str):
        return _role_fault(turn)
    if len(turn) > 2:
        untrained = next((key for key in _UNTRAINED_YET if turn.get(key)), None)
        if untrained:
            return Fault(untrained, f"Field '{untrained}' cannot be trained on yet", "role and content")
    return _text_fault(turn, "content", "the text of the turn")


def _role_fault(turn: Mapping[str, Any]) -> Fault:
    expected = "system (first only), user or assistant"
    if "role" not in turn:
        return Fault("role", "Missing required field 'role'", expected)
    if not isinstance(turn["role"], str):
        return Fault("role", "Field 'role' must be a string", expected)
    return Fault("role", f"unknown role {turn['role'][:40]!r}", expected)


def _order_faults(messages: list[dict[str, Any]]) -> list[Fault]:
    """Faults of the conversation: system first, then user and assistant in turn, the last word the assistant's."""
    roles = [turn["role"] for turn in messages]
    start = 1 if roles[0] == "system" else 0
    if start == len(roles):
        return [Fault("messages", "there is only a system turn", "a user turn and an assistant turn")]
    for index in range(start, len(roles)):
        if roles[index] == "system":
            return [Fault(f"messages[{index}].role", "a system turn after the first turn", "system first only")]
        if index > start and roles[index] == roles[index - 1]:
            reason = f"two turns from the {roles[index]} in a row"
            return [Fault(f"messages[{index}].role", reason, "user and assistant in turn")]
    if roles[start] == "assistant":
        return [Fault(f"messages[{start}].role", "the first turn is from the assistant", "a user turn first")]
    if roles[-1] == "user":
        return [Fault(f"messages[{len(roles) - 1}].role", "the last turn is from the user", "an answer at the end")]
    return []


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file for reading, never through a symbolic link and never waiting for a FIFO's writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb", buffering=_READ_BYTES)


def has_rows(name: Path | str) -> bool:
    """Whether a file of this name holds rows, and not one text."""
    return os.fsdecode(name).lower().endswith((".jsonl", ".tar"))


def iter_rows(path: Path | str, max_line_bytes: int = MAX_LINE_BYTES, name: Path | str = "") -> Iterator[Row]:
    """Every line of a JSONL file that is not blank, as a row or a fault; of a packed folder those of all its files.

    `name`: what the file is called where that is not the name it lies under. Raises OSError, and DataFault for a packed
    folder that cannot be read (such a one is never admitted).
    """
    with open_regular(path) as stream:
        if os.fsdecode(name or path).lower().endswith(".tar"):
            from guard.checks.members import folder_rows

            yield from folder_rows(stream, max_line_bytes)
            return
        yield from read_rows(stream, max_line_bytes)


def iter_examples(path: Path | str, kind: str, reading: Reading | None = None) -> Iterator[Example]:
    """The usable examples of a stored file, in order: ordinals and fingerprints are the same for ever.

    `reading` is the one in the file's record: other columns would be other examples.

    JSONL and packed folders give their usable rows, plain text its segments, `docs` nothing. Raises DataFault when a plain text
    is not UTF-8 (such a file is never admitted), OSError as the disk says.
    """
    if kind == "docs":
        return
    if has_rows(path):
        ordinal = 0
        for row in iter_rows(path):
            value = row.value if not reading or row.value is None else reading.apply(row.value)
            fields = value is not None and validate(kind, value)
            if isinstance(fields, dict):
                yield Example(ordinal, example_fingerprint(fields), fields, row.line_number)
                ordinal += 1
        return
    with open_regular(path) as stream:
        yield from text_examples(text_chunks(stream))


def text_examples(chunks: Iterator[str]) -> Iterator[Example]:
    """The segments of a plain text that hold more than white space."""
    ordinal, line_number = 0, 1
    for segment in iter_segments(chunks):
        if not segment.isspace():
            fields = {"text": segment}
            yield Example(ordinal, example_fingerprint(fields), fields, line_number)
            ordinal += 1
        line_number += segment.count("\n")


def text_chunks(stream: BinaryIO) -> Iterator[str]:
    """A plain text decoded in chunks, without its byte-order mark.

    Raises DataFault naming the encoding, or line and column, when it is not UTF-8 or holds a NUL.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, tail, first = 1, 0, True
    while True:
        block = stream.read(_READ_BYTES)
        if first:
            foreign = foreign_bytes(block[:16])
            if foreign:
                raise DataFault(foreign.reason, hint="save it as UTF-8 text")
            block, first = block.removeprefix(codecs.BOM_UTF8), False
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            good = error.object[: error.start].decode("utf-8")
            raise _text_error(f"invalid UTF-8 (byte 0x{error.object[error.start]:02x})", good, lines, tail) from error
        if "\0" in text:
            raise _text_error("a NUL character", text[: text.index("\0")], lines, tail)
        if text:
            yield text
        newlines = text.count("\n")
        lines += newlines
        tail = len(text) - text.rindex("\n") - 1 if newlines else tail + len(text)
        if not block:
            return


def _text_error(what: str, before: str, lines: int, tail: int) -> DataFault:
    line = lines + before.count("\n")
    column = len(before) - (before.rindex("\n") + 1 if "\n" in before else -tail) + 1
    return DataFault(f"{what} at line {line}, column {column}", hint="the file must be UTF-8 text without NUL bytes")
