"""A model's own chat template: masks from its structure, refusals where nothing can be proven, bounds, a date that stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hf_help import CHATML, CHATML_TOKENS, foreign_folder

from guard.errors import CheckFailed, Damage, DataFault
from trainer.hf_tokenizer import open_tokenizer, write_hf_tokenizer
from trainer.template import encode, encode_prompt, render_text, stop_ids
from trainer.templates.base import Inexpressible, Part, Template, text_of
from trainer.templates.chat import ChatTemplate
from trainer.templates.find import load_template
from trainer.templates.harmony import HarmonyTemplate
from trainer.templates.harmony_simple import HARMONY_SIMPLE

TALK: dict[str, Any] = {"system": "Be brief.", "context": "[1] x", "messages": [
    {"role": "user", "content": "hi <|im_end|> there"}, {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "more"}, {"role": "assistant", "content": "bye"}]}  # fmt: skip
# In the manner of Llama 3: texts are trimmed, turns follow each other without a newline.
TRIMMING = ("{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m.role + '<|mid|>\n\n' + m.content | trim + '<|eot|>' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|mid|>\n\n' }}{% endif %}")  # fmt: skip
# In the manner of Qwen 3: thoughts before the last question are forgotten, the last answer always has one.
THINKING = ("{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
            "{% endif %}{% endfor %}{% for m in messages %}<s>{{ m.role }}\n{% if m.role == 'assistant' and loop.index0 > ns.last"
            " %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}{% if m.tool_calls %}"
            "{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
            "{% endif %}<e>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}")  # fmt: skip
THINKING_TOKENS = ("<s>", "<e>", "<call>", "</call>")


GROW = ("{{% macro twice(x) %}}{{{{ x }}}}{{{{ x }}}}{{% endmacro %}}{{% set ns = namespace(x='aa') %}}"
        "{{% for i in range(99) %}}{{% set ns.x = {} %}}{{% endfor %}}")  # fmt: skip


def trained(parts: list[Part]) -> list[str]:
    """The trained runs, each in one piece."""
    runs, last = [], False
    for part in parts:
        if part.trained and last:
            runs[-1] += part.text
        elif part.trained:
            runs.append(part.text)
        last = part.trained
    return runs


def test_chatml_trains_answers_and_their_end_and_nothing_else() -> None:
    template = ChatTemplate(CHATML, {"eos_token": "<|im_end|>"}, CHATML_TOKENS)
    parts = template.parts(TALK)
    assert trained(parts) == ["yo<|im_end|>", "bye<|im_end|>"] and template.stop_names == ("<|im_end|>",)
    assert text_of(parts).startswith("<|im_start|>system\nBe brief.\n\n[1] x<|im_end|>\n<|im_start|>user\nhi <|im_end|> there<")
    # The one written in a message is text, the eight that end turns or begin them are control tokens.
    assert [part.control for part in parts if part.control] == ["<|im_start|>", "<|im_end|>"] * 5
    assert [part.text for part in parts if part.cuttable] == ["[1] x"]


def test_a_prompt_ends_where_the_answer_begins() -> None:
    template = ChatTemplate(CHATML, {}, CHATML_TOKENS)
    prompt = template.prompt_parts({"messages": TALK["messages"][:1]})
    whole = template.parts({"messages": TALK["messages"][:2]})
    assert [part.text for part in whole[: len(prompt)]] == [part.text for part in prompt] and not trained(prompt)
    assert text_of(prompt).endswith("<|im_start|>assistant\n")


def test_texts_that_are_trimmed_are_still_told_from_the_templates_own() -> None:
    template = ChatTemplate(TRIMMING, {"bos_token": "<bos>", "eos_token": "<|eot|>"}, ("<bos>", "<|head|>", "<|mid|>", "<|eot|>"))
    talk = {"messages": [{"role": "user", "content": "  <bos> q\n"}, {"role": "assistant", "content": "\n a "}]}
    parts = template.parts(talk)
    assert text_of(parts) == "<bos><|head|>user<|mid|>\n\n<bos> q<|eot|><|head|>assistant<|mid|>\n\na<|eot|>"
    assert [part.control for part in parts].count("<bos>") == 1 and trained(parts) == ["a<|eot|>"]


def test_thoughts_that_only_the_last_turn_shows_are_trained_there() -> None:
    template = ChatTemplate(THINKING, {"eos_token": "<e>"}, THINKING_TOKENS)
    assert trained(template.parts({"messages": [
        {"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "thinking": "one"},
        {"role": "user", "content": "v"}, {"role": "assistant", "content": "b", "thinking": "two"},
    ]})) == ["a<e>", "<think>\ntwo\n</think>\n\nb<e>"]  # fmt: skip


def test_a_whole_call_is_trained() -> None:
    template = ChatTemplate(THINKING, {"eos_token": "<e>"}, THINKING_TOKENS)
    talk = {"messages": [{"role": "user", "content": "u"},
                         {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": '{"k": "é"}'}]},
                         {"role": "tool", "content": "r"}, {"role": "assistant", "content": "b"}]}  # fmt: skip
    assert trained(template.parts(talk)) == ['<think>\n\n</think>\n\n<call>f {"k": "é"}</call><e>', "<think>\n\n</think>\n\nb<e>"]
    talk["messages"][1]["tool_calls"][0]["arguments"] = '{"k": "<call>"}'  # type: ignore[index]
    with pytest.raises(Inexpressible, match="contains the control token <call>"):
        template.parts(talk)


@pytest.mark.parametrize("arguments", [r'{"a": "\u003cs>"}', r'{"\u003ce\u003e": 1}', r'{"a": [{"b": "\u003c/call>"}]}'])
def test_a_control_token_that_json_spells_with_escapes_is_refused_too(arguments: str) -> None:
    """A template writes arguments out again, and then the escapes are gone (law 11)."""
    template = ChatTemplate(THINKING, {"eos_token": "<e>"}, THINKING_TOKENS)
    talk = {"messages": [{"role": "user", "content": "q"},
                         {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": arguments}]}]}
    with pytest.raises(Inexpressible, match="contains the control token"):
        template.parts(talk)
    tools = [{"name": "f", "description": "d", "parameters": json.loads(arguments)}]
    with pytest.raises(Inexpressible, match="tools contains the control token"):
        template.parts({"messages": talk["messages"][:1], "tools": tools})


def test_generation_blocks_say_what_is_trained() -> None:
    source = ("{% for m in messages %}{% if m.role == 'assistant' %}[A]{% generation %}{{ m.content }}<e>{% endgeneration %}"
              "{% else %}[U]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}")  # fmt: skip
    parts = ChatTemplate(source, {"eos_token": "<e>"}, ("<e>",)).parts({"messages": TALK["messages"]})
    assert text_of(parts) == "[U]hi <|im_end|> there[A]yo<e>[U]more[A]bye<e>" and trained(parts) == ["yo<e>", "bye<e>"]


@pytest.mark.parametrize(("source", "why"), [
    ("{% for m in messages %}<s>{{ m.content | upper }}<e>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}", "changes"),
    ("{% for m in messages %}<s>{{ m.content[:2] }}<e>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}",
     "apart|changes"),
    ("{% for m in messages if m.role != 'user' %}<s>{{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}",
     "leaves out"),
    ("{{ messages | length }}{% for m in messages %}<s>{{ m.content }}<e>{% endfor %}", "differently"),
    ("{{ raise_exception('no') }}", "refuses it: no"),
    ("{{ messages.nothing.more }}", "cannot be used"),
    ("{% for m in messages %", "cannot be used"),
])  # fmt: skip
def test_a_template_whose_structure_cannot_be_proven_is_refused_with_the_reason(source: str, why: str) -> None:
    with pytest.raises(CheckFailed, match=why):
        ChatTemplate(source, {}, ("<s>", "<e>"))


def test_one_row_that_the_template_decides_by_is_refused_and_others_are_not() -> None:
    source = CHATML.replace("+ message['content'] +", "+ message['content'].split('</think>')[-1] +")
    template = ChatTemplate(source, {}, CHATML_TOKENS)
    assert trained(template.parts(TALK)) == ["yo<|im_end|>", "bye<|im_end|>"]
    with pytest.raises(Inexpressible, match="changes the texts"):
        template.parts({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a</think>b"}]})


def test_thinking_without_a_place_for_it_is_inexpressible() -> None:
    with pytest.raises(Inexpressible, match=r"leaves out messages\[1\].thinking"):
        ChatTemplate(CHATML, {}, CHATML_TOKENS).parts({"messages": [
            {"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "thinking": "t"}]})  # fmt: skip


@pytest.mark.parametrize("source", [
    "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}", "{{ 'a' * 1000000000 }}",
    "{{ 'a'.ljust(1000000000) }}", "{{ '%1000000000d' % 1 }}", "{{ 2 ** 100000000 }}", "{{ 'a' | center(1000000000) }}",
    "{{ messages.__class__.__mro__ }}", "{{ 'a' | indent(1000000000, true) }}",
    GROW.format("ns.x ~ ns.x"), GROW.format("ns.x + ns.x"),
    GROW.format("ns.x | replace('a', ns.x)"), GROW.format("ns.x.replace('a', ns.x)"), GROW.format("[ns.x, ns.x] | join"),
    GROW.format("twice(ns.x)"),
])  # fmt: skip
def test_a_template_can_neither_run_for_ever_nor_fill_the_memory(source: str) -> None:
    with pytest.raises(CheckFailed, match="cannot be used"):
        ChatTemplate(source, {}, ())


def test_the_date_stands_still_and_is_part_of_the_identity() -> None:
    source = "{{ strftime_now('%d %b %Y') }}" + CHATML
    one, other = (ChatTemplate(source, {}, CHATML_TOKENS, date) for date in ("2025-06-28", "2026-01-02"))
    assert text_of(one.parts(TALK)).startswith("28 Jun 2025<|im_start|>") and one.hash != other.hash
    assert ChatTemplate(source, {}, CHATML_TOKENS, "2025-06-28").hash == one.hash


def test_the_template_comes_back_from_its_folder_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    tokenizer, template = open_tokenizer(foreign_folder(tmp_path / "hf"))
    folder = tmp_path / "version"
    folder.mkdir()
    write_hf_tokenizer(tokenizer, folder, 64, template)
    assert load_template(folder).hash == template.hash and load_template(None).name == "mypt"
    (folder / "chat_template.jinja").write_text(CHATML.replace("user", "u"))
    (folder / "chat_template.jinja").write_text("{{ 'x' }}" + CHATML)
    with pytest.raises(CheckFailed, match="another release"):
        load_template(folder)
    (folder / "template.json").write_text("{")
    with pytest.raises(Damage):
        load_template(folder)
    (folder / "template.json").write_bytes(orjson.dumps({"name": "chat_template", "options": {"colour": 1}}))
    with pytest.raises(Damage):
        load_template(folder)


def test_transformers_renders_and_encodes_the_same(tmp_path: Path) -> None:
    import transformers
    tokenizer, template = open_tokenizer(foreign_folder(tmp_path / "hf"))
    folder = tmp_path / "version"
    folder.mkdir()
    write_hf_tokenizer(tokenizer, folder, 64, template)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    talk = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi there"},
                         {"role": "assistant", "content": "heirloom keeps"}]}  # fmt: skip
    assert theirs.apply_chat_template(talk["messages"], tokenize=False) == render_text(talk, template)
    found = theirs.apply_chat_template(talk["messages"])["input_ids"]
    assert found == encode(talk, tokenizer, template).ids.tolist()
    asked = theirs.apply_chat_template(talk["messages"][:2], add_generation_prompt=True)["input_ids"]
    assert asked == encode_prompt("Be brief.", None, talk["messages"][1:2], tokenizer, template)
    assert theirs.eos_token_id in stop_ids(template, tokenizer)


@pytest.mark.parametrize("template", [HARMONY_SIMPLE, HarmonyTemplate(effort="low")])
def test_transformers_renders_harmony_the_same(tmp_path: Path, template: Template) -> None:
    import transformers
    tokenizer, _suggested = open_tokenizer(foreign_folder(tmp_path / "hf", chat_template=""), template.name)
    folder = tmp_path / "version"
    folder.mkdir()
    write_hf_tokenizer(tokenizer, folder, 64, template)
    assert load_template(folder).hash == template.hash
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": " u\n"}, {"role": "assistant", "content": "a", "thinking": "old"},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "let me", "thinking": "t", "tool_calls": [
            {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"k": ["é", 1]}}}]},
        {"role": "tool", "content": "r", "tool_call_id": "1", "name": "f"}, {"role": "assistant", "content": "b"},
    ]  # fmt: skip
    block = {"system": HarmonyTemplate(effort="high").system_text(True), "developer": "d"}
    for fields in ({}, {"system": "s"}, {"developer": "d", "context": "c"}, {"system": "s", "developer": "d"}, block):
        whole = {"messages": messages, **fields}
        assert theirs.apply_chat_template(messages, tokenize=False, **fields) == render_text(whole, template)
        ids = theirs.apply_chat_template(messages, **fields)["input_ids"]
        assert ids == encode(whole, tokenizer, template).ids.tolist()
        for end in (1, 3, 5):
            asked = theirs.apply_chat_template(messages[:end], tokenize=False, add_generation_prompt=True, **fields)
            assert asked == text_of(template.prompt_parts({"messages": messages[:end], **fields}))
    with pytest.raises(Exception, match="control tag"):
        theirs.apply_chat_template([{"role": "user", "content": template.special_tokens[0]}], tokenize=False)


def test_a_conversation_that_is_none_is_the_datas_fault() -> None:
    with pytest.raises(DataFault):
        ChatTemplate(CHATML, {}, CHATML_TOKENS).parts({"messages": [{"role": "narrator", "content": "x"}]})


_GENERATION = ("{% for m in messages %}{% if m.role == 'assistant' %}[A]{% generation %}{{ m.content }}<e>{% endgeneration %}"
               "{% else %}[U]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}")  # fmt: skip


@pytest.mark.parametrize(("source", "controls", "end"), [(CHATML, CHATML_TOKENS, "<|im_end|>"), (_GENERATION, ("<e>",), "<e>")])
def test_of_a_turn_of_weight_zero_nothing_is_trained(source: str, controls: tuple[str, ...], end: str) -> None:
    template = ChatTemplate(source, {}, controls)
    turns = [dict(turn) for turn in TALK["messages"]]
    for place, said in ((1, "bye"), (3, "yo")):
        messages = [turn | ({"weight": "0"} if number == place else {}) for number, turn in enumerate(turns)]
        parts = template.parts({"messages": messages})
        assert trained(parts) == [said + end] and text_of(parts) == text_of(template.parts({"messages": turns}))


def test_where_it_is_not_plain_whose_a_generation_block_is_a_weight_is_refused() -> None:
    source = "{% generation %}{% for m in messages %}{{ m.content }}<e>{% endfor %}{% endgeneration %}"
    template = ChatTemplate(source, {}, ("<e>",))
    with pytest.raises(Inexpressible, match="weight 0"):
        template.parts({"messages": [{**turn, "weight": "0"} if turn["content"] == "yo" else turn for turn in TALK["messages"]]})
