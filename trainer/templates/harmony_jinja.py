"""Real Harmony as a chat template for `transformers`: the same text as `harmony.py` for all it can say.

Definitions of tools are not among that: Jinja would have to write types, so a conversation with `tools` is refused, and
rendered by Heirloom alone. Not here: the format's rules.
"""

from __future__ import annotations

import json

__all__ = ["harmony_jinja"]


def harmony_jinja(system_text: str) -> str:
    """The Jinja text, with the system block frozen into it."""
    return _TEXT.replace("SYSTEM_TEXT", json.dumps(system_text))


_TEXT = """\
{#- Harmony; `system`, `developer` and `context` may be passed as arguments. -#}
{%- set ns = namespace(first=0, last=-1, name='', opened=true,
                       system=(system or '') if system is defined else '',
                       developer=(developer or '') if developer is defined else '') -%}
{%- set context = (context or '') if context is defined else '' -%}
{%- if tools -%}{{- raise_exception('definitions of tools are rendered by heirloom only') -}}{%- endif -%}
{%- macro free(text) -%}
  {%- for mark in ['<|start|>', '<|end|>', '<|message|>', '<|channel|>', '<|constrain|>', '<|return|>', '<|call|>'] -%}
    {%- if mark in text -%}{{- raise_exception('the text contains the control tag ' ~ mark) -}}{%- endif -%}
  {%- endfor -%}
  {{- text -}}
{%- endmacro -%}
{%- macro bare(name) -%}{{- name[10:] if name.startswith('functions.') else name -}}{%- endmacro -%}
{%- for message in messages[:2] -%}
  {%- if message['role'] in ('system', 'developer') and loop.index0 == ns.first -%}
    {%- if message['role'] == 'system' -%}{%- set ns.system = message['content'] -%}
    {%- else -%}{%- set ns.developer = message['content'] -%}{%- endif -%}
    {%- set ns.first = ns.first + 1 -%}
  {%- endif -%}
{%- endfor -%}
{%- set turns = messages[ns.first:] -%}
{%- if '\\nKnowledge cutoff: ' in ns.system and '\\n# Valid channels: ' in ns.system -%}
  {{- '<|start|>system<|message|>' ~ free(ns.system) ~ '<|end|>' -}}{%- set ns.system = '' -%}
{%- else -%}{{- '<|start|>system<|message|>' ~ SYSTEM_TEXT ~ '<|end|>' -}}{%- endif -%}
{%- set wanted = ns.system ~ ('\\n\\n' if ns.system and ns.developer else '') ~ ns.developer -%}
{%- if wanted or context -%}
  {{- '<|start|>developer<|message|>' -}}
  {%- if wanted -%}{{- '# Instructions\\n\\n' ~ free(wanted) -}}{%- endif -%}
  {%- if context -%}{{- ('\\n\\n' if wanted else '\\n') ~ free(context) ~ '\\n' -}}{%- endif -%}
  {{- '<|end|>' -}}
{%- endif -%}
{%- if add_generation_prompt -%}
  {%- for message in turns -%}
    {%- if message['role'] == 'assistant' and message['content'] and not message['tool_calls'] -%}
      {%- set ns.last = loop.index0 -%}
    {%- endif -%}
  {%- endfor -%}
{%- endif -%}
{%- for message in turns -%}
  {%- set content = message['content'] or '' -%}
  {%- set calls = message['tool_calls'] or [] -%}
  {%- set thinking = message['thinking'] or message['reasoning_content'] or '' -%}
  {%- if message['role'] == 'assistant' -%}
    {%- if thinking and loop.index0 > ns.last -%}
      {{- '<|start|>assistant<|channel|>analysis<|message|>' ~ free(thinking) ~ '<|end|>' -}}
    {%- endif -%}
    {%- if calls -%}
      {%- if content -%}{{- '<|start|>assistant<|channel|>commentary<|message|>' ~ free(content) ~ '<|end|>' -}}{%- endif -%}
      {%- for call in calls -%}
        {%- set inner = call['function'] or call -%}
        {%- set given = inner['arguments'] -%}
        {%- set arguments = given if given is string else given | tojson(separators=(',', ':')) -%}
        {%- set ns.name = inner['name'] -%}
        {{- '<|start|>assistant to=functions.' ~ free(bare(ns.name)) ~ '<|channel|>commentary <|constrain|>json<|message|>' -}}
        {{- free(arguments) ~ '<|call|>' -}}
      {%- endfor -%}
    {%- elif content or not thinking -%}
      {{- '<|start|>assistant<|channel|>final<|message|>' ~ free(content) -}}
      {{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' -}}
    {%- endif -%}
  {%- elif message['role'] == 'tool' -%}
    {%- set name = message['name'] or ns.name -%}
    {{- '<|start|>functions.' ~ free(bare(name)) ~ ' to=assistant<|channel|>commentary<|message|>' ~ free(content) ~ '<|end|>' -}}
  {%- elif message['role'] == 'user' -%}
    {{- '<|start|>user<|message|>' ~ free(content) ~ '<|end|>' -}}
  {%- else -%}{{- raise_exception('unknown role ' ~ message['role']) -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""
