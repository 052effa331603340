"""`heirloom prepare trajectories` and `prepare mutations`: rows to train on, made of what other programs left.

The work is done in `trainer/trajectories/` and `trainer/mutations/`; here are the words around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.output import plural, visible

__all__ = ["add_to", "mutation_lines", "trajectory_lines"]


def add_to(makers: typer.Typer) -> None:
    """Put the commands on the group."""
    makers.command("trajectories", epilog=EPILOGUE)(prepare_trajectories)
    makers.command("mutations", epilog=EPILOGUE)(prepare_mutations)


def prepare_trajectories(
    context: typer.Context,
    input: Annotated[list[str], typer.Option("--input", metavar="PATH...", help="Session logs (.jsonl), or folders of them.")],
    output: Annotated[str, typer.Option("--output", metavar="FILE|DIR", help="A new .jsonl file, or a folder for one.")],
    max_samples: Annotated[int | None, typer.Option("--max-samples", min=1, help="Only the first so many.")] = None,
    format: Annotated[str, typer.Option("--format", metavar="messages|text", help="text: simplified Harmony.")] = "messages",
    plain: Annotated[bool, typer.Option("--plain", help="Also sessions in which no tool was used.")] = False,
) -> None:
    """Tool-use sessions as conversations with tool calls; unfinished and repeated ones are left out and counted."""
    from trainer.trajectories.make import make_trajectories

    caller: Caller = context.obj
    paths = [caller.folder / Path(name).expanduser() for name in input]
    target = (caller.folder / Path(output).expanduser()).absolute()
    report = make_trajectories(paths, target, form=format, max_samples=max_samples, plain=plain)
    caller.console.emit(report)
    caller.console.note(*trajectory_lines(report))


def trajectory_lines(report: Mapping[str, Any]) -> list[str]:
    """What was made of the logs, for a person."""
    lines = [f"✅ {plural(report['rows'], 'row')} of {plural(report['sessions'], 'session')}: {visible(report['output'])}"]
    if report["repeated"]:
        lines.append(f"   Repeated: {plural(report['repeated'], 'session')}, written once")
    if report["bad_lines"]:
        lines.append(f"   ⚠️ {plural(report['bad_lines'], 'line')} could not be read")
    lines += [f"   Left out {count:,}: {visible(reason)}" for reason, count in report["left_out"].items()]
    return lines + [f"     {visible(item['file'])} line {item['line']}: {visible(item['reason'])}" for item in report["listed"]]


_Repos = Annotated[list[str] | None, typer.Option("--repo", metavar="DIR...", help="Rust repositories; their tests are run.")]
_Outs = Annotated[list[str] | None, typer.Option("--from", metavar="DIR...", help="mutants.out folders; nothing is run.")]


def prepare_mutations(
    context: typer.Context,
    output: Annotated[str, typer.Option("--output", metavar="FILE|DIR", help="A new .jsonl file, or a folder for one.")],
    repo: _Repos = None,
    outs: _Outs = None,
    max_mutations_per_repo: Annotated[
        int | None, typer.Option("--max-mutations-per-repo", min=1, help="At most so many rows of a repository.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Mutants tested at the same time.")] = 1,
) -> None:
    """Bugs that cargo-mutants put into sound code and a test found: buggy_code, error_message, fixed_code."""
    from trainer.mutations.make import make_mutations

    caller: Caller = context.obj
    repos, folders = ([(caller.folder / Path(name).expanduser()).absolute() for name in names or []] for names in (repo, outs))
    target = (caller.folder / Path(output).expanduser()).absolute()
    report = make_mutations(repos, folders, target, most=max_mutations_per_repo, jobs=jobs, tell=caller.console.progress)
    caller.console.emit(report)
    caller.console.note(*mutation_lines(report))


def mutation_lines(report: Mapping[str, Any]) -> list[str]:
    """What was made of the mutants, for a person."""
    lines = [f"✅ {plural(report['rows'], 'row')}: {visible(report['output'])}"]
    lines += [f"   {visible(item['repo'])}: {plural(item['rows'], 'row')} of {plural(item['mutants'], 'mutant')}"
              for item in report["repos"]]  # fmt: skip
    return lines + [f"   Left out {count:,}: {visible(reason)}" for reason, count in report["left_out"].items()]
