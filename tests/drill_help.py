"""What tests of restore drills share: a home with a vault to drill, and the toy that trains in the child's place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import InlineReaders, Toy, ToyServer, chat_of, text_of

from daemon.drill import run_drill
from daemon.engine import Engine
from daemon.reactor import Reactor
from guard import failpoints
from guard.clock import ManualClock
from guard.store.keeper import Keeper


@pytest.fixture(scope="module", name="template")
def _template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a base and two versions, an index, and a vault that holds it all."""
    root = tmp_path_factory.mktemp("drill") / "home"
    toy = Toy(root).make_base()
    toy.drop("a.jsonl", chat_of(60))
    toy.drop("pretrain/b.txt", text_of(2000))
    toy.drop("guide.md", "# Guide\n\nKeep it.\n")
    toy.settle()
    toy.die()
    return root


@pytest.fixture(name="toy")
def _toy(template: Path, tmp_path: Path) -> Iterator[Toy]:
    shutil.copytree(template, tmp_path / "home", symlinks=True)
    life = Toy(tmp_path / "home")
    yield life
    life.die()
    failpoints.disarm()


def settle_toy(keeper: Keeper) -> None:
    """What `settle_for_real` does, with the toy's stand-ins for processes."""
    clock = ManualClock(elapsed=1000.0)
    keeper = Keeper(keeper.home, keeper.ledger, keeper.settings, clock)
    reactor = Reactor()
    engine = Engine(keeper, reactor)
    engine.pool = engine.intake.pool = InlineReaders()  # type: ignore[assignment]
    server = ToyServer(engine.runner._exited)
    engine.runner.server = server  # type: ignore[assignment]
    quiet = 0
    for _ in range(200):
        clock.advance(0.5)
        engine.loop(clock.monotonic())
        server.deliver()
        quiet = quiet + 1 if engine.idle else 0
        if quiet > 4:
            break
    reactor.close()


def hold(toy: Toy, **changes: Any) -> dict[str, Any]:
    return run_drill(toy.home.root / "backups", toy.home.root / "scratch", settle_toy, changes)
