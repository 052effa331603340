"""`heirloom verify`: is everything still what it was.

Looking is done in `guard/store/verify.py` and `daemon/remake.py`; here it becomes words and exit codes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.output import human_bytes, plural, visible
from guard.errors import Damage, UsageError

__all__ = ["add_to", "parse_share", "verify_lines"]


def add_to(app: typer.Typer) -> None:
    """Put the command on the command line."""
    app.command("verify", epilog=EPILOGUE)(verify)


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
