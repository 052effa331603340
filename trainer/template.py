"""The conversation format: which text a conversation becomes, which of it is learnt, and which may be cut.

Written to the letter of the format this project took over: system, context, turns, one end mark, joined by single
newlines. Loss falls on the assistant's text and its closing tag, nothing else. Tags are control tokens placed by this
file alone; the text of a record is encoded as ordinary text and can never become one (law 11).
Not here: tokenizers, files, batches. Text between two tags is encoded in one piece, because a tokenizer may merge a
newline with what follows it, and the same conversation must have one encoding wherever it is rendered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataFault

if TYPE_CHECKING:
    from trainer.tokenizer import Tokenizer

__all__ = [
    "ASSISTANT_CLOSE",
    "ASSISTANT_OPEN",
    "END_OF_TURN",
    "SPECIAL_TOKENS",
    "TEMPLATE_HASH",
    "TEMPLATE_VERSION",
    "Encoded",
    "Part",
    "encode",
    "encode_many",
    "encode_prompt",
    "render_prompt",
    "render_text",
    "serialise",
]

SPECIAL_TOKENS = (
    "<myPT_system>",
    "</myPT_system>",
    "<myPT_user_context>",
    "</myPT_user_context>",
    "<myPT_user>",
    "</myPT_user>",
    "<myPT_assistant>",
    "</myPT_assistant>",
    "<myPT_eot>",
)
"""In the order of their ids."""
ASSISTANT_OPEN, ASSISTANT_CLOSE, END_OF_TURN = SPECIAL_TOKENS[6], SPECIAL_TOKENS[7], SPECIAL_TOKENS[8]
TEMPLATE_VERSION = 1
_TAGS = {
    "system": SPECIAL_TOKENS[0:2],
    "context": SPECIAL_TOKENS[2:4],
    "user": SPECIAL_TOKENS[4:6],
    "assistant": SPECIAL_TOKENS[6:8],
}


@dataclass(frozen=True)
class Part:
    """A piece of a conversation: one control token, or the text up to the next one."""

    text: str
    control: str | None = None
    trained: bool = False
    cuttable: bool = False
    """Text of the context, wrapped in one newline on each side; what is between those may be cut."""


class Encoded(NamedTuple):
    """One example in tokens. `cut_start` counts from the example's first token; (0, 0) when nothing may be cut."""

    ids: NDArray[np.uint16]
    mask: NDArray[np.uint8]
    cut_start: int
    cut_length: int


def _turns(example: Mapping[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    """(system, context, [(role, content), ...]) of an example. Raises DataFault for anything else."""
    system, context = example.get("system") or "", example.get("context") or ""
    turns: list[tuple[str, str]] = []
    for position, message in enumerate(example.get("messages") or ()):
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise DataFault(f"messages[{position}].content is {type(content).__name__}, expected text")
        if role == "system" and position == 0:
            if system and system != content:
                raise DataFault("the row has a `system` field and another system message", subject="messages[0]",
                                hint="keep one of the two")  # fmt: skip
            system = content
        elif role in ("user", "assistant"):
            turns.append((role, content))
        else:
            raise DataFault(f"messages[{position}].role is {role!r}, expected user or assistant"
                            " (system only as the first)", subject=f"messages[{position}]")  # fmt: skip
    if not isinstance(system, str) or not isinstance(context, str):
        raise DataFault("`system` and `context` must be text")
    return system, context, turns


def _element(kind: str, text: str) -> list[Part]:
    opening, closing = _TAGS[kind]
    trained = kind == "assistant"
    body = [Part(text, trained=trained, cuttable=kind == "context")] if text else []
    return [Part(opening, opening), *body, Part(closing, closing, trained=trained)]


def _elements(example: Mapping[str, Any]) -> list[list[Part]]:
    system, context, turns = _turns(example)
    elements = [_element("system", system)] if system else []
    if context:
        elements.append(_element("context", f"\n{context}\n"))
    return elements + [_element(role, content) for role, content in turns]


def _join(elements: Iterable[list[Part]]) -> list[Part]:
    parts: list[Part] = []
    for element in elements:
        if parts:
            parts.append(Part("\n"))
        parts.extend(element)
    return parts


def serialise(example: Mapping[str, Any]) -> list[Part]:
    """A conversation (`messages`, optional `system`, `context`) as parts, ending with the end mark.

    A first message of the role `system` is the same as the field `system`; empty system and context are left out.
    Raises DataFault for another role, another type, or two different system texts.
    """
    return _join([*_elements(example), [Part(END_OF_TURN, END_OF_TURN)]])


def render_text(example: Mapping[str, Any]) -> str:
    """The conversation as people read it: the parts' text in a row, without a final newline."""
    return "".join(part.text for part in serialise(example))


def _prompt_parts(system: str | None, context: str | None, messages: Sequence[Mapping[str, Any]]) -> list[Part]:
    example = {"system": system, "context": context, "messages": messages}
    return _join([*_elements(example), [Part(ASSISTANT_OPEN, ASSISTANT_OPEN)]])


def render_prompt(system: str | None, context: str | None, messages: Sequence[Mapping[str, Any]]) -> str:
    """The text before an answer: the conversation so far and the assistant's open tag."""
    return "".join(part.text for part in _prompt_parts(system, context, messages))


def encode_prompt(
    system: str | None, context: str | None, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer
) -> list[int]:
    """Token ids to generate an answer from, ending with the assistant's open tag."""
    ids: list[int] = []
    for part in _prompt_parts(system, context, messages):
        ids.extend([tokenizer.special(part.control)] if part.control else tokenizer.encode(part.text))
    return ids


def _assemble(parts: Sequence[Part], pieces: Iterable[NDArray[np.uint16]], tokenizer: Tokenizer) -> Encoded:
    """Put encoded text pieces (one per text part, in order) and control ids together."""
    texts = iter(pieces)
    ids = [np.array([tokenizer.special(part.control)], dtype=np.uint16) if part.control else next(texts)
           for part in parts]  # fmt: skip
    mask = [np.full(len(piece), part.trained, dtype=np.uint8) for part, piece in zip(parts, ids, strict=True)]
    cut_start = cut_length = position = 0
    for part, piece in zip(parts, ids, strict=True):
        if part.cuttable and len(piece) > 2:
            # The first and last token hold the newlines that belong to the format: they stay.
            cut_start, cut_length = position + 1, len(piece) - 2
        position += len(piece)
    return Encoded(np.concatenate(ids), np.concatenate(mask), cut_start, cut_length)


def encode_many(examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, threads: int = 1) -> list[Encoded]:
    """Encode conversations in one go: all their texts reach the tokenizer together, which may use threads."""
    rows = [serialise(example) for example in examples]
    texts = [part.text for row in rows for part in row if not part.control]
    pieces = iter(tokenizer.encode_batch(texts, threads))
    return [_assemble(row, [next(pieces) for part in row if not part.control], tokenizer) for row in rows]


def encode(example: Mapping[str, Any], tokenizer: Tokenizer) -> Encoded:
    """Token ids (uint16 [n]), loss mask (uint8 [n], 1 = trained) and the span of context tokens that may be cut."""
    return encode_many([example], tokenizer)[0]


def _template_hash() -> str:
    """SHA-256 over the version and what the code really makes of a conversation that uses everything."""
    probe = {"system": "s", "context": "c", "messages": [{"role": "user", "content": "u"},
             {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"},
             {"role": "assistant", "content": "b"}]}  # fmt: skip
    parts = [[part.text, part.control, part.trained, part.cuttable] for part in serialise(probe)]
    canonical = json.dumps([TEMPLATE_VERSION, SPECIAL_TOKENS, parts], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


TEMPLATE_HASH = _template_hash()
