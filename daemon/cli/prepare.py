"""`heirloom prepare`: the group of commands that turn files into what is trained, with or without a home.

Token shards stand here (`trainer/prepare_folder.py` makes them); every other command of the group stands in a file of
its own beside this one, which puts it on the group with `add_to(makers)`. Nothing here registers anything.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.output import human_tokens, plural, visible

__all__ = ["add_to", "dataset_lines", "removed_lines", "teller"]

_TELL_TOKENS = 2_000_000

_ROOMS = (
    "prepare_pack",
    "prepare_convert",
    "prepare_checks",
    "prepare_sessions",
)  # fmt: skip
"""The files that hold further commands of the group, in the order of the help."""


def add_to(app: typer.Typer) -> None:
    """Put the group on the command line."""
    makers = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
    makers.callback(epilog=EPILOGUE)(prepare)
    makers.command("text", epilog=EPILOGUE)(prepare_text)
    makers.command("chat", epilog=EPILOGUE)(prepare_chat)
    makers.command("lora", epilog=EPILOGUE)(prepare_lora)
    for room in _ROOMS:
        importlib.import_module(f"daemon.cli.{room}").add_to(makers)
    app.add_typer(makers, name="prepare", epilog=EPILOGUE)


def prepare() -> None:
    """Look at data, convert it, turn it into token shards; works without a home."""


_Input = Annotated[list[str], typer.Option("--input", metavar="FILE...", help="Files to prepare, one or several.")]
_Output = Annotated[str, typer.Option("--output-dir", help="A new or empty folder for the dataset.")]
_Tokens = Annotated[str, typer.Option("--tokenization", metavar="gpt2|char|hf", help="Must be the model's own.")]
_Folder = Annotated[str | None, typer.Option("--tokenizer", metavar="DIR", help="For hf: a tokenizer's folder, or a version's.")]
_Template = Annotated[str | None, typer.Option("--template", metavar="T", help="mypt, harmony_simple, harmony or chat_template.")]
_Split = Annotated[float, typer.Option("--val-split", min=0.0, max=1.0, help="Share held out for judging.")]
_Shard = Annotated[int, typer.Option("--shard-size", min=1, help="Most tokens in one shard.")]


def prepare_text(
    context: typer.Context, input: _Input, output_dir: _Output, tokenization: _Tokens = "gpt2",
    val_split: _Split = 0.1, shard_size: _Shard = 10_000_000, tokenizer: _Folder = None, template: _Template = None,
) -> None:  # fmt: skip
    """Plain text, Markdown, or rows with `text`, as token shards."""
    _prepare(context.obj, "text", input, output_dir, tokenization, val_split, shard_size, tokenizer, template)


def prepare_chat(
    context: typer.Context, input: _Input, output_dir: _Output, tokenization: _Tokens = "gpt2",
    val_split: _Split = 0.1, shard_size: _Shard = 10_000_000, tokenizer: _Folder = None, template: _Template = None,
) -> None:  # fmt: skip
    """Conversations in any usual spelling, as token shards; only answers are trained."""
    _prepare(context.obj, "chat", input, output_dir, tokenization, val_split, shard_size, tokenizer, template)


def prepare_lora(
    context: typer.Context,
    domain: Annotated[str, typer.Option("--domain", help="The domain's folder, such as coding, medical or legal.")],
    output_dir: _Output,
    data_dir: Annotated[str, typer.Option("--data-dir", help="Where the domains' folders lie.")] = "data/domain",
    tokenization: _Tokens = "gpt2", val_split: _Split = 0.1, shard_size: _Shard = 10_000_000, tokenizer: _Folder = None,
    template: _Template = None,
) -> None:  # fmt: skip
    """A domain folder with train/ and val/: rows with `text` or `messages`. The given val/ is the one that is held out."""
    from trainer.prepare_domain import prepare_domain

    caller: Caller = context.obj
    found = prepare_domain(domain, caller.folder / Path(data_dir).expanduser(), caller.folder / Path(output_dir).expanduser(),
                           tokenization, val_split=val_split, shard_size_tokens=shard_size,
                           tokenizer_folder=caller.folder / Path(tokenizer).expanduser() if tokenizer else None,
                           template=template)  # fmt: skip
    caller.console.emit(found)
    caller.console.note(*dataset_lines(found))


def _prepare(
    caller: Caller,
    kind: str,
    inputs: Sequence[str],
    output_dir: str,
    tokenization: str,
    val_split: float,
    shard_size: int,
    tokenizer: str | None,
    template: str | None,
) -> None:
    from trainer.hardware import usable_cores
    from trainer.prepare_folder import prepare_folder

    paths = [caller.folder / Path(name).expanduser() for name in inputs]
    target = caller.folder / Path(output_dir).expanduser()
    found = prepare_folder(kind, paths, target, tokenization, val_split, shard_size, template=template,
                           threads=usable_cores(), progress=teller(caller.console.progress),
                           tokenizer_folder=caller.folder / Path(tokenizer).expanduser() if tokenizer else None)  # fmt: skip
    caller.console.emit(found)
    caller.console.note(*dataset_lines(found))


def teller(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Says how far it is every so many tokens: a line every few seconds."""
    told = 0

    def tell(examples: int, tokens: int) -> None:
        nonlocal told
        if tokens - told >= _TELL_TOKENS:
            told = tokens
            say(f"   {human_tokens(tokens)} tokens of {plural(examples, 'document')} and pieces of text")

    return tell


def dataset_lines(found: Mapping[str, Any]) -> list[str]:
    """What was made, for a person."""
    train, held = found["train"], found["val"]
    lines = [
        f"✅ Dataset ready: {visible(found['output_dir'])}",
        f"   Train: {plural(train['examples'], 'example')} ({human_tokens(train['tokens'])} tokens,"
        f" {plural(train['shards'], 'shard')})",
        f"   Held out: {plural(held['examples'], 'example')} ({human_tokens(held['tokens'])} tokens)",
        f"   Tokenization: {visible(found['tokenization'])}",
    ]
    if found["kind"] == "sft":
        lines.append(f"   Mask ratio: {found['mask_ratio']:.1%} of the tokens are trained")
    if found["skipped_rows"]:
        lines.append(f"   Skipped: {plural(found['skipped_rows'], 'row')} that cannot be used")
        lines += [f"     {visible(row['file'])}:{row['line']} {visible(row['field'])} {visible(row['reason'])}"
                  for row in found["skipped"]]  # fmt: skip
    return lines + [f"   ⚠️ {visible(text)}" for text in found["warnings"]] + removed_lines(found)


def removed_lines(found: Mapping[str, Any]) -> list[str]:
    """What runs that were killed had left of the same output."""
    return [f"   Removed {visible(name)}: a run that was killed had left it" for name in found["removed"]]
