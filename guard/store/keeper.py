"""The keeper: what every act on a home needs in its hands - its paths, its ledger, its settings and a clock.

Only the holder of the home lock makes a keeper that writes; readers open the ledger read-only.
"""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from guard.clock import SYSTEM_CLOCK, Clock
from guard.errors import Damage
from guard.home import Home
from guard.seal import require_seal
from guard.settings import Settings
from guard.settings_read import load_settings
from guard.store.closed_mark import mark_problem
from guard.store.ledger import Ledger
from guard.store.view_memory import ViewMemory

__all__ = ["Keeper", "default_actor", "open_reader", "open_writer"]


@dataclass(frozen=True)
class Keeper:
    """A home in the hands of one process."""

    home: Home
    ledger: Ledger
    settings: Settings
    clock: Clock = SYSTEM_CLOCK
    views: ViewMemory = field(default_factory=ViewMemory, compare=False, repr=False)
    """What the views showed last, so that only what changed is made again."""
    glance: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was missing at the last look, and what it depended on; filled and read by `glance.py` alone."""

    memory: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What is derived from the disk and costs time to open; each entry belongs to one module (`known.py`)."""

    @property
    def salt(self) -> str:
        """Decides what is held out; fixed at `init` and kept in the ledger, whatever the settings say later."""
        return self.ledger.meta("validation_salt") or ""


def default_actor(role: str) -> str:
    """Who acts, for the audit trail: `user:role`."""
    with contextlib.suppress(KeyError, OSError):
        return f"{os.environ.get('HEIRLOOM_ACTOR') or getpass.getuser()}:{role}"
    return f"uid{os.getuid()}:{role}"


def _open(home: Home, *, actor: str, clock: Clock, read_only: bool, flags: Mapping[str, object] | None) -> Keeper:
    home.check()
    settings = load_settings(home.root, flags=flags)
    if not read_only:
        require_seal(settings.storage.seal, home.staging)
    problem = "" if read_only else mark_problem(home.ledger)
    if problem:
        # Readers may look; nothing is built on a ledger that somebody or something changed (law 5).
        raise Damage(f"{home.ledger}: {problem}", subject=str(home.ledger),
                     hint="heirloom verify says what is wrong; heirloom doctor --rebuild makes it again")  # fmt: skip
    ledger = Ledger(home.ledger, clock=clock, actor=actor, read_only=read_only)
    try:
        recorded = ledger.meta("store_id")
        if recorded != home.store_id():
            raise Damage(f"{home.root} carries store id {home.store_id()} but its ledger belongs to {recorded}",
                         subject=str(home.root), hint="two homes were mixed up; put the right data/ back")  # fmt: skip
    except BaseException:
        ledger.close()
        raise
    return Keeper(home, ledger, settings, clock)


def open_writer(
    home: Home, *, actor: str, clock: Clock = SYSTEM_CLOCK, flags: Mapping[str, object] | None = None
) -> Keeper:
    """A keeper that may write. The caller holds the home lock.

    Raises Damage for a home that is not whole, CheckFailed where this process cannot seal as the settings say.
    """
    return _open(home, actor=actor, clock=clock, read_only=False, flags=flags)


@contextlib.contextmanager
def open_reader(home: Home, *, clock: Clock = SYSTEM_CLOCK) -> Iterator[Keeper]:
    """A keeper that only reads, at any time and beside a running daemon."""
    keeper = _open(home, actor="reader", clock=clock, read_only=True, flags=None)
    try:
        yield keeper
    finally:
        keeper.ledger.close()
