"""The simplified Harmony: a tag, a newline, the text, a newline; one end mark after everything.

    <|developer|>\\nYou are ...\\n<|user|>\\nFix ...\\n<|thinking|>\\n...\\n<|tool_call|>\\n{"name":...}\\n
    <|tool_result|>\\n...\\n<|assistant|>\\n...\\n<|endoftext|>

Learnt is what the assistant makes: its thinking, its calls and its answers with their tags, for the model chooses between
them; the tag of a result right after a call, for that is where it must stop; and the end mark.
Not here: OpenAI's own format (`harmony.py`), reading such text back (`harmony_read.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from guard.checks.turns import compact_text
from trainer.templates.base import Example, Part, Template, text_of, unlearnt
from trainer.templates.conversation import Call, Conversation, Turn, compact, read_conversation

__all__ = ["HARMONY_SIMPLE", "SIMPLE_TOKENS", "HarmonySimpleTemplate", "encode_harmony_messages"]

SIMPLE_TOKENS = (
    "<|system|>", "<|developer|>", "<|user|>", "<|assistant|>", "<|tool_call|>", "<|tool_result|>", "<|thinking|>",
    "<|endoftext|>",
)  # fmt: skip
"""In the order of seed 004, which is the order of their ids where they are added to a vocabulary."""
_END = SIMPLE_TOKENS[-1]


def _element(tag: str, text: str, *, trained: bool = False, closes: bool = False) -> list[Part]:
    """`closes`: the tag is where the assistant's call ends, and is learnt although what follows is not."""
    if not trained:
        return [Part(tag, tag, closes), Part(f"\n{text}\n")]
    # A prompt ends with the tag and its newline, so that newline is a piece of its own here as well.
    return [Part(tag, tag, True), Part("\n", None, True), Part(text + "\n", None, True)]


def _call_text(call: Call) -> str:
    """The body of a call: JSON with id where there is one, name, arguments."""
    try:
        json.loads(call.arguments)
        arguments = compact_text(call.arguments)
    except ValueError:
        arguments = compact(call.arguments)  # not JSON: kept as a text, so that nothing is lost
    start = compact({**({"id": call.id} if call.id else {}), "name": call.name})
    return f'{start[:-1]},"arguments":{arguments}}}'


def _assistant(turn: Turn) -> list[Part]:
    parts = _element("<|thinking|>", turn.thinking, trained=True) if turn.thinking else []
    if turn.content or not (turn.thinking or turn.calls):
        parts += _element("<|assistant|>", turn.content, trained=True)
    for call in turn.calls:
        parts += _element("<|tool_call|>", _call_text(call), trained=True)
    return parts


def _head(talk: Conversation) -> list[Part]:
    """System and developer texts; tools and context stand in the developer's, having no tag of their own."""
    parts = _element("<|system|>", talk.system) if talk.system else []
    developer = talk.developer
    if talk.tools:
        listed = "\n".join(compact(tool) for tool in talk.tools)
        developer = f"{developer}\n\n# Tools\n\n{listed}".lstrip("\n")
    if not developer and not talk.context:
        return parts
    parts += [Part("<|developer|>", "<|developer|>")]
    if developer:
        parts += [Part(f"\n{developer}\n")]
    return parts + ([Part(f"\n{talk.context}\n", cuttable=True)] if talk.context else [])


def _body(talk: Conversation) -> list[Part]:
    parts = _head(talk)
    for number, turn in enumerate(talk.turns):
        if turn.role == "assistant":
            parts += _assistant(turn) if turn.learnt else unlearnt(_assistant(turn))
        elif turn.role == "tool":
            before = talk.turns[number - 1]
            talk.called(number)  # a result of nothing is refused
            parts += _element("<|tool_result|>", turn.content, closes=before.role == "assistant" and before.learnt)
        else:
            parts += _element("<|user|>", turn.content)
    return parts


_CHAT_TEMPLATE = """\
{#- The simplified Harmony; `system`, `developer` and `context` may be passed as arguments. -#}
{%- set ns = namespace(system=(system or '') if system is defined else '', first=0,
                       developer=(developer or '') if developer is defined else '') -%}
{%- set context = (context or '') if context is defined else '' -%}
{%- macro element(tag, text) -%}
  {%- for mark in TAGS -%}
    {%- if mark in text -%}{{- raise_exception('the text contains the control tag ' ~ mark) -}}{%- endif -%}
  {%- endfor -%}
  {{- tag ~ '\\n' ~ text ~ '\\n' -}}
{%- endmacro -%}
{%- for message in messages[:2] -%}
  {%- if message['role'] in ('system', 'developer') and loop.index0 == ns.first -%}
    {%- if message['role'] == 'system' -%}{%- set ns.system = message['content'] -%}
    {%- else -%}{%- set ns.developer = message['content'] -%}{%- endif -%}
    {%- set ns.first = ns.first + 1 -%}
  {%- endif -%}
{%- endfor -%}
{%- if tools -%}
  {%- set ns.developer = ns.developer ~ ('\\n\\n' if ns.developer else '') ~ '# Tools\\n' -%}
  {%- for tool in tools -%}
    {%- set ns.developer = ns.developer ~ '\\n' ~ ((tool.function or tool) | tojson(separators=(',', ':'))) -%}
  {%- endfor -%}
{%- endif -%}
{%- if ns.system -%}{{- element('<|system|>', ns.system) -}}{%- endif -%}
{%- if ns.developer -%}{{- element('<|developer|>', ns.developer) -}}{%- endif -%}
{%- if context -%}{{- element('' if ns.developer else '<|developer|>', context) -}}{%- endif -%}
{%- for message in messages[ns.first:] -%}
  {%- set calls = message['tool_calls'] or [] -%}
  {%- set thinking = message['thinking'] or message['reasoning_content'] or '' -%}
  {%- set content = message['content'] or '' -%}
  {%- if message['role'] == 'assistant' -%}
    {%- if thinking -%}{{- element('<|thinking|>', thinking) -}}{%- endif -%}
    {%- if content or not (thinking or calls) -%}{{- element('<|assistant|>', content) -}}{%- endif -%}
    {%- for call in calls -%}
      {%- set inner = call['function'] or call -%}
      {%- set start = '{' ~ ('"id":' ~ (call['id'] | tojson) ~ ',' if call['id'] else '') -%}
      {%- set given = inner['arguments'] -%}
      {%- set arguments = given if given is string else given | tojson(separators=(',', ':')) -%}
      {{- element('<|tool_call|>', start ~ '"name":' ~ (inner['name'] | tojson) ~ ',"arguments":' ~ arguments ~ '}') -}}
    {%- endfor -%}
  {%- elif message['role'] == 'tool' -%}{{- element('<|tool_result|>', content) -}}
  {%- elif message['role'] == 'user' -%}{{- element('<|user|>', content) -}}
  {%- else -%}{{- raise_exception('unknown role ' ~ message['role']) -}}{%- endif -%}
{%- endfor -%}
{{- '<|assistant|>\\n' if add_generation_prompt else '<|endoftext|>' -}}
""".replace("TAGS", "[" + ", ".join(f"'{name}'" for name in SIMPLE_TOKENS) + "]")


class HarmonySimpleTemplate(Template):
    """The seeds' simplified Harmony."""

    name = "harmony_simple"
    special_tokens = SIMPLE_TOKENS
    stop_names = ("<|endoftext|>", "<|user|>", "<|tool_result|>")

    def parts(self, example: Example) -> list[Part]:
        talk = read_conversation(example)
        return [*_body(talk), Part(_END, _END, trained=not talk.turns or talk.turns[-1].learnt)]

    def prompt_parts(self, example: Example) -> list[Part]:
        parts = _body(read_conversation(example))
        return unlearnt([*parts, Part("<|assistant|>", "<|assistant|>"), Part("\n")])

    def jinja(self) -> str:
        return _CHAT_TEMPLATE


HARMONY_SIMPLE = HarmonySimpleTemplate()


def encode_harmony_messages(messages: Sequence[Mapping[str, Any]], developer_instructions: str | None = None) -> str:
    """Messages as simplified Harmony text, ending with the end mark.

    `messages`: {"role", "content"?, "thinking"?, "tool_calls"?, "tool_call_id"?}; calls are flat ({id, name, arguments}) or
    OpenAI's nested ones, their arguments an object or JSON text. `developer_instructions` open the conversation.
    Raises DataFault for other roles, results of nothing, or two different developer texts.
    """
    return text_of(HARMONY_SIMPLE.parts({"messages": messages, "developer": developer_instructions}))
