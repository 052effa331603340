"""The format this project took over, to the letter: system, context, turns, one end mark, joined by single newlines.

Loss falls on the assistant's text and its closing tag, nothing else. It has words for system, context, user and
assistant only: tool calls, thinking and developer texts are inexpressible here.
Not here: other formats, tokenizers, files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from guard.errors import DataFault
from trainer.templates.base import Example, Inexpressible, Part, Template, unlearnt
from trainer.templates.conversation import is_learnt

__all__ = ["ASSISTANT_CLOSE", "ASSISTANT_OPEN", "END_OF_TURN", "MYPT", "SPECIAL_TOKENS", "MyptTemplate"]

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
_TAGS = {
    "system": SPECIAL_TOKENS[0:2],
    "context": SPECIAL_TOKENS[2:4],
    "user": SPECIAL_TOKENS[4:6],
    "assistant": SPECIAL_TOKENS[6:8],
}


_CHAT_TEMPLATE = """\
{#- The conversation format of trainer/template.py; `system` and `context` may be passed as arguments. -#}
{%- set ns = namespace(system=(system or '') if system is defined else '', first=true) -%}
{%- set context = (context or '') if context is defined else '' -%}
{%- macro guarded(text) -%}
  {%- for tag in TAGS -%}
    {%- if tag in text -%}{{- raise_exception('the text contains the control tag ' ~ tag) -}}{%- endif -%}
  {%- endfor -%}
  {{- text -}}
{%- endmacro -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- if ns.system and ns.system != messages[0]['content'] -%}
    {{- raise_exception('`system` and the system message differ') -}}
  {%- endif -%}
  {%- set ns.system = messages[0]['content'] -%}
{%- endif -%}
{%- if ns.system -%}
  {{- '<myPT_system>' ~ guarded(ns.system) ~ '</myPT_system>\\n' -}}
{%- endif -%}
{%- if context -%}
  {{- '<myPT_user_context>\\n' ~ guarded(context) ~ '\\n</myPT_user_context>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' or message['role'] == 'assistant' -%}
    {{- '<myPT_' ~ message['role'] ~ '>' ~ guarded(message['content']) ~ '</myPT_' ~ message['role'] ~ '>\\n' -}}
  {%- elif message['role'] != 'system' or not loop.first -%}
    {{- raise_exception('unknown role ' ~ message['role']) -}}
  {%- endif -%}
{%- endfor -%}
{{- '<myPT_assistant>' if add_generation_prompt else '<myPT_eot>' -}}
""".replace("TAGS", "[" + ", ".join(f"'{name}'" for name in SPECIAL_TOKENS) + "]")


def _turns(example: Example) -> tuple[str, str, list[tuple[str, str, bool]]]:
    """(system, context, [(role, content, learnt), ...]) of an example. Raises DataFault for anything else."""
    system, context = example.get("system") or "", example.get("context") or ""
    turns: list[tuple[str, str, bool]] = []
    for position, message in enumerate(example.get("messages") or ()):
        role, content = message.get("role"), message.get("content")
        _refuse_more(position, message)
        if not isinstance(content, str):
            raise DataFault(f"messages[{position}].content is {type(content).__name__}, expected text")
        if role == "system" and position == 0:
            if system and system != content:
                raise DataFault("the row has a `system` field and another system message", subject="messages[0]",
                                hint="keep one of the two")  # fmt: skip
            system = content
        elif role in ("user", "assistant"):
            turns.append((role, content, role == "assistant" and is_learnt(message)))
        else:
            raise DataFault(f"messages[{position}].role is {role!r}, expected user or assistant"
                            " (system only as the first)", subject=f"messages[{position}]")  # fmt: skip
    if not isinstance(system, str) or not isinstance(context, str):
        raise DataFault("`system` and `context` must be text")
    return system, context, turns


def _refuse_more(position: int, message: Example) -> None:
    """What this format has no words for. Raises Inexpressible."""
    if message.get("role") == "tool":
        raise _no_words("a tool's result", f"messages[{position}]")
    for field, words in (("tool_calls", "a tool call"), ("thinking", "thinking")):
        if message.get(field):
            raise _no_words(words, f"messages[{position}].{field}")


def _no_words(what: str, subject: str) -> Inexpressible:
    return Inexpressible(f"the template mypt has no words for {what}", subject=subject,
                         hint="train such conversations on a base whose template is harmony or its own")  # fmt: skip


def _element(kind: str, text: str, trained: bool = False) -> list[Part]:
    opening, closing = _TAGS[kind]
    body = [Part(text, trained=trained, cuttable=kind == "context")] if text else []
    return [Part(opening, opening), *body, Part(closing, closing, trained=trained)]


def _elements(example: Example) -> list[list[Part]]:
    for field in ("developer", "tools"):
        if example.get(field):
            raise _no_words(f"the field '{field}'", field)
    system, context, turns = _turns(example)
    elements = [_element("system", system)] if system else []
    if context:
        elements.append(_element("context", f"\n{context}\n"))
    return elements + [_element(*turn) for turn in turns]


def _join(elements: Iterable[list[Part]]) -> list[Part]:
    parts: list[Part] = []
    for element in elements:
        if parts:
            parts.append(Part("\n"))
        parts.extend(element)
    return parts


class MyptTemplate(Template):
    """`<myPT_*>`; bases made here speak it unless they were told otherwise."""

    name = "mypt"
    special_tokens = SPECIAL_TOKENS
    stop_names = (ASSISTANT_CLOSE, END_OF_TURN)

    def parts(self, example: Example) -> list[Part]:
        """A conversation (`messages`, optional `system`, `context`) as parts, ending with the end mark.

        A first message of the role `system` is the same as the field `system`; empty system and context are left out.
        Raises DataFault for another role, another type, or two different system texts, Inexpressible for tool calls,
        tool results, thinking and developer texts.
        """
        return _join([*_elements(example), [Part(END_OF_TURN, END_OF_TURN)]])

    def prompt_parts(self, example: Example) -> list[Part]:
        return unlearnt(_join([*_elements(example), [Part(ASSISTANT_OPEN, ASSISTANT_OPEN)]]))

    @property
    def hash(self) -> str:
        return _HASH

    def jinja(self) -> str:
        return _CHAT_TEMPLATE


MYPT = MyptTemplate()


def _template_hash() -> str:
    """SHA-256 over the version and what the code really makes of a conversation that uses everything.

    Older than the hash of the other templates, and computed as ever: datasets and sealed versions carry it.
    """
    probe: dict[str, Any] = {"system": "s", "context": "c", "messages": [
        {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"},
        {"role": "assistant", "content": "b"}]}  # fmt: skip
    parts = [[part.text, part.control, part.trained, part.cuttable] for part in MYPT.parts(probe)]
    canonical = json.dumps([MYPT.version, SPECIAL_TOKENS, parts], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


_HASH = _template_hash()
