"""Preparing by hand: any files into any empty folder, in or out of a home (`heirloom prepare text|chat`).

The same reader and writer as for jobs; only the files are named by a person, and the split is by `--val-split`. The
folder appears whole or not at all: it is made beside its place and moved there when it is durable.
Nothing is registered, and nothing is known of what any model has learnt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from guard.checks.columns import PLAIN
from guard.checks.kinds import container_of, container_reason, holds_rows, kind_reason
from guard.checks.rows import iter_rows, read_fields
from guard.durable import rename_new, sha256_file
from guard.errors import CheckFailed, DataFault, NotFound, UsageError
from trainer.hf_tokenizer import open_tokenizer
from trainer.making import check_writable, made_beside
from trainer.prepare import DEFAULT_SHARD_TOKENS, Progress, SourceFile, prepare_dataset
from trainer.row_files import reading_beside
from trainer.templates.base import Template
from trainer.templates.mypt import MYPT
from trainer.tokenizer import Tokenizer, load_tokenizer

__all__ = ["KINDS", "check_output", "prepare_folder", "skipped_rows", "source_of", "tokenizer_of"]

KINDS = {"text": "pretrain", "chat": "sft"}
_LISTED_ROWS = 20
_Skipped = tuple[int, list[dict[str, Any]]]


def source_of(path: Path, stage: str) -> SourceFile:
    """A file that a person named, looked at and hashed, with what its side file says of its rows.

    Raises NotFound, UsageError, DataFault for a side file that says it wrongly.
    """
    if not path.exists():
        raise NotFound(f"no file {path}", subject=str(path), hint="check the path after --input")
    container = container_of(path.name)
    if path.is_dir():
        raise UsageError(f"{path} is a folder, and files are prepared", subject=str(path),
                         hint=f"heirloom prepare convert {path} OUT.jsonl makes one file of its rows, or drop it whole into"
                         " the inbox")  # fmt: skip
    problem = "" if path.is_file() else "it is no file"
    problem = problem or (kind_reason(stage, container) if container else container_reason(path.name))
    if problem:
        raise UsageError(f"{path} is no input for {stage}: {problem}", subject=str(path),
                         hint="give it the name of what it is, or convert it to JSONL, one object per line")  # fmt: skip
    # A person may name a link; readers below follow none.
    real = path.resolve()
    reading = reading_beside(path, stage) if holds_rows(container) else PLAIN
    return SourceFile(sha256_file(real), path.name, real, reading=reading, called=path.name)


def skipped_rows(file: SourceFile, stage: str) -> _Skipped:
    """How many rows cannot be used, and the first ones with line, field and reason."""
    count = 0
    listed: list[dict[str, Any]] = []
    for row in iter_rows(file.path, name=file.called) if holds_rows(file.container) else ():
        found = [row.fault] if row.fault else read_fields(stage, row.value or {}, file.reading)
        if isinstance(found, dict):
            continue
        count += 1
        if len(listed) < _LISTED_ROWS:
            fault = found[0]
            listed.append({"file": file.name, "line": row.line_number, "field": fault.field, "reason": fault.reason})
    return count, listed


def check_output(folder: Path) -> None:
    """Raises UsageError unless the folder is missing or empty, and can be made."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is not a folder", subject=str(folder), hint="name a new folder after --output-dir")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", subject=str(folder),
                         hint="name a new or empty folder after --output-dir")  # fmt: skip
    check_writable(folder.absolute().parent)


def prepare_folder(kind: str, inputs: Sequence[Path | str], output_dir: Path | str, tokenization: str = "gpt2",
                   val_split: float = 0.1, shard_size_tokens: int = DEFAULT_SHARD_TOKENS, salt: str = "", *,
                   tokenizer_folder: Path | str | None = None, template: str | None = None, threads: int = 1,
                   progress: Progress | None = None, held_out: Sequence[Path | str] = ()) -> dict[str, Any]:  # fmt: skip
    """Prepare `text` or `chat` files into `output_dir` (missing or empty) and tell what became of them.

    `val_split` is a fraction of the examples, decided by fingerprint and `salt`; where files are `held_out`, those are the
    val split and nothing is drawn. `tokenizer_folder` and `template` are for the tokenization hf: a Hugging Face folder or
    a version, and one of `TEMPLATES` instead of what it suggests. Raises UsageError for wrong words or
    a folder in use, NotFound for a missing input, DataFault when nothing can be used.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}", hint=f"one of {', '.join(KINDS)}")
    if not 0 <= val_split < 1:
        raise UsageError(f"--val-split {val_split} must be at least 0 and below 1", hint="for example 0.1")
    if not inputs:
        raise UsageError("no input file", hint="--input FILE, once or more often")
    stage, output_dir = KINDS[kind], Path(output_dir)
    check_output(output_dir)
    tokenizer, chosen = tokenizer_of(tokenization, tokenizer_folder, template)
    files = [source_of(Path(item), stage) for item in inputs]
    if held_out:
        files = [replace(file, split="train") for file in files]
        files += [replace(source_of(Path(item), stage), split="val") for item in held_out]
    skipped = [skipped_rows(file, stage) for file in {file.sha256: file for file in files}.values()]
    output_dir = output_dir.absolute()
    with made_beside(output_dir) as (making, removed):
        dataset = prepare_dataset(files, tokenizer, making, stage=stage, shard_size_tokens=shard_size_tokens, salt=salt,
                                  validation_fraction=val_split, threads=threads, template=chosen, progress=progress)  # fmt: skip
        if not dataset.train.count + dataset.val.count:
            raise DataFault("no row can be used", subject=files[0].name, hint=_first_reason(skipped))
        if not dataset.train.count:
            raise CheckFailed("all examples fell to the validation split", hint="lower --val-split, or give more data")
        with contextlib.suppress(FileNotFoundError):
            output_dir.rmdir()
        rename_new(making, output_dir)
    return _summary(dataset.metadata, output_dir, skipped) | {"removed": removed}


def tokenizer_of(tokenization: str, folder: Path | str | None, template: str | None) -> tuple[Tokenizer, Template]:
    """What `--tokenization`, `--tokenizer` and `--template` name together. Raises UsageError, NotFound, CheckFailed."""
    if tokenization == "hf" and folder is not None:
        return open_tokenizer(folder, template)
    if folder is not None or template not in (None, MYPT.name):
        raise UsageError("--tokenizer DIR and --template belong to --tokenization hf", subject="--tokenizer",
                         hint="--tokenization hf --tokenizer DIR")  # fmt: skip
    return load_tokenizer(tokenization), MYPT


def _first_reason(skipped: Sequence[_Skipped]) -> str:
    first = next((rows[0] for _count, rows in skipped if rows), None)
    return f"line {first['line']}: {first['reason']}" if first else "the files are empty"


def _summary(metadata: dict[str, Any], folder: Path, skipped: Sequence[_Skipped]) -> dict[str, Any]:
    splits = {
        name: {key: split[key] for key in ("examples", "tokens", "loss_tokens")} | {"shards": len(split["shards"])}
        for name, split in metadata["splits"].items()
    }
    return {
        "dataset_id": metadata["id"],
        "output_dir": str(folder),
        "kind": metadata["kind"],
        "tokenization": metadata["tokenization"],
        "files": metadata["files"],
        **splits,
        "mask_ratio": metadata["mask_ratio"],
        "warnings": metadata["warnings"],
        "skipped_rows": sum(count for count, _rows in skipped),
        "skipped": [row for _count, rows in skipped for row in rows][:_LISTED_ROWS],
    }
