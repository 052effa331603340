"""What vanished from a home and can be had again without guessing: its empty folders, and originals that the vault holds.

Part of `heirloom doctor --rebuild` and of nothing else: a start never takes a missing folder for an empty one (law 9).
Versions come back one by one (`restore.py`). Not here: the ledger (`rebuild.py`).
"""

from __future__ import annotations

from pathlib import Path

from guard.copies import copy_verified
from guard.durable import make_dir, remove_tree, rename_new, seal_tree, sha256_file
from guard.home import Home
from guard.store.copying import listing

__all__ = ["bring_originals_back", "make_folders", "missing_folders"]


def missing_folders(home: Home) -> list[Path]:
    """The folders of a sound home that are not there."""
    return [folder for folder in home.folders() if not folder.is_dir()]


def make_folders(home: Home) -> list[str]:
    """Make them, empty; returns their names. Raises OSError where something else stands in their place."""
    made = missing_folders(home)
    for folder in made:
        make_dir(folder)
    return [str(folder.relative_to(home.root)) for folder in made]


def bring_originals_back(home: Home, vault: Path) -> tuple[list[str], list[str]]:
    """Copy originals that only the vault still holds into data/files; returns (hashes brought, hashes that are damaged there).

    Each is whole or not there: copied aside, read back, renamed. One whose bytes do not have the hash it is named by is
    left where it is.
    """
    brought, damaged = [], []
    places = sorted(place for place in (vault / "files").glob("*") if place.is_dir() and not place.name.startswith("."))
    for place in places:
        target = home.files / place.name
        if target.exists():
            continue
        hashes = {name: sha256_file(place / name) for name in listing(place)}
        # A prepared dataset is a folder, known by the hash over its parts: `verify` proves it afterwards.
        if place.name not in hashes.values() and not any("/" in name for name in hashes):
            damaged.append(place.name)
            continue
        staged = home.incoming / f"back-{place.name}"
        remove_tree(staged)
        for name, digest in hashes.items():
            make_dir((staged / name).parent)
            copy_verified(place / name, staged / name, digest)
        rename_new(staged, target)
        seal_tree(target)
        brought.append(place.name)
    return brought, damaged
