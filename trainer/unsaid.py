"""Conversations that a template has no words for: counted while a dataset is made, left out, told with their reasons.

Not here: what a template can say (`trainer/templates/`), the making (`trainer/prepare.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guard.checks.rows import Example
from guard.errors import DataFault
from trainer.template import Encoded
from trainer.templates.base import Inexpressible

__all__ = ["Unsaid"]

_LISTED = 20


class Unsaid:
    """How many there were, and the first ones with line and reason."""

    def __init__(self) -> None:
        self.count = 0
        self.listed: list[dict[str, Any]] = []

    def take(self, name: str, batch: Sequence[Example], rows: Sequence[Encoded | Inexpressible]) -> list[Encoded | None]:
        """The rows with None where there is a reason instead, which is noted."""
        for example, row in zip(batch, rows, strict=True):
            if isinstance(row, Inexpressible):
                self.count += 1
                if len(self.listed) < _LISTED:
                    self.listed.append({"file": name, "line": example.line_number, "ordinal": example.ordinal,
                                        "reason": row.message})  # fmt: skip
        return [None if isinstance(row, Inexpressible) else row for row in rows]

    def refuse_all(self, template: str, said: int) -> None:
        """Raises DataFault when not one conversation could be said."""
        if self.count and not said:
            first = self.listed[0]
            raise DataFault(f"none of {self.count:,} conversations can be said in the template {template}:"
                            f" {first['file']} line {first['line']}: {first['reason']}", subject=first["file"],
                            hint="train them on a base with another template")  # fmt: skip

    def warnings(self, template: str) -> list[str]:
        """A sentence for people, or none."""
        if not self.count:
            return []
        first = self.listed[0]
        word = "conversation is" if self.count == 1 else "conversations are"
        return [f"{self.count:,} {word} inexpressible in the template {template} and left out, first {first['file']} line"
                f" {first['line']}: {first['reason']}"]  # fmt: skip
