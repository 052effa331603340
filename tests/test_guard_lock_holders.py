"""The home lock among real processes: a stopped holder, a child that outlives it, stale files, and many double starts.

The lock is the kernel's, so these are questions about descriptors and processes, not about the text beside it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from homes import make_home

from guard.errors import Busy
from guard.home import Home
from guard.lock import holder_of, home_lock

ROOT = Path(__file__).parent.parent
# Starts when told to, holds when it can, says which, and lets go when its standard input ends.
STARTER = """
import sys
from pathlib import Path
from guard.errors import Busy
from guard.home import Home
from guard.lock import home_lock
sys.stdin.readline()
try:
    with home_lock(Home(Path(sys.argv[1])), command=sys.argv[2], since="then"):
        print("held", flush=True)
        sys.stdin.readline()
except Busy as error:
    print("busy", error.message, flush=True)
    sys.stdin.readline()
"""
# Holds the lock, starts a child that lives on (a fork and an exec, as the daemon's children are), and says its pid.
PARENT = """
import os, subprocess, sys
from pathlib import Path
from guard.home import Home
from guard.lock import home_lock
with home_lock(Home(Path(sys.argv[1])), command="parent", since="then"):
    if sys.argv[2] == "exec":
        words = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        child = subprocess.Popen(words, close_fds=False, start_new_session=True).pid
    else:
        child = os.fork()
        if child == 0:
            os.read(0, 1)
            os._exit(0)
    print(child, flush=True)
    if sys.argv[2] == "fork":
        os._exit(9)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    make_home(tmp_path / "home").ledger.close()
    return Home(tmp_path / "home")


def start(code: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], cwd=ROOT, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


def free(home: Home, timeout: float = 0.0) -> bool:
    try:
        with home_lock(home, command="asker", since="now", timeout=timeout):
            return True
    except Busy:
        return False


def test_a_stopped_holder_holds_until_it_is_killed(home: Home) -> None:
    holder = start(STARTER, home.root, "heirloom run")
    assert holder.stdin and holder.stdout
    holder.stdin.write("go\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(Busy, match=f"heirloom run .pid {holder.pid} on {os.uname().nodename}, since then"), home_lock(
            home, command="second", since="now", timeout=0.1):  # fmt: skip
        raise AssertionError("two holders")
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert free(home, 1.0)


def test_a_program_that_the_holder_started_keeps_no_lock_when_the_holder_dies(home: Home) -> None:
    """Even one that inherits every open descriptor: the lock's own is closed on exec."""
    parent = start(PARENT, home.root, "exec")
    told, _ = parent.communicate()
    child = int(told)
    try:
        assert parent.returncode == -signal.SIGKILL and Path(f"/proc/{child}").exists()
        assert free(home, 1.0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_copy_of_the_holder_keeps_no_lock_either(home: Home) -> None:
    """A plain fork shares every open file; the lock is let go of in the child, so it ends with its holder."""
    parent = start(PARENT, home.root, "fork")
    assert parent.stdout
    child = int(parent.stdout.readline())
    try:
        assert parent.wait() == 9 and Path(f"/proc/{child}").exists()
        assert free(home, 1.0)
    finally:
        os.kill(child, signal.SIGKILL)
        parent.communicate()


def test_a_holder_that_has_not_told_its_name_yet_is_not_called_by_the_last_one_s(home: Home) -> None:
    """Between taking the lock and writing the note, the note still names somebody who ended long ago."""
    with home_lock(home, command="first", since="now"):
        gone = subprocess.Popen(["true"])
        gone.wait()
        (home.state / "lock.json").write_text(json.dumps({"pid": gone.pid, "host": os.uname().nodename, "command": "old"}))
        with pytest.raises(Busy) as caught, home_lock(home, command="second", since="now"):
            raise AssertionError("two holders")
    assert str(gone.pid) not in caught.value.message and "a process that has just started" in caught.value.message


@pytest.mark.parametrize("pid", [1, 4_000_000, None])
def test_stale_files_are_no_obstacle_and_no_evidence(home: Home, pid: int | None) -> None:
    """A lock file and a note from a life long gone: nothing is decided from them, whoever has the pid today."""
    home.lock_file.write_text("left over")
    if pid is not None:
        (home.state / "lock.json").write_text(json.dumps({"pid": pid, "host": os.uname().nodename, "command": "old"}))
    assert free(home)
    assert holder_of(home)["pid"] == os.getpid()


def race(home: Home, number: int) -> tuple[list[str], list[subprocess.Popen[str]]]:
    """Two processes started at the same moment; what each says."""
    pair = [start(STARTER, home.root, f"start {number}.{one}") for one in (1, 2)]
    for process in pair:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.stdout.readline() for process in pair if process.stdout], pair


def double_starts(home: Home, count: int) -> None:
    for number in range(count):
        told, pair = race(home, number)
        try:
            holders = [place for place, text in enumerate(told) if text == "held\n"]
            assert len(holders) == 1, told
            busy = told[1 - holders[0]]
            assert busy.startswith("busy") and f"{home.root} is in use by" in busy
            assert holder_of(home)["pid"] == pair[holders[0]].pid
        finally:
            for process in pair:
                process.communicate("end\n")
        assert free(home, 1.0)


def test_of_two_starts_exactly_one_holds(home: Home) -> None:
    double_starts(home, 3)


@pytest.mark.sweep
def test_two_hundred_double_starts(home: Home) -> None:
    double_starts(home, 200)
