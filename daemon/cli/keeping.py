"""`heirloom purge`, `retention`, `regrow`: the acts that cost something to take back, and how each is confirmed.

Rules and moves are in `guard/store/` and `daemon/regrow.py`; here questions are asked and answers shown. What erases
or archives is shown first and then asked about; without anybody to answer nothing happens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun
from daemon.cli.output import human_bytes, human_duration, human_tokens, moment, plural, short_hash, table, tick, visible
from guard.errors import CheckFailed, UsageError

__all__ = ["add_to", "parse_days", "purge_lines", "regrow_lines", "retention_lines"]

_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0, "m": 30.0, "y": 365.0}
_YesAsked = Annotated[bool, typer.Option("--yes", help="Answer the question with yes.")]
_Newest = Annotated[int | None, typer.Option("--newest", min=0, help="Keep so many of each line; retention.newest otherwise.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("purge", epilog=EPILOGUE)(purge)
    group = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
    group.callback(epilog=EPILOGUE)(retention)
    group.command("plan", epilog=EPILOGUE)(retention_plan)
    group.command("apply", epilog=EPILOGUE)(retention_apply)
    app.add_typer(group, name="retention", epilog=EPILOGUE)
    app.command("regrow", epilog=EPILOGUE)(regrow)


# --- purge -----------------------------------------------------------------------------------------------------------


def purge(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="Only this one; everything old otherwise.")] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="30d", help="Only what has been in the trash for so long.")
    ] = None,
    no_backup: Annotated[bool, typer.Option("--no-backup", help="Erase it though the vault holds no copy.")] = False,
    confirm: Annotated[str | None, typer.Option("--confirm", metavar="FULL_NAME", help="Type the name here.")] = None,
    yes: _YesAsked = False,
    dry_run: DryRun = False,
) -> None:
    """Erase from the trash, for good. Needs a copy in the vault that reads back now, or --no-backup and the name."""
    caller: Caller = context.obj
    request = {"version": version, "older_than_days": parse_days(older_than), "no_backup": no_backup}
    found = caller.call("purge", {**request, "dry_run": True})
    if dry_run or not found["purged"]:
        caller.console.emit({**found, "dry_run": dry_run})
        caller.console.say(*purge_lines(found, done=False))
        _some_stayed(found)
        return
    caller.console.say(*purge_lines(found, done=False))
    if confirm is None and no_backup:
        confirm = _asked(caller, f"{visible(found['purged'][0]['version'])} has no copy that counts. "
                                 "Type model name to confirm: ")  # fmt: skip
    elif confirm is None:
        caller.confirm_yes(yes=yes, hint="heirloom purge ... --yes")
        yes = True
    shown = [item["folder"] for item in found["purged"]]
    done = caller.call("purge", {**request, "confirm": confirm, "yes": yes, "shown": shown, "dry_run": False})
    caller.console.emit(done)
    caller.console.note(*purge_lines(done, done=True))
    _some_stayed(done)


def _some_stayed(found: Mapping[str, Any]) -> None:
    """A script that thins the trash every week has to notice that the vault gives it nothing to go by."""
    if found["kept"]:
        raise typer.Exit(CheckFailed.exit_code)


def _asked(caller: Caller, question: str) -> str | None:
    answer = caller.console.ask(question)
    return answer.strip() if answer is not None else None


def parse_days(text: str | None) -> float | None:
    """`30d`, `2w`, `12h` or a bare number of days. Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hdwmy]?)", text.strip())
    if not match:
        raise UsageError(f"--older-than {text!r} is no time span", hint="heirloom purge --older-than 30d (h, d, w, m or y)")
    return float(match.group(1)) * _DAYS[match.group(2) or "d"]


def purge_lines(found: Mapping[str, Any], *, done: bool) -> list[str]:
    """What is erased, and what stays because it would be lost."""
    gone, kept = found["purged"], found["kept"]
    if not gone and not kept and not found["unseen"]:
        return ["Nothing in the trash is that old."]
    lines = []
    if gone:
        word = "✅ Erased" if done else "Would erase for good"
        lines.append(f"{word}: {plural(len(gone), 'folder')} of the trash, {human_bytes(found['bytes'])}")
        lines += table([(item["folder"], item["why"], moment(item["since"]), human_bytes(item["bytes"])) for item in gone], "   ")
    if gone and found["same_device"] and not done:
        lines.append("   ⚠️ The vault lies on the same disk as models/: when that disk fails, the copy is lost too"
                     " (backup.path names another)")  # fmt: skip
    lines += [f"   {visible(item['folder'])} stays: it was not in the list that was shown" for item in found["unseen"]]
    for item in kept:
        lines += [f"   {visible(item['folder'])} stays: {visible(item['backup'])}",
                  f"      try: heirloom purge {visible(item['version'])} --no-backup"]  # fmt: skip
    return lines


# --- retention -------------------------------------------------------------------------------------------------------


def retention() -> None:
    """Thin out models/: old versions go to the vault, none is ever lost."""


def retention_plan(context: typer.Context, newest: _Newest = None) -> None:
    """Propose which versions might be archived, with a reason for each one. Changes nothing."""
    from guard.store.keeper import open_reader
    from guard.store.retention import retention_plan as read_plan

    caller: Caller = context.obj
    with open_reader(caller.home()) as keeper:
        found = read_plan(keeper, newest)
    caller.console.emit(found)
    caller.console.say(*retention_lines(found))


def retention_apply(
    context: typer.Context,
    newest: _Newest = None,
    confirm: Annotated[str | None, typer.Option("--confirm", metavar="WORDS", help='"archive N versions", as planned.')] = None,
    dry_run: DryRun = False,
) -> None:
    """Archive what the plan proposes: each version leaves models/ when its copy on another device reads back."""
    caller: Caller = context.obj
    found = caller.call("retention.apply", {"newest": newest, "dry_run": True})
    caller.console.say(*retention_lines(found))
    if dry_run:
        caller.console.emit({**found, "dry_run": True})
        return
    if confirm is None:
        confirm = _asked(caller, f"Type `{found['confirm']}` to confirm: ")
    done = caller.call("retention.apply", {"newest": newest, "confirm": confirm, "shown": found["archive"],
                                           "dry_run": False})  # fmt: skip
    caller.console.emit(done)
    count = plural(len(done["archived"]), "version")
    caller.console.note(f"✅ {count} archived, {human_bytes(done['bytes'])} free again in models/"
                        " (heirloom restore VERSION brings one back)")  # fmt: skip
    caller.console.say(*(f"   {visible(item['name'])} stays: {visible(item['reason'])}" for item in done["kept"]))
    caller.console.say(*(f"   {visible(name)} stays: it was not in the list that was shown" for name in done["unseen"]))
    if done["kept"]:
        raise typer.Exit(CheckFailed.exit_code)


def retention_lines(plan: Mapping[str, Any]) -> list[str]:
    """The proposal: every version, whether it stays, and why."""
    rows = [("stays" if item["keep"] else "may go", item["name"], human_bytes(item["bytes"]), item["reason"])
            for item in plan["versions"]]  # fmt: skip
    lines = table(rows, "   ") if rows else []
    count = len(plan["archive"])
    lines.append(f"{plural(count, 'version')} may go to the vault, {human_bytes(plan['bytes'])}: heirloom retention apply"
                 if count else "Every version stays.")  # fmt: skip
    if plan["problem"]:
        lines.append(f"   ⚠️ Nothing can be archived now: {visible(plan['problem'])}")
    return lines


# --- regrow ----------------------------------------------------------------------------------------------------------


def regrow(
    context: typer.Context,
    without: Annotated[str, typer.Option("--without", metavar="FILE", help="The file that was wrong: path, name or hash.")],
    line: Annotated[str, typer.Option("--line", help="The line that learnt it.")] = "policy",
    yes: _YesAsked = False,
    dry_run: DryRun = False,
) -> None:
    """Grow a line again as a new line, from the last version that has not seen a file, and without that file."""
    from daemon.cli.plans import data_argument, nobody_works

    caller: Caller = context.obj
    request = {"without": data_argument(caller, without), "line": line}
    found = caller.call("regrow", {**request, "dry_run": True})
    caller.console.say(*regrow_lines(found))
    if dry_run or not found["ok"] or not found["steps"]:
        caller.console.emit(found)
        if not found["ok"]:
            caller.console.say("", "Not every check passes: nothing was queued.")
            raise typer.Exit(CheckFailed.exit_code)
        return
    caller.console.say("")
    caller.confirm_yes(yes=yes, hint="heirloom regrow ... --yes")
    done = caller.call("regrow", {**request, "dry_run": False})
    caller.console.emit(done)
    if not done["ok"]:
        raise typer.Exit(CheckFailed.exit_code)
    caller.console.note(f"✅ Queued {plural(len(done['jobs']), 'job')} on the line {visible(done['new_line'])}"
                        f" (heirloom queue)", *nobody_works(caller))  # fmt: skip


def regrow_lines(plan: Mapping[str, Any]) -> list[str]:
    """The plan as a table: which version is grown again from what, and how long it takes."""
    name, line = visible(plan["file"]), visible(plan["line"])
    if not plan["affected"]:
        return [f"Nothing to regrow: no version on {line} has learnt from {name}."]
    lines = [f"🌱 Regrow {line} without {name} (hash: {short_hash(plan['sha256'])})",
             f"   From: {visible(plan['base'])}, the last version that has not seen it",
             f"   New line: {visible(plan['new_line'])}; {line} stays as it is"]  # fmt: skip
    if not plan["steps"]:
        return [*lines, f"   Nothing is left to train: heirloom rollback {visible(plan['base'])} --line {line} does it all"]
    rows = [("#", "again", "from", "recipe", "tokens", "time"),
            *((place, step["replaces"], _files(step["files"]), step["recipe"], human_tokens(step["estimate"]["tokens"]),
               human_duration(step["estimate"]["seconds"])) for place, step in enumerate(plan["steps"], 1))]  # fmt: skip
    lines += table(rows, "   ")
    if plan["skipped"]:
        lines.append(f"   Left out (they learnt nothing else): {', '.join(map(visible, plan['skipped']))}")
    total = plan["estimate"]
    lines.append(f"   Together: {human_tokens(total['tokens'])} tokens, {human_duration(total['seconds'])},"
                 f" {human_bytes(total['bytes'])}")  # fmt: skip
    return lines + [f"   {tick(check['ok'])} {visible(check['name'])}: {visible(check['detail'])}" for check in plan["checks"]]


def _files(files: list[Mapping[str, Any]]) -> str:
    names = ", ".join(str(item["file"]) for item in files[:2])
    return names if len(files) <= 2 else f"{names} and {len(files) - 2} more"
