"""Options that many commands share, with one help text for all of them.

Apart from `caller.py`, because `heirloom status` must answer without importing typer.
"""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["DryRun", "Yes"]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Accepted for scripts; nothing is asked.")]
