"""`heirloom doctor`: is this machine fit to work, is this home; and a lost ledger made again.

Looking is done in `daemon/doctor.py`, mending in `daemon/mending.py`; here it becomes words and exit codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import plural, tick, visible
from guard.errors import CheckFailed, Damage, NotFound, UsageError

__all__ = ["add_to", "check_rows", "probe_lines", "rebuild_lines"]


def add_to(app: typer.Typer) -> None:
    """Put the command on the command line."""
    app.command("doctor", epilog=EPILOGUE)(doctor)


def doctor(
    context: typer.Context,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make a lost or damaged ledger, and the views, again.")] = False,
    probe: Annotated[bool, typer.Option("--probe", help="Measure this machine (2 minutes) for configs/machine.yaml.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Is this machine and this home fit to work? Changes nothing, unless --rebuild or --probe is given."""
    from daemon.doctor import DAMAGE, examine

    caller: Caller = context.obj
    if rebuild and probe:
        raise UsageError("--rebuild and --probe are two errands", hint="heirloom doctor --rebuild, then heirloom doctor --probe")
    if rebuild:
        _rebuild(caller, dry_run=dry_run)
        return
    if probe:
        _probe(caller, dry_run=dry_run)
        return
    if dry_run:
        raise UsageError("doctor changes nothing; only --rebuild and --probe have a dry run",
                         hint="heirloom doctor --rebuild --dry-run")  # fmt: skip
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


def _probe(caller: Caller, *, dry_run: bool) -> None:
    from daemon.probing import PROBE_SECONDS, probe

    home = caller.home()
    caller.console.note(f"Measuring this machine: at most {PROBE_SECONDS:.0f} s. Other work on it makes the figures worse.")
    found = probe(home, dry_run=dry_run)
    caller.console.emit({**found, **({"dry_run": True} if dry_run else {})})
    caller.console.say(*probe_lines(found))


def probe_lines(found: Mapping[str, Any]) -> list[str]:
    """What was measured, what plans will make of it, and where it was written."""
    told = found["machine"]
    width = told["bfloat16_from_width"]
    peaks = [f"{told[key]:,.0f} GFLOP/s in {word}" for key, word in (("float32_gflops", "fp32"), ("bfloat16_gflops", "bf16"))
             if told[key]]  # fmt: skip
    lines = [
        f"{visible(told['cpu'])}, {plural(told['cores'], 'core')}, torch {visible(told['torch'])}",
        *([f"   matrix products: {', '.join(peaks)}"] if peaks else []),
        f"   threads: {told['threads'] or 'not measured'}",
        f"   bf16: {f'from width {width} on' if width else 'at no measured width faster'}",
        f"   compiling: {_compiling(told['compile_warmup_seconds'], told['compile_gain'])}",
    ]
    if told["gpu"]:
        on_card = _compiling(told["gpu_compile_warmup_seconds"], told["gpu_compile_gain"])
        lines.append(f"   compiling on {visible(told['gpu'])}: {on_card}")
    lines += [f"   ⚠️ {visible(note)}" for note in found["notes"]]
    return [*lines, f"✅ Written: {visible(found['path'])}" if found["written"] else f"Would write {visible(found['path'])}"]


def _compiling(warmup: float | None, gain: float) -> str:
    return "not used" if warmup is None else f"{warmup:,.0f} s before the first step, then {gain:.2f}x"


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
