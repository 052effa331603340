"""Conversations in token ids: the parts a template makes, encoded; which of them are learnt, and what may be cut.

Tags are control tokens placed by templates (`trainer/templates/`) alone; the text of a record is encoded as ordinary text
and can never become one (law 11). Text between two tags is encoded in one piece, because a tokenizer may merge a newline
with what follows it, and the same conversation must have one encoding wherever it is rendered.
Not here: the formats themselves, tokenizers, files, batches. Where no template is named, it is `mypt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.templates.base import Inexpressible, Part, Template, text_of
from trainer.templates.mypt import ASSISTANT_CLOSE, ASSISTANT_OPEN, END_OF_TURN, MYPT, SPECIAL_TOKENS

if TYPE_CHECKING:
    from trainer.tokenizer import Tokenizer

__all__ = [
    "ASSISTANT_CLOSE", "ASSISTANT_OPEN", "END_OF_TURN", "SPECIAL_TOKENS", "TEMPLATE_HASH", "TEMPLATE_VERSION", "Encoded",
    "Part", "encode", "encode_each", "encode_many", "encode_parts", "encode_prompt", "render_prompt", "render_text",
    "serialise", "stop_ids",
]  # fmt: skip

TEMPLATE_VERSION = MYPT.version
TEMPLATE_HASH = MYPT.hash


class Encoded(NamedTuple):
    """One example in tokens. `cut_start` counts from the example's first token; (0, 0) when nothing may be cut."""

    ids: NDArray[Any]
    """[n], of the tokenizer's dtype: uint16 or uint32"""
    mask: NDArray[np.uint8]
    """[n], 1 = trained"""
    cut_start: int
    cut_length: int


def serialise(example: Mapping[str, Any], template: Template = MYPT) -> list[Part]:
    """A conversation as the template's parts. Raises DataFault, Inexpressible like `Template.parts`."""
    return template.parts(example)


def render_text(example: Mapping[str, Any], template: Template = MYPT) -> str:
    """The conversation as people read it: the parts' text in a row."""
    return text_of(template.parts(example))


def _prompt_parts(
    system: str | None, context: str | None, messages: Sequence[Mapping[str, Any]], template: Template
) -> list[Part]:
    return template.prompt_parts({"system": system, "context": context, "messages": messages})


def render_prompt(system: str | None, context: str | None, messages: Sequence[Mapping[str, Any]],
                  template: Template = MYPT) -> str:  # fmt: skip
    """The text before an answer: the conversation so far, up to where the answer begins."""
    return text_of(_prompt_parts(system, context, messages, template))


def encode_prompt(
    system: str | None, context: str | None, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer,
    template: Template = MYPT,
) -> list[int]:  # fmt: skip
    """Token ids to generate an answer from, ending where the assistant begins."""
    ids: list[int] = []
    for part in _prompt_parts(system, context, messages, template):
        ids.extend([tokenizer.special(part.control)] if part.control else tokenizer.encode(part.text))
    return ids


def stop_ids(template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids after which an answer is over: the template's, and the one between documents."""
    return tuple(sorted({*(tokenizer.special(name) for name in template.stop_names), tokenizer.separator_id}))


def _assemble(parts: Sequence[Part], ids: Sequence[NDArray[Any]]) -> Encoded:
    """Put the ids of all parts, in order, together."""
    lengths = [len(piece) for piece in ids]
    mask = np.repeat(np.array([part.trained for part in parts], dtype=np.uint8), lengths)
    cut_start = cut_length = position = 0
    for part, length in zip(parts, lengths, strict=True):
        if part.cuttable and length > 2:
            # The first and last token hold the newlines that belong to the format: they stay.
            cut_start, cut_length = position + 1, length - 2
        position += length
    return Encoded(np.concatenate(ids), mask, cut_start, cut_length)


def encode_parts(rows: Sequence[Sequence[Part]], tokenizer: Tokenizer, threads: int = 1) -> list[Encoded]:
    """Parts in token ids: all their texts reach the tokenizer together, each text once, which may use threads."""
    texts = list({part.text: None for row in rows for part in row if not part.control})
    spoken = dict(zip(texts, tokenizer.encode_batch(texts, threads), strict=True))
    names = {part.control for row in rows for part in row if part.control}
    controls = {name: np.array([tokenizer.special(name)], dtype=tokenizer.dtype) for name in names}
    return [_assemble(row, [controls[part.control] if part.control else spoken[part.text] for part in row]) for row in rows]


def encode_many(examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, threads: int = 1,
                template: Template = MYPT) -> list[Encoded]:  # fmt: skip
    """Encode conversations in one go. Raises DataFault, and Inexpressible for one the template cannot say."""
    return encode_parts([template.parts(example) for example in examples], tokenizer, threads)


def encode_each(examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, threads: int = 1,
                template: Template = MYPT) -> list[Encoded | Inexpressible]:  # fmt: skip
    """Like `encode_many`, with the reason in the place of a conversation that the template has no words for."""
    rows: list[list[Part] | Inexpressible] = []
    for example in examples:
        try:
            rows.append(template.parts(example))
        except Inexpressible as reason:
            rows.append(reason)
    encoded = iter(encode_parts([row for row in rows if not isinstance(row, Inexpressible)], tokenizer, threads))
    return [row if isinstance(row, Inexpressible) else next(encoded) for row in rows]


def encode(example: Mapping[str, Any], tokenizer: Tokenizer, template: Template = MYPT) -> Encoded:
    """Token ids [n], loss mask (uint8 [n], 1 = trained) and the span of context tokens that may be cut."""
    return encode_many([example], tokenizer, 1, template)[0]
