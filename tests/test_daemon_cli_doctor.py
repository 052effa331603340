"""The doctor's judgements, and its round through a home."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import small_family

from daemon.cli.main import main
from daemon.doctor import (
    DAMAGE,
    examine,
    file_system_of,
    judge_file_system,
    judge_lock,
    judge_packages,
    judge_python,
    judge_watches,
)
from daemon.ledger_checks import judge_chain, judge_disk, judge_vault
from guard.clock import SYSTEM_CLOCK
from guard.durable import remove_tree
from guard.lock import home_lock
from guard.store.keeper import Keeper


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = small_family(tmp_path / "home")
    made.ledger.close()
    yield made
    remove_tree(tmp_path / "home")


def _verdicts(keeper: Keeper) -> dict[str, bool | None]:
    return {check.name: check.ok for check in examine(keeper.home)}


def test_a_sound_home_has_no_damage_and_every_no_has_a_remedy(keeper: Keeper) -> None:
    checks = examine(keeper.home)
    assert {check.name for check in checks} >= DAMAGE
    assert all(check.ok for check in checks if check.name in DAMAGE | {"Views are current", "Folders are writable"})
    assert all(check.remedy for check in checks if check.ok is False)


def test_a_missing_version_is_damage(keeper: Keeper) -> None:
    remove_tree(keeper.home.models / "v002_syllo")
    assert _verdicts(keeper)["Versions are present"] is False


def test_an_edited_view_is_found_and_is_no_damage(keeper: Keeper) -> None:
    keeper.home.registry.write_text("{}")
    assert _verdicts(keeper)["Views are current"] is False
    assert "Views are current" not in DAMAGE


def test_a_torn_ledger_is_damage_and_the_other_questions_are_still_asked(keeper: Keeper) -> None:
    keeper.home.ledger.write_bytes(b"SQLite format 3\0" + bytes(4096))
    verdicts = _verdicts(keeper)
    assert verdicts["Ledger is sound"] is False and "Home lock" in verdicts


def test_a_changed_event_breaks_the_chain(keeper: Keeper) -> None:
    import sqlite3

    with contextlib.closing(sqlite3.connect(keeper.home.ledger)) as database, database:
        database.execute("UPDATE events SET actor = 'nobody' WHERE seq = 2")
    assert _verdicts(keeper)["Audit trail is unbroken"] is False


def test_a_changed_row_is_damage(keeper: Keeper) -> None:
    import sqlite3

    with contextlib.closing(sqlite3.connect(keeper.home.ledger)) as database, database:
        database.execute("UPDATE learnt SET count = 1 WHERE version_id = 2")
    assert _verdicts(keeper)["Ledger is sound"] is False


def _told(capsys: pytest.CaptureFixture[str], keeper: Keeper, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["--home", str(keeper.home.root), "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def test_doctor_rebuild_says_first_what_it_would_do_and_then_does_it(keeper: Keeper, capsys: pytest.CaptureFixture[str]) -> None:
    keeper.home.ledger.unlink()
    code, would = _told(capsys, keeper, "doctor", "--rebuild", "--dry-run")
    assert code == 0 and would["dry_run"] and not would["rebuilt"] and not keeper.home.ledger.exists()
    code, done = _told(capsys, keeper, "doctor", "--rebuild")
    assert code == 0 and done["rebuilt"] and done["versions"] == would["versions"] == 4 and done["files"] == 3
    assert done["lines"] == {"policy": "v004_full_stack"}
    assert _told(capsys, keeper, "verify", "--all")[0] == 0
    code, again = _told(capsys, keeper, "doctor", "--rebuild")
    assert code == 0 and not again["rebuilt"] and again["problem"] == ""


def test_doctor_rebuild_waits_for_nobody(keeper: Keeper, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("daemon.mending.LOCK_SECONDS", 0.01)
    with home_lock(keeper.home, command="heirloom run", since=SYSTEM_CLOCK.utc()):
        assert _told(capsys, keeper, "doctor", "--rebuild")[0] == 11


def test_only_one_named_version_is_made_again_and_only_a_rebuild_has_a_dry_run(
    keeper: Keeper, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _told(capsys, keeper, "verify", "--rebuild")[0] == 2
    assert _told(capsys, keeper, "verify", "v002", "--rebuild", "--backup")[0] == 2
    assert _told(capsys, keeper, "doctor", "--dry-run")[0] == 2
    code, told = _told(capsys, keeper, "verify", "v002", "--rebuild")
    assert code == 3 and "earlier release" in told["message"]


def test_a_damaged_version_is_never_loaded_to_talk_to(keeper: Keeper, capsys: pytest.CaptureFixture[str]) -> None:
    weights = keeper.home.models / "v004_full_stack" / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    weights.chmod(0o444)
    code, told = _told(capsys, keeper, "chat", "-p", "hello", "--no-rag")
    assert code == 8 and "model.safetensors" in told["message"] and told["hint"] == "heirloom restore v004_full_stack"


def test_a_missing_folder_is_told(keeper: Keeper) -> None:
    keeper.home.duplicates.rmdir()
    assert _verdicts(keeper)["Home is whole"] is False


def test_the_lock_holder_is_named(keeper: Keeper) -> None:
    with home_lock(keeper.home, command="heirloom run", since=SYSTEM_CLOCK.utc()):
        held = next(check for check in examine(keeper.home) if check.name == "Home lock")
    assert held.ok and "heirloom run" in held.detail
    assert next(check for check in examine(keeper.home) if check.name == "Home lock").detail == "free"


def test_without_a_home_the_machine_is_still_judged() -> None:
    checks = examine(None)
    assert {"Python", "Package names"} < {check.name for check in checks}


def test_python_must_be_new_enough() -> None:
    assert judge_python((3, 11, 0)).ok and judge_python((4, 0, 0)).ok
    assert judge_python((3, 10, 14)).ok is False


def test_a_foreign_owner_of_our_package_names_is_refused() -> None:
    assert judge_packages({"guard": ["heirloom"], "daemon": []}).ok
    verdict = judge_packages({"guard": ["Heirloom", "guard"], "daemon": []})
    assert verdict.ok is False and "guard belongs to guard" in verdict.detail


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    inner = tmp_path / "my disk"
    inner.mkdir()
    mounts = f"/dev/a / ext4 rw 0 0\nserver:/x {str(inner).replace(' ', chr(92) + '040')} nfs4 rw 0 0\nnonsense\n"
    assert file_system_of(inner / "inbox", mounts) == "nfs4"
    assert file_system_of(tmp_path, mounts) == "ext4"
    assert file_system_of(tmp_path, "") == "unknown"


def test_a_network_disk_is_fine_for_an_inbox_and_not_for_a_ledger() -> None:
    inbox, ledger = (judge_file_system("x", "nfs4", database=database) for database in (False, True))
    assert inbox.ok and inbox.warning and ledger.ok is False
    assert judge_file_system("x", "ext4", database=True).ok


def test_limits() -> None:
    assert judge_watches(8192, 20).ok and judge_watches(30, 20).ok is False and judge_watches(None, 5).ok is None
    assert judge_disk(60 * 10**9, 50.0).ok and judge_disk(40 * 10**9, 50.0).ok is False
    assert judge_chain([], 4).ok and judge_chain(["event 3 was changed"], 4).ok is False
    assert judge_vault(1, 2).warning is False and judge_vault(1, 1).warning and judge_vault(None, 1).warning
    assert judge_lock(False, {"pid": 3}).detail == "free"
