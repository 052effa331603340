"""`heirloom plan` and `heirloom train`: saying what would be trained, on what, for how long, and then asking.

The plan itself, its estimates and its checks are made by the operation "plan"; this file shows them in the words of
the person this is for, asks `Proceed? [yes/no]`, and queues. Nothing is judged here. The queue has its own file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import (
    human_bytes,
    human_duration,
    human_tokens,
    plural,
    tick,
    visible,
)
from daemon.cli.queue import Teller, finish
from guard.errors import CheckFailed, NotFound

__all__ = ["add_to", "check_lines", "data_argument", "nobody_works", "plan_lines", "train_plan_lines"]

_SHOWN_FILES = 20
_PACKING = "Which documents share a sequence; they never see one another."


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("plan", epilog=EPILOGUE)(plan)
    app.command("plan-training", hidden=True, epilog=EPILOGUE)(plan)
    app.command("train", epilog=EPILOGUE)(train)


def plan(
    context: typer.Context,
    base: Annotated[str, typer.Option("--base", help="The version to train from: v004 or its full name.")],
    data: Annotated[list[str], typer.Option("--data", metavar="FILE...", help="Files, names or hashes.")],
    output: Annotated[str, typer.Option("--output", help="Name of the new version.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="A recipe in configs/, such as sft/small.")] = None,
    line: Annotated[str | None, typer.Option("--line", help="The line that the new version shall be on.")] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", min=1, help="Train exactly so many steps.")] = None,
    allow_repeat: Annotated[bool, typer.Option("--allow-repeat", help="Train again what was learnt already.")] = False,
    packing: Annotated[str | None, typer.Option("--packing", metavar="off|bestfit", help=_PACKING)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Answer the question with yes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
) -> None:
    """Plan a training: show what it would do with all checks, ask, and queue it."""
    caller: Caller = context.obj
    request = {
        "base": base, "files": [data_argument(caller, item) for item in data], "output": output, "recipe": recipe,
        "line": line, "allow_repeat": allow_repeat, "iterations": iterations, "packing": packing,
    }  # fmt: skip
    found = caller.call("plan", {**request, "dry_run": True})
    caller.console.say(*plan_lines(found, is_tip=_is_tip(caller, found["base"]), free_bytes=caller.home().free_bytes()))
    if dry_run or not found["ok"]:
        caller.console.emit(found)
        if not found["ok"]:
            caller.console.say("", "Not every check passes: nothing was queued.")
            raise typer.Exit(CheckFailed.exit_code)
        return
    caller.console.say("")
    caller.confirm_yes(yes=yes, hint="heirloom plan ... --yes")
    done = caller.call("plan", {**request, "dry_run": False})
    caller.console.emit(done)
    if not done["ok"]:
        caller.console.say(*check_lines(done["checks"], None), "", "A check stopped passing: nothing was queued.")
        raise typer.Exit(CheckFailed.exit_code)
    caller.console.note(f"✅ Queued as job {done['job']} (heirloom queue --follow {done['job']})", *nobody_works(caller))


def data_argument(caller: Caller, text: str) -> str:
    """A file on disk is meant by its bytes and never by its name alone: its SHA-256; anything else as it is typed.

    Raises NotFound when these bytes were never registered.
    """
    from guard.durable import sha256_file
    from guard.store.files import get_file
    from guard.store.keeper import open_reader

    path = caller.folder / Path(text).expanduser()
    if not path.is_file():
        return text
    digest = sha256_file(path.resolve())
    with open_reader(caller.home()) as keeper:
        if get_file(keeper.ledger, digest) is None:
            raise NotFound(f"{visible(path)} is not registered (these bytes are not known here)", subject=text,
                           hint=f"heirloom register {visible(text)}")  # fmt: skip
    return digest


def nobody_works(caller: Caller) -> list[str]:
    from daemon.report import daemon_running

    return [] if daemon_running(caller.home()) else ["   No daemon runs: heirloom run --once trains it now"]


def _is_tip(caller: Caller, base: str) -> bool:
    """Whether the base is the active version of a line."""
    from guard.store.keeper import open_reader
    from guard.store.versions import tips

    with open_reader(caller.home()) as keeper:
        return base in {version.name for version in tips(keeper.ledger).values()}


def plan_lines(plan: Mapping[str, Any], *, is_tip: bool, free_bytes: int | None) -> list[str]:
    """The plan as seed 002 prints it."""
    lines = ["📋 Training Plan:", f"   Base: {visible(plan['base'])} (current: {tick(is_tip)})"]
    for item in plan["data"][:_SHOWN_FILES]:
        lines.append(f"   Data: {visible(item['file'])} (hash: {visible(str(item['sha256'])[:12])}...)")
    if len(plan["data"]) > _SHOWN_FILES:
        lines.append(f"   Data: and {len(plan['data']) - _SHOWN_FILES:,} more files")
    estimate = plan["estimate"]
    lines += [f"   Output: {visible(plan['output'])}"]
    if not is_tip:
        lines.append(f"   Line: {visible(plan.get('line'))} (the base is not the tip of its line)")
    lines += [
        f"   Est. time: {human_duration(estimate.get('seconds'))}",
        f"   Est. tokens: {human_tokens(estimate.get('tokens') or 0)}",
        *([f"   Est. memory: {human_bytes(estimate['memory_bytes'])}"] if estimate.get("memory_bytes") else []),
        "",
        "   Pre-flight checks:",
    ]
    return lines + check_lines(plan["checks"], free_bytes) + _warnings(plan)


def train_plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """What `train` would do."""
    estimate = plan["estimate"]
    return [
        f"Would train {visible(plan['output'])} from {visible(plan['base'] or 'a new base')}",
        f"   Data: {plural(plan['examples'], 'example')}, {human_tokens(estimate['tokens'])} tokens",
        f"   Recipe: {visible(plan['recipe'])}, {plural(estimate['steps'], 'step')}",
        f"   Est. time: {human_duration(estimate['seconds'])}",
        f"   Est. disk: {human_bytes(estimate['bytes'])}",
        *_warnings(plan),
    ]


def _warnings(plan: Mapping[str, Any]) -> list[str]:
    return [f"   ⚠️ {visible(text)}" for text in plan.get("warnings") or ()]


def check_lines(checks: list[dict[str, Any]], free_bytes: int | None) -> list[str]:
    """One line for each check; what fails says why and what to type, what does not apply says so."""
    lines: list[str] = []
    for check in checks:
        detail = visible(check.get("detail") or "")
        if check["ok"]:
            lines.append(f"   {tick(True)} {_passed(check, free_bytes)}")
            if check.get("warning"):
                lines.append(f"      ⚠️ {detail}")
            continue
        lines.append(f"   {tick(check['ok'])} {visible(check['name'])}" + (f": {detail}" if detail else ""))
        if check["ok"] is False and check.get("remedy"):
            lines.append(f"      try: {visible(check['remedy'])}")
    return lines


def _passed(check: Mapping[str, Any], free_bytes: int | None) -> str:
    """A passed check in seed 002's words, where it has some of its own."""
    if check["name"] == "Disk space" and free_bytes is not None:
        return f"{human_bytes(free_bytes)} disk free"
    if check["name"] == "Device available" and check.get("detail"):
        device = str(check["detail"])
        return f"{'GPU' if device.startswith('cuda') else visible(device).upper()} available"
    return visible(check["name"])


def train(
    context: typer.Context,
    model_name: Annotated[str, typer.Option("--model-name", help="Name of the new version.")],
    dataset_dir: Annotated[str, typer.Option("--dataset-dir", help="A folder made by heirloom prepare.")],
    config_file: Annotated[str, typer.Option("--config-file", help="A recipe: YAML or JSON.")],
    init_from_model: Annotated[
        str | None, typer.Option("--init-from-model", help="The version to train from; otherwise a new base is made.")
    ] = None,
    max_iters: Annotated[int | None, typer.Option("--max-iters", min=1, help="Train exactly so many steps.")] = None,
    allow_repeat: Annotated[bool, typer.Option("--allow-repeat", help="Train again what was learnt already.")] = False,
    packing: Annotated[str | None, typer.Option("--packing", metavar="off|bestfit", help=_PACKING)] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Train a prepared dataset now, and wait for the new version."""
    from daemon.client import run_until_done

    caller: Caller = context.obj
    dataset = caller.folder / dataset_dir
    if not dataset.is_dir():
        raise NotFound(f"there is no dataset folder {visible(dataset)}", subject=str(dataset),
                       hint="heirloom prepare text --input FILE --output-dir DIR makes one")  # fmt: skip
    request = {"model_name": model_name, "dataset_dir": str(dataset.absolute()), "init_from_model": init_from_model,
               "config_file": caller.file_argument(config_file), "max_iters": max_iters,
               "allow_repeat": allow_repeat, "packing": packing, "dry_run": dry_run}  # fmt: skip
    queued = caller.call("train", request)
    if dry_run:
        caller.console.emit({**queued, "dry_run": True})
        caller.console.say(*train_plan_lines(queued))
        return
    caller.console.note(f"Job {queued['job']} trains {visible(queued['output'])}", *_warnings(queued))
    run_until_done(caller.home(), queued["job"], Teller(queued["job"], caller.console.progress))
    finish(caller, queued["job"])
