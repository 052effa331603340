"""`heirloom backup`: the vault brought up to date, looked at, proved by a drill, taken for ours again.

The acts are `guard/store/vault.py` and `daemon/drill.py`; here questions are asked and answers shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import human_bytes, moment, plural, short_hash, tick, visible
from guard.errors import Damage

__all__ = ["add_to", "backup_plan_lines", "drill_line", "size_lines", "vault_lines"]

_SHOWN_NAMES = 20


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    group = typer.Typer(add_completion=False, rich_markup_mode=None)
    group.callback(invoke_without_command=True, epilog=EPILOGUE)(backup)
    group.command("run", epilog=EPILOGUE)(backup_run)
    group.command("status", epilog=EPILOGUE)(backup_status)
    group.command("drill", epilog=EPILOGUE)(backup_drill)
    group.command("adopt", epilog=EPILOGUE)(backup_adopt)
    app.add_typer(group, name="backup", epilog=EPILOGUE)


def backup(context: typer.Context) -> None:
    """The vault: copies that were read back. Alone: its status."""
    if context.invoked_subcommand is None:
        backup_status(context)


def backup_run(context: typer.Context, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Bring the vault up to date now, read every copy in it again and mend what has gone bad."""
    caller: Caller = context.obj
    if dry_run:
        found = caller.call("backup.run", {"dry_run": True})
        caller.console.emit({**found, "dry_run": True})
        caller.console.say(*backup_plan_lines(found))
        return
    found = caller.call("backup.run", {})
    caller.console.emit(found)
    counts = f"{len(found['copied']):,} copied, {len(found['verified']):,} read back"
    caller.console.note(f"✅ {counts}, {human_bytes(found['bytes'])} to {visible(found['vault'])}", *_same_disk(found))


_REREAD = "   Every copy in the vault would be read again; one that has gone bad would be made again."


def backup_plan_lines(found: Mapping[str, Any]) -> list[str]:
    """What a backup would copy."""
    versions, originals = found["versions"], found["originals"]
    if not versions and not originals:
        return [f"Nothing new to copy: {visible(found['vault'])} holds every version and original.", _REREAD, *_same_disk(found)]
    counts = f"{plural(len(versions), 'version')} and {plural(len(originals), 'original')}"
    names = [*versions, *(f"{item['name']} ({short_hash(item['sha256'])})" for item in originals)]
    more = [f"   and {len(names) - _SHOWN_NAMES:,} more"] if len(names) > _SHOWN_NAMES else []
    return [f"Would copy {counts}, {human_bytes(found['bytes'])}, to {visible(found['vault'])}:",
            *(f"   {visible(name)}" for name in names[:_SHOWN_NAMES]), *more, _REREAD, *_same_disk(found)]  # fmt: skip


def _same_disk(found: Mapping[str, Any]) -> list[str]:
    if found.get("other_device"):
        return []
    return ["   ⚠️ The vault is on the same disk as the models: it does not protect against losing that disk.",
            "      try: set backup.path in configs/heirloom.yaml to a folder on another disk"]  # fmt: skip


def backup_adopt(
    context: typer.Context,
    new: Annotated[bool, typer.Option("--new", help="The vault is lost for good: begin it anew in its place.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Take a vault that lost its store-id for this home's again, when what lies in it proves that it is."""
    caller: Caller = context.obj
    found = caller.call("backup.adopt", {"new": new, "dry_run": True})
    if not dry_run:
        if new:
            caller.console.say(f"{visible(found['vault'])}: {visible(found['proof'])}")
            caller.confirm_yes(yes=yes, hint="heirloom backup adopt --new --yes")
        found = caller.call("backup.adopt", {"new": new, "dry_run": False})
    caller.console.emit({**found, **({"dry_run": True} if dry_run else {})})
    words = "would be" if dry_run else "is"
    what = "begun anew" if new else "this home's vault again"
    caller.console.say(f"✅ {visible(found['vault'])} {words} {what}: {visible(found['proof'])}",
                       *([] if dry_run else ["   try: heirloom backup run"]))  # fmt: skip


def backup_drill(
    context: typer.Context,
    into: Annotated[str | None, typer.Option("--into", metavar="DIR", help="An empty folder to work in.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Prove the vault: a whole home out of it alone, verified, trained a few steps further, backed up again."""
    from daemon.client import call_drill
    from daemon.drill import scratch_beside
    from guard.store.keeper import open_reader
    from guard.store.vault_home import newest_ledger
    from guard.store.vault_state import check_vault

    caller: Caller = context.obj
    scratch = str((caller.folder / into).absolute()) if into else None
    if dry_run:
        with open_reader(caller.home()) as keeper:
            vault = check_vault(keeper)
        found = {"vault": str(vault), "ledger": newest_ledger(vault).name, "scratch": scratch or str(scratch_beside(vault))}
        caller.console.emit({**found, "dry_run": True})
        caller.console.say(f"Would bring the home back from {visible(found['vault'])} into {visible(found['scratch'])},"
                           " train it a few steps, back it up again and remove the scratch.")  # fmt: skip
        return
    found = call_drill(caller.home(), scratch)
    caller.console.emit(found)
    caller.console.say(drill_line(found))
    if not found["ok"]:
        raise typer.Exit(Damage.exit_code)


def drill_line(found: Mapping[str, Any]) -> str:
    """How a drill ended, in one sentence."""
    if not found["ok"]:
        return f"❌ The drill failed: {visible(found['reason'])}"
    held = f"{plural(found['versions'], 'version')}, {plural(found['originals'], 'original')}"
    return (f"✅ The vault gave everything back: {held},"
            f" {human_bytes(found['bytes'])}; {plural(found['steps'], 'step')} trained from {visible(found['parent'])}"
            f" and backed up again, in {found['seconds']:.0f} s")  # fmt: skip


def backup_status(context: typer.Context) -> None:
    """What the vault holds, and when it was read back."""
    from guard.store.keeper import open_reader
    from guard.store.vault_state import backup_status as read_status

    caller: Caller = context.obj
    with open_reader(caller.home()) as keeper:
        found = read_status(keeper)
    caller.console.emit(found)
    caller.console.say(*vault_lines(found))


def vault_lines(found: Mapping[str, Any]) -> list[str]:
    """The vault for a person: what is safe, and what is not yet."""
    newest = found["ledger"]["newest"] or "none"
    lines = [
        f"{tick(found['present'])} Vault: {visible(found['vault'])}",
        *([f"   {visible(found['problem'])}", f"      try: {visible(found.get('remedy', ''))}"] if found["problem"] else []),
        f"   Versions: {found['versions']['verified']:,} of {found['versions']['total']:,} read back",
        f"   Originals: {found['originals']['verified']:,} of {found['originals']['total']:,} read back",
        f"   Ledger: {visible(newest)} ({plural(found['ledger']['behind'], 'event')} behind)",
        f"   Last read back: {moment(found['last_verified']) or 'never'}, {human_bytes(found['bytes'])}",
    ]
    lines += size_lines(found)
    if "drill" in found:
        lines.append(f"   Last drill that passed: {moment(found['drill']['passed']) or 'none yet'}")
        if found["drill"]["problem"]:
            lines += [f"   ⚠️ {visible(found['drill']['problem'])}", "      try: heirloom backup drill"]
    missing = [*found["versions"]["missing"], *found["originals"]["missing"]]
    if missing:
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        lines.append(f"   Not safe yet: {', '.join(map(_short_name, missing[:5]))}{more}")
        lines += [] if found["problem"] else ["      try: heirloom backup run"]
    return lines + (_same_disk(found) if found["present"] else [])


def size_lines(found: Mapping[str, Any]) -> list[str]:
    """What each version takes in the vault against what it takes in models/; the newest twenty."""
    rows = found.get("sizes", [])
    if not rows:
        return []
    lines = [f"   Stored: {human_bytes(found['stored_bytes'])} of {human_bytes(found['raw_bytes'])} ({found['ratio']:.0%})"]
    for row in rows[-_SHOWN_NAMES:]:
        on = f", stands on {visible(row['stands_on'])}" if row["stands_on"] else ""
        lines.append(f"      {visible(row['name'])}: {human_bytes(row['stored_bytes'])} of {human_bytes(row['raw_bytes'])}"
                     f" ({row['ratio']:.0%}, {row['form']}{on})")  # fmt: skip
    older = len(rows) - _SHOWN_NAMES
    return [*lines, f"      and {older:,} older: heirloom backup status --json"] if older > 0 else lines


def _short_name(name: str) -> str:
    """A version by its name, an original by the start of its hash."""
    return short_hash(name) if re.fullmatch(r"[0-9a-f]{64}", name) else visible(name)
