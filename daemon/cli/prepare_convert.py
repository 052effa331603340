"""`heirloom prepare convert`: rows from one container into another, in or out of a home.

The work is done in `trainer/convert.py`; here are the words around it, and a bar for whoever looks on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.output import bar, human_count, plural, visible
from daemon.cli.prepare import removed_lines
from guard.errors import UsageError

__all__ = ["add_to"]

_TELL_SECONDS = 1.0


def add_to(makers: typer.Typer) -> None:
    """Put the command below `heirloom prepare`."""
    makers.command("convert", epilog=EPILOGUE)(prepare_convert)


def prepare_convert(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file of rows, an Arrow folder, or one with train/ and val/.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A new file; a name without suffix is an Arrow folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="jsonl, json, csv, parquet or arrow.")] = "",
) -> None:
    """JSON, JSONL, CSV or Parquet to an Arrow folder (load_from_disk), back, and among each other."""
    from trainer.convert import convert
    from trainer.convert_sinks import FORMATS

    caller: Caller = context.obj
    if to and to not in FORMATS:
        raise UsageError(f"--to {to}: no such form", hint=f"one of {', '.join(FORMATS)}")
    told = _Teller(caller.console.progress, time.monotonic) if caller.console.err.isatty() else None
    found = convert(caller.folder / Path(source).expanduser(), caller.folder / Path(output).expanduser(), to, told)
    caller.console.emit(found)
    lines = [f"✅ Converted: {visible(found['output'])} ({found['format']})", f"   {plural(found['rows'], 'row')}"]
    lines += [f"   {visible(name)}: {plural(rows, 'row')}" for name, rows in found["splits"].items()]
    caller.console.note(*lines, f"   Columns: {', '.join(visible(name) for name in found['columns'])}", *removed_lines(found))


class _Teller:
    """A line with a bar now and then, for a person at a terminal."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._say, self._clock, self._last = say, clock, clock()

    def __call__(self, rows: int, share: float | None) -> None:
        now = self._clock()
        if now - self._last >= _TELL_SECONDS:
            self._last = now
            self._say((f"{bar(share)} {share:4.0%}  " if share is not None else "") + f"{human_count(rows)} rows")
