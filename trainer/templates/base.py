"""What a template is: an example becomes parts, each one control token or a piece of text, with what is trained.

Masks come from this structure and never from searching text, and a control token is placed by a template alone: what
stands in a record is text, whatever it says (law 11). Not here: any single format, tokenizers, token ids.
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from guard.errors import DataFault

__all__ = ["FROZEN_DATE", "Example", "Inexpressible", "Part", "Template", "joined", "text_of", "unlearnt"]

FROZEN_DATE = "2025-06-28"
"""What a template is told of today unless another day was chosen when the base was made."""

Example = Mapping[str, Any]
"""The fields of a conversation: messages, and system, context, developer, tools where there are any."""


class Inexpressible(DataFault):
    """A sound conversation that this template has no words for; such a row is counted and left out, never bent."""


@dataclass(frozen=True)
class Part:
    """A piece of a conversation: one control token, or the text up to the next one."""

    text: str
    control: str | None = None
    trained: bool = False
    cuttable: bool = False
    """Text of the context; all of it but the first and the last token may be cut."""


def text_of(parts: Iterable[Part]) -> str:
    """The parts as people read them, in a row."""
    return "".join(part.text for part in parts)


def joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbouring texts of one kind in one piece, empty ones left out.

    A tokenizer may merge a newline with what follows it, so the text between two control tokens is encoded whole. Where
    training begins it is not: there a prompt ends, and the model goes on from exactly those tokens.
    """
    found: list[Part] = []
    for part in parts:
        if not part.text:
            continue
        last = found[-1] if found else None
        if last and not last.control and not part.control and (last.trained, last.cuttable) == (part.trained, part.cuttable):
            found[-1] = Part(last.text + part.text, None, part.trained, part.cuttable)
        else:
            found.append(part)
    return found


def unlearnt(parts: Iterable[Part]) -> list[Part]:
    """The same pieces for a prompt, with nothing trained: after `joined`, so that earlier answers are encoded as in training."""
    return [replace(part, trained=False) for part in parts]


class Template(ABC):
    """One format of conversations. Two templates with the same hash make the same of every example."""

    name: str
    version: int = 1
    special_tokens: tuple[str, ...] = ()
    """The control tokens it places; the tokenizer must know all of them."""
    stop_names: tuple[str, ...] = ()
    """Control tokens after which an answer is over."""

    @abstractmethod
    def parts(self, example: Example) -> list[Part]:
        """The whole conversation for training. Raises DataFault for what is no conversation, Inexpressible for what
        this template cannot say."""

    @abstractmethod
    def prompt_parts(self, example: Example) -> list[Part]:
        """The conversation so far, up to where the assistant's answer begins; nothing of it is trained."""

    def answer(self, generated: str) -> str:
        """What a person is shown of the text that was generated after a prompt, the stop token left away."""
        return generated

    @property
    def options(self) -> dict[str, Any]:
        """What it was built with besides its name; with both, `find.template_from` builds it again."""
        return {}

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over name, version, options, special tokens and what the code really makes of two conversations."""
        made = [[[part.text, part.control, part.trained, part.cuttable] for part in parts] for parts in self._probes()]
        identity = [self.name, self.version, self.options, self.special_tokens, made]
        canonical = json.dumps(identity, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _probes(self) -> list[list[Part]]:
        return [self._try(_PLAIN_PROBE), self._try(_TOOL_PROBE)]

    def _try(self, example: Example) -> list[Part]:
        try:
            return self.parts(example)
        except Inexpressible:
            return []

    @abstractmethod
    def jinja(self) -> str:
        """The same format as a chat template for `transformers` (`chat_template.jinja`)."""

    def state(self) -> dict[str, Any]:
        """The content of `template.json`."""
        return {"schema": 1, "name": self.name, "version": self.version, "options": self.options, "hash": self.hash}


_PLAIN_PROBE: Example = {"system": "s", "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"},
                         {"role": "user", "content": "v"}, {"role": "assistant", "content": "b"}]}  # fmt: skip
_TOOL_PROBE: Example = {
    "developer": "d", "context": "c", "tools": '[{"type":"function","function":{"name":"f","description":"e"}}]',
    "messages": [{"role": "user", "content": "u"},
                 {"role": "assistant", "content": "p", "thinking": "t",
                  "tool_calls": [{"name": "f", "arguments": "{}", "id": "1"}]},
                 {"role": "tool", "content": "o", "tool_call_id": "1"}, {"role": "assistant", "content": "a"}],
}  # fmt: skip
