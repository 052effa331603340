"""`heirloom init` and `heirloom run`: making a home, and working in it.

Both acts are elsewhere (`daemon/setup.py`, `daemon/service.py`); here they get their arguments and their last word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import Console, human_bytes, human_count, plural, visible
from guard.errors import CheckFailed, Damage, UsageError
from guard.home import Home

__all__ = ["add_to", "happened_lines", "init_plan_lines", "left_over_lines", "paused_lines"]

_MOST_TOLD = 20
_MOST_LEFT = 5
_TAKEN = ("drop.admitted", "drop.registered")
_HAPPENED = {
    "version.sealed": "✅ {subject} is sealed", "index.switched": "✅ the index {subject} is active",
    "file.mended": "✅ {subject} was {reason}",
    "drop.rejected": "❌ {subject} was rejected: {reason}", "drop.duplicate": "❌ {subject} is a duplicate: {reason}",
    "job.failed": "❌ {subject} failed: {reason}", "job.quarantined": "❌ {subject} did not pass the gate: {reason}",
    "job.parked": "⚠️ {subject} is parked: {reason}", "job.held": "⚠️ {subject} is held: {reason}",
}  # fmt: skip
TOKENIZATIONS = ("gpt2", "char", "hf")


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("init", epilog=EPILOGUE)(init)
    app.command("run", epilog=EPILOGUE)(run)


def init(
    context: typer.Context,
    directory: Annotated[str | None, typer.Argument(metavar="DIR", help="Where; this folder otherwise.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="The model to begin with: a recipe for a base.")] = "pretrain/small",
    tokenization: Annotated[str, typer.Option("--tokenization", metavar="gpt2|char|hf", help="Its tokens, for ever.")] = "gpt2",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", metavar="DIR", help="A Hugging Face tokenizer, for hf.")] = None,
    template: Annotated[str | None, typer.Option("--template", metavar="T", help="For hf: instead of its own.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The recipe's own otherwise.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Make a home with its first version, v001_baseline."""
    from daemon.setup import init_home

    caller: Caller = context.obj
    if tokenization not in TOKENIZATIONS:
        raise UsageError(f"--tokenization {tokenization!r} is not known", hint=f"one of {', '.join(TOKENIZATIONS)}")
    given = directory or caller.home_given or "."
    target = (caller.folder / Path(given).expanduser()).absolute()
    found = init_home(target, recipe=recipe, tokenization=tokenization, seed=seed, progress=caller.console.progress,
                      dry_run=dry_run, tokenizer=caller.folder / Path(tokenizer).expanduser() if tokenizer else None,
                      template=template)  # fmt: skip
    caller.console.emit({"home": str(target), **found, **({"dry_run": True} if dry_run else {})})
    if dry_run:
        caller.console.say(*init_plan_lines(found))
        return
    there = "" if target == caller.folder else f" --home {visible(target)}"
    caller.console.note(
        f"✅ {visible(found.get('version', 'v001_baseline'))} is sealed in {visible(target / 'models')}",
        f"   Drop data into {visible(target / 'inbox')}, then: heirloom{there} run",
        "   (rows are learnt; .txt and .md too in inbox/pretrain/, elsewhere they become searchable documents)",
    )


def init_plan_lines(found: Mapping[str, Any]) -> list[str]:
    """What a home would begin with."""
    return [
        f"Would make a home in {visible(found['home'])}",
        f"   First version: {visible(found['version'])} by the recipe {visible(found['recipe'])}, seed {found['seed']}",
        f"   Size: {human_count(found['parameters'])} parameters, about {human_bytes(found['bytes'])}",
        f"   Tokens: {visible(found['tokenization'])}, for ever",
    ]


def run(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Work until nothing is left, then end.")] = False,
) -> None:
    """The daemon in the foreground: watch the inbox, train, back up, until Ctrl-C."""
    from daemon.report import daemon_running, status
    from daemon.service import run as run_service

    caller: Caller = context.obj
    home, console = caller.home(), caller.console
    before = _last_event(home)
    if not daemon_running(home):
        console.progress(f"working until nothing is left in {visible(home.inbox)}" if once else
                         f"watching {visible(home.inbox)}; Ctrl-C ends, and what trains goes on next time")  # fmt: skip
    code = run_service(home, once)
    console.note(*happened_lines(_events_since(home, before), nothing=not _left_over(home)))
    if once:
        left = _left_over(home)
        console.say(*paused_lines(left))
        console.note(*left_over_lines(left))
    if once:
        code = _tell_lost(home, console) or code
    if once and code:
        console.say("Something is held or failed: heirloom queue, heirloom status")
    if console.json:
        console.emit(status(home))
    if code:
        raise typer.Exit(code)


def _tell_lost(home: Home, console: Console) -> int:
    """Say what is plainly gone, whatever else went well; returns the exit code for it: 8, 3 for a vault alone, else 0."""
    from guard.store.glance import lost_things
    from guard.store.keeper import open_reader

    with open_reader(home) as keeper:
        lost = lost_things(keeper)
    for item in lost:
        console.say(f"⚠️ {visible(item.what)}", f"   try: {visible(item.remedy)}")
    if any(item.damage for item in lost):
        return Damage.exit_code
    return CheckFailed.exit_code if lost else 0


def _last_event(home: Home) -> int:
    from guard.store.keeper import open_reader

    with open_reader(home) as keeper:
        return keeper.ledger.sequence()


def _events_since(home: Home, last: int) -> list[dict[str, Any]]:
    import orjson

    from guard.store.keeper import open_reader

    with open_reader(home) as keeper:
        rows = keeper.ledger.rows("SELECT verb, subject, payload FROM events WHERE seq > ? ORDER BY seq", (last,))
    return [{"verb": row["verb"], "subject": row["subject"], **orjson.loads(row["payload"])} for row in rows
            if row["verb"] in _HAPPENED or row["verb"] in _TAKEN]  # fmt: skip


def _left_over(home: Home) -> dict[str, Any]:
    """What a finished run left: {"paused": jobs that wait, "waiting": {path: reason}, "ignored": the same}; no empty key."""
    import orjson

    from guard.store.jobs import counts
    from guard.store.keeper import open_reader

    try:
        live = orjson.loads(home.status_file.read_bytes()).get("live", {})
    except (OSError, ValueError):
        live = {}
    with open_reader(home) as keeper:
        paused = keeper.ledger.meta("paused") == "1"
        found = {"paused": counts(keeper.ledger).get("queued", 0) if paused else None,
                 "waiting": live.get("waiting") or None, "ignored": live.get("ignored") or None}  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def paused_lines(left: Mapping[str, Any]) -> list[str]:
    """That the queue is paused, how many jobs wait, and what to type; nothing when it is not."""
    if "paused" not in left:
        return []
    word = f"{human_count(left['paused'])} job{' waits' if left['paused'] == 1 else 's wait'}"
    return [f"⏸ The queue is paused, so nothing is trained: {word}", "   try: heirloom queue resume, then run again"]


def left_over_lines(left: Mapping[str, Any]) -> list[str]:
    """What still lies in the inbox, why, and what to do; nothing when nothing does."""
    from guard.checks.kinds import README_REASON
    from guard.checks.why import ignored_remedy

    lines = []
    for key, words in (("waiting", "waits in the inbox"), ("ignored", "is ignored in the inbox")):
        items = [(path, reason) for path, reason in left.get(key, {}).items() if reason != README_REASON]
        for path, reason in items[:_MOST_LEFT]:
            lines.append(f"⚠️ {visible(Path(path).name)} {words}: {visible(reason or 'it was not looked at yet')}")
            lines += [f"   try: {visible(ignored_remedy(reason))}"] if key == "ignored" else []
        more = "files that wait" if key == "waiting" else "that are ignored"
        lines += [f"   and {len(items) - _MOST_LEFT:,} more {more} (heirloom why FILE)"] if len(items) > _MOST_LEFT else []
    return lines


def happened_lines(events: Sequence[Mapping[str, Any]], *, nothing: bool = True) -> list[str]:
    """What came of a run, oldest first; of several words on one thing (held, held again) the last.

    Files that were taken in are counted. `nothing`: whether a run of which nothing came is said to have had nothing new.
    """
    told: dict[tuple[str, str], str] = {}
    taken = len({event.get("drop") for event in events if event["verb"] in _TAKEN})
    for event in events:
        if event["verb"] in _TAKEN:
            continue
        key = (event["verb"], event["subject"])
        told.pop(key, None)
        told[key] = _HAPPENED[event["verb"]].format(subject=visible(event["subject"]), reason=visible(event.get("reason") or ""))
    lines = [line.removesuffix(": ") for line in told.values()]
    more = [f"and {len(lines) - _MOST_TOLD:,} more (heirloom log)"] if len(lines) > _MOST_TOLD else []
    first = [f"✅ {plural(taken, 'file')} taken in"] if taken else []
    return first + lines[-_MOST_TOLD:] + more or (["nothing was new"] if nothing else [])
