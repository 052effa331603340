"""Rendered conversations are taken apart by their tags, or refused with the column; nothing in between."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.checks.jsonl import Fault
from guard.checks.prerendered import messages_of
from guard.checks.rows import validate_pretrain, validate_sft
from guard.fingerprint import example_fingerprint
from trainer.template import render_text

MYPT = ("<myPT_system>You are a helpful assistant.</myPT_system>\n<myPT_user_context>\n[1] (document.md) The fox...\n"
        "[2] (facts.txt) Foxes are...\n</myPT_user_context>\n<myPT_user>Which animals?</myPT_user>\n"
        "<myPT_assistant>A fox.</myPT_assistant>\n<myPT_eot>")  # fmt: skip
AGENT = ("<|developer|>\nYou are a Rust coding agent...\n<|user|>\nFix the failing test...\n<|thinking|>\nHm.\n<|tool_call|>\n"
         '{"name": "run_tests", "arguments": {"cmd": "cargo test"}}\n<|tool_result|>\nFAILED\n<|assistant|>\nMended.\n'
         "<|endoftext|>")  # fmt: skip
HARMONY = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nReasoning: high<|end|>"
    "<|start|>developer<|message|># Instructions\n\nUse a friendly tone.<|end|>"
    "<|start|>user<|message|>What is the weather in SF?<|end|>"
    "<|start|>assistant<|channel|>analysis<|message|>Need to use function get_weather.<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"location": "SF"}<|call|>'
    '<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>{"sunny": true}<|end|>'
    "<|start|>assistant<|channel|>final<|message|>It is sunny.<|return|>"
)
CHATML = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
LLAMA = ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant"
         "<|end_header_id|>\n\nSo.<|eot_id|>")  # fmt: skip


def fields_of(text: str) -> dict[str, Any]:
    fields = validate_sft({"text": text})
    assert isinstance(fields, dict), fields
    return fields


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_projects_own_format_comes_back_to_the_letter() -> None:
    fields = fields_of(MYPT)
    assert fields == {"system": "You are a helpful assistant.", "messages": [
        user("Which animals?"), {"role": "assistant", "content": "A fox."}],
        "context": "[1] (document.md) The fox...\n[2] (facts.txt) Foxes are..."}  # fmt: skip
    assert render_text(fields) == MYPT and fields_of(f"{MYPT}\n") == fields


_WORDS = st.text(alphabet="ab <|>/\n\té", min_size=1, max_size=8).filter(lambda text: not text.isspace())


@settings(max_examples=40, deadline=None)
@given(st.lists(_WORDS, min_size=1, max_size=5), st.none() | _WORDS, st.none() | _WORDS)
def test_what_the_template_writes_is_read_back(texts: list[str], system: str | None, context: str | None) -> None:
    turns = [turn for text in texts for turn in (user(text), {"role": "assistant", "content": text[::-1]})]
    wanted = validate_sft({"messages": turns, "system": system, "context": context})
    assert isinstance(wanted, dict) and fields_of(render_text(wanted)) == wanted


@pytest.mark.parametrize("text", [
    "<|system|>You are helpful.<|user|>What is Python?<|assistant|>Python is...",
    "<|system|>\nYou are helpful.\n<|user|>\nWhat is Python?\n<|assistant|>\nPython is...\n<|endoftext|>",
])  # fmt: skip
def test_simplified_harmony_with_and_without_line_feeds(text: str) -> None:
    assert fields_of(text) == {"system": "You are helpful.", "messages": [
        user("What is Python?"), {"role": "assistant", "content": "Python is..."}]}  # fmt: skip


def test_a_trajectory_in_simplified_harmony_is_the_conversation_it_was_made_of() -> None:
    row = {"developer": "You are a Rust coding agent...", "messages": [
        user("Fix the failing test..."),
        {"role": "assistant", "thinking": "Hm.", "tool_calls": [{"name": "run_tests", "arguments": {"cmd": "cargo test"}}]},
        {"role": "tool", "content": "FAILED"}, {"role": "assistant", "content": "Mended."}]}  # fmt: skip
    wanted = validate_sft(row)
    assert isinstance(wanted, dict) and fields_of(AGENT) == wanted
    assert example_fingerprint(fields_of(AGENT.replace("\n<|", "<|").replace("|>\n", "|>"))) == example_fingerprint(wanted)


def test_calls_in_a_row_are_one_turn_and_content_may_stand_before_them() -> None:
    call = '<|tool_call|>{"name": "a", "arguments": {}}'
    text = f"<|user|>x<|thinking|>t<|assistant|>First.{call}{call}<|tool_result|>1<|tool_result|>2<|assistant|>y"
    turns = fields_of(text)["messages"]
    assert len(turns) == 5 and len(turns[1]["tool_calls"]) == 2
    assert (turns[1]["thinking"], turns[1]["content"]) == ("t", "First.")


def test_harmony_is_taken_apart_message_by_message() -> None:
    fields = fields_of(HARMONY)
    assert fields["system"].endswith("Reasoning: high") and fields["developer"] == "Use a friendly tone."
    assert fields["messages"] == [
        user("What is the weather in SF?"),
        {"role": "assistant", "content": "", "thinking": "Need to use function get_weather.",
         "tool_calls": [{"name": "get_weather", "arguments": '{"location":"SF"}'}]},
        {"role": "tool", "content": '{"sunny": true}', "name": "get_weather"}, {"role": "assistant", "content": "It is sunny."}]


@pytest.mark.parametrize("header", [
    "assistant<|channel|>commentary to=functions.f <|constrain|>json", "assistant to=functions.f<|channel|>commentary json",
    "assistant to=functions.f<|channel|>commentary <|constrain|>json", "assistant<|channel|>commentary to=functions.f",
])  # fmt: skip
def test_a_call_may_be_addressed_before_or_after_the_channel(header: str) -> None:
    text = f"<|start|>user<|message|>x<|end|><|start|>{header}<|message|>{{}}<|call|>"
    assert fields_of(text)["messages"][1]["tool_calls"] == [{"name": "f", "arguments": "{}"}]


def test_chatml_and_llama_are_the_same_conversation() -> None:
    assert fields_of(CHATML)["system"] == "S"
    wanted = [user("Why?"), {"role": "assistant", "content": "So."}]
    assert fields_of(CHATML)["messages"] == fields_of(LLAMA)["messages"] == wanted


REFUSED = [
    ("<myPT_user>a</myPT_user>\n<myPT_assistant>b</myPT_assistant>", "the end mark is missing at column 60"),
    ("<myPT_user>a</myPT_user><myPT_assistant>b</myPT_assistant>\n<myPT_eot>", "text between two elements at column 25"),
    ("<myPT_user>a</myPT_user>\n", "the end mark is missing at column 25"),
    ("<myPT_user>a\n<myPT_assistant>b</myPT_assistant>\n<myPT_eot>", "<myPT_assistant> inside <myPT_user> at column 14"),
    ("<myPT_user>a", "<myPT_user> is never closed at column 1"),
    ("<myPT_user>a <myPT_eot> b</myPT_user>\n<myPT_assistant>b</myPT_assistant>\n<myPT_eot>", "inside <myPT_user> at column 14"),
    ("<myPT_user>a</myPT_user>\nsaid\n<myPT_assistant>b</myPT_assistant>\n<myPT_eot>", "no element opens at column 26"),
    ("<myPT_user>a</myPT_user>\n<myPT_eot>\n<myPT_user>b</myPT_user>", "text after <myPT_eot> at column 36"),
    ("<myPT_user_context>a</myPT_user_context>\n<myPT_user>b</myPT_user>\n<myPT_eot>", "no line of its own at column 20"),
    ("<|user|>a<|tool|>b<|assistant|>c", "the unknown tag <|tool|> at column 10"),
    ("<|user|>a<|assistant|>b<|endoftext|>c", "text after <|endoftext|> at column 37"),
    ("<|user|>a<|tool_call|>look()<|assistant|>c", "<|tool_call|> holds no JSON"),
    ("  <|user|>a<|end|>", "the unknown tag <|end|> at column 12"),
    ("<|start|>user<|message|>a<|end|>b<|start|>assistant<|message|>c<|return|>", "text between two messages at column 33"),
    ("<|start|>user<|message|>a", "a message that does not end at column 1"),
    ("<|start|>user", "without <|message|> at column 1"),
    ("<|start|>user<|message|>a<|channel|>b<|end|>", "<|channel|> inside a message at column 26"),
    ("<|start|>the user<|message|>a<|end|>", "a header that is none"),
    ("<|start|>narrator<|message|>a<|end|>", "'narrator' speaks at column 1"),
    ("<|start|>user<|message|>a<|end|><|start|>assistant to=python<|channel|>analysis<|message|>1<|call|>", "a call to 'python'"),
    ("<|start|>user<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|call|>", "no call at column 33"),
    ("<|start|>user<|message|>a<|return|><|start|>user<|message|>a<|end|>", "<|return|> before the end"),
    ("<|start|>user<|message|>a<|call|>", "<|call|> ends a message of the user"),
    ("<|start|>assistant<|channel|>musing<|message|>a<|end|>", "the channel 'musing'"),
    ("<|im_start|>user\na<|im_end|>b", "text between two turns at column 29"),
    ("<|im_start|>user\na<|im_start|>assistant\nb<|im_end|>", "<|im_start|> inside a turn at column 19"),
    ("<|im_start|>user\na", "never closed at column 1"),
    ("<|im_start|>user", "does not end at column 13"),
    ("<|begin_of_text|>Once", "text between two turns at column 18"),
    ("Human: a", "does not open with the tag"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_what_does_not_parse_is_refused_with_its_place(text: str, words: str) -> None:
    fault = messages_of(text)
    assert isinstance(fault, Fault) and words in fault.reason, fault
    faults = validate_sft({"text": text})
    assert isinstance(faults, list) and (faults[0].field, faults[0].reason) == ("text", fault.reason) and faults[0].expected


def test_conversations_that_parse_are_judged_like_every_other() -> None:
    for text, words in ((CHATML.replace("So.", " "), "empty after stripping"),
                        (CHATML.replace("system", "narrator"), "unknown role"), ("<|user|>a", "last turn is from the user"),
                        ("<|user|>a<|user|>b<|assistant|>c", "two turns from the user"),
                        ("<|user|>a<|tool_call|>7", "a tool call must be an object")):  # fmt: skip
        faults = validate_sft({"text": text})
        assert isinstance(faults, list) and words in faults[0].reason


def test_as_pretraining_text_tags_are_text() -> None:
    assert validate_pretrain({"text": HARMONY}) == {"text": HARMONY}


@settings(max_examples=75, deadline=None)
@given(st.sampled_from([MYPT, AGENT, HARMONY, CHATML, LLAMA]), st.integers(0, 700), st.integers(0, 30),
       st.text("<|>a\n", max_size=4))  # fmt: skip
def test_no_text_makes_the_reader_raise(text: str, place: int, cut: int, put: str) -> None:
    changed = text[:place] + put + text[place + cut :]
    found = validate_sft({"text": changed})
    assert isinstance(found, dict | list)
