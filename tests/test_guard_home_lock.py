"""Finding a home, refusing one whose parts have vanished, and the lock that only one process holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from homes import make_home, within

from guard import errors
from guard.clock import ManualClock
from guard.errors import Busy, CheckFailed, Damage, HeirloomError, NotFound
from guard.home import Home, find_home
from guard.lock import holder_of, home_lock
from guard.store.create import create_home
from guard.store.keeper import open_reader, open_writer

ROOT = Path(__file__).parent.parent
HOLDER = """
import sys
from pathlib import Path
from guard.home import Home
from guard.lock import home_lock
with home_lock(Home(Path(sys.argv[1])), command="heirloom run", since="then"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def made(shared_scratch: Path) -> Path:
    make_home(shared_scratch / "lock-template").ledger.close()
    return shared_scratch / "lock-template"


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Home:
    subprocess.run(["cp", "-a", "--", made, tmp_path / "home"], check=True)
    return Home(tmp_path / "home")


# --- finding and checking -----------------------------------------------------------------------------------------


def test_the_nearest_home_upwards_is_found(home: Home) -> None:
    deep = home.root / "models" / "deep"
    deep.mkdir()
    assert find_home(deep) == find_home(home.root) == find_home(Path("/"), str(home.root)) == home


def test_where_there_is_no_home_the_way_to_one_is_told(tmp_path: Path) -> None:
    for given in (None, str(tmp_path)):
        with pytest.raises(NotFound) as caught:
            find_home(tmp_path, given)
        assert "heirloom init" in caught.value.hint


@pytest.mark.parametrize("part", ["data/ledger.db", "models", "data", ".heirloom/store-id"])
def test_a_part_that_vanished_is_damage_and_nothing_is_made_anew(home: Home, part: str) -> None:
    path = home.root / part
    path.rename(home.root.parent / "elsewhere")
    for act in (home.check, lambda: open_writer(home, actor="x"), lambda: open_reader(home).__enter__()):
        with pytest.raises(Damage, match=part.split("/")[-1]):
            act()
    assert not path.exists()


@pytest.mark.parametrize("text", [b"", b"\n", b"\xff\xfe"])
def test_a_store_id_that_says_nothing_is_damage(home: Home, text: bytes) -> None:
    home.store_id_file.write_bytes(text)
    with pytest.raises(Damage):
        home.check()


def test_the_ledger_of_another_home_is_refused(home: Home) -> None:
    home.store_id_file.write_text("of-another\n")
    with pytest.raises(Damage, match="of-another"):
        open_writer(home, actor="x")


def test_a_ledger_cut_to_nothing_is_refused_and_not_begun_again(home: Home) -> None:
    home.ledger.write_bytes(b"")
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (home.data / name).unlink(missing_ok=True)
    with pytest.raises(Damage):
        open_writer(home, actor="x")


def test_a_home_is_never_made_over_another_or_inside_one(home: Home, tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    filled = Home(tmp_path / "filled")
    (filled.models / "somebody").mkdir(parents=True)
    for target in (home, Home(home.root / "inner"), filled):
        before = sorted(target.root.rglob("*")) if target.root.exists() else []
        with pytest.raises(CheckFailed):
            create_home(target, clock=ManualClock(), recipes=recipes)
        assert (sorted(target.root.rglob("*")) if target.root.exists() else []) == before


# --- the lock -----------------------------------------------------------------------------------------------------


@contextmanager
def second_process(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(home.root)], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def can_lock(home: Home, timeout: float = 0.0) -> bool:
    try:
        with home_lock(home, command="test", since="now", timeout=timeout):
            return True
    except Busy:
        return False


def test_a_second_process_is_refused_with_the_holder_s_name_until_the_holder_is_killed(home: Home) -> None:
    with second_process(home) as holder:
        with within(60), pytest.raises(Busy) as caught, home_lock(home, command="second", since="now"):
            raise AssertionError("two holders")
        assert caught.value.exit_code == 11
        for part in ("heirloom run", f"pid {holder.pid}", os.uname().nodename, "since then"):
            assert part in caught.value.message
        os.kill(holder.pid, signal.SIGSTOP)
        assert not can_lock(home, 0.1), "a stopped holder still holds"
        assert holder_of(home)["pid"] == holder.pid
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert holder_of(home)["pid"] == holder.pid, "the text is left behind and decides nothing"
        assert can_lock(home)


def test_the_lock_is_free_again_after_an_error_and_says_who_held_it(home: Home) -> None:
    with pytest.raises(ValueError), home_lock(home, command="first", since="now"):
        raise ValueError
    assert can_lock(home) and holder_of(home)["command"] == "test"


@pytest.mark.parametrize("text", ["", "not json", None])
def test_a_lock_text_that_cannot_be_read_is_no_obstacle(home: Home, text: str | None) -> None:
    if text is not None:
        (home.state / "lock.json").write_text(text)
    assert holder_of(home) == {} and can_lock(home)


def test_a_reader_needs_no_lock(home: Home) -> None:
    with home_lock(home, command="writer", since="now"), open_reader(home) as keeper:
        assert keeper.ledger.meta("store_id") == home.store_id()


# --- the family of errors -----------------------------------------------------------------------------------------


def test_every_error_has_its_documented_exit_code_and_survives_as_json() -> None:
    codes = {"UsageError": 2, "CheckFailed": 3, "DataFault": 3, "EnvironmentFault": 3, "NotFound": 4, "Protected": 5,
             "NotConfirmed": 6, "Duplicate": 7, "Damage": 8, "DaemonNotRunning": 10, "Busy": 11, "Interrupted": 130,
             "HeirloomError": 1}  # fmt: skip
    for name, code in codes.items():
        error = getattr(errors, name)("what", hint="do", subject="it")
        assert isinstance(error, HeirloomError)
        told = json.loads(json.dumps(error.as_dict()))
        assert told == {"error": name, "message": "what", "hint": "do", "subject": "it", "exit_code": code}
