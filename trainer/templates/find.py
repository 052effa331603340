"""Which template a model speaks: by the `template.json` of its folder, by name, or by what a tokenizer folder suggests.

A folder without `template.json` speaks mypt: so do all versions made before there were others.
Not here: the formats, and tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from guard.errors import CheckFailed, Damage, UsageError
from trainer.templates.base import Template
from trainer.templates.harmony_simple import HARMONY_SIMPLE
from trainer.templates.mypt import MYPT

__all__ = ["TEMPLATES", "TEMPLATE_FILE", "load_template", "suggested_template", "template_from"]

TEMPLATE_FILE = "template.json"
TEMPLATES = ("mypt", "harmony_simple", "harmony", "chat_template")


def template_from(state: Mapping[str, Any], chat_template: str = "") -> Template:
    """The template of that name and those options; `chat_template` is the Jinja text for the one called so.

    Raises UsageError for an unknown name, CheckFailed when the text cannot be used.
    """
    name, options = str(state.get("name")), dict(state.get("options") or {})
    if name == "mypt":
        return MYPT
    if name == "harmony_simple":
        return HARMONY_SIMPLE
    if name == "harmony":
        from trainer.templates.harmony import HarmonyTemplate

        return HarmonyTemplate(**options)
    if name == "chat_template":
        from trainer.templates.chat import ChatTemplate

        if not chat_template:
            raise CheckFailed("there is no chat template to use: the folder has no chat_template.jinja",
                              subject=name, hint=f"--template {'|'.join(TEMPLATES[:-1])}")  # fmt: skip
        options.pop("source_sha256", None)
        return ChatTemplate(chat_template, **options)
    raise UsageError(f"unknown template {name!r}", subject=name, hint=f"one of {', '.join(TEMPLATES)}")


def load_template(folder: Path | str | None) -> Template:
    """The template a folder's model speaks. Raises Damage when its file is not what it claims to be."""
    path = Path(folder) / TEMPLATE_FILE if folder is not None else None
    if path is None or not path.exists():
        return MYPT
    try:
        state = orjson.loads(path.read_bytes())
        chat = path.with_name("chat_template.jinja")
        template = template_from(state, chat.read_text("utf-8") if chat.exists() else "")
    except (orjson.JSONDecodeError, AttributeError, TypeError) as error:
        raise Damage(f"{path} is not what was written: {error}", subject=str(path), hint="heirloom verify") from error
    if template.hash != state.get("hash"):
        raise CheckFailed(f"{path.parent.name} was made with another release's template {template.name}: this one would"
                          " render its conversations differently", subject=str(path),
                          hint="use the release that made it")  # fmt: skip
    return template


def suggested_template(names: Iterable[str], chat_template: str) -> str:
    """The template that fits a tokenizer: GPT-OSS's control tokens mean Harmony, else its own one, else mypt."""
    if {"<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>", "<|end|>"} <= set(names):
        return "harmony"
    return "chat_template" if chat_template else "mypt"
