"""`heirloom prepare validate` and `prepare prefs`: what data holds and what is wrong with it, and pairs in one shape.

The work is done in `trainer/validate.py` and `trainer/pairs/`; here are the words around it. `validate` changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.output import human_tokens, plural, visible
from guard.errors import CheckFailed, NotFound, UsageError
from guard.settings import Settings
from guard.settings_read import load_settings

__all__ = ["add_to", "fault_lines", "pairs_lines", "validate_lines"]

_SAMPLE_CHARACTERS = 400
_LISTED_DROPS = 20


def add_to(makers: typer.Typer) -> None:
    """Put the commands on the group."""
    makers.command("validate", epilog=EPILOGUE)(prepare_validate)
    makers.command("prefs", epilog=EPILOGUE)(prepare_prefs)


_All = Annotated[bool, typer.Option("--all", help="List every fault, not the first 20.")]


def prepare_validate(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders of data, prepared datasets.")],
    kind: Annotated[str | None, typer.Option("--kind", help="What it is meant to be, instead of detecting it.")] = None,
    tokenization: Annotated[
        str | None, typer.Option("--tokenization", metavar="gpt2|char", help="Also check token ids against it.")
    ] = None,
    all: _All = False,
) -> None:
    """Columns, counts, a sample and a verdict; every bad row by line, field and reason. Exit 3 on faults."""
    from trainer.tokenizer import load_tokenizer
    from trainer.validate import validate_path

    caller: Caller = context.obj
    size = load_tokenizer(tokenization).vocab_size if tokenization else None
    reports = [validate_path((caller.folder / Path(name).expanduser()).absolute(), kind, everything=all, vocab_size=size)
               for name in paths]  # fmt: skip
    caller.console.emit(reports[0] if len(reports) == 1 else {"ok": all_ok(reports), "paths": reports})
    for report in reports:
        caller.console.say(*validate_lines(report))
    if not all_ok(reports):
        raise typer.Exit(CheckFailed.exit_code)


def all_ok(reports: list[dict[str, Any]]) -> bool:
    """Whether nothing is wrong with any of them."""
    return all(report["ok"] for report in reports)


def validate_lines(report: Mapping[str, Any]) -> list[str]:
    """What a person reads about one path."""
    lines = [f"{'✅' if report['ok'] else '❌'} {visible(report['path'])}"]
    what = ", ".join(filter(None, [report["kind"], report["container"]]))
    lines.append(f"   Kind: {visible(what)}" if what else "   Kind: unknown")
    if report["columns"]:
        lines.append(f"   Columns: {visible(', '.join(report['columns']))}")
    size = f" (about {human_tokens(report['tokens'])} tokens)" if report["tokens"] else ""
    lines.append(f"   Rows: {report['rows']:,}, of them usable {report['examples']:,}{size}")
    lines += _split_lines(report)
    if report.get("unread"):
        listed = visible(", ".join(report["unread"][:_LISTED_DROPS]))
        lines.append(f"   Not read, for its state.json does not name them: {listed}")
    if report["sample"] is not None:
        lines.append(f"   Sample: {_excerpt(report['sample'])}")
    lines += fault_lines(report, named=report["type"] != "file")
    if report["reason"] and not report["faults_count"]:
        lines.append(f"   Why: {visible(report['reason'])}")
    if report["ok"]:
        return [*lines, "   Verdict: fine"]
    lines.append(f"   Verdict: {visible(report['reason'] or plural(report['faults_count'], 'row') + ' at fault')}")
    return lines + ([f"   try: {visible(report['hint'])}"] if report["hint"] else [])


def _split_lines(report: Mapping[str, Any]) -> list[str]:
    words = {"train": "Train", "val": "Held out"}
    lines = []
    for name, split in report.get("splits", {}).items():
        count = split if isinstance(split, int) else split["examples"]
        if count:
            lines.append(f"   {words[name]}: {plural(count, 'row')}")
    return lines + [f"   File: {visible(item['path'])} {plural(item['rows'], 'row')}" for item in report.get("files", [])[:20]]


def _excerpt(sample: Any) -> str:
    text = sample if isinstance(sample, str) else orjson.dumps(sample, default=str).decode()
    return visible(text[:_SAMPLE_CHARACTERS]) + ("..." if len(text) > _SAMPLE_CHARACTERS else "")


def fault_lines(report: Mapping[str, Any], *, named: bool) -> list[str]:
    """The faults that are listed, and how many there are."""
    count, faults = report["faults_count"], report["faults"]
    if not count:
        return []
    lines = [f"   At fault: {plural(count, 'row')}"]
    for fault in faults:
        where = [fault["file"]] if named and fault["file"] else []
        where += [f"line {fault['line']}"] if fault["line"] else []
        field = f"{fault['field']}: " if fault["field"] else ""
        lines.append(f"     {visible(' '.join(where))}{': ' if where else ''}{visible(field + fault['reason'])}")
    more = count - len({(fault["file"], fault["line"]) for fault in faults})
    return lines + ([f"     and {plural(more, 'row')} more; --all lists them"] if more > 0 else [])


def prepare_prefs(
    context: typer.Context,
    input: Annotated[list[str], typer.Option("--input", metavar="FILE...", help="Files or folders of pairs.")],
    output_dir: Annotated[str | None, typer.Option("--output-dir", help="Where pairs_all.jsonl goes.")] = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Judge the rows and write nothing.")] = False,
    skip_safety_filter: Annotated[bool, typer.Option("--skip-safety-filter", help="Do not ask the safety rules.")] = False,
    all: _All = False,
) -> None:
    """Preference rows of any spelling as pairs_all.jsonl: id, prefix, chosen, rejected, src."""
    from guard.checks.safety import load_rules
    from trainer.pairs.prepare import prepare_pairs

    caller: Caller = context.obj
    if not validate_only and output_dir is None:
        raise UsageError("--output-dir is missing", hint="--output-dir DIR, or --validate-only")
    paths = [caller.folder / Path(name).expanduser() for name in input]
    target = (caller.folder / Path(output_dir).expanduser()).absolute() if output_dir and not validate_only else None
    rules = [] if skip_safety_filter else load_rules(_settings(caller))
    report = prepare_pairs(paths, target, rules, everything=all)
    report |= {"ok": not report["faults_count"], "validate_only": validate_only, "safety_filter": bool(rules)}
    caller.console.emit(report)
    (caller.console.say if validate_only else caller.console.note)(*pairs_lines(report))
    if validate_only and not report["ok"]:
        raise typer.Exit(CheckFailed.exit_code)


def _settings(caller: Caller) -> Settings:
    """The settings of the home there is; the defaults where there is none."""
    try:
        return load_settings(caller.home().root)
    except NotFound:
        if caller.home_given:
            raise
        return Settings()


def pairs_lines(report: Mapping[str, Any]) -> list[str]:
    """What became of preference files, for a person."""
    if report["validate_only"]:
        lines = [f"{'✅' if report['ok'] else '❌'} {plural(report['pairs'], 'pair')} of {plural(report['rows'], 'row')}"]
    else:
        lines = [f"✅ {plural(report['pairs'], 'pair')} of {plural(report['rows'], 'row')}: {visible(report['output'])}"]
    lines += [f"   {visible(name)}: {plural(count, 'pair')}" for name, count in report["sources"].items()]
    if report["repeated"]:
        lines.append(f"   Repeated: {plural(report['repeated'], 'row')}, written once")
    lines += fault_lines(report, named=True)
    if report["dropped_count"]:
        lines.append(f"   Left out by the safety filter: {plural(report['dropped_count'], 'row')}")
        lines += [f"     {visible(item['file'])} line {item['line']}: rule {visible(item['rule'])}"
                  for item in report["dropped"][:_LISTED_DROPS]]  # fmt: skip
    return lines
