"""`heirloom tokenizer train`: a tokenizer of one's own data, with or without a home.

The work is done in `trainer/tokenizer_train.py`; here are the words around it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.output import human_count, plural, visible
from daemon.cli.prepare import removed_lines

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    group = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
    group.callback(epilog=EPILOGUE)(tokenizer)
    group.command("train", epilog=EPILOGUE)(train)
    app.add_typer(group, name="tokenizer", epilog=EPILOGUE)


def tokenizer() -> None:
    """Make tokenizers; works without a home."""


def train(
    context: typer.Context,
    input: Annotated[list[str], typer.Option("--input", metavar="FILE...", help="Text, or rows of text, to learn words from.")],
    out_dir: Annotated[str, typer.Option("--out-dir", help="A new folder for the tokenizer.")],
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=1, help="Ids at most, control tokens counted.")] = 16_384,
    min_frequency: Annotated[int, typer.Option("--min-frequency", min=1, help="A pair must occur so often.")] = 2,
    special: Annotated[list[str] | None, typer.Option("--special", metavar="TOKEN...", help="More control tokens.")] = None,
    template: Annotated[str, typer.Option("--template", metavar="T", help="mypt, harmony_simple or harmony.")] = "mypt",
) -> None:
    """A byte-level BPE of your own data, as Hugging Face files; the same files give the same bytes."""
    from trainer.tokenizer_train import train_tokenizer

    caller: Caller = context.obj
    progress = caller.console.progress
    found = train_tokenizer(
        [caller.folder / Path(name).expanduser() for name in input], vocab_size, caller.folder / Path(out_dir).expanduser(),
        min_frequency=min_frequency, specials=special or (), template=template,
        progress=lambda texts, characters: progress(f"read {human_count(texts)} texts, {human_count(characters)} characters"),
    )  # fmt: skip
    caller.console.emit(found)
    caller.console.note(*_lines(found))


def _lines(found: dict[str, Any]) -> list[str]:
    return [
        f"✅ Tokenizer ready: {visible(found['out_dir'])}",
        f"   {plural(found['vocab_size'], 'id')} from {plural(found['texts'], 'text')}, template {visible(found['template'])}",
        f"   Use it: heirloom init DIR --tokenization hf --tokenizer {visible(found['out_dir'])}",
        *removed_lines(found),
    ]
