"""Verification of originals, prepared data, indexes and the vault: whatever is damaged is named, with what came of it."""

from __future__ import annotations

from homes import add_version
from verify_help import (  # noqa: F401 - fixtures
    VERSION,
    _keeper,
    _no_syncing,
    _template,
    corrupt,
    each_corruption,
    flip_a_bit,
    named,
    truncate,
)

from guard.store.keeper import Keeper
from guard.store.vault import run_backup
from guard.store.verify import verify


def test_a_damaged_original_is_named_with_the_versions_that_learnt_it(keeper: Keeper) -> None:
    sha256 = keeper.ledger.value("SELECT sha256 FROM files WHERE name = 'syllo.jsonl'")
    for change in each_corruption(keeper.home.files / sha256 / "syllo.jsonl"):
        report = verify(keeper, everything=True)
        assert named(report) == {("original", "syllo.jsonl", "syllo.jsonl")}, change
        assert report.damage[0].descendants == ("v002_syllo", VERSION, "v004_full_stack", "v005_leaf")
        assert "drop the same file again" in report.damage[0].remedy


def test_damaged_sidecars_and_strange_folders_among_the_originals_are_named(keeper: Keeper) -> None:
    sha256 = keeper.ledger.value("SELECT sha256 FROM files WHERE name = 'math.jsonl'")
    folder = keeper.home.files / sha256
    corrupt(folder / "examples.fp", truncate)
    corrupt(folder / "record.json", lambda data, _chance: data.replace(b'"examples": 10', b'"examples": 11'))
    (keeper.home.files / "stranger").mkdir()
    assert named(verify(keeper, everything=True)) == {
        ("original", "math.jsonl", "examples.fp"), ("original", "math.jsonl", "record.json"),
        ("original", "stranger", "")}  # fmt: skip


def test_a_damaged_dataset_is_named(keeper: Keeper) -> None:
    for split in ("train", "val"):
        for name in ("shard_00000.bin", "shard_00000_mask.bin", "examples.npy", "examples.fp"):
            for change in each_corruption(keeper.home.shards / "ds1" / split / name, flip_a_bit):
                assert named(verify(keeper, everything=True)) == {("dataset", "ds1", f"{split}/{name}")}, change


def test_a_damaged_index_and_a_wrong_latest_link_are_named(keeper: Keeper) -> None:
    corrupt(keeper.home.indexes / "v001" / "embeddings.npy", flip_a_bit)
    (keeper.home.indexes / "latest").unlink()
    assert named(verify(keeper)) == {("index", "v001", "embeddings.npy"), ("link", "latest", "latest")}


def test_every_copy_in_the_vault_is_read_back(keeper: Keeper) -> None:
    run_backup(keeper)
    vault = keeper.home.root / "backups"
    newest_ledger = max((vault / "ledger").iterdir())
    original = next(path for path in (vault / "files").rglob("math.jsonl"))
    copies = {VERSION: vault / "versions" / VERSION / "config.json", original.parent.name: original,
              newest_ledger.name: newest_ledger, "configs": vault / "configs" / "heirloom.yaml"}  # fmt: skip
    for name, path in copies.items():
        for change in each_corruption(path):
            assert {item.name for item in verify(keeper, backup=True).damage} == {name}, change
    assert verify(keeper, backup=True).ok


def test_a_version_that_was_never_backed_up_is_told_when_its_backup_is_asked_for(keeper: Keeper) -> None:
    run_backup(keeper)
    later = add_version(keeper, "later", "v004_full_stack")
    assert named(verify(keeper, versions=[later], backup=True)) == {("backup", later, "")}
