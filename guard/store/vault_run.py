"""One backup under way: where to, what came of it so far, and the row that vouches for a copy.

A `backups` row says that a copy was read back from the disk at a certain moment, and nothing less: whoever writes one
has just done so. Not here: copying anything (`vault.py`, `vault_ledger.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard.store.intents import clear_intent
from guard.store.keeper import Keeper

__all__ = ["BackupRun", "Steps", "named"]

Steps = Generator[str, None, None]


@dataclass
class BackupRun:
    """One backup under way: where to, and what came of it so far."""

    keeper: Keeper
    vault: Path
    apart: bool
    """The vault lies on another device than the models."""
    recheck: bool = False
    """Read back also what was read back before."""
    copied: list[str] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    size: int = 0

    def recorded(self, what: str, name: str) -> sqlite3.Row | None:
        return self.keeper.ledger.row("SELECT * FROM backups WHERE what = ? AND name = ? AND vault = ?",
                                      (what, name, str(self.vault)))  # fmt: skip

    def record(self, what: str, name: str, digest: str, size: int, *, told: bool = True) -> None:
        """Write the row that says: this was read back just now. `told`: with an event of its own."""
        ledger = self.keeper.ledger
        with ledger.transaction():
            ledger.run("INSERT INTO backups VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (what, name, vault) DO UPDATE SET "
                       "sums_sha256 = excluded.sums_sha256, size_bytes = excluded.size_bytes, "
                       "verified = excluded.verified, other_device = excluded.other_device",
                       (what, name, str(self.vault), digest, size, ledger.clock.utc(), int(self.apart)))  # fmt: skip
            clear_intent(ledger, "backup", f"{what}:{name}")
            if told:
                ledger.event("backup.verified", name, what=what, vault=str(self.vault), sums=digest, bytes=size)
        self.verified.append(name)

    def report(self) -> dict[str, Any]:
        return {"copied": self.copied, "verified": self.verified, "vault": str(self.vault),
                "other_device": self.apart, "bytes": self.size}  # fmt: skip


def named(name: str, steps: Generator[int, None, Any]) -> Generator[str, None, Any]:
    """Turn a generator of bytes into one that says what it is busy with."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        yield name
