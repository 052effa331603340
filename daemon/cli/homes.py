"""`heirloom init` and `heirloom run`: making a home, and working in it.

Both acts are elsewhere (`daemon/setup.py`, `daemon/service.py`); here they get their arguments and their last word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.output import visible
from guard.errors import UsageError

__all__ = ["add_to"]

TOKENIZATIONS = ("gpt2", "char")


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("init", epilog=EPILOGUE)(init)
    app.command("run", epilog=EPILOGUE)(run)


def init(
    context: typer.Context,
    directory: Annotated[str | None, typer.Argument(metavar="[DIR]", help="Where; this folder otherwise.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="The model to begin with: a recipe for a base.")] = "pretrain/small",
    tokenization: Annotated[str, typer.Option("--tokenization", metavar="gpt2|char", help="Its tokens, for ever.")] = "gpt2",
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The recipe's own otherwise.")] = None,
) -> None:
    """Make a home with its first version, v001_baseline."""
    from daemon.setup import init_home

    caller: Caller = context.obj
    if tokenization not in TOKENIZATIONS:
        raise UsageError(f"--tokenization {tokenization!r} is not known", hint=f"one of {', '.join(TOKENIZATIONS)}")
    given = directory or caller.home_given or "."
    target = (caller.folder / Path(given).expanduser()).absolute()
    found = init_home(target, recipe=recipe, tokenization=tokenization, seed=seed, progress=caller.console.progress)
    caller.console.emit({"home": str(target), **found})
    there = "" if target == caller.folder else f" --home {visible(target)}"
    caller.console.note(
        f"✅ {visible(found.get('version', 'v001_baseline'))} is sealed in {visible(target / 'models')}",
        f"   Drop data into {visible(target / 'inbox')}, then: heirloom{there} run",
    )


def run(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Work until nothing is left, then end.")] = False,
) -> None:
    """The daemon in the foreground: watch the inbox, train, back up, until Ctrl-C."""
    from daemon.service import run as run_service

    caller: Caller = context.obj
    code = run_service(caller.home(), once)
    if caller.console.json:
        from daemon.report import status

        caller.console.emit(status(caller.home()))
    if code:
        raise typer.Exit(code)
