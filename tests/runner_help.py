"""What tests of the training runner share: short ways to ask a toy daemon and to read its ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from homes import read_sidecar
from toy import Toy

from daemon.operations import perform
from guard.bitmap import unpack_bitmap
from guard.store.jobs import find_job
from guard.store.learnt import judge_novelty
from guard.store.versions import line_tip


def tip(toy: Toy, line: str = "policy") -> str:
    version = line_tip(toy.keeper.ledger, line)
    assert version is not None
    return version.name


def state(toy: Toy, number: int) -> str:
    return find_job(toy.keeper.ledger, number).state


def last_job(toy: Toy) -> tuple[int, str, str]:
    number, _kind, found, reason = toy.jobs()[-1]
    return number, found, reason


def run_until(toy: Toy, wanted: str) -> int:
    """Rounds until a job is in that state with its child still running; returns the job."""
    for _ in range(60):
        toy.clock.advance(0.5)
        toy.engine.loop(toy.clock.monotonic())
        current = toy.engine.runner.current
        if current is not None and state(toy, current) == wanted:
            return current
        toy.server.deliver()
    raise AssertionError(f"no job came to {wanted}: {toy.jobs()}")


def ask(toy: Toy, operation: str, **arguments: object) -> dict[str, Any]:
    return perform(toy.engine, operation, arguments)


def learnt_of(toy: Toy, name: str) -> dict[str, int]:
    """What a version itself learnt: examples by file name."""
    rows = toy.keeper.ledger.rows("SELECT f.name, l.count, l.bitmap FROM learnt l JOIN files f USING (sha256) "
                                  "JOIN versions v ON v.id = l.version_id WHERE v.name = ?", (name,))  # fmt: skip
    assert all(len(list(unpack_bitmap(row["bitmap"]))) == row["count"] for row in rows)
    return {row["name"]: row["count"] for row in rows}


def trainable_rows(toy: Toy, name: str) -> int:
    """Examples of a stored file that are not held out."""
    sha256 = toy.keeper.ledger.value("SELECT sha256 FROM files WHERE name = ?", (name,))
    return judge_novelty(toy.keeper, read_sidecar(toy.home.files / sha256), None, "sft").new


class Deaths:
    """A server whose training children die as they are told: (status, step they had reached, their last words)."""

    def __init__(self, toy: Toy, *deaths: tuple[int, int, dict[str, str] | None]) -> None:
        self.toy, self.left, self.really = toy, list(deaths), toy.server.spawn
        toy.server.spawn = self.spawn  # type: ignore[assignment, method-assign]

    def spawn(self, job: int, folder: Path, *more: Any) -> None:
        request = json.loads((folder / "job.json").read_text("utf-8"))
        if request["task"] != "train" or not self.left:
            self.really(job, folder, *more)
            return
        status, step, words = self.left.pop(0)
        (folder / "progress.json").write_text(json.dumps({"step": step}))
        if words:
            (folder / "error.json").write_text(json.dumps(words))
        self.toy.server.finished.append((job, status))
