"""Verification: whatever is damaged is named, with what was grown from it; a sound home gives no false alarm."""

from __future__ import annotations

import importlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from homes import add_original, add_version, clone, keeper_of, set_tip
from verify_help import (  # noqa: F401 - fixtures
    VERSION,
    _keeper,
    _no_syncing,
    _template,
    corrupt,
    each_corruption,
    flip_a_bit,
    named,
)

from guard import durable
from guard.errors import Damage, NotFound, UsageError
from guard.home import Home
from guard.store import views
from guard.store.archive import copy_problem
from guard.store.keeper import Keeper, open_reader
from guard.store.ledger import Ledger
from guard.store.vault import run_backup
from guard.store.verify import verify


def test_a_sound_home_is_sound_and_reading_changes_nothing(keeper: Keeper) -> None:
    before = {path: path.stat().st_mtime_ns for path in keeper.home.root.rglob("*") if path.is_file()}
    report = verify(keeper, everything=True)
    assert report.ok and report.damage == ()
    assert report.checked.versions == 5 and report.checked.files >= 5 * 5 + 3 * 3 + 3 + 9
    assert report.checked.bytes > 5 * 5600
    assert report.as_dict()["checked"] == {"versions": 5, "files": report.checked.files, "bytes": report.checked.bytes}
    assert before == {path: path.stat().st_mtime_ns for path in keeper.home.root.rglob("*") if path.is_file()}


def test_a_reader_may_verify(keeper: Keeper) -> None:
    keeper.ledger.close()
    with open_reader(Home(keeper.home.root)) as reader:
        assert verify(reader, everything=True).ok


def test_any_corruption_of_any_file_of_a_version_is_named(keeper: Keeper) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json", "version.json", "SHA256SUMS"):
        for change in each_corruption(keeper.home.models / VERSION / name):
            report = verify(keeper)
            assert named(report) == {("version", VERSION, name)}, change
            assert report.damage[0].descendants == ("v004_full_stack", "v005_leaf")
            assert verify(keeper, versions=["v002"]).ok and not verify(keeper, versions=["v003"]).ok
    assert verify(keeper).ok


def test_two_swapped_files_of_the_same_size_are_both_named(keeper: Keeper) -> None:
    first, second = (keeper.home.models / name / "model.safetensors" for name in ("v002_syllo", VERSION))
    assert first.stat().st_size == second.stat().st_size
    for folder in (first.parent, second.parent):
        os.chmod(folder, 0o755)
    first.rename(first.with_name("swap"))
    second.rename(first)
    first.with_name("swap").rename(second)
    for folder in (first.parent, second.parent):
        os.chmod(folder, 0o555)
    assert named(verify(keeper)) == {("version", "v002_syllo", first.name), ("version", VERSION, first.name)}


def test_a_whole_version_swapped_for_another_sound_one_is_found(keeper: Keeper) -> None:
    """Each folder agrees with its own SHA256SUMS; only the ledger knows which is which."""
    first, second = keeper.home.models / "v002_syllo", keeper.home.models / VERSION
    first.rename(keeper.home.models / "x")
    second.rename(first)
    (keeper.home.models / "x").rename(second)
    assert {item.name for item in verify(keeper).damage} == {"v002_syllo", VERSION}


def test_missing_extra_linked_and_writable_files_are_named(keeper: Keeper) -> None:
    folder = keeper.home.models / VERSION
    os.chmod(folder, 0o755)
    (folder / "config.json").unlink()
    (folder / "evil.py").write_text("import os")
    (folder / "tokenizer.json").rename(keeper.home.root / "t")
    (folder / "tokenizer.json").symlink_to(keeper.home.root / "t")
    os.chmod(folder / "model.safetensors", 0o644)
    found = {(item.file, item.problem.split(":")[0]) for item in verify(keeper).damage}
    assert found == {("config.json", "is missing"), ("evil.py", "does not belong there"),
                     ("tokenizer.json", "is not a plain file"), ("evil.py", "may be written to"),
                     ("model.safetensors", "may be written to"), (".", "may be written to")}  # fmt: skip


def test_versions_without_a_folder_and_folders_without_a_version_are_named(keeper: Keeper) -> None:
    durable.remove_tree(keeper.home.models / VERSION)
    durable.remove_tree(keeper.home.trash / "v005_leaf")
    shutil.copytree(keeper.home.models / "v002_syllo", keeper.home.models / "v009_stray")
    (keeper.home.models / "notes.txt").write_text("x")
    assert {item.name for item in verify(keeper).damage} == {VERSION, "v005_leaf", "v009_stray", "notes.txt"}


def test_what_lies_there_for_a_moment_only_is_no_damage(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A birth between its rename and its row, seen by a reader: one begins and one ends while others are hashed."""
    ending, beginning = keeper.home.models / "v008_ending", keeper.home.models / "v009_beginning"
    ending.mkdir()

    def meanwhile(*_arguments: object) -> None:
        ending.rmdir()
        beginning.mkdir()

    monkeypatch.setattr("guard.store.verify.check_indexes", meanwhile)
    assert verify(keeper).ok
    monkeypatch.undo()
    assert named(verify(keeper)) == {("folder", "v009_beginning", "")}


def test_a_damaged_version_in_the_trash_is_found_when_everything_is_asked_for(keeper: Keeper) -> None:
    corrupt(keeper.home.trash / "v005_leaf" / "model.safetensors", flip_a_bit)
    assert verify(keeper).ok
    assert named(verify(keeper, everything=True)) == {("version", "v005_leaf", "model.safetensors")}


def test_edited_and_missing_views_are_named(keeper: Keeper) -> None:
    registry = orjson.loads(keeper.home.registry.read_bytes())
    registry["v002_syllo"]["active"] = True
    keeper.home.registry.write_bytes(orjson.dumps(registry))
    keeper.home.manifest.unlink()
    assert {item.name for item in verify(keeper).damage} == {"models/registry.json", "data/manifest.json"}
    views.refresh(keeper)
    assert verify(keeper).ok


LEDGER_CHANGES = (
    "UPDATE events SET payload = '{}' WHERE seq = 3",
    "DELETE FROM events WHERE seq = 2",
    "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)",
    "UPDATE versions SET sums_sha256 = 'x' WHERE id = 3",
    "UPDATE versions SET record = json_set(record, '$.metrics.final_loss', 0.1) WHERE id = 3",
    "UPDATE versions SET state = 'quarantined' WHERE id = 4",
    "UPDATE lines SET tip_id = 5",
    "UPDATE meta SET value = '2' WHERE key = 'version_high_water'",
    "UPDATE versions SET parent_id = 77 WHERE id = 3",
)


def test_a_ledger_that_somebody_changed_is_found_out(keeper: Keeper) -> None:
    database = keeper.ledger._db
    database.execute("PRAGMA foreign_keys=OFF")
    for change in LEDGER_CHANGES:
        database.execute("BEGIN")
        database.execute(change)
        assert any(item.what in ("ledger", "version") for item in verify(keeper).damage), change
        database.execute("ROLLBACK")
    assert verify(keeper).ok


def test_a_corrupted_ledger_file_never_passes(keeper: Keeper) -> None:
    keeper.ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    keeper.ledger.close()
    data = keeper.home.ledger.read_bytes()
    for start in range(4096, len(data), 3 * 4096):
        keeper.home.ledger.write_bytes(data[:start] + random.Random(start).randbytes(512) + data[start + 512 :])
        try:
            after = keeper_of(keeper.home.root)
            assert not verify(after).ok, f"garbage at byte {start} went unnoticed"
            after.ledger.close()
        except Damage:
            pass


def test_a_high_water_mark_below_a_given_number_is_named(keeper: Keeper) -> None:
    for content in ("2\n", "", "many"):
        keeper.home.high_water_file.write_text(content)
        assert named(verify(keeper)) == {("ledger", "high-water", "high-water")}
    keeper.home.high_water_file.unlink()
    assert named(verify(keeper)) == {("ledger", "high-water", "high-water")}


def test_a_sample_reads_less_and_lists_still_count(keeper: Keeper) -> None:
    whole = verify(keeper).checked.bytes
    assert 0 < verify(keeper, sample=0.4).checked.bytes < whole
    os.chmod(keeper.home.models / VERSION, 0o755)
    (keeper.home.models / VERSION / "config.json").unlink()
    assert ("version", VERSION, "config.json") in named(verify(keeper, sample=0.0001))
    for share in (0.0, 1.5, -1.0):
        with pytest.raises(UsageError):
            verify(keeper, sample=share)


def test_samples_of_other_moments_read_other_files(keeper: Keeper) -> None:
    corrupt(keeper.home.models / VERSION / "model.safetensors", flip_a_bit)
    found = []
    for _day in range(40):
        keeper.clock.advance(86_400)  # type: ignore[attr-defined]
        found.append(not verify(keeper, versions=[VERSION], sample=0.3).ok)
    assert any(found) and not all(found)


def test_unknown_versions_are_not_found_and_prefixes_do_not_match(keeper: Keeper) -> None:
    for text in ("v00", "v003_reason", "v0031", "nonsense"):
        with pytest.raises(NotFound):
            verify(keeper, versions=[text])


def test_many_versions_and_lines_stay_sound(keeper: Keeper) -> None:
    shared = add_original(keeper, "shared.jsonl")
    branch = add_version(keeper, "branch", "v002_syllo", line="experiment", learnt={shared: [1, 2]})
    add_version(keeper, "poison", branch, line="experiment", state="quarantined")
    set_tip(keeper, "policy", "v002_syllo")
    views.refresh(keeper)
    report = verify(keeper, everything=True)
    assert report.ok, report.damage
    assert isinstance(keeper.ledger, Ledger)


def test_what_stands_on_a_version_is_looked_up_only_over_damage(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look reads the whole lineage, or a header of every frame: once for each sound version would be quadratic."""
    run_backup(keeper)
    looked: list[str] = []
    for module, name in (("verify", "descendants"), ("verify_vault", "descendants"), ("verify_vault", "needed_by")):
        real = getattr(importlib.import_module(f"guard.store.{module}"), name)

        def told(*given: object, real: Callable[..., object] = real, name: str = name) -> object:
            looked.append(name)
            return real(*given)

        monkeypatch.setattr(f"guard.store.{module}.{name}", told)
    assert verify(keeper, everything=True, backup=True).ok and looked == []
    assert copy_problem(keeper, VERSION) == "" and looked == []
    corrupt(keeper.home.root / "backups" / "versions" / VERSION / "model.frame", flip_a_bit)
    assert not verify(keeper, backup=True).ok
    assert looked.count("needed_by") == 1 and "descendants" in looked


def test_a_moved_home_still_proves_its_vault(keeper: Keeper, tmp_path: Path) -> None:
    run_backup(keeper)
    keeper.ledger.close()
    moved = clone(keeper.home.root, tmp_path / "elsewhere")
    assert verify(moved, backup=True).checked.versions > 0 and verify(moved, backup=True).ok
    copy = next((moved.home.root / "backups" / "versions").glob("*/version.json"))
    os.chmod(copy, 0o644)
    copy.write_text("something else")
    assert [item.name for item in verify(moved, backup=True).damage] == [copy.parent.name]
    moved.ledger.close()


def test_a_vault_that_vanished_hides_no_damage_of_the_home(keeper: Keeper) -> None:
    run_backup(keeper)
    os.unlink(keeper.home.root / "backups" / "store-id")
    weights = keeper.home.models / "v001_baseline" / "model.safetensors"
    os.chmod(weights, 0o644)
    weights.write_bytes(b"x" * weights.stat().st_size)
    found = {(item.what, item.name) for item in verify(keeper, everything=True, backup=True).damage}
    assert {("version", "v001_baseline"), ("backup", "the vault")} <= found
