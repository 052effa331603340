"""Who calls: the console, the home that was named, and the few steps that most commands share.

Every command gets a `Caller` as typer's context object; so no command reads the environment or global state.
Not here: printing helpers (`output.py`), operations themselves (`daemon/client.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.cli.output import Console, visible
from guard.errors import NotConfirmed
from guard.home import Home, find_home

__all__ = ["EPILOGUE", "Caller"]

EPILOGUE = "Everywhere: --home DIR, --json, -q/--quiet, --debug."


@dataclass(frozen=True)
class Caller:
    """One invocation: where to speak and which home was meant."""

    console: Console
    home_given: str | None
    folder: Path

    def home(self) -> Home:
        """The home by flag or environment, else the nearest one up from here. Raises NotFound."""
        return find_home(self.folder, self.home_given)

    def call(self, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Let the daemon do it, or do it under the home lock; raises what the operation raised."""
        from daemon.client import call

        return call(self.home(), operation, dict(arguments))

    def confirm_yes(self, *, yes: bool, hint: str) -> None:
        """`Proceed? [yes/no]: ` wants the whole word. Raises NotConfirmed."""
        if yes:
            return
        answer = self.console.ask("Proceed? [yes/no]: ")
        if answer is None:
            raise NotConfirmed("nobody answered, so nothing was changed", hint=hint)
        if answer.strip() != "yes":
            raise NotConfirmed(f"the answer was {visible(answer.strip())!r}, so nothing was changed",
                               hint=f"answer with the whole word yes, or: {hint}")  # fmt: skip

    def file_argument(self, text: str) -> str:
        """A file on disk as an absolute path (the daemon stands elsewhere); any other name as it is."""
        path = self.folder / Path(text).expanduser()
        return os.path.abspath(path) if path.is_file() else text
