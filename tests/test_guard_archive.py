"""Archiving: it needs a copy on another device that was just read back, asks for the plan's own words, and loses nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import add_job_row, add_version, clone, keeper_of, make_home, no_syncing, places_of

from guard import failpoints
from guard.durable import remove_tree
from guard.errors import CheckFailed, Damage, EnvironmentFault, NotConfirmed, NotFound, Protected
from guard.failpoints import Crash
from guard.store import views
from guard.store.archive import archive
from guard.store.keeper import Keeper
from guard.store.lineage import lineage
from guard.store.recovery import recover
from guard.store.restore import restore
from guard.store.retention import retention_apply, retention_plan
from guard.store.rollback import rollback
from guard.store.scrub import scrub_steps
from guard.store.sums import drain, folder_problems
from guard.store.trash import delete
from guard.store.vault import run_backup
from guard.store.vault_home import bring_home_back
from guard.store.vault_state import backup_status
from guard.store.verify import verify
from guard.store.versions import find_version

HOUR = 3600.0
POINTS = [name for name in failpoints.POINTS if name.startswith("archive.") and name != "archive.aside"]
OLD = "v002_step"


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncing(monkeypatch)


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    """A base and nine children in a row, one an hour, on the device of the scratch folder."""
    keeper = make_home(shared_scratch / "retention")
    parent = add_version(keeper, "baseline")
    for _turn in range(9):
        keeper.clock.advance(HOUR)  # type: ignore[attr-defined]
        parent = add_version(keeper, "step", parent)
    views.refresh(keeper)
    keeper.ledger.close()
    return shared_scratch / "retention"


@pytest.fixture
def keeper(template: Path, scratch: Path, disk: Path) -> Iterator[Keeper]:
    """The same home with a vault on another device, brought up to date."""
    if os.stat(scratch).st_dev == os.stat(disk).st_dev:
        pytest.skip("needs two devices: the scratch folder and the folder for temporary files are on one")
    clone(template, scratch / "home").ledger.close()
    keeper = opened(scratch / "home", disk)
    run_backup(keeper)
    yield keeper
    failpoints.disarm()


def opened(root: Path, disk: Path) -> Keeper:
    keeper = keeper_of(root, backup__path=str(disk / "vault"), retention__newest=2)
    keeper.clock.advance(30 * HOUR)  # type: ignore[attr-defined]
    return keeper


def reopened(keeper: Keeper) -> Keeper:
    failpoints.disarm()
    return opened(keeper.home.root, keeper.home.vault(keeper.settings.backup.path).parent)


def state(keeper: Keeper, name: str = OLD) -> str:
    return find_version(keeper.ledger, name).state


def test_a_plan_changes_nothing_and_says_why_for_each(keeper: Keeper) -> None:
    before = keeper.ledger.sequence()
    plan = retention_plan(keeper)
    assert len(plan["versions"]) == 10 and all(item["reason"] for item in plan["versions"]) and plan["problem"] == ""
    assert plan["archive"] and plan["confirm"] == f"archive {len(plan['archive'])} versions" and plan["bytes"] > 5000
    assert keeper.ledger.sequence() == before and len(list(keeper.home.models.glob("v*"))) == 10


def test_applied_versions_leave_models_stay_in_the_lineage_and_come_back_identical(keeper: Keeper) -> None:
    plan = retention_plan(keeper)
    gone = plan["archive"]
    told = retention_apply(keeper, confirm=plan["confirm"])
    assert told["archived"] == gone and told["kept"] == [] and told["bytes"] == plan["bytes"]
    assert all(places_of(keeper, name) == [] and state(keeper, name) == "archived" for name in gone)
    records = {item["name"]: item for item in lineage(keeper)}
    assert all(records[name]["state"] == "archived" and records[name]["locked"] for name in gone)
    assert verify(keeper, everything=True, backup=True).ok
    for name in gone:
        assert restore(keeper, name)["source"] == "backup"
        assert folder_problems(keeper.home.models / name, find_version(keeper.ledger, name).sums_sha256) == []
    assert {state(keeper, name) for name in gone} == {"sealed"} and verify(keeper, everything=True, backup=True).ok


def vault_folder(keeper: Keeper, name: str = OLD) -> Path:
    return keeper.home.vault(keeper.settings.backup.path) / "versions" / name


def archived_damage(keeper: Keeper, **how: bool) -> list[tuple[str, str]]:
    found = verify(keeper, **how).damage  # type: ignore[arg-type]
    assert all("heirloom backup run" in item.remedy for item in found)
    return [(item.what, item.name) for item in found]


@pytest.mark.parametrize("harm", ["lost", "flipped"])
def test_the_only_copy_of_an_archived_version_is_watched_everywhere_and_comes_from_another_vault(
    keeper: Keeper, disk: Path, harm: str
) -> None:
    shutil.copytree(vault_folder(keeper).parents[1], disk / "another vault")
    archive(keeper, OLD)
    if harm == "lost":
        remove_tree(vault_folder(keeper))
    else:
        frame = vault_folder(keeper) / "model.frame"
        data = bytearray(frame.read_bytes())
        data[len(data) // 2] ^= 1
        frame.chmod(0o644)
        frame.write_bytes(data)
    assert ("archived", OLD) in archived_damage(keeper, everything=True)
    assert ("archived", OLD) in archived_damage(keeper, everything=True, backup=True)
    assert ("archived", OLD) in archived_damage(keeper, backup=True)
    assert [item.what for item in verify(keeper, versions=[OLD]).damage] == ["archived"]
    assert f"archived {OLD}" in drain(scrub_steps(scrubbing(keeper)))["damage"]
    assert backup_status(keeper)["versions"]["missing"] == ([OLD] if harm == "lost" else [])
    with pytest.raises(Damage, match=f"{OLD} is archived .* heirloom restore {OLD} --from"):
        run_backup(keeper, recheck=True)
    restore(keeper, OLD, source=str(disk / "another vault"))
    run_backup(keeper, recheck=True)
    assert verify(keeper, everything=True, backup=True).ok
    archive(keeper, OLD)
    assert verify(keeper, everything=True, backup=True).ok and backup_status(keeper)["versions"]["missing"] == []


def scrubbing(keeper: Keeper) -> Keeper:
    """The same home, everything of it read in one day."""
    return keeper_of(keeper.home.root, backup__path=keeper.settings.backup.path, scrub__days=1)


def test_a_vault_that_no_row_vouches_for_is_read_and_recorded_again(keeper: Keeper) -> None:
    """As after the ledger was made again: the copies are there, what was known of them is not."""
    archive(keeper, OLD)
    with keeper.ledger.transaction():
        keeper.ledger.run("DELETE FROM backups")
        keeper.ledger.event("test.turn", "x")
    assert ("archived", OLD) in archived_damage(keeper)
    run_backup(keeper)
    assert verify(keeper, everything=True, backup=True).ok and backup_status(keeper)["versions"]["missing"] == []


def test_another_vault_says_what_it_lacks_while_the_old_one_still_holds_it(keeper: Keeper, disk: Path) -> None:
    archive(keeper, OLD)
    moved = keeper_of(keeper.home.root, backup__path=str(disk / "new vault"))
    run_backup(moved)
    assert backup_status(moved)["versions"]["missing"] == [OLD] and not backup_status(moved)["protects"]
    assert archived_damage(moved, backup=True) == [("archived", OLD)]
    assert archived_damage(moved, everything=True) == [], "it lies in the vault before, and was read there"
    restore(moved, OLD, source=str(disk / "vault"))
    run_backup(moved)
    archive(moved, OLD)
    assert verify(moved, everything=True, backup=True).ok and backup_status(moved)["versions"]["missing"] == []


def test_a_home_out_of_the_vault_keeps_archived_versions_archived_and_proves_their_copies(
    keeper: Keeper, disk: Path
) -> None:
    archive(keeper, OLD)
    run_backup(keeper)
    vault = vault_folder(keeper).parents[1]
    drain(bring_home_back(vault, disk / "back"))
    back = keeper_of(disk / "back", backup__path=str(vault))
    assert state(back) == "archived" and places_of(back, OLD) == []
    views.refresh(back)
    assert verify(back, everything=True, backup=True).damage == ()
    held = vault_folder(keeper) / "tokenizer.json"
    held.chmod(0o644)
    held.write_text("no child needs this to be decoded")
    with pytest.raises(Damage, match=OLD):
        drain(bring_home_back(vault, disk / "again"))


def test_the_words_have_to_be_typed_and_mean_this_plan(keeper: Keeper) -> None:
    before = keeper.ledger.sequence()
    right = retention_plan(keeper)["confirm"]
    for words in (None, "", "yes", "archive 1 versions", right.upper(), f"{right} "):
        with pytest.raises(NotConfirmed):
            retention_apply(keeper, confirm=words)
    assert keeper.ledger.sequence() == before and len(list(keeper.home.models.glob("v*"))) == 10


def test_a_vault_on_the_same_device_archives_nothing(template: Path, scratch: Path) -> None:
    keeper = clone(template, scratch / "home")
    keeper.clock.advance(30 * HOUR)  # type: ignore[attr-defined]
    run_backup(keeper)
    with pytest.raises(CheckFailed, match="same device"):
        retention_apply(keeper_of(keeper.home.root, retention__newest=0), confirm="archive 6 versions")
    assert "same device" in retention_plan(keeper)["problem"]
    with pytest.raises(CheckFailed, match="same device"):
        archive(keeper, OLD)
    assert len(list(keeper.home.models.glob("v*"))) == 10


def test_a_copy_that_has_gone_bad_keeps_its_version_where_it_is(keeper: Keeper) -> None:
    plan = retention_plan(keeper)
    bad = plan["archive"][-1]  # nothing is a difference from the last one
    path = keeper.home.vault(keeper.settings.backup.path) / "versions" / bad / "model.frame"
    os.chmod(path, 0o644)
    path.write_bytes(b"\0" * path.stat().st_size)
    told = retention_apply(keeper, confirm=plan["confirm"])
    assert [item["name"] for item in told["kept"]] == [bad] and told["archived"] == plan["archive"][:-1]
    assert state(keeper, bad) == "sealed" and places_of(keeper, bad) == ["models"]


def test_bases_active_and_needed_versions_are_refused_even_when_asked_for_by_name(keeper: Keeper) -> None:
    adapter = add_version(keeper, "adapter", "v010_step", tip=False)
    with keeper.ledger.transaction():
        keeper.ledger.run("INSERT INTO version_inputs VALUES (?, 3, 'adapter_base')", (find_version(keeper.ledger, adapter).id,))
    for name in ("v001_baseline", "v010_step", "v003_step"):
        with pytest.raises(Protected):
            archive(keeper, name)
    choices = {item["name"]: item for item in retention_plan(keeper, newest=0)["versions"]}
    assert all(choices[name]["keep"] for name in ("v001_baseline", "v010_step", "v003_step"))
    add_job_row(keeper, "queued", base="v004_step")
    assert "job 1" in {item["name"]: item["reason"] for item in retention_plan(keeper, newest=0)["versions"]}["v004_step"]


def test_an_archived_version_asks_to_be_restored_first_and_still_locks_what_it_stands_on(keeper: Keeper) -> None:
    archive(keeper, "v003_step")
    with pytest.raises(NotFound, match="archived") as told:
        delete(keeper, "v003", force=True)
    assert "restore" in told.value.hint
    with pytest.raises(CheckFailed, match="archived") as refused:
        rollback(keeper, "v003")
    assert "restore" in refused.value.hint
    with pytest.raises(Protected, match="v003_step"):
        delete(keeper, OLD, force=True)
    with pytest.raises(CheckFailed, match="archived"):
        archive(keeper, "v003_step")
    restore(keeper, "v003")
    assert rollback(keeper, "v003", dry_run=True)["to"] == "v003_step"


@pytest.mark.parametrize("point", POINTS)
def test_an_archiving_that_dies_at_any_step_is_taken_back_or_finished(keeper: Keeper, point: str) -> None:
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        archive(keeper, OLD)
    assert failpoints.hits(point) == 1
    after = reopened(keeper)
    recover(after)
    recover(after)
    if point in ("archive.intended", "archive.moved"):
        assert state(after) == "sealed" and places_of(after, OLD) == ["models"]
    else:
        assert state(after) == "archived" and places_of(after, OLD) == [] and list(after.home.trash.iterdir()) == []
    assert after.ledger.rows("SELECT * FROM meta WHERE key LIKE 'intent:%'") == []
    assert verify(after, everything=True, backup=True).ok
    if state(after) == "archived":
        restore(after, OLD)
    assert verify(after, everything=True, backup=True).ok


@pytest.mark.parametrize(("first", "again"), [("archive.moved", "view.written"), ("archive.recorded", "archive.erased")])
def test_a_second_death_in_the_recovery_of_the_first_changes_nothing(keeper: Keeper, first: str, again: str) -> None:
    failpoints.arm(first, "crash")
    with pytest.raises(Crash):
        archive(keeper, OLD)
    (keeper.home.models / "README.md").unlink()  # so that a view has to be written
    failpoints.disarm()
    failpoints.arm(again, "crash")
    with pytest.raises(Crash):
        recover(opened(keeper.home.root, keeper.home.vault(keeper.settings.backup.path).parent))
    after = reopened(keeper)
    recover(after)
    assert state(after) == ("sealed" if first == "archive.moved" else "archived")
    assert places_of(after, OLD) == (["models"] if first == "archive.moved" else [])
    assert verify(after, everything=True, backup=True).ok


@pytest.mark.parametrize("action", ["enospc", pytest.param("eio", marks=pytest.mark.sweep)])
@pytest.mark.parametrize("point", POINTS)
def test_an_archiving_that_the_disk_refuses_leaves_a_sound_home(keeper: Keeper, point: str, action: str) -> None:
    failpoints.arm(point, action)
    with pytest.raises((EnvironmentFault, OSError)):
        archive(keeper, OLD)
    after = reopened(keeper)
    recover(after)
    assert places_of(after, OLD) == (["models"] if state(after) == "sealed" else [])
    assert verify(after, everything=True, backup=True).ok


def test_after_a_death_nothing_is_erased_while_the_vault_is_away(keeper: Keeper) -> None:
    failpoints.arm("archive.recorded", "crash")
    with pytest.raises(Crash):
        archive(keeper, OLD)
    vault = keeper.home.vault(keeper.settings.backup.path)
    vault.rename(vault.with_name("unplugged"))
    after = reopened(keeper)
    assert any("left for later" in line for line in recover(after))
    left = after.home.trash / f".archiving-{OLD}"
    assert folder_problems(left, find_version(after.ledger, OLD).sums_sha256) == []
    vault.with_name("unplugged").rename(vault)
    assert f"{OLD} was archived" in recover(after) and not left.exists() and verify(after, everything=True, backup=True).ok


def test_only_what_was_shown_is_archived_and_the_rest_is_told(keeper: Keeper) -> None:
    proposed = retention_plan(keeper)["archive"]
    shown, words = [*proposed[1:], "v009_step", "v099_gone"], f"archive {len(proposed) + 1} versions"
    with pytest.raises(NotConfirmed):
        retention_apply(keeper, confirm=f"archive {len(proposed)} versions", shown=shown)
    told = retention_apply(keeper, confirm=words, shown=shown)
    assert told["unseen"] == proposed[:1] and told["archived"] == told["archive"] == proposed[1:]
    assert [item["name"] for item in told["kept"]] == ["v009_step", "v099_gone"] and all(item["reason"] for item in told["kept"])
    assert places_of(keeper, proposed[0]) == places_of(keeper, "v009_step") == ["models"]
    assert verify(keeper, everything=True, backup=True).ok
