"""The vault: a copy counts when it was read back; a backup may be killed anywhere and is taken up again.

Not here: copies that went bad or were taken away (`test_guard_vault_mending.py`), weights as differences
(`test_guard_vault_frames.py`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import add_original, add_version, keeper_of, make_home
from vault_help import _keeper, _no_syncing, _template, flip, vault_of  # noqa: F401 - fixtures

from guard import failpoints
from guard.errors import CheckFailed, Damage, EnvironmentFault
from guard.failpoints import Crash
from guard.store import copying, sums, views
from guard.store.keeper import Keeper
from guard.store.trash import delete
from guard.store.vault import backup_steps, run_backup
from guard.store.vault_frames import stored_problems
from guard.store.vault_ledger import KEPT_LEDGERS
from guard.store.vault_state import backup_status, ledger_head
from guard.store.verify import verify
from guard.store.versions import all_versions, find_version

# Those that are passed several times in one backup; the others are stopped in test_daemon_points.py.
ONCE = ("backup.opened", "backup.aside", "backup.configured", "backup.marked", "ledger_backup.pruned",
        "ledger_backup.aside")  # fmt: skip
POINTS = [name for name in failpoints.POINTS
          if name.startswith(("backup.", "ledger_backup.", "events_backup.")) and name not in ONCE]  # fmt: skip
NAMES = ["v001_baseline", "v002_syllo", "v003_reasoning", "v004_full_stack"]


def test_a_backup_holds_versions_originals_configs_marks_and_the_ledger(keeper: Keeper) -> None:
    report = run_backup(keeper)
    vault = vault_of(keeper)
    assert sorted(path.name for path in (vault / "versions").iterdir()) == NAMES
    for version in all_versions(keeper.ledger):
        assert stored_problems(vault / "versions" / version.name, version.sums_sha256) == []
    assert len(list((vault / "files").iterdir())) == 3
    assert (vault / "configs" / "pretrain" / "tiny.yaml").read_text() == "stage: pretrain\n"
    assert (vault / "high-water").read_text() == "4\n"
    assert (vault / "store-id").read_text().strip() == keeper.home.store_id()
    assert set(NAMES) <= set(report["copied"]) and set(NAMES) <= set(report["verified"])
    assert report["other_device"] is False and report["bytes"] > 4 * 2000
    assert verify(keeper, everything=True, backup=True).ok


def test_the_copied_ledger_knows_the_newest_event_and_the_copies(keeper: Keeper) -> None:
    run_backup(keeper)
    newest = max((vault_of(keeper) / "ledger").glob("ledger-*.db"))
    assert newest.name == f"ledger-{keeper.ledger.sequence():010d}.db"
    with contextlib.closing(sqlite3.connect(newest)) as database:
        assert database.execute("SELECT count(*) FROM backups WHERE what = 'version'").fetchone()[0] == 4
    assert ledger_head(newest) == tuple(keeper.ledger.row("SELECT seq, hash FROM events ORDER BY seq DESC") or ())


def test_a_second_backup_with_nothing_new_copies_nothing(keeper: Keeper) -> None:
    run_backup(keeper)
    before, sequence = sorted((vault_of(keeper)).rglob("*")), keeper.ledger.sequence()
    again = run_backup(keeper)
    assert again["copied"] == [] and again["bytes"] == 0
    assert sorted(vault_of(keeper).rglob("*")) == before and keeper.ledger.sequence() == sequence


@pytest.mark.parametrize(("action", "at_visit"), [("crash", 1), ("enospc", 2)])
@pytest.mark.parametrize("point", POINTS)
def test_a_backup_that_ends_at_any_step_is_completed_by_the_next(
    keeper: Keeper, point: str, action: str, at_visit: int
) -> None:
    failpoints.arm(point, action, at_visit)
    with pytest.raises((Crash, OSError)):
        run_backup(keeper)
    assert failpoints.hits(point) == at_visit
    failpoints.disarm()
    after = keeper_of(keeper.home.root)
    # What a row vouches for is there and sound even now.
    assert [item for item in verify(after, backup=True).damage if item.name != "high-water"] == []
    run_backup(after)
    assert sorted(path.name for path in (vault_of(after) / "versions").iterdir()) == NAMES
    assert not list(vault_of(after).rglob(".incoming-*")) and not list(vault_of(after).rglob(".damaged-*"))
    assert after.ledger.rows("SELECT * FROM meta WHERE key LIKE 'intent:%'") == []
    assert verify(after, everything=True, backup=True).ok


def test_work_comes_in_small_steps(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sums, copying):
        monkeypatch.setattr(module, "STEP_BYTES", 1000)
    steps = list(backup_steps(keeper))
    assert steps.count("v004_full_stack") >= 10
    assert verify(keeper, backup=True).ok


def test_a_version_deleted_between_two_steps_is_let_go(keeper: Keeper) -> None:
    leaf = add_version(keeper, "leaf", "v003_reasoning", tip=False)
    steps = backup_steps(keeper)
    while next(steps) != leaf:
        pass
    delete(keeper, leaf, force=True)
    for _name in steps:
        pass
    assert leaf not in {row[0] for row in keeper.ledger.rows("SELECT name FROM backups")}
    run_backup(keeper)
    assert not list((vault_of(keeper) / "versions").glob(f"*{leaf}")) and verify(keeper, backup=True).ok


def test_a_copy_that_was_half_written_is_not_believed(keeper: Keeper) -> None:
    failpoints.arm("backup.copied", "crash", 1)
    with pytest.raises(Crash):
        run_backup(keeper)
    failpoints.disarm()
    staged = next((vault_of(keeper) / "versions").glob(".incoming-*"))
    flip(staged / "tokenizer.json")
    (staged / ".model.tmp").write_bytes(b"half")
    run_backup(keeper)
    assert verify(keeper, backup=True).ok


def test_what_cannot_be_read_back_is_not_recorded(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes every byte and gives others back: size and count are right, the content is not."""
    real = copying.Incoming.check_steps

    def after_decay(incoming: copying.Incoming) -> Iterator[int]:
        if incoming.target.name == "v002_syllo":
            flip(incoming.staged / "tokenizer.json")
        return real(incoming)

    monkeypatch.setattr(copying.Incoming, "check_steps", after_decay)
    with pytest.raises(Damage, match="v002_syllo"):
        run_backup(keeper)
    rows = {row[0] for row in keeper.ledger.rows("SELECT name FROM backups WHERE what = 'version'")}
    assert rows == {"v001_baseline", "v003_reasoning", "v004_full_stack"}
    assert not (vault_of(keeper) / "versions" / "v002_syllo").exists()


def test_a_damaged_source_is_named_and_the_sound_ones_are_saved(keeper: Keeper) -> None:
    flip(keeper.home.models / "v002_syllo" / "tokenizer.json")
    (keeper.home.models / "v003_reasoning" / "config.json").unlink()
    with pytest.raises(Damage, match=r"content of .*models/v002_syllo/tokenizer\.json.*v003_reasoning/config\.json"):
        run_backup(keeper)
    assert backup_status(keeper)["versions"] == {"total": 4, "verified": 2, "missing": ["v002_syllo", "v003_reasoning"]}


def test_quarantined_versions_are_saved_too_and_trashed_ones_keep_their_copy(keeper: Keeper) -> None:
    poison = add_version(keeper, "poison", "v004_full_stack", state="quarantined")
    run_backup(keeper)
    delete(keeper, poison, force=True)
    run_backup(keeper)
    sealed_as = find_version(keeper.ledger, poison).sums_sha256
    assert stored_problems(vault_of(keeper) / "versions" / poison, sealed_as) == []


def test_the_vault_of_another_home_is_refused(keeper: Keeper, tmp_path: Path) -> None:
    run_backup(keeper)
    other = make_home(tmp_path / "other")
    add_version(other, "base")
    stranger = keeper_of(other.home.root, backup__path=str(vault_of(keeper)))
    with pytest.raises(CheckFailed, match="another home"):
        run_backup(stranger)
    assert backup_status(stranger)["present"] is False


def test_a_vault_that_vanished_is_not_begun_again(keeper: Keeper) -> None:
    run_backup(keeper)
    vault_of(keeper).rename(keeper.home.root / "elsewhere")
    vault_of(keeper).mkdir()
    with pytest.raises(EnvironmentFault, match="not there now"):
        run_backup(keeper)
    assert list(vault_of(keeper).iterdir()) == []
    with pytest.raises(EnvironmentFault):
        verify(keeper, backup=True)


def test_a_vault_among_what_it_copies_is_refused(keeper: Keeper) -> None:
    for path in ("models/vault", "data", "inbox/backups", "configs/x"):
        with pytest.raises(CheckFailed, match="inside"):
            run_backup(keeper_of(keeper.home.root, backup__path=path))


def test_the_newest_five_ledgers_are_kept_by_number(keeper: Keeper) -> None:
    run_backup(keeper)
    folder = vault_of(keeper) / "ledger"
    for _turn in range(KEPT_LEDGERS + 2):
        with keeper.ledger.transaction():
            keeper.ledger.event("test.turn", "x")
        run_backup(keeper)
    numbers = sorted(int(path.stem.removeprefix("ledger-")) for path in folder.glob("ledger-*.db"))
    last = keeper.ledger.sequence()
    assert numbers == list(range(last - KEPT_LEDGERS + 1, last + 1))
    assert verify(keeper, backup=True).ok


def test_ledgers_of_another_history_do_not_push_out_the_one_just_written(keeper: Keeper) -> None:
    run_backup(keeper)
    folder = vault_of(keeper) / "ledger"
    for number in range(90_000, 90_006):
        (folder / f"ledger-{number:010d}.db").write_bytes(b"from a ledger that was lost")
    (folder / f"ledger-{keeper.ledger.sequence() + 1:010d}.db").write_bytes(b"not ours")
    with keeper.ledger.transaction():
        keeper.ledger.event("test.turn", "x")
    run_backup(keeper)
    assert ledger_head(folder / f"ledger-{keeper.ledger.sequence():010d}.db") is not None
    assert list(folder.glob(".damaged-ledger-*"))


def test_the_mark_in_the_vault_never_falls(keeper: Keeper) -> None:
    run_backup(keeper)
    (vault_of(keeper) / "high-water").write_text("70\n")
    run_backup(keeper)
    assert (vault_of(keeper) / "high-water").read_text() == "70\n"
    assert "70" in verify(keeper, backup=True).damage[0].problem


def test_a_vault_without_room_says_so(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(EnvironmentFault, match="bytes free"):
        run_backup(keeper)


def test_status_says_what_is_safe_and_that_one_disk_protects_nothing(keeper: Keeper) -> None:
    empty = backup_status(keeper)
    assert empty["present"] is False and empty["protects"] is False and empty["ledger"]["newest"] is None
    run_backup(keeper)
    add_original(keeper, "late.jsonl")
    status = backup_status(keeper)
    assert status["versions"] == {"total": 4, "verified": 4, "missing": []}
    assert status["originals"]["total"] == 4 and len(status["originals"]["missing"]) == 1
    assert status["last_verified"] == keeper.clock.utc()
    assert status["other_device"] is False and status["protects"] is False


def test_a_vault_on_another_device_protects(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.store.vault.other_device", lambda *_: True)
    monkeypatch.setattr("guard.store.vault_state.other_device", lambda *_: True)
    assert run_backup(keeper)["other_device"] is True
    assert backup_status(keeper)["protects"] is True
    add_version(keeper, "later", "v004_full_stack")
    views.refresh(keeper)
    assert backup_status(keeper)["protects"] is False
