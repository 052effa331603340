"""Our tokenizers as Hugging Face files, so that `AutoTokenizer.from_pretrained(version_folder)` gives the same ids.

Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja and tokenizer_state.json as
plain JSON and text, the same bytes every time, without importing transformers and without a network.
One difference is left, and it lies in the nature of those files: they read a tag inside a plain string as the control
token, where our `encode` spells it out. The chat template therefore refuses messages that contain a tag.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from guard.durable import fsync_tree, make_dir, remove_tree, rename_new, write_bytes, write_json, write_text
from trainer.templates.base import Template
from trainer.templates.find import TEMPLATE_FILE, load_template, suggested_template, template_from
from trainer.templates.harmony_simple import HARMONY_SIMPLE
from trainer.templates.mypt import END_OF_TURN, MYPT, SPECIAL_TOKENS
from trainer.tokenizer import RUN_PATTERN, Tokenizer
from trainer.tokenizer_hf import HfTokenizer, hf_tokenizer
from trainer.vocabulary import byte_alphabet, gpt2_merges

__all__ = ["HF_TOKENIZER_FILES", "keep_tokenizer", "open_tokenizer", "write_hf_tokenizer"]

HF_TOKENIZER_FILES = (
    "chat_template.jinja",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer_state.json",
)

def _spell(token: bytes) -> str:
    letters = byte_alphabet()
    return "".join(letters[value] for value in token)


def _added_tokens(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    names = dict(tokenizer.special_tokens)
    if tokenizer.tokenization == "gpt2":
        names = {"<|endoftext|>": tokenizer.separator_id, **names}
    return [
        {"id": value, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for name, value in names.items()
    ]  # fmt: skip


def _pre_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    if tokenizer.tokenization == "char":
        return _byte_level(use_regex=False)
    # Ours cuts endless runs before splitting; the same cut here keeps the ids equal even for those.
    runs = {"type": "Split", "pattern": {"Regex": RUN_PATTERN}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [runs, _byte_level(use_regex=True)]}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    """Byte-pair encoding over the byte alphabet; `char` is the same thing without a single merge."""
    tokens = tokenizer.token_bytes()
    vocabulary = {_spell(token): value for value, token in enumerate(tokens)}
    merges: list[list[str]] = []
    if tokenizer.tokenization == "gpt2":
        merges = [list(pair) for pair in gpt2_merges()]
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary, "merges": merges,
    }  # fmt: skip


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    if isinstance(tokenizer, HfTokenizer):
        return tokenizer.document
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokenizer),
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(tokenizer),
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": _model(tokenizer),
    }


def _special_map(tokenizer: Tokenizer) -> dict[str, Any]:
    padding = "<|endoftext|>" if tokenizer.tokenization == "gpt2" else END_OF_TURN
    return {"eos_token": END_OF_TURN, "pad_token": padding}


def write_hf_tokenizer(tokenizer: Tokenizer, folder: Path | str, model_max_length: int | None = None,
                       template: Template = MYPT) -> None:  # fmt: skip
    """Write the five tokenizer files into an existing folder, durably, and template.json when the template is not mypt.

    `model_max_length`: the model's block size in tokens; left out of the files when None.
    """
    folder = Path(folder)
    hf = isinstance(tokenizer, HfTokenizer)
    special = dict(tokenizer.named) if isinstance(tokenizer, HfTokenizer) else _special_map(tokenizer)
    config: dict[str, Any] = {
        # Not the class that transformers maps to Qwen3 or Llama: those would replace our pre-tokenizer by their own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        # A foreign tokenizer.json says itself which of its tokens are special.
        **({} if hf else {"additional_special_tokens": [name for name in SPECIAL_TOKENS if name not in special.values()]}),
        **special,
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    # Compact and in the order of the ids: every version carries a copy, and indented it would be twice the size.
    write_bytes(folder / "tokenizer.json", orjson.dumps(_tokenizer_json(tokenizer), option=orjson.OPT_APPEND_NEWLINE))
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)
    write_text(folder / "chat_template.jinja", template.jinja())
    write_json(folder / "tokenizer_state.json", tokenizer.state())
    if template.hash != MYPT.hash:
        write_json(folder / TEMPLATE_FILE, template.state())


def keep_tokenizer(source: Path | str, parent: Path, template: str | None = None, date: str = "") -> Path:
    """Copy the tokenizer of a Hugging Face folder, with its template, into a folder of its own under `parent`; returns it.

    `template`: one of `TEMPLATES`, else what the folder suggests; `date`: what the template is told of today, for ever.
    The folder is named by what is in it, so the same tokenizer and template are kept once. Raises NotFound, CheckFailed
    for a folder without a usable tokenizer, UsageError for an unknown template.
    """
    tokenizer, chosen = open_tokenizer(source, template, date)
    folder = parent / f"{tokenizer.content_hash[:16]}-{chosen.hash[:8]}"
    if not folder.exists():
        make_dir(parent)
        making = parent / f".{folder.name}.making"
        remove_tree(making)
        make_dir(making)
        write_hf_tokenizer(tokenizer, making, None, chosen)
        fsync_tree(making)
        rename_new(making, folder)
    return folder


def open_tokenizer(source: Path | str, template: str | None = None, date: str = "") -> tuple[HfTokenizer, Template]:
    """The tokenizer of a Hugging Face folder and its template, with the template's control tokens behind its own.

    Arguments and errors are those of `keep_tokenizer`; what both give is the same.
    """
    chosen = _template_of(Path(source), hf_tokenizer(source), template, date)
    tokenizer = hf_tokenizer(source, chosen.special_tokens)
    tokenizer.check_specials()
    return tokenizer, chosen


def _template_of(source: Path, tokenizer: HfTokenizer, name: str | None, date: str) -> Template:
    if name is None and (source / TEMPLATE_FILE).exists():
        return load_template(source)
    ours = next((item for item in (MYPT, HARMONY_SIMPLE) if item.jinja() == tokenizer.chat_template), None)
    if name is None and ours is not None:
        return ours  # written by Heirloom, so its own code knows more of it than its Jinja text does
    name = name or suggested_template(tokenizer.special_tokens, tokenizer.chat_template)
    options: dict[str, Any] = {"date": date} if date and name in ("harmony", "chat_template") else {}
    if name == "chat_template":
        options |= {"tokens": tokenizer.named, "controls": list(tokenizer.special_tokens)}
    return template_from({"name": name, "options": options}, tokenizer.chat_template)
