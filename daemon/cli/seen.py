"""`heirloom seen TEXT|-`: which stored files hold this example, and which versions have learnt it.

Reads only; needs neither lock nor daemon. Imports no typer: people ask it often, and it shall take half a second of
process time. Not here: the search (`guard/store/seen.py`), its place on the command line (`seen_command.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from daemon.cli.caller import Caller
from daemon.cli.output import plural, short_hash, visible
from guard.errors import NotFound, UsageError

__all__ = ["answer", "seen_lines"]

_MOST_BYTES = 64 << 20


def answer(caller: Caller, text: str, *, near: bool) -> int:
    """Say it; returns the exit code: 0 found, 4 not."""
    # One thread is enough here, and starting the others costs a tenth of the command.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from guard.store.keeper import open_reader
    from guard.store.seen import examples_meant
    from guard.store.seen import seen as search

    home = caller.home()
    examples = examples_meant(_typed(text))
    with open_reader(home) as keeper:
        threshold = keeper.settings.near.threshold
        found = search(keeper, examples, least=threshold if near else None)
    record = {"examples_meant": len(examples), "asked_near": near, "threshold": threshold if near else None,
              "found": bool(found["exact"] or found["near"]), **found}  # fmt: skip
    caller.console.emit(record)
    caller.console.say(*seen_lines(record))
    return 0 if record["found"] else NotFound.exit_code


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
