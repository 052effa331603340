"""Seals: what an ordinary user cannot do by hand, what not even root can, and that our own acts still work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import NOBODY, add_version, clone, keeper_of, places_of, run_as_ordinary_user
from toy import Toy, chat_of
from trash_help import LEAF, _no_syncing, _template  # noqa: F401 - fixtures

from daemon.operations import perform
from guard import durable
from guard.clock import ManualClock
from guard.errors import CheckFailed
from guard.home import Home
from guard.seal import (
    is_immutable,
    loosen,
    not_immutable,
    open_shelf,
    require_seal,
    seal_folder,
    shut_shelf,
)
from guard.store import views
from guard.store.create import create_home
from guard.store.keeper import Keeper, open_writer
from guard.store.purge import purge
from guard.store.recovery import recover
from guard.store.restore import restore
from guard.store.sums import folder_problems, unsealed
from guard.store.trash import delete
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.store.versions import find_version


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach; pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="heirloom-seal-"))
    os.chmod(folder, 0o755)
    yield folder
    loosen(folder)
    durable.remove_tree(folder)


def _may_set_the_flag(folder: Path) -> str:
    try:
        require_seal("immutable", folder)
    except CheckFailed as error:
        return error.message
    return ""


@pytest.fixture
def immutable(template: Path, open_folder: Path) -> Keeper:
    """A home whose settings say `immutable`, sealed so by a start."""
    problem = _may_set_the_flag(open_folder)
    if problem:
        pytest.skip(problem)
    clone(template, open_folder / "home").ledger.close()
    keeper = keeper_of(open_folder / "home", storage__seal="immutable")
    assert "v001_baseline sealed" in recover(keeper)
    run_backup(keeper)
    return keeper


# --- mode bits: an ordinary user ---------------------------------------------------------------------------------------


def _whole(keeper: Keeper) -> list[str]:
    """Versions that are in models/ and intact."""
    rows = keeper.ledger.rows("SELECT name, sums_sha256 FROM versions ORDER BY id")
    return [row[0] for row in rows if not folder_problems(keeper.home.models / row[0], row[1])]


def _rage(keeper: Keeper) -> None:
    """Everything a hurried person types, as an ordinary user who owns all of it."""
    assert os.geteuid() != 0
    recover(keeper)
    home = keeper.home
    before = _whole(keeper)
    assert len(before) == 5
    outside = home.root.parent / "outside"
    for words in (["rm", "-rf", f"{home.models}/"], ["rm", "-rf", home.models / LEAF], ["mv", home.models, outside],
                  ["mv", home.models / LEAF, outside], ["mv", home.models / LEAF, home.models / "other"]):  # fmt: skip
        done = subprocess.run([str(word) for word in words], capture_output=True, check=False)
        assert done.returncode != 0, words
        assert _whole(keeper) == before, words
    assert (home.registry).is_file() and (home.models / "README.md").is_file()
    assert verify(keeper).ok


def _work(keeper: Keeper) -> None:
    """Everything Heirloom itself does, as the same user: births stand in for all that come into models/."""
    recover(keeper)
    poison = add_version(keeper, "poison", "v004_full_stack", state="quarantined")
    views.refresh(keeper)
    delete(keeper, LEAF, force=True)
    restore(keeper, LEAF)
    delete(keeper, LEAF, force=True)
    restore(keeper, LEAF, source="backup")
    run_backup(keeper)
    delete(keeper, poison, force=True)
    purge(keeper, poison, yes=True)
    assert verify(keeper, everything=True).damage == ()
    assert os.stat(keeper.home.models).st_mode & 0o222 == 0


def _births(keeper: Keeper) -> None:
    """A daemon's whole life as that user: drops become versions, a line is rolled back and grown again."""
    keeper.ledger.close()
    toy = Toy(keeper.home.root)
    toy.drop("b.jsonl", chat_of(30, 100))
    toy.settle()
    assert os.stat(toy.home.models).st_mode & 0o222 == 0
    perform(toy.engine, "regrow", {"without": "a.jsonl"})
    toy.settle()
    assert [job[2] for job in toy.jobs()] == ["done"] * 4, toy.jobs()
    perform(toy.engine, "rollback", {"version": "v004", "line": "policy"})
    assert list(toy.versions()) == ["v001_baseline", "v002_a", "v003_b", "v004_b"]
    assert verify(toy.keeper, everything=True, backup=True).damage == ()
    toy.die()


def test_an_ordinary_users_daemon_brings_versions_to_birth(open_folder: Path) -> None:
    toy = Toy(open_folder / "home").make_base()
    # The first drop is taken here, so that every module is loaded: root's own Python may be closed to others.
    toy.drop("a.jsonl", chat_of(30))
    toy.settle().die()
    if os.geteuid() == 0:
        os.chown(open_folder, NOBODY, NOBODY)
    assert run_as_ordinary_user(open_folder / "home", _births) == ""


@pytest.mark.parametrize("act", [_rage, _work])
def test_an_ordinary_user_loses_nothing_by_hand_and_our_own_acts_work(template: Path, open_folder: Path, act: object) -> None:
    clone(template, open_folder / "home").ledger.close()
    if os.geteuid() == 0:
        os.chown(open_folder, NOBODY, NOBODY)
    assert run_as_ordinary_user(open_folder / "home", act) == ""  # type: ignore[arg-type]


def test_models_is_shut_between_two_acts_and_after_a_death_in_one(template: Path, tmp_path: Path) -> None:
    keeper = clone(template, tmp_path / "home")
    os.chmod(keeper.home.models, 0o755)  # a death while it was open
    recover(keeper)
    assert os.stat(keeper.home.models).st_mode & 0o777 == 0o555
    with open_shelf(keeper.home.models), open_shelf(keeper.home.models):
        assert os.stat(keeper.home.models).st_mode & 0o200
    assert os.stat(keeper.home.models).st_mode & 0o777 == 0o555
    delete(keeper, LEAF, force=True)
    assert os.stat(keeper.home.models).st_mode & 0o777 == 0o555


def test_a_group_keeps_its_way_in_when_the_shelf_is_opened(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o2775)
    shut_shelf(tmp_path)
    assert os.stat(tmp_path).st_mode & 0o7777 == 0o2555
    with open_shelf(tmp_path):
        (tmp_path / "new").write_text("x")
    assert os.stat(tmp_path).st_mode & 0o7777 == 0o2555


# --- the immutable flag: root too ---------------------------------------------------------------------------------------


def test_not_even_root_changes_moves_or_removes_an_immutable_version(immutable: Keeper) -> None:
    folder = immutable.home.models / LEAF
    assert not_immutable(folder) == []
    for act in (lambda: (folder / "config.json").write_text("{}"), lambda: (folder / "config.json").unlink(),
                lambda: (folder / "new").touch(), lambda: os.chmod(folder, 0o755),
                lambda: os.rename(folder, immutable.home.trash / LEAF)):  # fmt: skip
        with pytest.raises(PermissionError):
            act()
    done = subprocess.run(["rm", "-rf", str(immutable.home.models)], capture_output=True, check=False)
    assert done.returncode != 0 and len(_whole(immutable)) == 5


def test_deletion_restore_and_purge_open_the_seal_and_close_it_again(immutable: Keeper) -> None:
    delete(immutable, LEAF, force=True)
    assert not_immutable(immutable.home.trash / LEAF) == []
    restore(immutable, LEAF)
    assert not_immutable(immutable.home.models / LEAF) == []
    delete(immutable, LEAF, force=True)
    restore(immutable, LEAF, source="backup")
    assert not_immutable(immutable.home.models / LEAF) == []
    assert verify(immutable, everything=True).ok
    # The copy from the backup came while one lay in the trash: purge takes that one, and the version stays.
    assert places_of(immutable, LEAF) == ["models", f"trash/{LEAF}"]
    purge(immutable, LEAF, yes=True)
    assert places_of(immutable, LEAF) == ["models"] and verify(immutable, everything=True).ok
    assert find_version(immutable.ledger, LEAF).state == "sealed"


def test_an_immutable_version_can_be_purged(immutable: Keeper) -> None:
    delete(immutable, LEAF, force=True)
    purge(immutable, LEAF, yes=True)
    assert places_of(immutable, LEAF) == [] and find_version(immutable.ledger, LEAF).state == "purged"


def test_verify_names_what_should_be_immutable_and_is_not(immutable: Keeper) -> None:
    loosen(immutable.home.models / LEAF)
    found = verify(immutable, versions=[LEAF])
    assert {item.name for item in found.damage} == {LEAF} and "immutable" in found.damage[0].problem
    assert any("sealed" in line for line in recover(immutable)) and verify(immutable, versions=[LEAF]).ok


def test_a_home_that_went_back_to_mode_seals_still_deletes_its_immutable_versions(immutable: Keeper) -> None:
    immutable.ledger.close()
    keeper = keeper_of(immutable.home.root, storage__seal="mode")
    delete(keeper, LEAF, force=True)
    assert not is_immutable(keeper.home.trash / LEAF) and unsealed(keeper.home.trash / LEAF) == []
    assert restore(keeper, LEAF)["source"] == "trash" and verify(keeper, everything=True).ok


def _refused(keeper: Keeper) -> None:
    home = keeper.home
    os.environ["HEIRLOOM_STORAGE__SEAL"] = "immutable"
    with pytest.raises(CheckFailed, match="CAP_LINUX_IMMUTABLE") as told:
        open_writer(home, actor="tester")
    assert "storage.seal: mode" in told.value.hint
    with pytest.raises(CheckFailed, match="CAP_LINUX_IMMUTABLE"):
        create_home(Home(home.root.parent / "second"), clock=ManualClock(), recipes=home.configs)
    assert not Home(home.root.parent / "second").store_id_file.exists()


def test_a_start_that_may_not_seal_as_asked_is_refused_with_a_word(template: Path, open_folder: Path) -> None:
    clone(template, open_folder / "home").ledger.close()
    if os.geteuid() == 0:
        os.chown(open_folder, NOBODY, NOBODY)
    assert run_as_ordinary_user(open_folder / "home", _refused) == ""


def test_sealing_leaves_links_alone_and_may_be_repeated(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "file").write_text("x")
    seal_folder(folder)
    seal_folder(folder)
    assert os.stat(outside).st_mode & 0o200 and os.stat(folder / "file").st_mode & 0o777 == 0o444
    os.chmod(folder, 0o755)
    shutil.rmtree(folder)


def test_a_program_that_is_started_inherits_no_ambient_right() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give itself an ambient right to lose")
    code = (
        "import ctypes, subprocess, sys\n"
        "from guard.seal import drop_ambient_rights\n"
        "libc = ctypes.CDLL(None)\n"
        "class Header(ctypes.Structure): _fields_ = [('version', ctypes.c_uint32), ('pid', ctypes.c_int)]\n"
        "data, header = (ctypes.c_uint32 * 6)(), Header(0x20080522, 0)\n"
        "libc.capget(ctypes.byref(header), data)\n"
        "data[2] = data[1]\n"  # inheritable = permitted, which an ambient right needs
        "assert libc.capset(ctypes.byref(header), data) == 0\n"
        "assert libc.prctl(47, 2, 9, 0, 0) == 0\n"  # PR_CAP_AMBIENT_RAISE, CAP_LINUX_IMMUTABLE
        "ambient = lambda: [line.split()[1] for line in open('/proc/self/status') if line.startswith('CapAmb')][0]\n"
        "before = ambient()\n"
        "drop_ambient_rights()\n"
        "print(int(before, 16) >> 9 & 1, int(ambient(), 16))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if told.returncode:
        pytest.skip(f"this root may not raise ambient rights: {told.stderr.strip().splitlines()[-1:]}")
    assert told.stdout.split() == ["1", "0"]
