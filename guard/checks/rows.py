"""What a row must hold to be trained on, and the usable examples of a stored file in their order for ever.

`validate` turns one JSON object into its trained fields, or into faults in the words of the data-format guide; each kind
has a room of its own (`sft_rows.py`, `preference_rows.py`, `task_rows.py`), and so have the rules of old (`first_rules.py`).
Bad rows (no JSON object there) and unusable rows (an object that cannot be trained on) are told apart by the caller.
Keys that are not trained on are ignored; keys that would have to be trained on and cannot be are faults, so that
nothing is dropped silently. The position of an example here is its ORDINAL: what counts as usable may never change
without a new version of the rules, since ledgers and datasets point at ordinals.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import compress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from guard.checks.columns import PLAIN, RULES_VERSION, Reading
from guard.checks.field_faults import missing, text_fault
from guard.checks.first_rules import FIRST_RULES
from guard.checks.jsonl import MAX_LINE_BYTES, Fault, Row, foreign_bytes
from guard.checks.kinds import container_of, holds_rows
from guard.checks.preference_rows import validate_preference
from guard.checks.sft_rows import validate_sft
from guard.checks.task_rows import validate_mutation, validate_task
from guard.containers.read import read_container
from guard.containers.unpack import unpacked
from guard.errors import DataFault
from guard.fingerprint import example_fingerprint
from guard.segment import iter_segments
from guard.token_ids import ids_text

__all__ = [
    "RULES_VERSION", "Example", "Fault", "Fields", "Row", "iter_examples", "iter_rows", "open_regular",
    "read_fields", "text_chunks", "text_examples", "validate", "validate_pretrain", "validate_sft",
]  # fmt: skip

_READ_BYTES = 1 << 20

Fields = dict[str, Any]
"""Of a kind: {"text"} or {"input_ids": "1 2 3"}; {"messages": [turn, ...], "system"?, "context"?, "developer"?, "tools"?};
{"prefix", "chosen", "rejected"}; {"description", "tests", "starter_code"?};
{"buggy_code", "error_message", "fixed_code", "repo"?, "file"?}."""


class Example(NamedTuple):
    """One usable example: its position in the file, its identity, what is trained on, and where it starts."""

    ordinal: int
    fingerprint: bytes
    fields: Fields
    line_number: int


def validate(kind: str, value: Mapping[str, Any], rules: int = RULES_VERSION) -> Fields | list[Fault]:
    """The trained fields of a row of this kind under our own names, or every fault found in it.

    `rules`: the version under which its file was admitted.
    """
    chosen = FIRST_RULES if rules == 1 and kind in FIRST_RULES else _VALIDATORS
    return chosen[kind](value)


def read_fields(kind: str, row: Mapping[str, Any], reading: Reading | None = None) -> Fields | list[Fault]:
    """The trained fields of a row as it stands in a file: under its names, by its rules. None: a new file's."""
    reading = PLAIN if reading is None else reading  # one without names is false, and may hold older rules
    return validate(kind, reading.apply(row) if reading else row, reading.rules)


def validate_pretrain(value: Mapping[str, Any]) -> Fields | list[Fault]:
    """A row of pretraining text, or of token ids that were packed elsewhere."""
    if value.get("text") is None and "input_ids" in value:
        return _token_ids(_unpadded(value))
    fault = text_fault(value, "text", "the text to learn")
    return [fault] if fault else {"text": value["text"]}


def _unpadded(value: Mapping[str, Any]) -> Any:
    """The token ids of a row without its padding, or what is wrong with what stands beside them."""
    ids, mask, labels = (value.get(key) for key in ("input_ids", "attention_mask", "labels"))
    if not isinstance(ids, list):
        return ids
    for key, given in (("attention_mask", mask), ("labels", labels)):
        if given is not None and (not isinstance(given, list) or len(given) != len(ids)):
            return Fault(key, f"Field '{key}' must be a list as long as 'input_ids'", f"{len(ids)} numbers")
    if mask is not None:
        place = next((place for place, item in enumerate(mask) if not isinstance(item, int) or item not in (0, 1)), None)
        if place is not None:
            return Fault(f"attention_mask[{place}]", f"{mask[place]!r:.40} is neither 0 nor 1", "0 for padding, 1 for all else")
        if ids and not any(mask):
            return Fault("attention_mask", "Field 'attention_mask' leaves no token: all of it is padding", "1 for a token")
        ids, labels = list(compress(ids, mask)), labels and list(compress(labels, mask))
    if labels is None or labels == ids:
        return ids
    if -100 in labels:
        return Fault("labels", "Field 'labels' masks tokens: token ids are trained whole",
                     "drop the conversations themselves, or take the column out")  # fmt: skip
    return Fault("labels", "Field 'labels' is something else than 'input_ids'", "the same ids, or take the column out")


def _token_ids(ids: Any) -> Fields | list[Fault]:
    """Token ids, as text: the canonical form of an example holds texts only."""
    if isinstance(ids, Fault):
        return [ids]
    expected = "a list of token ids: whole numbers from 0 on"
    if ids is None:
        return [missing("input_ids", expected)]
    if not isinstance(ids, list):
        return [Fault("input_ids", "Field 'input_ids' must be a list", expected)]
    if not ids:
        return [Fault("input_ids", "Field 'input_ids' is empty", expected)]
    text = ids_text(ids)
    if text:
        return {"input_ids": text}
    if set(map(type, ids)) != {int}:
        place = next(place for place, item in enumerate(ids) if type(item) is not int)
        return [Fault(f"input_ids[{place}]", f"{ids[place]!r:.40} is no token id", expected)]
    if min(ids) < 0:
        place = next(place for place, item in enumerate(ids) if item < 0)
        return [Fault(f"input_ids[{place}]", f"the token id {ids[place]} is negative", expected)]
    return {"input_ids": " ".join(map(str, ids))}  # some number is longer than 64 bits


_VALIDATORS: dict[str, Callable[[Mapping[str, Any]], Fields | list[Fault]]] = {
    "pretrain": validate_pretrain, "sft": validate_sft, "preference": validate_preference, "task": validate_task,
    "mutation": validate_mutation,
}  # fmt: skip


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file for reading, never through a symbolic link and never waiting for a FIFO's writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb", buffering=_READ_BYTES)


def iter_rows(path: Path | str, max_line_bytes: int = MAX_LINE_BYTES, *, name: str = "") -> Iterator[Row]:
    """Every row of a file that holds rows, or a fault; `name` where the bytes do not lie under their name.

    Raises DataFault when the container is broken (never that of JSONL), OSError.
    """
    with open_regular(path) as stream:
        yield from read_container(stream, _container(path, name), max_line_bytes=max_line_bytes)


def _container(path: Path | str, name: str) -> str:
    return container_of(name or os.path.basename(os.fsdecode(path)))


def iter_examples(path: Path | str, kind: str, reading: Reading | None = None, *, name: str = "") -> Iterator[Example]:
    """The usable examples of a stored file, in order: ordinals and fingerprints are the same for ever.

    `reading` is the one in the file's record: other columns would be other examples. `name`: as for `iter_rows`.

    A container of rows gives its usable rows, plain text its segments, `docs` nothing. Raises DataFault when a container is
    broken or a plain text is not UTF-8 (such files are never admitted), OSError as the disk says.
    """
    if kind == "docs":
        return
    container = _container(path, name)
    if holds_rows(container):
        ordinal = 0
        for row in iter_rows(path, name=name):
            fields = row.value is not None and read_fields(kind, row.value, reading)
            if isinstance(fields, dict):
                yield Example(ordinal, example_fingerprint(fields), fields, row.line_number)
                ordinal += 1
        return
    with open_regular(path) as stream, unpacked(stream, container) as (plain, _inner):
        yield from text_examples(text_chunks(plain))


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
