"""`heirloom prepare pack`: text into packed sequences of several lengths. The work is done in `trainer/pack.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.output import human_tokens, plural, visible
from daemon.cli.prepare import removed_lines, teller
from guard.errors import UsageError

__all__ = ["add_to", "pack_lines"]


def add_to(makers: typer.Typer) -> None:
    """Put the command on the group `prepare`."""
    makers.command("pack", epilog=EPILOGUE)(prepare_pack)


def prepare_pack(
    context: typer.Context,
    input: Annotated[list[str], typer.Option("--input", metavar="FILE...", help="Text to pack; 'raw/*.parquet' works too.")],
    output_dir: Annotated[str, typer.Option("--output-dir", "--output", help="A new or empty folder.")],
    seq_length: Annotated[str, typer.Option("--seq-length", metavar="N,N...", help="Tokens in a sequence.")] = "512,1024,2048",
    format: Annotated[str, typer.Option("--format", metavar="npy|arrow", help="What the sequences are written as.")] = "npy",
    tokenization: Annotated[str, typer.Option("--tokenization", metavar="gpt2|char|hf", help="The model's own.")] = "gpt2",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", metavar="DIR", help="Its folder, with hf.")] = None,
    val_split: Annotated[float, typer.Option("--val-split", min=0.0, max=1.0, help="Share held out for judging.")] = 0.1,
    shard_rows: Annotated[int, typer.Option("--shard-rows", min=0, help="Most sequences in one file; 0: no limit.")] = 0,
) -> None:  # fmt: skip
    """Text into sequences of equal length: train_512/ ... val_2048/, as .npy or Arrow, for a curriculum or other programs."""
    from trainer.hardware import usable_cores
    from trainer.pack import PackPlan, expand, pack_folder
    from trainer.prepare_folder import tokenizer_of

    caller: Caller = context.obj
    plan = PackPlan(_lengths(seq_length), format, val_split, shard_rows)
    plan.check()
    target = caller.folder / Path(output_dir).expanduser()
    named = caller.folder / Path(tokenizer).expanduser() if tokenizer else None
    found = pack_folder(expand(input, caller.folder), target, tokenizer_of(tokenization, named, None)[0], plan,
                        threads=usable_cores(), progress=teller(caller.console.progress))  # fmt: skip
    caller.console.emit(found)
    caller.console.note(*pack_lines(found))


def _lengths(text: str) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise UsageError(f"--seq-length {text!r} is no list of whole numbers", hint="--seq-length 512,1024,2048")
    return tuple(int(word) for word in words)


def pack_lines(found: Mapping[str, Any]) -> list[str]:
    """What was made, for a person."""
    lines = [f"✅ Packed: {visible(found['output_dir'])}"]
    for name, split in found["splits"].items():
        dropped = f"; {split['dropped_tokens']:,} at the end dropped" if split["dropped_tokens"] else ""
        lines.append(f"   {name}: {plural(split['sequences'], 'sequence')} of {split['length']:,}"
                     f" ({human_tokens(split['tokens'])} tokens{dropped})")  # fmt: skip
    lines.append(f"   Tokenization: {visible(found['tokenization'])}")
    lengths = {split["length"] for split in found["splits"].values()}
    if len(lengths) > 1:
        lines.append(f"   The same text stands in it at {len(lengths)} lengths: dropped whole, it is learnt {len(lengths)} times;"
                     f" drop train_{max(lengths)} alone for once")  # fmt: skip
    if found["skipped_rows"]:
        lines.append(f"   Skipped: {plural(found['skipped_rows'], 'row')} that cannot be used")
        lines += [f"     {visible(row['file'])}:{row['line']} {visible(row['field'])} {visible(row['reason'])}"
                  for row in found["skipped"]]  # fmt: skip
    return lines + [f"   ⚠️ {visible(text)}" for text in found["warnings"]] + removed_lines(found)
