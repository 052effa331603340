"""Versions to talk to or to judge: found, proven to be what was sealed, and loaded, each in the caller's own process.

Not here: loading itself (`trainer/version_files.py`). Importing this file imports no torch; `load_sealed` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.errors import CheckFailed, Damage, NotFound
from guard.store.keeper import Keeper
from guard.store.sums import folder_problems
from guard.store.versions import GONE, Version, named_version

__all__ = ["load_sealed", "sound_version"]


def sound_version(keeper: Keeper, text: str | None) -> Version:
    """The version that was named, else (None, `latest`) the active one, every file of it read and found as it was sealed.

    Raises NotFound when there is none or it is not in models/, Damage for one that is not what was sealed.
    """
    found = named_version(keeper.ledger, "latest" if text is None else text)
    if found.state in GONE:
        raise NotFound(f"{found.name} is not in models/: it is {found.state}", subject=found.name,
                       hint=f"heirloom restore {found.name}")  # fmt: skip
    problems = folder_problems(keeper.home.models / found.name, found.sums_sha256)
    if problems:
        # One wrong bit in the weights makes no error, only another model: it is never loaded.
        raise Damage(f"{found.name} is damaged: {problems[0][0]} {problems[0][1]}", subject=found.name,
                     hint=f"heirloom restore {found.name}")  # fmt: skip
    return found


def load_sealed(folder: Path, record: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Model, tokenizer and template of a version; those must be the ones it was sealed with (law 11). Raises CheckFailed."""
    from trainer.templates.find import load_template
    from trainer.version_files import load_version

    model, tokenizer = load_version(folder)
    template = load_template(folder)
    for what, sealed, found in (("tokenizer", record.get("tokenizer_hash") or "none", tokenizer.content_hash),
                                ("template", record.get("template_hash") or template.hash, template.hash)):  # fmt: skip
        if found != sealed:
            raise CheckFailed(f"{folder.name} was sealed with the {what} {sealed[:16]}, this one is {found[:16]}",
                              subject=folder.name, hint=f"heirloom verify {folder.name}")  # fmt: skip
    return model, tokenizer, template
