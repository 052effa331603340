"""Processes that are really killed or stopped in mid-operation: what SIGKILL leaves, no handler or buffer tidies up.

Each test forks a holder of the home lock that plays a scene and dies, or stands still and is then killed, at one point.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from playing import last_life, templates
from scenes import Birth, Scene
from scenes_care import Care
from test_daemon_crash import JOURNEY
from test_daemon_points import CARE

from guard import failpoints
from guard.errors import Busy
from guard.home import Home
from guard.lock import holder_of, home_lock

QUICK = [("care", "backup.copied"), ("care", "delete.unsealed"), ("care", "restore.aside"), ("care", "view.written"),
         ("birth", "admit.stored"), ("birth", "birth.described"), ("birth", "start.marked")]  # fmt: skip
KINDS: dict[str, type[Scene]] = {"care": Care, "birth": Birth}
# A birth visits no verdict, index or document.
BIRTH = [name for name in JOURNEY if name.split(".")[0] in ("claim", "admit", "prepare", "start", "birth", "view")]


@pytest.fixture(scope="module")
def begin_from(shared_scratch: Path) -> dict[type[Scene], Path]:
    (shared_scratch / "killed").mkdir()
    return templates(shared_scratch / "killed")


def forked_life(scene: Scene, point: str, action: str) -> int:
    """A child that holds the lock and plays until `action` at `point`; returns its pid. It never comes back here."""
    pid = os.fork()
    if pid == 0:
        try:
            failpoints.arm(point, action)
            with home_lock(scene.home, command="the holder", since="then"):
                scene.begin()
                scene.play()
        finally:
            os._exit(70)
    return pid


def can_lock(home: Home) -> bool:
    try:
        with home_lock(home, command="asker", since="now"):
            return True
    except Busy:
        return False


def stopped_then_killed(scene: Scene, point: str) -> None:
    pid = forked_life(scene, point, "stop")
    _pid, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"{point} was not reached: {status}"
    assert not can_lock(scene.home) and holder_of(scene.home)["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert can_lock(scene.home)


def killed(scene: Scene, point: str) -> None:
    _pid, status = os.waitpid(forked_life(scene, point, "kill"), 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{point} was not reached: {status}"


@pytest.mark.parametrize("name, point", QUICK)
def test_a_holder_that_stands_still_keeps_the_home_until_it_is_killed(
    name: str, point: str, begin_from: dict[type[Scene], Path], scratch: Path
) -> None:
    scene = KINDS[name](begin_from[KINDS[name]], scratch / "home")
    stopped_then_killed(scene, point)
    assert last_life(scene) == []


@pytest.mark.sweep
@pytest.mark.parametrize("end", [killed, stopped_then_killed])
@pytest.mark.parametrize("name, point", [*(("care", point) for point in CARE), *(("birth", point) for point in BIRTH)])
def test_a_process_may_be_killed_at_any_point(
    name: str, point: str, end: object, begin_from: dict[type[Scene], Path], scratch: Path
) -> None:
    scene = KINDS[name](begin_from[KINDS[name]], scratch / "home")
    assert callable(end)
    end(scene, point)
    assert last_life(scene) == []
