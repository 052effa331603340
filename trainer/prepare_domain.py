"""A domain folder, `data/domain/coding/{train,val}`, as a prepared dataset whose val split is the given one.

For adapters that learn one field: rows with `text` (continuation) or `messages` (instructions), in any container that rows
come in. Nothing is drawn where a `val/` is given; without one the usual share is. Not here: training an adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guard.checks.kinds import container_of, detect_columns, holds_rows
from guard.errors import DataFault, NotFound, UsageError
from trainer.dataset import open_dataset
from trainer.prepare import DEFAULT_SHARD_TOKENS
from trainer.prepare_folder import prepare_folder
from trainer.row_files import DataFile, data_files, reading_beside, rows_of

__all__ = ["prepare_domain"]

_WORDS = {"pretrain": "text", "sft": "chat"}
_ROWS_TO_LOOK_AT = 100


def prepare_domain(domain: str, data_dir: Path, output_dir: Path, tokenization: str = "gpt2", *, val_split: float = 0.1,
                   shard_size_tokens: int = DEFAULT_SHARD_TOKENS, tokenizer_folder: Path | None = None,
                   template: str | None = None) -> dict[str, Any]:  # fmt: skip
    """Prepare `data_dir`/`domain`; the summary of `prepare_folder` with `domain` and `given_val`.

    Raises NotFound for a domain that is not there, UsageError for one of mixed kinds or a name that is a path, DataFault
    when nothing in it says a kind.
    """
    folder = data_dir / domain
    if domain in ("", ".", "..") or "/" in domain:
        raise UsageError(f"{domain!r} is no name of a domain", hint="--domain coding --data-dir data/domain")
    if not folder.is_dir():
        there = sorted(path.name for path in data_dir.iterdir() if path.is_dir()) if data_dir.is_dir() else []
        hint = f"there is {', '.join(there)}" if there else "--data-dir DIR names the folder of the domains"
        raise NotFound(f"there is no domain {domain} in {data_dir}", subject=str(folder), hint=hint)
    files = data_files(folder)
    train = [item for item in files if item.split == "train"]
    held_out = [item.path for item in files if item.split == "val"]
    if not train:
        raise NotFound(f"there is no training data in {folder}", subject=str(folder), hint=f"put rows into {folder / 'train'}/")
    kind = _kind_of(files)
    found = prepare_folder(_WORDS[kind], [item.path for item in train], output_dir, tokenization,
                           0.0 if held_out else val_split, shard_size_tokens, held_out=held_out,
                           tokenizer_folder=tokenizer_folder, template=template)  # fmt: skip
    return found | {"domain": domain, "given_val": bool(held_out), "warnings": found["warnings"] + _leaks(output_dir)}


def _kind_of(files: list[DataFile]) -> str:
    """The one kind of all files. Raises UsageError when they differ, DataFault when a file says none."""
    kinds = {item.name: _kind(item) for item in files}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise UsageError(f"the files are of different kinds: {told}", hint="one domain holds text or messages, not both")
    return next(iter(kinds.values()))


def _kind(item: DataFile) -> str:
    if not holds_rows(container_of(item.path.name)):
        return "pretrain"
    reading = reading_beside(item.path, "")
    for row, _ in zip(rows_of(item.path), range(_ROWS_TO_LOOK_AT), strict=False):
        detected = detect_columns(reading.apply(row.value)) if row.value is not None else None
        if detected and detected.kind in _WORDS:
            return detected.kind
    raise DataFault(f"{item.name} says no kind that an adapter learns", subject=str(item.path),
                    hint="rows with text, or with messages")  # fmt: skip


def _leaks(folder: Path) -> list[str]:
    """A warning when rows to judge by are also trained on: then their loss says little."""
    dataset = open_dataset(folder)
    count = int(np.isin(dataset.val.fingerprints, dataset.train.fingerprints).sum())
    told = f"{count} of {dataset.val.count} held-out examples are in train too: they say little about what was learnt"
    return [told] if count else []
