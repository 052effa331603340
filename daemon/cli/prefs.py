"""`heirloom prefs`: preference data. `prefs download` fetches public pairs and drops them.

The work is done in `trainer/pairs/`; here are the words around it, and the one step into the inbox. In a home the file
stays in `data/pairs/` and a copy of it is dropped; without a home there is only the file.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import human_bytes, human_count, plural, visible
from guard.durable import make_dir, open_new, rename_new
from guard.errors import NotFound, UsageError
from guard.home import Home
from trainer.pairs.download import DEFAULT_BUDGET, Download, Request
from trainer.pairs.pair import PAIRS_FILE
from trainer.pairs.shares import fair_shares, parse_count
from trainer.pairs.sources import SOURCES, find_sources

__all__ = ["add_to", "download_lines", "drop_copy", "parse_caps"]

_ENDLESS = 1 << 62


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    group = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
    group.callback(epilog=EPILOGUE)(prefs)
    group.command("download", epilog=EPILOGUE)(prefs_download)
    app.add_typer(group, name="prefs", epilog=EPILOGUE)


def prefs() -> None:
    """Preference pairs."""


_BUDGET = str(DEFAULT_BUDGET)
_Sources = Annotated[list[str] | None, typer.Option("--source", metavar="NAME...", help=f"Of {', '.join(SOURCES)}; else all.")]
_Caps = Annotated[
    list[str] | None, typer.Option("--per-source", metavar="N|NAME=N...", help="Most pairs of every source, or of one.")
]


def prefs_download(
    context: typer.Context,
    source: _Sources = None,
    budget: Annotated[str, typer.Option("--budget", metavar="N", help="Pairs in all, such as 200k; shared fairly.")] = _BUDGET,
    per_source: _Caps = None,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Else data/pairs/ of the home, or here.")] = None,
    folder: Annotated[str | None, typer.Option("--from", metavar="DIR", help="Folders as the hub has them; no network.")] = None,
    split: Annotated[str, typer.Option("--split", metavar="train|test", help="Which half of the data sets.")] = "train",
    no_drop: Annotated[bool, typer.Option("--no-drop", help="Do not put a copy into the inbox.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Fetch public preference pairs, as pairs_all.jsonl, and drop them. Run again, it goes on where it stopped."""
    caller: Caller = context.obj
    home = _home(caller)
    request = _request(caller, home, source, budget, per_source, out, folder, split)
    work = Download(request, caller.console.progress)
    if request.out.exists() and out is not None and not work.partial.folder.is_dir():
        raise UsageError(f"{visible(request.out)} exists already", subject=str(request.out), hint="name another --out")
    target = home if home is not None and not no_drop else None
    if dry_run:
        plan = _plan(request, work, target)
        caller.console.emit(plan)
        caller.console.say(*_plan_lines(plan))
        return
    found: dict[str, Any] = {"dropped": None}

    def drop(report: Mapping[str, Any]) -> None:
        if target is not None:
            found["dropped"] = str(drop_copy(target, request.out, str(report["sha256"])))

    report = work.run(drop) | found
    caller.console.emit(report)
    caller.console.note(*download_lines(report))


def _home(caller: Caller) -> Home | None:
    """The home that was named, or the one that stands here; None where there is none."""
    try:
        return caller.home()
    except NotFound:
        if caller.home_given:
            raise
        return None


def _request(caller: Caller, home: Home | None, source: Sequence[str] | None, budget: str, per_source: Sequence[str] | None,
             out: str | None, folder: str | None, split: str) -> Request:  # fmt: skip
    if split not in ("train", "test"):
        raise UsageError(f"--split {split!r} is neither train nor test", hint="--split train")
    place = caller.folder / Path(out).expanduser() if out else (home.data / "pairs" if home else caller.folder) / PAIRS_FILE
    given = (caller.folder / Path(folder).expanduser()).absolute() if folder else None
    if given is not None and not given.is_dir():
        raise NotFound(f"there is no folder {visible(given)}", subject=str(given), hint="check the path after --from")
    return Request(find_sources(list(source or [])), place.absolute(), parse_count(budget, "--budget"),
                   parse_caps(per_source or []), given, split, named=bool(source))  # fmt: skip


def parse_caps(words: Sequence[str]) -> dict[str, int]:
    """`50k` for every source, `hh-rlhf=100k` for one; the one named counts. Raises UsageError."""
    every: dict[str, int] = {}
    named: dict[str, int] = {}
    for word in (part for text in words for part in text.split(",") if part.strip()):
        name, equals, number = word.strip().partition("=")
        if equals:
            named[find_sources([name])[0].name] = parse_count(number, "--per-source")
        else:
            every = dict.fromkeys(SOURCES, parse_count(name, "--per-source"))
    return every | named


def drop_copy(home: Home, path: Path, sha256: str) -> Path:
    """Put a copy of a finished file into `inbox/preference/`, whole or not at all; never over a file that waits there."""
    folder = home.inbox / "preference"
    make_dir(folder)
    hidden = folder / f".{path.name}.dropping"
    with path.open("rb") as source, open_new(hidden) as handle:
        shutil.copyfileobj(source, handle, 1 << 20)
    for name in (path.name, f"{path.stem}-{sha256[:12]}{path.suffix}"):
        try:
            rename_new(hidden, folder / name)
        except FileExistsError:
            continue
        return folder / name
    # Both names are taken, the second by these very bytes: they wait there already.
    hidden.unlink()
    return folder / f"{path.stem}-{sha256[:12]}{path.suffix}"


def _plan(request: Request, work: Download, home: Home | None) -> dict[str, Any]:
    """What a download would do; asks nobody."""
    limits = {item.name: request.caps.get(item.name, _ENDLESS) for item in work.sources()}
    return {
        "out": str(request.out), "from": str(request.folder) if request.folder else None, "budget": request.budget,
        "sources": fair_shares(request.budget, limits), "missing": work.missing(), "resumes": work.partial.folder.is_dir(),
        "drop": str(home.inbox / "preference" / request.out.name) if home else None, "dry_run": True,
    }  # fmt: skip


def _plan_lines(plan: Mapping[str, Any]) -> list[str]:
    begun = " (goes on with what an earlier run left)" if plan["resumes"] else ""
    lines = [f"Would write {visible(plan['out'])}{begun}"]
    lines += [f"   {name}: {plural(pairs, 'pair')} at most" for name, pairs in plan["sources"].items()]
    lines += _missing_lines(plan)
    return lines + ([f"   and drop a copy as {visible(plan['drop'])}"] if plan["drop"] else [])


def download_lines(report: Mapping[str, Any]) -> list[str]:
    """What was made, for a person."""
    lines = [f"✅ {plural(report['pairs'], 'pair')}, {human_bytes(report['bytes'])}: {visible(report['out'])}"]
    for name, item in report["sources"].items():
        lines.append(f"   {name}: {plural(item['pairs'], 'pair')} of {plural(item['rows'], 'row')}"
                     + (", all there is" if item["done"] else ""))  # fmt: skip
        lines += [f"     left out {human_count(count)}: {visible(reason)}" for reason, count in item["refused"].items()]
    lines += _missing_lines(report)
    return lines + ([f"   Dropped: {visible(report['dropped'])}"] if report["dropped"] else [])


def _missing_lines(found: Mapping[str, Any]) -> list[str]:
    return [f"   ⚠️ {name} is not there" for name in found["missing"]]
