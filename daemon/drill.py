"""A restore drill, as a process: the home out of the vault alone, verified, trained a few steps further, backed up again.

    python -m daemon.drill REQUEST_FOLDER       request.json: {vault, scratch}; progress.json: that it gets on;
                                                result.json: how it ended

Everything happens in an empty scratch folder: the home in `home/`, its own new vault in `vault/`. The training is the
real one, from a dropped text to a sealed version, so the model is loaded and learns on. The scratch is removed at the
end, also after a failure; one that a sudden death left is removed by the next drill, and only with our mark in it.
Reads the vault; never writes to it nor to the home that holds the drill. Not here: recording it (`guard/store/drills.py`).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from guard.durable import make_dir, publish, remove_tree, write_bytes, write_json, write_text
from guard.errors import CheckFailed, Damage, HeirloomError
from guard.failpoints import arm_from_environment, point
from guard.home import Home
from guard.parent_death import die_with
from guard.seal import loosen
from guard.steps import breathe, on_breath
from guard.store import views
from guard.store.jobs import jobs_in, set_job
from guard.store.keeper import Keeper, open_writer
from guard.store.recovery import recover
from guard.store.sums import drain
from guard.store.vault_home import bring_home_back
from guard.store.verify import verify
from guard.store.versions import find_version, line_tip

__all__ = ["answer", "clear_scratch", "main", "run_drill", "scratch_beside"]

MARK = ".heirloom-drill"
STEPS = 3
WAIT_SECONDS = 3600.0


def scratch_beside(vault: Path) -> Path:
    """Where a drill works when nobody names a folder: beside the vault, on its disk."""
    return vault.parent / f".{vault.name}-drill"


def clear_scratch(scratch: Path) -> None:
    """Remove what a drill left. Raises CheckFailed for a folder that is neither empty nor marked as ours."""
    if not os.path.lexists(scratch):
        return
    if scratch.is_symlink() or not scratch.is_dir() or (any(scratch.iterdir()) and not (scratch / MARK).is_file()):
        raise CheckFailed(f"{scratch} is not empty and no drill made it", subject=str(scratch),
                          hint="heirloom backup drill --into DIR with an empty folder")  # fmt: skip
    loosen(scratch)  # a drill of an earlier release sealed its home as the real one: immutable
    for path in scratch.iterdir():
        if path.name != MARK:
            remove_tree(path)
    remove_tree(scratch)


Settle = Callable[[Keeper], None]


def run_drill(vault: Path, scratch: Path, settle: Settle, flags: dict[str, object] | None = None) -> dict[str, Any]:
    """Hold a drill; `settle` works a home off until nothing is left to do.

    Returns ok, reason, seconds and what was proven. A failure of the vault is a result, not an exception; only a
    scratch folder that is not ours raises CheckFailed.
    """
    begun = time.monotonic()
    clear_scratch(scratch)
    found: dict[str, Any] = {"ok": False, "reason": ""}
    try:
        make_dir(scratch)
        write_text(scratch / MARK, "a restore drill of Heirloom works here and removes everything again\n")
        found |= _drill(vault, scratch, settle, flags or {})
        found["ok"] = True
    except (HeirloomError, OSError) as error:
        found["reason"] = str(error)
    try:
        clear_scratch(scratch)
    except OSError as error:  # told beside what came of the drill, and tried again by the next one
        left = f"{scratch} could not be removed: {error.strerror or error}"
        found |= {"ok": False, "reason": "; ".join(filter(None, (found["reason"], left)))}
    return {**found, "seconds": round(time.monotonic() - begun, 1)}


def _drill(vault: Path, scratch: Path, settle: Settle, flags: dict[str, object]) -> dict[str, Any]:
    home = Home(scratch / "home")
    brought = drain(bring_home_back(vault, home.root, second_vault=True))
    ours: dict[str, object] = {"backup.path": str(scratch / "vault"), "backup.auto": True, "backup.drill_days": 0.0,
                               "disk.reserve_gb": 0.0, "storage.seal": "mode", "training.max_steps": STEPS,
                               "gate": "off", "inbox.settle_seconds": 0.1, "coalesce.after": 1000}  # fmt: skip
    keeper = open_writer(home, actor="drill", flags={**ours, **flags})
    try:
        recover(keeper)
        _leave_only_the_drill(keeper)
        views.refresh(keeper)
        _prove(keeper, "what came out of the vault", backup=False)
        point("drill.verified")
        trained = _train(keeper, settle)
        point("drill.trained")
        _prove(keeper, "what was trained on and backed up again", backup=True)
        if not (scratch / "vault" / "versions" / trained["version"]).is_dir():
            raise Damage(f"{trained['version']} did not come into the new vault", subject=trained["version"])
        point("drill.backed_up")
    finally:
        keeper.ledger.close()
    return {"ledger": brought["ledger"], "versions": len(brought["versions"]), "originals": len(brought["originals"]),
            "bytes": brought["bytes"], "steps": trained["steps"], "parent": trained["parent"]}  # fmt: skip


def _leave_only_the_drill(keeper: Keeper) -> None:
    """Nothing that waited in the real queue is trained here."""
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("paused", "0")
        for job in jobs_in(keeper.ledger, "queued", "held", "preparing", "training", "committing"):
            set_job(keeper.ledger, job.id, "cancelled", "a drill trains nothing but its own text")


def _prove(keeper: Keeper, what: str, *, backup: bool) -> None:
    report = verify(keeper, everything=True, backup=backup)
    # Archived versions were read in the vault itself; the drill's own new vault has none and needs none.
    damage = [item for item in report.damage if item.what != "archived"]
    if damage:
        first = damage[0]
        raise Damage(f"{what} is not whole: {first.what} {first.name} {first.file} {first.problem}", subject=first.name,
                     hint="heirloom verify --backup")  # fmt: skip


def _train(keeper: Keeper, settle: Settle) -> dict[str, Any]:
    """Drop a text on the line `policy` and see a version come of it. Raises CheckFailed saying why none came."""
    tip = line_tip(keeper.ledger, "policy")
    if tip is None:
        raise CheckFailed("the vault holds no active version to go on from", hint="heirloom backup run")
    dice = random.Random(keeper.ledger.sequence())
    words = "the vault gave everything back and learning goes on from here".split()
    text = "\n".join(f"{number}: " + " ".join(dice.choices(words, k=12)) for number in range(400))
    make_dir(keeper.home.inbox / "pretrain")
    write_bytes(keeper.home.inbox / "pretrain" / "drill.txt", text.encode() + b"\n")
    settle(keeper)
    row = keeper.ledger.row("SELECT name FROM versions WHERE parent_id = ? ORDER BY id DESC LIMIT 1", (tip.id,))
    job = keeper.ledger.row("SELECT state, reason FROM jobs WHERE kind = 'train' ORDER BY id DESC LIMIT 1")
    if row is None or job is None or job["state"] != "done":
        why = f"the job is {job['state']}: {job['reason']}" if job else "the text was not taken in"
        raise CheckFailed(f"training did not go on from {tip.name}: {why}", subject=tip.name, hint="heirloom doctor")
    version = find_version(keeper.ledger, row["name"])
    return {"version": version.name, "steps": version.record["metrics"]["steps"], "parent": tip.name}


def settle_for_real(keeper: Keeper) -> None:
    """Work a home off like `run --once`, with the real children. Raises CheckFailed when that takes over an hour."""
    from daemon.engine import Engine
    from daemon.reactor import Reactor

    reactor = Reactor()
    engine = Engine(keeper, reactor)
    until, quiet = time.monotonic() + WAIT_SECONDS, 0
    try:
        while quiet < 3:
            engine.loop(keeper.clock.monotonic())
            breathe()  # a child of this engine that hangs is this engine's matter: it has its own vigil
            quiet = quiet + 1 if engine.idle else 0
            if time.monotonic() > until:
                raise CheckFailed("training a few steps took longer than an hour", hint="heirloom backup drill")
            reactor.poll(engine.wait_seconds(keeper.clock.monotonic()))
    finally:
        engine.close()
        reactor.close()
    if engine.backup_problem:
        raise CheckFailed(engine.backup_problem, hint="heirloom backup drill --into DIR on a disk with more room")


def main(arguments: list[str]) -> int:
    """The process: 0 when a result was left, whatever it says."""
    if len(arguments) != 1:
        sys.exit("usage: python -m daemon.drill REQUEST_FOLDER")
    die_with(None, 1)
    arm_from_environment()
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    return answer(Path(arguments[0]))


class Progress:
    """progress.json, at most one a second: how many pieces (a file restored, 8 MiB verified, a round of training) are done."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.clock = path, clock
        self.pieces, self._next = 0, clock()

    def __call__(self) -> None:
        self.pieces += 1
        now = self.clock()
        if now >= self._next:
            self._next = now + 1.0
            publish(self.path, orjson.dumps({"pieces": self.pieces}))


def answer(folder: Path) -> int:
    """Do what a request folder asks and leave result.json there; returns 0."""
    request = orjson.loads((folder / "request.json").read_bytes())
    on_breath(Progress(folder / "progress.json"))
    try:
        result = run_drill(Path(request["vault"]), Path(request["scratch"]), settle_for_real)
    except (HeirloomError, OSError) as error:
        result = {"ok": False, "reason": str(error), "seconds": 0.0}
    finally:
        on_breath(None)
    write_json(folder / "result.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
