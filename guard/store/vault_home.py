"""A whole home out of the vault alone: ledger, marks, configs, versions and originals, every byte against its hash.

The newest sound copy of the ledger says what there was; the folders beside it give it back. What is derived (shards,
indexes, views) is not in a vault and is made again. Whatever was under way when the copy was made is put back to its
beginning: its staging is gone with the old disk. The target must be empty; the vault is only read.
Not here: proving that the home works (`daemon/drill.py`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

from guard.clock import SYSTEM_CLOCK, Clock
from guard.copies import copy_verified
from guard.durable import make_dir, seal_tree, sha256_file, write_text
from guard.errors import CheckFailed, Damage, EnvironmentFault
from guard.failpoints import point
from guard.home import Home
from guard.steps import drain
from guard.store.copying import folder_digest, listing
from guard.store.files import get_file, original_hashes
from guard.store.jobs import jobs_in, set_job
from guard.store.keeper import Keeper, open_writer
from guard.store.sums import read_sums
from guard.store.trash import trash_folder
from guard.store.vault_frames import stored_problems, stored_size, take_out_steps
from guard.store.vault_state import LEDGER_NAME, ledger_head
from guard.store.versions import Version, all_versions

__all__ = ["bring_home_back", "newest_ledger"]

_OPEN_DROPS = ("claiming", "claimed", "admitting", "returning")


def bring_home_back(
    vault: Path, target: Path, *, clock: Clock = SYSTEM_CLOCK, second_vault: bool = False
) -> Generator[str, None, dict[str, Any]]:  # fmt: skip
    """Make the home of a vault again in an empty folder; yields what it is busy with.

    `second_vault`: a vault of that home shall find room on the same disk, and one version more in both.
    Returns ledger (the copy it came from), versions (names), originals (hashes), bytes. Raises CheckFailed when the
    target is not empty, EnvironmentFault without room, Damage naming what the vault cannot give back.
    """
    if target.exists() and any(target.iterdir()):
        raise CheckFailed(f"{target} is not empty", subject=str(target), hint="name an empty folder")
    home, copy = Home(target), newest_ledger(vault)
    for folder in home.folders():
        make_dir(folder)
    copy_verified(copy, home.ledger)
    _bring_marks(vault, home)
    point("drill.ledger")
    yield copy.name
    keeper = open_writer(home, actor="vault", clock=clock, flags={"backup.auto": False, "storage.seal": "mode"})
    try:
        if problems := keeper.ledger.broken_events():
            raise Damage(f"{copy.name}: {problems[0]}", subject=str(copy), hint="an older copy lies beside it")
        return (yield from _bring_everything(keeper, vault, copy, second_vault))
    finally:
        keeper.ledger.close()


def newest_ledger(vault: Path) -> Path:
    """The copy of the ledger with the newest event that can be read. Raises Damage when there is none."""
    folder = vault / "ledger"
    names = [path for path in folder.iterdir() if re.fullmatch(LEDGER_NAME, path.name)] if folder.is_dir() else []
    for path in sorted(names, key=lambda path: int(path.stem.removeprefix("ledger-")), reverse=True):
        head = ledger_head(path)
        if head is not None and head[0] == int(path.stem.removeprefix("ledger-")):
            return path
    raise Damage(f"{folder} holds no ledger that can be read", subject=str(vault), hint="heirloom backup run")


def _bring_marks(vault: Path, home: Home) -> None:
    for name, target in (("store-id", home.store_id_file), ("high-water", home.high_water_file)):
        try:
            write_text(target, (vault / name).read_text("ascii"))
        except OSError as error:
            raise Damage(f"{vault / name} cannot be read: {error.strerror}", subject=str(vault), cause=error,
                         hint="heirloom verify --backup") from error  # fmt: skip
    if (vault / "index-high-water").exists():  # a vault of an earlier release has none
        copy_verified(vault / "index-high-water", home.index_high_water_file)
    for name in listing(vault / "configs"):
        make_dir((home.configs / name).parent)
        copy_verified(vault / "configs" / name, home.configs / name)


def _bring_everything(
    keeper: Keeper, vault: Path, copy: Path, second_vault: bool
) -> Generator[str, None, dict[str, Any]]:  # fmt: skip
    kept = all_versions(keeper.ledger, "sealed", "quarantined", "trashed")
    hashes = [row[0] for row in keeper.ledger.rows("SELECT sha256 FROM files ORDER BY sha256")]
    size = _room(keeper, vault, kept, second_vault)
    brought: list[str] = []
    for version in kept:
        if version.state == "trashed" and not (vault / "versions" / version.name).is_dir():
            continue  # deleted before it ever came into the vault
        _bring_version(keeper, vault / "versions" / version.name, version)
        brought.append(version.name)
        point("drill.version")
        yield version.name
    for version in all_versions(keeper.ledger, "archived"):  # they stay archived: their copies are read in the vault
        _require_sound(vault / "versions" / version.name, version)
        yield version.name
    for sha256 in hashes:
        _bring_original(keeper, vault / "files" / sha256, sha256)
        yield sha256
    _begin_again(keeper)
    point("drill.restored")
    return {"ledger": copy.name, "versions": brought, "originals": hashes, "bytes": size}


def _room(keeper: Keeper, vault: Path, kept: list[Version], second_vault: bool) -> int:
    """Bytes that the home will take. Raises EnvironmentFault when they, and a second vault, are not free."""
    size = sum(file.stat().st_size for file in (vault / "files").rglob("*") if file.is_file())
    largest = 0
    for version in kept:
        folder = vault / "versions" / version.name
        try:
            raw = sum(stored_size(folder, name) for name in read_sums(folder))
        except (OSError, ValueError, Damage):
            continue  # told by name when it is its turn
        size, largest = size + raw, max(largest, raw)
    # The vault as it lies there, the version that is trained in the home and in its vault, and the vault's own margin.
    besides = sum(file.stat().st_size for file in vault.rglob("*") if file.is_file()) + 3 * largest if second_vault else 0
    free = shutil.disk_usage(keeper.home.root).free
    if free <= size + besides:
        more = f", a drill {besides:,} more," if second_vault else ""
        raise EnvironmentFault(f"the home in the vault takes {size:,} bytes{more} and {free:,} are free at {keeper.home.root}",
                               subject=str(keeper.home.root), hint="--into DIR names a folder with more room")  # fmt: skip
    return size


def _require_sound(folder: Path, version: Version) -> None:
    if problems := stored_problems(folder, version.sums_sha256):
        name, problem = problems[0]
        raise Damage(f"{folder}/{name} {problem}: {version.name} cannot be brought back", subject=version.name,
                     hint="heirloom verify --backup; heirloom backup run makes the copy again")  # fmt: skip


def _bring_version(keeper: Keeper, folder: Path, version: Version) -> None:
    _require_sound(folder, version)
    trashed = trash_folder(keeper, version.name) if version.state == "trashed" else None
    target = keeper.home.trash / (trashed or version.name) if version.state == "trashed" else keeper.home.models / version.name
    drain(take_out_steps(folder, target, version.sums_sha256))
    seal_tree(target)


def _bring_original(keeper: Keeper, folder: Path, sha256: str) -> None:
    file = get_file(keeper.ledger, sha256)
    assert file is not None, "its hash was just read from there"
    names = listing(folder)
    found = {name: sha256_file(folder / name) for name in names}
    row = keeper.ledger.row("SELECT sums_sha256 FROM backups WHERE what = 'original' AND name = ?", (sha256,))
    wrong = any(found.get(name) != digest for name, digest in original_hashes(file).items())
    if wrong or (row is not None and row[0] != folder_digest(found)):
        raise Damage(f"{folder} does not hold {file.name} as it was admitted", subject=sha256,
                     hint="heirloom verify --backup; heirloom backup run makes the copy again")  # fmt: skip
    target = keeper.home.files / sha256
    for name in names:
        make_dir((target / name).parent)
        copy_verified(folder / name, target / name, found[name])
    seal_tree(target)


def _begin_again(keeper: Keeper) -> None:
    """What was under way has lost its staging: jobs begin anew, drops must be dropped again, indexes are made again."""
    ledger = keeper.ledger
    with ledger.transaction():
        for job in jobs_in(ledger, "preparing", "training", "committing", "held"):
            set_job(ledger, job.id, "queued", "brought back from the vault: it begins anew", plan={}, progress=0, output_id=None)
        marks = ", ".join("?" * len(_OPEN_DROPS))
        ledger.run(f"UPDATE drops SET state = 'gone', reason = 'it was on its way when the home was lost' "
                   f"WHERE state IN ({marks})", _OPEN_DROPS)  # fmt: skip
        ledger.run("UPDATE indexes SET state = 'lost' WHERE state IN ('active', 'kept')")
        ledger.run("DELETE FROM meta WHERE key >= 'intent:' AND key < 'intent;'")
        ledger.event("home.brought_back", os.path.basename(keeper.home.root))
