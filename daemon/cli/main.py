"""The command `heirloom`: where it starts, and the one place where an error becomes words and an exit code.

    0 ok, 1 unexpected, 2 usage, 3 a check failed and nothing changed, 4 not found, 5 protected, 6 not confirmed,
    7 duplicate, 8 damage found, 10 daemon not running, 11 busy or locked, 130 interrupted

Codes belong to the error classes (`guard/errors.py`). `heirloom status` and `seen` are what people and scripts ask
all day: they are answered before typer is even imported (typer and the pydantic it brings take 0.3 s). All others are made in
`commands.py`; what they do stands in the files beside this one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from daemon.cli.caller import Caller
from daemon.cli.options import DEFAULT_COMMAND, Globals, Shape, normalise
from daemon.cli.output import Console
from guard.errors import EnvironmentFault, HeirloomError, Interrupted, UsageError, is_environment
from guard.failpoints import arm_from_environment

__all__ = ["as_error", "main"]

_QUICK_SHAPE = Shape(commands={DEFAULT_COMMAND: Shape(), "seen": Shape()})
_STATUS_SWITCHES = {"--watch", "--check"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console.for_terminal(json="--json" in words, quiet=False)
    try:
        arm_from_environment()
        code = _run(words, console)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _reader_left()
    except BaseException as problem:
        if "--debug" in words:
            import traceback

            traceback.print_exc()
        error = as_error(problem)
        if error is None:
            raise
        with contextlib.suppress(BrokenPipeError):
            console.fail(error)
        return error.exit_code


def _run(words: list[str], console: Console) -> int:
    found, line = normalise(words, _QUICK_SHAPE)
    if line == [DEFAULT_COMMAND, "--version"]:
        return _tell_version(_caller(found, console).console)
    if line[0] == DEFAULT_COMMAND and set(line[1:]) <= _STATUS_SWITCHES:
        from daemon.cli.status import show

        return show(_caller(found, console), watch="--watch" in line, check="--check" in line)
    texts = [word for word in line[1:] if word != "--near"]
    if line[0] == "seen" and len(texts) == 1 and (texts[0] == "-" or not texts[0].startswith("-")):
        from daemon.cli.seen import answer

        return answer(_caller(found, console), texts[0], near="--near" in line)
    from daemon.cli.commands import build, groups_for, run, shape_of

    command = build(groups_for(words))
    found, line = normalise(words, shape_of(command))
    return run(command, line, _caller(found, console))


def _tell_version(console: Console) -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("heirloom")
    except PackageNotFoundError:
        number = "unknown (not installed: make venv)"
    console.emit({"version": number})
    console.say(f"heirloom {number}")
    return 0


def _caller(found: Globals, console: Console) -> Caller:
    console.json, console.quiet = found.json, found.quiet
    return Caller(console, found.home or os.environ.get("HEIRLOOM_HOME") or None, Path.cwd())


def as_error(problem: BaseException) -> HeirloomError | None:
    """Any exception as one of ours; None for what is not an error, such as SystemExit or a simulated crash."""
    if isinstance(problem, HeirloomError):
        return problem
    # typer brings click along under a name that changed between releases: known by its family, not by import.
    family = {base.__name__ for base in type(problem).__mro__ if base.__module__.startswith(("typer", "click"))}
    if isinstance(problem, KeyboardInterrupt) or "Abort" in family:
        return Interrupted("interrupted")
    if "ClickException" in family:
        context = getattr(problem, "ctx", None)
        path = context.command_path if context is not None else "heirloom"
        if "NoArgsIsHelpError" in family and context is not None:
            # Its message is the whole help: too much for an error.
            return UsageError(f"{path} needs a command: {', '.join(context.command.commands)}", hint=f"{path} --help")
        return UsageError(problem.format_message(), hint=f"{path} --help")  # type: ignore[attr-defined]
    if not isinstance(problem, Exception):
        return None
    if isinstance(problem, PermissionError):
        return HeirloomError(f"no permission for {problem.filename or 'a file of the home'}", cause=problem,
                             hint="run it as the owner of the home (ls -ld shows who that is)")  # fmt: skip
    text = f"{type(problem).__name__}: {problem}"
    if is_environment(problem):
        return EnvironmentFault(f"the machine could not do it now: {problem or text}", cause=problem,
                                hint="free disk space or memory, then run it again; heirloom doctor")  # fmt: skip
    return HeirloomError(f"this should not have happened: {text}", cause=problem,
                         hint="the same command with --debug shows where; heirloom doctor checks the home")  # fmt: skip


def _reader_left() -> int:
    """Whoever read our output has gone (`heirloom log | head`): no reason for noise."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
