"""A Hugging Face tokenizer folder, read as data: one tokenizer.json document, the named specials, the chat template.

Read are tokenizer.json, or vocab.json with merges.txt, and tokenizer_config.json, special_tokens_map.json,
added_tokens.json, chat_template.jinja. Nothing is run and nothing fetched: no pickle is opened, and a folder that asks for
code of its own is refused. Not here: encoding (`trainer/tokenizer_hf.py`), writing (`trainer/hf_tokenizer.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from guard.errors import CheckFailed, NotFound

__all__ = ["TokenizerFolder", "added_token", "read_tokenizer_folder"]

_MAX_BYTES = 256 << 20
"""The largest known tokenizer.json has 35 MB."""
_MAX_TEMPLATE_BYTES = 1 << 20
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFolder:
    """What a folder says, in one spelling whatever its files were."""

    document: dict[str, Any]
    """tokenizer.json with every added token in `added_tokens`, without truncation and padding."""
    named: dict[str, str] = field(default_factory=dict)
    """eos_token and the like -> the token's text."""
    chat_template: str = ""
    separator_id: int | None = None
    """Set in a folder that Heirloom wrote: the id between two documents."""


def added_token(number: int, content: str) -> dict[str, Any]:
    """A control token as tokenizer.json writes it."""
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}  # fmt: skip


def read_tokenizer_folder(folder: Path | str) -> TokenizerFolder:
    """Read a folder. Raises NotFound when there is no tokenizer in it, CheckFailed for what cannot be used."""
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}", subject=str(folder), hint="name the folder that holds tokenizer.json")
    config = _json(folder / "tokenizer_config.json") or {}
    if config.get("auto_map"):
        raise CheckFailed(f"{folder} asks for code of its own (auto_map in tokenizer_config.json), which is never run",
                          subject=str(folder), hint="use its plain tokenizer.json in a folder without auto_map")  # fmt: skip
    named = _named_tokens(config, _json(folder / "special_tokens_map.json") or {})
    document = _document(folder, named)
    _add_missing(document, folder, config, named)
    state = _json(folder / "tokenizer_state.json") or {}
    separator = state.get("separator_id") if state.get("tokenization") == "hf" else None
    return TokenizerFolder(document, named, _chat_template(folder, config),
                           separator if isinstance(separator, int) else None)  # fmt: skip


def _read(path: Path, limit: int = _MAX_BYTES) -> bytes | None:
    """The bytes of a plain file; links are followed, since the hub's cache is made of them. None when it is missing."""
    if not path.exists():
        return None
    if not path.is_file() or path.stat().st_size > limit:
        raise CheckFailed(f"{path} is no plain file of at most {limit:,} bytes", subject=str(path),
                          hint="this is not a tokenizer's file")  # fmt: skip
    return path.read_bytes()


def _json(path: Path) -> dict[str, Any] | None:
    data = _read(path)
    if data is None:
        return None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise CheckFailed(f"{path} is not JSON: {error}", subject=str(path), hint="copy the file again") from error
    if not isinstance(value, dict):
        raise CheckFailed(f"{path} does not hold an object", subject=str(path), hint="copy the file again")
    return value


def _content(value: Any) -> str:
    """A token's text; it may stand there as an object."""
    found = value.get("content") if isinstance(value, Mapping) else value
    return found if isinstance(found, str) else ""


def _named_tokens(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in _NAMED:
        text = _content(config.get(name)) or _content(special_map.get(name))
        if text:
            found[name] = text
    return found


def _document(folder: Path, named: Mapping[str, str]) -> dict[str, Any]:
    """tokenizer.json, or the same made of GPT-2's two files."""
    document = _json(folder / "tokenizer.json")
    if document is None:
        document = _from_two_files(folder, named)
    model = document.get("model")
    if not isinstance(model, dict) or not model.get("vocab"):
        raise CheckFailed(f"{folder / 'tokenizer.json'} has no vocabulary", subject=str(folder), hint="copy the file again")
    document = {**copy.copy(document), "truncation": None, "padding": None}
    document["added_tokens"] = [dict(item) for item in document.get("added_tokens") or ()]
    return document


def _from_two_files(folder: Path, named: Mapping[str, str]) -> dict[str, Any]:
    """GPT-2's own form: vocab.json and merges.txt, byte-level, without a normalizer."""
    vocabulary, merges = _json(folder / "vocab.json"), _read(folder / "merges.txt")
    if vocabulary is None or merges is None:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise NotFound(f"there is no tokenizer in {folder}: neither tokenizer.json nor vocab.json with merges.txt"
                       f" (found: {found})", subject=str(folder),
                       hint="save it with AutoTokenizer.from_pretrained(...).save_pretrained(DIR)")  # fmt: skip
    lines = [line for line in merges.decode("utf-8").split("\n") if line and not line.startswith("#version")]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": [line.split(" ", 1) for line in lines]},
    }  # fmt: skip


def _vocabulary(document: Mapping[str, Any]) -> dict[str, int]:
    """Text -> id of the model's own tokens; Unigram lists them in order."""
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {item[0]: number for number, item in enumerate(vocabulary)}


def _add_missing(document: dict[str, Any], folder: Path, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Tokens that only the other files name become added tokens of the document, as transformers does."""
    there = {item["content"]: item["id"] for item in document["added_tokens"]}
    wanted: dict[str, int | None] = {}
    for number, entry in (config.get("added_tokens_decoder") or {}).items():
        wanted[_content(entry)] = int(number)
    for content, value in (_json(folder / "added_tokens.json") or {}).items():
        wanted[content] = int(value)
    wanted |= {content: None for content in named.values() if content not in wanted}
    vocabulary = _vocabulary(document)
    following = 1 + max([*vocabulary.values(), *there.values(), *(number for number in wanted.values() if number is not None)])
    for content, claimed in wanted.items():
        if not content or content in there:
            continue
        number = vocabulary.get(content, claimed)
        if number is None:
            number, following = following, following + 1
        document["added_tokens"].append(added_token(number, content))
        there[content] = number
    document["added_tokens"].sort(key=lambda item: item["id"])
    if len({item["id"] for item in document["added_tokens"]}) != len(document["added_tokens"]):
        raise CheckFailed(f"two added tokens in {folder} have the same id", subject=str(folder), hint="copy the files again")


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str:
    """chat_template.jinja, else what tokenizer_config.json holds; of several, the one called default."""
    data = _read(folder / "chat_template.jinja", _MAX_TEMPLATE_BYTES)
    if data is not None:
        return data.decode("utf-8")
    found = config.get("chat_template") or ""
    if isinstance(found, list):
        found = next((item.get("template") for item in found if item.get("name") == "default"), "")
    return found if isinstance(found, str) else ""
