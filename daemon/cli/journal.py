"""`heirloom log` and `heirloom config`: what happened here and when, and which settings hold.

Events are read from the ledger and never changed; settings are read from where they are kept.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.output import table, visible
from guard.clock import utc_text
from guard.errors import UsageError

__all__ = ["add_to", "event_line", "parse_since"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NEWEST_EVENTS = 50


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("log", epilog=EPILOGUE)(log)
    settings = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
    settings.callback(epilog=EPILOGUE)(config)
    settings.command("show", epilog=EPILOGUE)(config_show)
    app.add_typer(settings, name="config", epilog=EPILOGUE)


# --- log ---------------------------------------------------------------------------------------------------------


def log(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as things happen, until Ctrl-C.")] = False,
    since: Annotated[str | None, typer.Option("--since", metavar="2d", help="45s, 30m, 6h, 2d, 1w or a date.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the newest so many.")] = None,
) -> None:
    """The audit trail: everything that happened here, by whom and when (UTC)."""
    caller: Caller = context.obj
    console, last = caller.console, _newest(context.obj)
    cutoff = parse_since(since, time.time()) if since else ""
    if limit is None and not since and not console.json:
        limit = _NEWEST_EVENTS
    events = _events(caller, "utc >= ?", cutoff, limit)
    if not follow:
        console.emit({"events": events})
        console.say(*map(event_line, events))
        return
    for event in _following(caller, events, last):
        # With --json one object per event and line: a stream has no end that a single object could have.
        console.emit(event, indent=False)
        console.say(event_line(event))
        console.out.flush()


def _events(caller: Caller, where: str, value: object, limit: int | None) -> list[dict[str, Any]]:
    """Events that fit, oldest first."""
    import orjson

    from guard.store.keeper import open_reader

    with open_reader(caller.home()) as keeper:
        rows = keeper.ledger.rows(f"SELECT * FROM events WHERE {where} ORDER BY seq DESC LIMIT ?", (value, limit or -1))
    keys = ("seq", "utc", "boot_id", "actor", "verb", "subject", "previous", "hash")
    return [{**{key: row[key] for key in keys}, "payload": orjson.loads(row["payload"])} for row in reversed(rows)]


def _following(caller: Caller, events: list[dict[str, Any]], last: int) -> Iterator[dict[str, Any]]:
    """The events so far, then each new one; `last` was the newest before the first look, so that none is lost."""
    for event in events:
        last = max(last, event["seq"])
        yield event
    while True:
        for event in _events(caller, "seq > ?", last, None):
            last = event["seq"]
            yield event
        time.sleep(0.5)


def _newest(caller: Caller) -> int:
    newest = _events(caller, "seq > ?", 0, 1)
    return newest[0]["seq"] if newest else 0


def event_line(event: Mapping[str, Any]) -> str:
    """`2026-11-21 01:02:03  version.sealed  v002_math  (daemon)  steps=12`."""
    moment = str(event["utc"])[:19].replace("T", " ")
    told = [(key, value) for key, value in event["payload"].items() if value not in ("", None, [], {})]
    shown = [f"{visible(key)}={_short(value)}" for key, value in told]
    details = "  ".join(itertools.islice(shown, 6))
    head = f"{moment}  {visible(event['verb']):<18}  {_short(event['subject'])}"
    return f"{head}  ({visible(event['actor'])})  {details}".rstrip()


def _short(value: object) -> str:
    """The start of a hash is enough for a person; lists and truths in words."""
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = visible(value)
    return f"{text[:12]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text


def parse_since(text: str, now_seconds: float) -> str:
    """`2d` or `2026-11-20` or `2026-11-20T08:00` as UTC text. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if match:
        return utc_text(max(0.0, now_seconds - float(match.group(1)) * _UNITS[match.group(2)]))
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"--since {text!r} is neither a time span nor a date",
                         hint="heirloom log --since 2d, or --since 2026-11-20") from None  # fmt: skip
    # A moment without a zone is meant in the zone of the person who types it.
    return utc_text(moment.astimezone(datetime.UTC).timestamp())


# --- config ------------------------------------------------------------------------------------------------------


def config() -> None:
    """The settings of this home."""


def config_show(
    context: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
) -> None:
    """Every setting with its value, and what is wrong with them: the one command that wrong settings do not end."""
    from guard.settings_read import settings_as_far_as_right

    caller: Caller = context.obj
    settings, problems = settings_as_far_as_right(caller.home().root)
    values, origins = settings.flat(), dict(settings.origins)
    caller.console.emit({"settings": values, **({"origins": origins} if origin else {}),
                         "problems": [problem.as_dict() for problem in problems]})  # fmt: skip
    rows = [(key, _yaml(value), f"# {origins[key]}") if origin else (key, _yaml(value)) for key, value in values.items()]
    caller.console.say(*table(rows, ""))
    if problems:
        caller.console.say("", *(f"❌ {visible(problem.message)}" for problem in problems))
        raise typer.Exit(problems[0].exit_code)


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
