"""Small Hugging Face tokenizer folders for the tests: one trained here in a moment, one in ChatML. Not a test itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from trainer.tokenizer_folder import added_token
from trainer.tokenizer_train import train_tokenizer

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")  # fmt: skip
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def corpus(path: Path, words: int = 3000) -> Path:
    """A text with words that repeat."""
    dice = random.Random(5)
    path.write_text(" ".join(dice.choice(["heirloom", "keeps", "learning", "for", "weeks", "and", "never", "loses", "it"])
                             for _ in range(words)) + "\n", "utf-8")  # fmt: skip
    return path


def trained_folder(folder: Path, template: str = "mypt", vocab_size: int = 320) -> Path:
    """A folder as `tokenizer train` writes it."""
    train_tokenizer([corpus(folder.with_name(f"{folder.name}.txt"))], vocab_size, folder, template=template)
    return folder


def foreign_folder(folder: Path, tokens: tuple[str, ...] = CHATML_TOKENS, chat_template: str = CHATML,
                   **config: Any) -> Path:  # fmt: skip
    """A folder as it comes from elsewhere: tokenizer.json and tokenizer_config.json, nothing of ours."""
    trained = trained_folder(folder.with_name(f"{folder.name}-trained"))
    document = json.loads((trained / "tokenizer.json").read_bytes())
    first = len(document["model"]["vocab"])
    document["added_tokens"] = [added_token(first + number, name) for number, name in enumerate(tokens)]
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(document))
    told = {"eos_token": tokens[-1], **({"chat_template": chat_template} if chat_template else {}), **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.mktemp("trained") / "tok")


def unigram_folder(folder: Path) -> Path:
    """A word model that lists its control tokens among its words, as converted SentencePiece files do."""
    words = ["<unk>", "<s>", "</s>", "<pad>", *"<>/abspdunk ", "▁"]
    document: dict[str, Any] = {
        "version": "1.0", "added_tokens": [added_token(number, words[number]) for number in range(4)], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [[word, 0.0 if len(word) > 1 else -1.0] for word in words]},
    }  # fmt: skip
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, "bos_token": "<s>"}))
    return folder
