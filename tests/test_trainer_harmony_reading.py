"""Harmony read: strictly, back into what was rendered, one form into the other, and as rows when they are admitted.

Not here: what the templates render and what of it is trained (`test_trainer_harmony.py`).
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from harmony_help import MESSAGES, SIMPLE, trained

from guard.checks.rows import read_fields
from guard.errors import DataFault
from trainer.templates.base import text_of
from trainer.templates.harmony import HarmonyTemplate
from trainer.templates.harmony_read import read_harmony, read_harmony_simple, to_harmony, to_harmony_simple
from trainer.templates.harmony_simple import HARMONY_SIMPLE, encode_harmony_messages
from trainer.templates.jinja_bounds import environment_of

NO_IDS = SIMPLE.replace('"id":"1",', "")
WIDE = encode_harmony_messages([
    {"role": "user", "content": "two things\n"},
    {"role": "assistant", "content": "I will.", "thinking": "a\n\nb", "tool_calls": [
        {"name": "f", "arguments": {"x": [1, "é"]}}, {"name": "g", "arguments": {}}]},
    {"role": "tool", "content": ""}, {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "Done.", "thinking": "fine"},
    {"role": "user", "content": "thanks"}, {"role": "assistant", "content": "bye"},
])  # fmt: skip


@pytest.mark.parametrize("text", [NO_IDS, WIDE, "<|user|>\nhi\n<|assistant|>\nyo\n<|endoftext|>"])
def test_simplified_to_real_and_back_is_the_same_text(text: str) -> None:
    real = to_harmony(text)
    assert to_harmony_simple(real) == text and to_harmony(to_harmony_simple(real)) == real


def test_reading_gives_back_what_was_rendered() -> None:
    assert read_harmony_simple(SIMPLE).as_fields() == {
        "developer": "You are a Rust coding agent.", "messages": [
            {"role": "user", "content": "Fix the failing test in src/parser.rs"},
            {"role": "assistant", "content": "", "thinking": "Let me check the test output...",
             "tool_calls": [{"name": "run_tests", "arguments": '{"cmd":"cargo test"}', "id": "1"}]},
            {"role": "tool", "content": "FAILED: test_parse_expr", "tool_call_id": "1"},
            {"role": "assistant", "content": "The issue is..."}]}  # fmt: skip
    template = HarmonyTemplate("2025-01-02", "low", channels=("analysis", "final"))
    fields = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}], "developer": "d"}
    talk, found = read_harmony(text_of(template.parts(fields)))
    assert talk.as_fields() == fields and found.hash == template.hash


@pytest.mark.parametrize("text", [
    "", "hello", "<|user|>\nhi\n<|assistant|>\nyo", "<|user|>hi<|endoftext|>", "<|user|>\nhi\n<|system|>\nlate\n<|endoftext|>",
    "<|user|>\nhi\n<|tool_result|>\nof nothing\n<|endoftext|>", "<|user|>\nhi\n<|tool_call|>\nnot json\n<|endoftext|>",
    "<|user|>\nhi\n<|tool_call|>\n{\"name\":\"f\",\"extra\":1}\n<|endoftext|>",
])  # fmt: skip
def test_simplified_text_is_read_strictly(text: str) -> None:
    with pytest.raises(DataFault, match="not Harmony"):
        read_harmony_simple(text)


@pytest.mark.parametrize("text", [
    "hello", "<|start|>user<|message|>hi", "<|start|>user<|message|>hi<|end|>tail", "<|start|>system<|message|>odd<|end|>",
    "<|start|>assistant<|channel|>secret<|message|>x<|end|>", "<|start|>a b c<|message|>x<|end|>",
])  # fmt: skip
def test_real_text_is_read_strictly(text: str) -> None:
    with pytest.raises(DataFault, match="not Harmony"):
        read_harmony(text)


ONE_TOOL = '[{"type":"function","function":{"name":"run_tests","description":"Runs","parameters":{"type":"object"}}}]'


@pytest.mark.parametrize("template", [HarmonyTemplate(), HarmonyTemplate(date="2025-01-02", effort="high"), HARMONY_SIMPLE])
@pytest.mark.parametrize("frame", [{}, {"developer": "Be kind."}, {"developer": "Be kind.", "tools": ONE_TOOL},
                                   {"tools": ONE_TOOL}])  # fmt: skip
def test_what_was_rendered_before_it_came_is_rendered_the_same_again(template: Any, frame: dict[str, str]) -> None:
    """A row of text is read into messages when it is admitted; its own system block stands where it stood."""
    text = text_of(template.parts({**frame, "messages": MESSAGES}))
    fields = read_fields("sft", {"text": text})
    assert isinstance(fields, dict)
    again = (HarmonyTemplate() if isinstance(template, HarmonyTemplate) else template).parts(fields)
    assert text_of(again) == text and text.count("Knowledge cutoff") == (template.name == "harmony")
    prompt = HarmonyTemplate().prompt_parts({**fields, "messages": fields["messages"][:1]})
    assert text_of(prompt).count("Knowledge cutoff") == 1


@pytest.mark.parametrize("template", [HARMONY_SIMPLE, HarmonyTemplate()])
def test_numbers_of_a_call_are_trained_as_they_are_written(template: Any) -> None:
    row = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": None, "tool_calls": [
        {"name": "f", "arguments": '{"a": 1.10, "b": 1e5, "c": 100000000000000000000000}'}]},
        {"role": "tool", "content": "o"}, {"role": "assistant", "content": "a"}]}  # fmt: skip
    fields = read_fields("sft", row)
    assert isinstance(fields, dict)
    assert '{"a":1.10,"b":1e5,"c":100000000000000000000000}' in trained(template.parts(fields))


def test_a_namespace_in_the_name_of_a_tool_is_not_written_twice() -> None:
    row = {"tools": [{"name": "functions.run"}], "messages": [{"role": "user", "content": "u"}, {
        "role": "assistant", "content": None, "tool_calls": [{"name": "functions.run", "arguments": {}}]},
        {"role": "tool", "content": "o"}, {"role": "assistant", "content": "a"}]}  # fmt: skip
    fields, plain = read_fields("sft", row), read_fields("sft", json.loads(json.dumps(row).replace("functions.", "")))
    assert isinstance(fields, dict) and isinstance(plain, dict)
    text = text_of(HarmonyTemplate().parts(fields))
    assert text == text_of(HarmonyTemplate().parts(plain)) and "assistant to=functions.run<|channel|>" in text
    asked = {key: item for key, item in row.items() if key != "tools"}
    environment = environment_of("2025-06-28")
    rendered = environment.rendered(environment.from_string(HarmonyTemplate().jinja()), {**asked, "add_generation_prompt": False})
    assert rendered == text_of(HarmonyTemplate().parts(asked))
