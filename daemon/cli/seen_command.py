"""`heirloom seen` on the command line that typer makes; `main.py` answers the usual line without it. See `seen.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.cli.caller import EPILOGUE
from daemon.cli.seen import answer

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the command on the command line."""
    app.command("seen", epilog=EPILOGUE)(seen)


def seen(
    context: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="A text or a JSON row; - reads standard input.")],
    near: Annotated[bool, typer.Option("--near", help="Also what resembles it (see near.threshold).")] = False,
) -> None:
    """Say which files hold this example and which versions have learnt it. Exit code 4: nothing was found."""
    code = answer(context.obj, text, near=near)
    if code:
        raise typer.Exit(code)
