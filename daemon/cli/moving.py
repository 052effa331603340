"""`heirloom rollback`, `delete`, `restore`: moving between versions safely.

Rules and moves are in `guard/checks/deletion.py` and `guard/store/`; here questions are asked and answers shown.
`delete` has no `--yes` on purpose: with dependants, a person types the full name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import plural, short_hash, table, visible

__all__ = ["add_to", "rollback_lines"]

_Version = Annotated[str, typer.Argument(metavar="VERSION", help="v003 or the full name.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("rollback", epilog=EPILOGUE)(rollback)
    app.command("delete", epilog=EPILOGUE)(delete)
    app.command("restore", epilog=EPILOGUE)(restore)


def rollback(
    context: typer.Context,
    version: _Version,
    line: Annotated[str | None, typer.Option("--line", help="The line to move; the version's own otherwise.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Answer the question with yes.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Make an earlier version the active one. Nothing is deleted; what it had not learnt is trainable again."""
    from guard.store.keeper import open_reader
    from guard.store.rollback import rollback as judge_rollback

    caller: Caller = context.obj
    request = {"version": version, "line": line, "reason": reason}
    with open_reader(caller.home()) as keeper:
        # Looking changes nothing and needs neither the daemon nor the lock: it answers at once in any home.
        found = judge_rollback(keeper, version, line, reason, dry_run=True)
    if dry_run or not found["changed"]:
        caller.console.emit(found)
        caller.console.say(*rollback_lines(found, done=False))
        return
    caller.console.say(*rollback_lines(found, done=False), "")
    caller.confirm_yes(yes=yes, hint=f"heirloom rollback {version} --yes")
    done = caller.call("rollback", {**request, "dry_run": False})
    caller.console.emit(done)
    caller.console.note(*rollback_lines(done, done=True))


def rollback_lines(result: Mapping[str, Any], *, done: bool) -> list[str]:
    """What a rollback does, or did, with everything that became trainable again."""
    line, target = visible(result["line"]), visible(result["to"])
    if not result["changed"]:
        return [f"{target} is the active version of {line} already."]
    lines = [f"✅ {line}: {visible(result['from'])} -> {target}" if done
             else f"⏪ Roll back {line}: {visible(result['from'])} -> {target}"]  # fmt: skip
    if result.get("parked_job"):
        lines.append(f"   Job {result['parked_job']} is parked: heirloom queue retry or cancel decides about it")
    again = result.get("trainable_again") or []
    if again:
        lines.append(f"   Trainable again (nothing re-queues by itself; drop or plan it): {plural(len(again), 'file')}")
        lines += table([(item["file"], short_hash(item["sha256"]), f"{item['examples']:,} examples") for item in again], "     ")
    return lines


def delete(
    context: typer.Context,
    version: _Version,
    force: Annotated[bool, typer.Option("--force", help="Needed for every deletion.")] = False,
    confirm_lineage: Annotated[bool, typer.Option("--confirm-lineage", help="Needed when others stand on it.")] = False,
    confirm: Annotated[str | None, typer.Option("--confirm", metavar="FULL_NAME", help="Type the name here.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Move a version to the trash. Base and active versions are protected, others by their children."""
    from guard.store.keeper import open_reader
    from guard.store.versions import find_version

    caller: Caller = context.obj
    with open_reader(caller.home()) as keeper:
        name = find_version(keeper.ledger, version).name
    request = {"version": version, "force": force, "confirm_lineage": confirm_lineage, "confirm": confirm}
    # Protection first: nobody is asked to type a name for something that would be refused anyway.
    found = caller.call("delete", {**request, "confirm": confirm or name, "dry_run": True})
    if not dry_run:
        if found["dependants"] and confirm is None:
            request["confirm"] = _typed_name(caller, found["dependants"])
        found = caller.call("delete", {**request, "dry_run": False})
    caller.console.emit(found)
    words = "would go" if dry_run else "went"
    caller.console.note(f"{'' if dry_run else '✅ '}{visible(name)} {words} to the trash"
                        f" (heirloom restore {visible(name)} brings it back)")  # fmt: skip


def _typed_name(caller: Caller, dependants: list[str]) -> str | None:
    from guard.checks.deletion import orphan_prompt

    answer = caller.console.ask(f"{visible(orphan_prompt(tuple(dependants)))} ")
    return answer.strip() if answer is not None else None


def restore(
    context: typer.Context,
    version: _Version,
    source: Annotated[str | None, typer.Option("--from", metavar="trash|backup|PATH", help="Where to take it from.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Bring a version back, checked against its hashes. Nothing that exists is replaced before that."""
    caller: Caller = context.obj
    if source not in (None, "trash", "backup"):
        source = str((caller.folder / Path(source).expanduser()).absolute())
    found = caller.call("restore", {"version": version, "source": source, "dry_run": dry_run})
    caller.console.emit(found)
    words = "can be restored" if dry_run else "is back"
    text = f"{visible(found['version'])} {words} from {visible(found['source'])}: {visible(found['path'])}"
    caller.console.note(text if dry_run else f"✅ {text}")
