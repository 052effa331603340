"""Fail points: nothing happens unless armed, then exactly what was asked, at exactly that visit."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from guard import failpoints
from guard.errors import UsageError
from guard.failpoints import POINTS, Crash, arm, arm_from_environment, disarm, hits, point


def test_names_are_unique() -> None:
    assert len(POINTS) == len(set(POINTS))


def test_nothing_happens_unless_armed() -> None:
    for name in POINTS:
        point(name)
        assert hits(name) == 0


def test_only_the_armed_point_fires_and_only_at_its_visit() -> None:
    arm("birth.renamed", "crash", at_visit=3)
    point("birth.synced")
    for _ in range(2):
        point("birth.renamed")
    with pytest.raises(Crash):
        point("birth.renamed")
    point("birth.renamed")
    assert hits("birth.renamed") == 4 and hits("birth.synced") == 0
    disarm()
    point("birth.renamed")
    assert hits("birth.renamed") == 0


@pytest.mark.parametrize("action, number", [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
def test_a_fault_of_the_disk_can_be_played(action: str, number: int) -> None:
    arm("claim.renamed", action)
    with pytest.raises(OSError) as caught:
        point("claim.renamed")
    assert caught.value.errno == number and "claim.renamed" in str(caught.value)


def test_a_crash_is_not_caught_as_an_ordinary_error() -> None:
    assert not issubclass(Crash, Exception)


@pytest.mark.parametrize("name, action", [("birth.unknown", "crash"), ("birth.renamed", "explode")])
def test_unknown_names_and_actions_are_refused(name: str, action: str) -> None:
    with pytest.raises(UsageError):
        arm(name, action)


def test_an_undeclared_point_is_a_mistake_of_ours_as_soon_as_anything_is_armed() -> None:
    arm("birth.renamed")
    with pytest.raises(AssertionError):
        point("nobody.declared")


def test_the_environment_arms_several_points_and_the_default_is_a_kill() -> None:
    arm_from_environment({"HEIRLOOM_FAILPOINT": "claim.renamed=crash:2, admit.renamed"})
    assert failpoints._armed == {"claim.renamed": ("crash", 2), "admit.renamed": ("kill", 1)}
    disarm()
    arm_from_environment({})
    assert failpoints._armed == {}


@pytest.mark.parametrize("action, number", [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_a_process_is_really_killed_or_stopped(action: str, number: int) -> None:
    child = os.fork()
    if child == 0:
        arm("birth.renamed", action)
        point("birth.renamed")
        os._exit(0)
    _pid, status = os.waitpid(child, os.WUNTRACED)
    if action == "stop":
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == number
        os.kill(child, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    else:
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number
