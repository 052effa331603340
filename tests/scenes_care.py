"""A scene of its own: what a person does to versions, back up, roll back, delete and restore, over damage too.

Not here: what a scene is and the scenes of drops and births (`scenes.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from homes import add_version, keeper_of, small_family
from scenes import Scene

from guard.errors import CheckFailed, NotFound
from guard.store import views
from guard.store.keeper import Keeper
from guard.store.recovery import recover
from guard.store.restore import restore
from guard.store.rollback import rollback
from guard.store.sums import folder_problems
from guard.store.trash import delete
from guard.store.vault import run_backup
from guard.store.versions import find_version, line_tip

__all__ = ["Care"]

LEAF = "v005_leaf"
Step = tuple[str, Callable[[Keeper], bool], Callable[[Keeper], Any]]


def _tip_is(keeper: Keeper, name: str) -> bool:
    tip = line_tip(keeper.ledger, "policy")
    return tip is not None and tip.name == name


def _intact(keeper: Keeper) -> bool:
    leaf = find_version(keeper.ledger, LEAF)
    return leaf.state == "sealed" and not folder_problems(keeper.home.models / LEAF, leaf.sums_sha256)


def _state(keeper: Keeper) -> str:
    return find_version(keeper.ledger, LEAF).state


def _backed_up(keeper: Keeper) -> bool:
    rows = keeper.ledger.value("SELECT count(*) FROM backups WHERE what = 'version'")
    newest = keeper.ledger.value("SELECT max(name) FROM backups WHERE what = 'ledger'")
    return rows == 5 and newest is not None


class Care(Scene):
    """What a person does to versions: back up, roll back, delete, restore from trash and vault, over damage too."""

    def progress(self) -> int:
        return self.done

    def prepare(self, progress: Any) -> None:
        self.done = int(progress or 0)
        self.steps: list[Step] = [
            ("backup", _backed_up, run_backup),
            ("rollback", lambda k: _tip_is(k, "v003_reasoning"), lambda k: rollback(k, "v003", reason="a try")),
            ("forward", lambda k: _tip_is(k, "v004_full_stack"), lambda k: rollback(k, "v004")),
            ("delete", lambda k: _state(k) == "trashed", lambda k: delete(k, LEAF, force=True)),
            ("restore", _intact, lambda k: restore(k, LEAF)),
            ("damage", lambda k: not _intact(k), self._damage),
            ("mend", _intact, lambda k: restore(k, LEAF, source="backup")),
            ("delete again", lambda k: _state(k) == "trashed", lambda k: delete(k, LEAF, force=True)),
            ("restore from the vault", _intact, lambda k: restore(k, LEAF, source="backup")),
            *[(f"backup {number}", _backed_up, run_backup) for number in range(2)],
        ]  # fmt: skip

    @staticmethod
    def template(root: Path) -> Path:
        keeper = small_family(root)
        add_version(keeper, "leaf", "v003_reasoning", tip=False)
        views.refresh(keeper)
        keeper.ledger.close()
        return root

    def _damage(self, keeper: Keeper) -> None:
        """A stranger's hand, on the disk at once."""
        path = keeper.home.models / LEAF / "model.safetensors"
        kept = path.stat().st_mode
        real = path.read_bytes()
        path.unlink()
        path.write_bytes(b"rot" + real[3:])
        path.chmod(kept)
        self.synced()

    def begin(self) -> None:
        self.keeper = keeper_of(self.root)
        recover(self.keeper)

    def die(self) -> None:
        self.keeper.ledger.close()

    def play(self) -> None:
        for name, done, act in self.steps[self.done :]:
            if name.startswith("backup") or not done(self.keeper):
                self._act(done, act)
            self.done += 1

    def _act(self, done: Callable[[Keeper], bool], act: Callable[[Keeper], Any]) -> None:
        """Asked again after a refusal, a command first finishes what it had begun; then there may be nothing to do."""
        try:
            act(self.keeper)
        except (CheckFailed, NotFound):
            if not done(self.keeper):
                raise

    def specific(self) -> list[str]:
        """The last acknowledged step still holds, or the one under way when death came does."""
        reached = [self.steps[number] for number in (self.done - 1, self.done) if 0 <= number < len(self.steps)]
        held = self.done == 0 or any(done(self.keeper) for _name, done, _act in reached)
        found = [] if held else [f"neither of {[name for name, _done, _act in reached]} holds"]
        copies = [path for path in (*self.home.models.glob(f"{LEAF}*"), *self.home.trash.glob(LEAF))]
        return found if copies else [*found, f"{LEAF} is nowhere"]
