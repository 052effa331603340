"""`heirloom seen TEXT|-`: which stored files hold this example, and which versions have learnt it.

Reads only; needs neither lock nor daemon. Not here: the search (`guard/store/seen.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.output import plural, short_hash, visible
from guard.errors import NotFound, UsageError

__all__ = ["add_to", "seen_lines"]

_MOST_BYTES = 64 << 20


def add_to(app: typer.Typer) -> None:
    """Put the command on the command line."""
    app.command("seen", epilog=EPILOGUE)(seen)


def seen(
    context: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="A text or a JSON row; - reads standard input.")],
    near: Annotated[bool, typer.Option("--near", help="Also what resembles it (see near.threshold).")] = False,
) -> None:
    """Say which files hold this example and which versions have learnt it. Exit code 4: nothing was found."""
    from guard.store.keeper import open_reader
    from guard.store.seen import examples_meant
    from guard.store.seen import seen as search

    caller: Caller = context.obj
    home = caller.home()
    examples = examples_meant(_typed(text))
    with open_reader(home) as keeper:
        threshold = keeper.settings.near.threshold
        found = search(keeper, examples, least=threshold if near else None)
    record = {"examples_meant": len(examples), "asked_near": near, "threshold": threshold if near else None,
              "found": bool(found["exact"] or found["near"]), **found}  # fmt: skip
    caller.console.emit(record)
    caller.console.say(*seen_lines(record))
    if not record["found"]:
        raise typer.Exit(NotFound.exit_code)


def _typed(text: str) -> str:
    if text != "-":
        return text
    data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise UsageError("standard input is longer than 64 MiB", hint="heirloom register FILE --dry-run judges a whole file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 (byte {error.start})", hint="save it as UTF-8 text") from error


def seen_lines(record: Mapping[str, Any]) -> list[str]:
    """The answer for a person."""
    if not record["found"]:
        more = "" if record["asked_near"] else " (--near also looks for what resembles it)"
        return [f"Never seen: no stored file holds it{more}."]
    lines = []
    for title, items in (("Seen", record["exact"]), ("Resembling", record["near"])):
        for item in items:
            alike = "" if title == "Seen" else f", about {item['similarity']:.0%} alike"
            lines.append(f"{title}: {visible(item['file'])} ({short_hash(item['sha256'])}), example {item['ordinal']}{alike}")
            lines += [f"   {_version_words(version)}" for version in item["versions"]] or ["   learnt by no version"]
    cut = [f"Only the first {plural(len(items), 'place')} are shown." for items in (record["exact"], record["near"])
           if len(items) == 100]  # fmt: skip
    return lines + cut


def _version_words(version: Mapping[str, Any]) -> str:
    active = f", active in {', '.join(version['active_in'])}" if version["active_in"] else ", in no active version"
    return f"learnt by {version['name']} ({version['state']}, {version['objective']}){active}"
