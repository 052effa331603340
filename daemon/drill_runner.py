"""Restore drills as the daemon holds them: in a child of their own, never while a model trains, recorded when they end.

While a drill runs no training is begun, so that the two never share the memory; a job that is running ends first.
Not here: the drill (`drill.py`), when one is due (`guard/store/drills.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daemon.children import JobChild, limits_of
from daemon.drill import clear_scratch, scratch_beside
from daemon.publish import read_result
from daemon.reactor import Reactor
from guard.durable import make_dir, remove_tree, write_json
from guard.errors import Busy, Damage
from guard.store.drills import drill_due, record_drill
from guard.store.keeper import Keeper
from guard.store.vault_home import newest_ledger
from guard.store.vault_state import check_vault, vault_of

__all__ = ["DrillRunner"]


class DrillRunner:
    """At most one drill at a time."""

    def __init__(self, keeper: Keeper, reactor: Reactor) -> None:
        self.keeper, self.reactor = keeper, reactor
        self.child: JobChild | None = None
        self.asked = False
        """A person or the timer wants one as soon as nothing trains."""
        self._into: Path | None = None

    @property
    def running(self) -> bool:
        return self.child is not None

    @property
    def folder(self) -> Path:
        """Where request, result and the child's log lie."""
        return self.keeper.home.state / "drill"

    def ask(self, into: str | None = None) -> dict[str, Any]:
        """Want a drill; it begins when nothing trains. Raises Busy over a running one, and the vault's refusals."""
        if self.running or self.asked:
            raise Busy("a restore drill is under way", hint="heirloom backup status says how it ended")
        newest_ledger(vault := check_vault(self.keeper))
        scratch = Path(into) if into else scratch_beside(vault)
        if into:
            clear_scratch(scratch)
        self._into, self.asked = scratch, True
        return {"scratch": str(scratch), "vault": str(vault), "after": self.keeper.ledger.sequence()}

    def consider(self) -> None:
        """The timer's question: is it time?"""
        if not self.running and not self.asked and drill_due(self.keeper):
            self._into, self.asked = scratch_beside(vault_of(self.keeper)), True

    def tick(self, now: float, *, calm: bool) -> None:
        """Look after the running drill, or begin a wanted one once nothing trains and no backup is under way (`calm`)."""
        if self.child is not None:
            self.child.tick(now)
            return
        if not self.asked or not calm:
            return
        assert self._into is not None
        self.asked = False
        try:
            if self.folder.exists():
                remove_tree(self.folder)
            make_dir(self.folder)
            write_json(self.folder / "request.json", {"vault": str(vault_of(self.keeper)), "scratch": str(self._into)})
            self.launch()
        except OSError as error:
            self.child = None
            self._failed(f"the drill could not be begun: {error}")

    def launch(self) -> None:
        """Start the child; `_exited` is called with its status."""
        self.child = JobChild(self.reactor, ["-m", "daemon.drill", str(self.folder)], self.folder, self._exited,
                              limits_of(self.keeper))  # fmt: skip
        self.child.start()

    def _exited(self, status: int) -> None:
        self.child = None
        try:
            record_drill(self.keeper, read_result(self.folder, "result.json"))
        except Damage:
            self._failed(self._why(status))

    def _why(self, status: int) -> str:
        """Why a child left no result: it was ended for a reason, or died."""
        try:
            return str(read_result(self.folder, "error.json")["message"])
        except Damage:
            return f"the drill ended with status {status}; see {self.folder / 'child.log'}"

    def _failed(self, reason: str) -> None:
        record_drill(self.keeper, {"ok": False, "reason": reason, "seconds": 0.0})

    def close(self) -> None:
        """End a running drill; its scratch is removed by the next one."""
        if self.child is not None:
            self.child.kill()
            self.child = None
