"""The conversation format: the golden text, what is trained, what may be cut, and tags that stay text."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import DataFault
from trainer.template import (
    SPECIAL_TOKENS,
    TEMPLATE_HASH,
    encode,
    encode_many,
    encode_prompt,
    render_prompt,
    render_text,
    serialise,
)
from trainer.tokenizer import TOKENIZATIONS, load_tokenizer

GOLDEN = """\
<myPT_system>You are a helpful assistant.</myPT_system>
<myPT_user_context>
[1] (document.md) The quick brown fox...
[2] (facts.txt) Foxes are omnivorous...
</myPT_user_context>
<myPT_user>What animals are mentioned?</myPT_user>
<myPT_assistant>Based on the context, the animals mentioned are: a fox and a dog.</myPT_assistant>
<myPT_eot>"""
EXAMPLE: dict[str, Any] = {
    "system": "You are a helpful assistant.",
    "context": "[1] (document.md) The quick brown fox...\n[2] (facts.txt) Foxes are omnivorous...",
    "messages": [
        {"role": "user", "content": "What animals are mentioned?"},
        {"role": "assistant", "content": "Based on the context, the animals mentioned are: a fox and a dog."},
    ],
}
CONTENT = st.lists(st.one_of(st.sampled_from([*SPECIAL_TOKENS, "\n"]), st.text(max_size=10)), min_size=1).map("".join)
EXAMPLES = st.fixed_dictionaries(
    {"messages": st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3).map(
        lambda turns: [{"role": role, "content": text} for pair in turns
                       for role, text in zip(("user", "assistant"), pair, strict=True)])},
    optional={"system": CONTENT, "context": CONTENT},
)  # fmt: skip


def test_the_golden_conversation_is_serialised_to_the_letter() -> None:
    assert render_text(EXAMPLE) == GOLDEN


def test_the_template_hash_does_not_move() -> None:
    # Datasets and sealed versions carry it.
    assert TEMPLATE_HASH == "8a36d1e27d4d7b38f5e0231e6a81bd53ca3a7477e406c18a5244d7334d1d9201"


def test_system_as_first_message_is_the_field_system() -> None:
    turned = {"context": EXAMPLE["context"],
              "messages": [{"role": "system", "content": EXAMPLE["system"]}, *EXAMPLE["messages"]]}  # fmt: skip
    assert serialise(turned) == serialise(EXAMPLE)
    assert serialise({**turned, "system": EXAMPLE["system"]}) == serialise(EXAMPLE)


def test_empty_system_and_context_are_left_out() -> None:
    bare = {"messages": EXAMPLE["messages"]}
    assert serialise({**bare, "system": "", "context": None}) == serialise(bare)
    assert render_text(bare).startswith("<myPT_user>")


@pytest.mark.parametrize(
    "example",
    [
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"system": "a", "messages": [{"role": "system", "content": "b"}, {"role": "user", "content": "x"}]},
        {"system": 3, "messages": [{"role": "user", "content": "x"}]},
    ],
)
def test_what_the_format_cannot_say_is_the_datas_fault(example: dict[str, Any]) -> None:
    with pytest.raises(DataFault):
        serialise(example)


@pytest.mark.parametrize("kind", TOKENIZATIONS)
@settings(max_examples=30, deadline=None)
@given(example=EXAMPLES)
def test_laws_of_an_encoded_conversation(kind: str, example: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(kind)
    ids, mask, cut_start, cut_length = encode(example, tokenizer)
    assert ids.dtype == np.uint16 and len(ids) == len(mask)
    # The text is all there, and control ids are exactly those the format places, whatever the content says.
    assert tokenizer.decode(ids) == render_text(example)
    wanted = [part.control for part in serialise(example) if part.control]
    found = [tokenizer.decode([value]) for value in ids if value >= tokenizer.special(SPECIAL_TOKENS[0])]
    assert found == wanted
    # Trained is each answer with its closing tag and nothing else.
    answers = "".join(turn["content"] + "</myPT_assistant>" for turn in example["messages"][1::2])
    assert tokenizer.decode(ids[mask == 1]) == answers
    assert set(np.unique(mask)) <= {0, 1} and not mask[-1]
    # What may be cut is context alone: cutting all of it leaves the tags and everything else.
    kept = tokenizer.decode([*ids[:cut_start], *ids[cut_start + cut_length :]])
    assert (cut_start, cut_length) == (0, 0) or "context" in example
    assert kept.endswith(render_text({"messages": example["messages"]}))
    assert not mask[cut_start : cut_start + cut_length].any()


@pytest.mark.parametrize("kind", TOKENIZATIONS)
def test_a_long_context_may_be_cut_all_but_its_frame(kind: str) -> None:
    tokenizer = load_tokenizer(kind)
    encoded = encode(EXAMPLE, tokenizer)
    cut = tokenizer.decode(encoded.ids[encoded.cut_start : encoded.cut_start + encoded.cut_length])
    assert EXAMPLE["context"].startswith(cut[:20]) and len(cut) >= len(EXAMPLE["context"]) - 6


def test_encoding_many_is_encoding_each() -> None:
    tokenizer = load_tokenizer("gpt2")
    examples = [EXAMPLE, {"messages": EXAMPLE["messages"][:1]}, EXAMPLE]
    singles = [encode(item, tokenizer) for item in examples]
    for one, many in zip(singles, encode_many(examples, tokenizer, 2), strict=True):
        assert one.ids.tolist() == many.ids.tolist() and one.mask.tolist() == many.mask.tolist()
        assert one[2:] == many[2:]


@pytest.mark.parametrize("kind", TOKENIZATIONS)
def test_a_prompt_is_the_conversation_up_to_the_open_answer(kind: str) -> None:
    tokenizer = load_tokenizer(kind)
    question = EXAMPLE["messages"][:1]
    text = render_prompt(EXAMPLE["system"], EXAMPLE["context"], question)
    assert GOLDEN.startswith(text) and text.endswith("<myPT_assistant>")
    ids = encode_prompt(EXAMPLE["system"], EXAMPLE["context"], question, tokenizer)
    assert ids == encode(EXAMPLE, tokenizer).ids[: len(ids)].tolist()


def test_of_a_turn_of_weight_zero_nothing_is_trained() -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "no", "weight": "0"},
             {"role": "user", "content": "v"}, {"role": "assistant", "content": "yes"}]  # fmt: skip
    parts = serialise({"messages": turns})
    assert "".join(part.text for part in parts if part.trained) == "yes</myPT_assistant>"
