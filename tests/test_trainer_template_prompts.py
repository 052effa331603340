"""For every template: the tokens before an answer are those it was trained behind, whatever stood in earlier answers."""

from __future__ import annotations

import random

import pytest
from hf_help import CHATML, CHATML_TOKENS

from trainer.template import encode, encode_prompt
from trainer.templates.base import Template
from trainer.templates.chat import ChatTemplate
from trainer.templates.find import template_from
from trainer.tokenizer import Tokenizer, load_tokenizer
from trainer.tokenizer_train import train_tokenizer

GENERATING = ("{% for m in messages %}<|im_start|>{{ m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
              "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}")  # fmt: skip
FORMS = {"mypt": "", "harmony_simple": "", "harmony": "", "chatml": CHATML, "generation": GENERATING}
PIECES = ("\n", " ", "\n\n", "the", "cat", "assistant", "x", "  ", " to=functions.f", "<|im_end|>")


def template_of(name: str) -> Template:
    if FORMS[name]:
        return ChatTemplate(FORMS[name], {"eos_token": "<|im_end|>"}, CHATML_TOKENS)
    return template_from({"name": name})


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Tokenizers that merge line breaks and words across the places where answers begin."""
    folder = tmp_path_factory.mktemp("tokenizers")
    words = ["assistant\n\nHello", "assistant\n  x = 1", "\n\n\n\n", "the cat", "user\n\nfoo", "assistant to=functions.f"]
    (folder / "words.txt").write_text("\n".join(words * 100), "utf-8")
    made = {}
    for form in ("mypt", "harmony_simple", "harmony"):
        train_tokenizer([folder / "words.txt"], 480, folder / form, template=form, specials=CHATML_TOKENS)
        made[form] = load_tokenizer("hf", folder / form)
    return made


@pytest.mark.parametrize("name", FORMS)
def test_a_prompt_is_the_beginning_of_what_was_trained_token_for_token(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    template, tokenizer, draw = template_of(name), tokenizers.get(name) or tokenizers["mypt"], random.Random(7)

    def text() -> str:
        return "".join(draw.choice(PIECES) for _ in range(draw.randrange(1, 6)))

    for _ in range(40):
        messages = [{"role": ("user", "assistant")[number % 2], "content": text()} for number in range(6)]
        system, context = draw.choice([None, text()]), draw.choice([None, text()])
        whole = encode({"system": system, "context": context, "messages": messages}, tokenizer, template)
        for asked in (1, 3, 5):
            prompt = encode_prompt(system, context, messages[:asked], tokenizer, template)
            assert whole.ids[: len(prompt)].tolist() == prompt
            assert whole.mask[len(prompt)] == 1
        assert not any(part.trained for part in template.prompt_parts({"messages": messages[:5]}))
