"""The command tree, made with typer: which commands there are, which file holds each, and running one.

Only the files a line may need are imported: making every command costs a tenth of a second. What a command does is
in its file; turning errors into words and codes is in `main.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.options import DEFAULT_COMMAND, Shape
from daemon.cli.status import show

__all__ = ["GROUPS", "build", "groups_for", "run", "shape_of"]

GROUPS = {
    "homes": ("init", "run"),
    "files": ("register", "why"),
    "seen_command": ("seen",),
    "plans": ("plan", "plan-training", "train"),
    "queue": ("queue",),
    "versions": ("lineage", "show"),
    "moving": ("rollback", "delete", "restore"),
    "keeping": ("purge", "retention", "regrow"),
    "verify": ("verify",),
    "backup": ("backup",),
    "doctor": ("doctor",),
    "journal": ("log", "config"),
    "prepare": ("prepare",),
    "prefs": ("prefs",),
    "data": ("index", "search"),
    "chat": ("chat",),
    "evaluate": ("eval",),
    "tokenizer": ("tokenizer",),
}
"""Which file beside this one holds which commands, in the order of the help; `status` stands here."""


def groups_for(words: Sequence[str]) -> tuple[str, ...]:
    """The files that a command line may need. Any word that is a command's name counts: too many is harmless.

    Help and unknown commands need all.
    """
    found = tuple(group for group, names in GROUPS.items() if set(names) & set(words))
    if {"--help", "-h"} & set(words) or not found:
        return tuple(GROUPS)
    return found


def build(groups: Sequence[str] = tuple(GROUPS)) -> Any:
    """The command tree of these groups."""
    app = typer.Typer(
        name="heirloom", epilog=EPILOGUE, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )  # fmt: skip
    app.callback(epilog=EPILOGUE)(_root)
    app.command(DEFAULT_COMMAND, epilog=EPILOGUE)(status)
    for group in groups:
        importlib.import_module(f"daemon.cli.{group}").add_to(app)
    return typer.main.get_command(app)


def _root() -> None:
    """Keeps one language model learning and never loses any of it. Alone: `heirloom status`. `--version` says which."""


def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit code 10 when no daemon runs.")] = False,
) -> None:
    """What is going on: state, active version, training, queue, inbox, tokens, disk."""
    raise typer.Exit(show(context.obj, watch=watch, check=check))


def shape_of(command: Any) -> Shape:
    """Which options of a command tree take values."""
    options = [param for param in command.params if param.param_type_name == "option"]
    with_value = [param for param in options if not param.is_flag and not param.count]
    return Shape(
        values=frozenset(name for param in with_value for name in param.opts),
        several=frozenset(name for param in with_value if param.multiple for name in param.opts),
        commands={name: shape_of(item) for name, item in getattr(command, "commands", {}).items()},
    )


def run(command: Any, line: Sequence[str], caller: Caller) -> int:
    """Run one normalised line; returns the exit code a command ended with. Errors go up as they are."""
    try:
        # Not typer's own main(): it prints errors and exits by itself.
        with command.make_context("heirloom", list(line), obj=caller) as context:
            command.invoke(context)
    except typer.Exit as ending:
        return ending.exit_code
    return 0
