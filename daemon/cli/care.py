"""`heirloom verify`, `backup`, `doctor`: is everything still what it was, and is it safe.

Looking is done in `guard/store/verify.py`, `vault.py` and `daemon/doctor.py`; here it becomes words and exit codes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import human_bytes, moment, plural, short_hash, tick, visible
from guard.errors import CheckFailed, Damage, NotFound, UsageError

__all__ = ["add_to", "backup_plan_lines", "check_rows", "parse_share", "vault_lines", "verify_lines"]


_SHOWN_NAMES = 20


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("verify", epilog=EPILOGUE)(verify)
    group = typer.Typer(add_completion=False, rich_markup_mode=None)
    group.callback(invoke_without_command=True, epilog=EPILOGUE)(backup)
    group.command("run", epilog=EPILOGUE)(backup_run)
    group.command("status", epilog=EPILOGUE)(backup_status)
    group.command("drill", epilog=EPILOGUE)(backup_drill)
    group.command("adopt", epilog=EPILOGUE)(backup_adopt)
    app.add_typer(group, name="backup", epilog=EPILOGUE)
    app.command("doctor", epilog=EPILOGUE)(doctor)


# --- verify ------------------------------------------------------------------------------------------------------


def verify(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="One version; all of them otherwise.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Versions, originals, indexes, ledger and views.")] = False,
    backup: Annotated[bool, typer.Option("--backup", help="Read the vault instead.")] = False,
    sample: Annotated[str | None, typer.Option("--sample", metavar="5%", help="Read only this share of the bytes.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Train VERSION once more and compare the bytes.")] = False,
) -> None:
    """Read everything again and compare it with the hashes that were recorded."""
    from guard.store.keeper import open_reader
    from guard.store.verify import verify as run_verify

    caller: Caller = context.obj
    if rebuild and (version is None or everything or backup):
        raise UsageError("--rebuild makes one version again: which one?", hint="heirloom verify v003 --rebuild")
    with open_reader(caller.home()) as keeper:
        wanted = None if version is None else [version]
        found = run_verify(keeper, versions=wanted, everything=everything, backup=backup, sample=parse_share(sample))
        report = found.as_dict()
        if rebuild and report["ok"]:
            _remake(caller, keeper, str(version), report)
    caller.console.emit(report)
    caller.console.say(*verify_lines(report))
    if not report["ok"]:
        raise typer.Exit(Damage.exit_code)


def _remake(caller: Caller, keeper: Any, version: str, report: dict[str, Any]) -> None:
    """Make an intact version again; what came out different is damage, what cannot be compared is a notice."""
    from daemon.remake import remake
    from guard.store.findings import Finding

    caller.console.progress(f"training {visible(version)} once more")
    made = report["rebuild"] = remake(keeper, version)
    if made["verdict"] == "different":
        item = Finding("rebuild", made["version"], "", made["reason"])
        report["ok"] = False
        report["damage"].append({"what": item.what, "name": item.name, "file": "", "problem": item.problem,
                                 "descendants": [], "remedy": item.remedy})  # fmt: skip


def parse_share(text: str | None) -> float | None:
    """`5%` or `0.05` as 0.05. Raises UsageError for anything that is not above 0 and at most 100 %."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    share = float(match.group(1)) / (100 if match.group(2) else 1) if match else 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--sample {text!r} is not a share", hint="heirloom verify --all --sample 5%")
    return share


def verify_lines(report: Mapping[str, Any]) -> list[str]:
    """The verdict, and every damage with what to do about it."""
    checked = report["checked"]
    what = (f"{plural(checked['versions'], 'version')}, {plural(checked['files'], 'file')},"
            f" {human_bytes(checked['bytes'])} read")  # fmt: skip
    if report["ok"]:
        return [f"✅ Everything is what it was: {what}", *_remake_lines(report.get("rebuild"))]
    lines = [f"❌ Damage found ({what})"]
    for item in report["damage"]:
        place = " ".join(visible(item[key]) for key in ("what", "name", "file") if item[key])
        lines.append(f"   {place}: {visible(item['problem'])}")
        if item["descendants"]:
            lines.append(f"      grown from it: {', '.join(map(visible, item['descendants']))}")
        if item["remedy"]:
            lines.append(f"      try: {visible(item['remedy'])}")
    return lines


def _remake_lines(made: Mapping[str, Any] | None) -> list[str]:
    if made is None:
        return []
    if made["verdict"] == "identical":
        return [f"✅ {visible(made['version'])} was trained once more and is identical: {plural(len(made['files']), 'file')}"]
    return [f"⚠️ {visible(made['version'])} is not comparable: {visible(made['reason'])}"]


# --- backup ------------------------------------------------------------------------------------------------------


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


# --- doctor ------------------------------------------------------------------------------------------------------


def doctor(
    context: typer.Context,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make a lost or damaged ledger, and the views, again.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Is this machine and this home fit to work? Changes nothing, unless --rebuild is given."""
    from daemon.doctor import DAMAGE, examine

    caller: Caller = context.obj
    if rebuild:
        _rebuild(caller, dry_run=dry_run)
        return
    if dry_run:
        raise UsageError("doctor changes nothing; only --rebuild has a dry run", hint="heirloom doctor --rebuild --dry-run")
    try:
        home = caller.home()
    except NotFound:
        if caller.home_given:
            raise
        home = None
    checks = [check.as_dict() for check in examine(home)]
    failed = [check["name"] for check in checks if check["ok"] is False]
    caller.console.emit({"ok": not failed, "home": str(home.root) if home else None, "checks": checks})
    caller.console.say(*check_rows(checks))
    if failed:
        raise typer.Exit(Damage.exit_code if DAMAGE & set(failed) else CheckFailed.exit_code)


def _rebuild(caller: Caller, *, dry_run: bool) -> None:
    from daemon.mending import rebuild_home

    found = rebuild_home(caller.home(), dry_run=dry_run)
    caller.console.emit({**found, **({"dry_run": True} if dry_run else {})})
    caller.console.say(*rebuild_lines(found, dry_run=dry_run))


def rebuild_lines(found: Mapping[str, Any], *, dry_run: bool) -> list[str]:
    """What was, or would be, made again, and everything a person should know about it."""
    if not found["problem"]:
        words = "would be" if dry_run else "were"
        notes = [f"   ⚠️ {visible(note)}" for note in found["notes"]]
        return [f"✅ The ledger is sound and stays; export and views {words} made again.", *notes]
    if dry_run and "versions" not in found:
        return [f"Would mend: {visible(found['problem'])}", *(f"   ⚠️ {visible(note)}" for note in found["notes"])]
    counts = ", ".join((plural(found["versions"], "version"), plural(found["files"], "file"), plural(found["jobs"], "job"),
                        plural(found["events"], "event")))  # fmt: skip
    lines = [f"{'Would make' if dry_run else '✅ Made'} the ledger again ({visible(found['problem'])}): {counts}"]
    lines += [f"   {visible(line)}: {visible(tip)} is active" for line, tip in found["lines"].items()]
    lines += [f"   ⚠️ {visible(note)}" for note in found["notes"]]
    lines += [f"   kept aside: {visible(name)}" for name in found["moved_aside"]]
    return lines if dry_run else [*lines, "   try: heirloom verify --all"]


def check_rows(checks: list[dict[str, Any]]) -> list[str]:
    """Each check with its mark, and what to type where it says no."""
    lines: list[str] = []
    for check in checks:
        mark = "⚠️ " if check.get("warning") and check["ok"] else tick(check["ok"])
        lines.append(f"{mark} {visible(check['name'])}: {visible(check['detail'])}")
        if check["ok"] is False and check.get("remedy"):
            lines.append(f"   try: {visible(check['remedy'])}")
    return lines
