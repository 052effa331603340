"""Is a stored original still what was admitted, and what may a second arrival of the same bytes put right?

An original is its bytes and two sidecars, each known by its SHA-256 in the ledger. The bytes may come from any file of
that hash; fingerprints only when they are the very ones that were recorded, for what was learnt is counted by their
places. Here are facts alone. Not here: putting it right (`intake.py`), finding all damage of a home (`verify_data.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from guard.durable import sha256_file
from guard.home import Home
from guard.steps import Steps, drain
from guard.store.files import SIDECARS, StoredFile, original_hashes
from guard.store.sums import hash_steps

__all__ = ["damaged_parts", "examine_steps", "forget_examined", "mendable_parts", "stray_is_sound"]

_MOST_EXAMINED = 64
_examined: dict[Path, tuple[tuple[tuple[str, int, int, int, int], ...], list[str]]] = {}
"""What was found of originals that were just read, with the stamp of their files: between the examining of a known drop and
its verdict and admission the same twenty gigabytes are not read three times more."""


def damaged_parts(home: Home, file: StoredFile) -> list[str]:
    """What of a stored original is missing or not what was admitted: "bytes", then names of sidecars. Reads everything,
    unless `examine_steps` did in this process and nothing was written there since."""
    folder = home.files / file.sha256
    known = _examined.get(folder)
    return list(known[1]) if known and known[0] == _stamp(folder) else drain(_damaged_steps(folder, file))


def examine_steps(home: Home, file: StoredFile) -> Steps[list[str]]:
    """`damaged_parts` in slices, read now; what it finds is remembered for the judgement that follows."""
    folder = home.files / file.sha256
    _examined.pop(folder, None)
    before = _stamp(folder)
    found = yield from _damaged_steps(folder, file)
    while len(_examined) >= _MOST_EXAMINED:
        _examined.pop(next(iter(_examined)))
    _examined[folder] = before, found
    return found


def forget_examined(home: Home, sha256: str) -> None:
    """Whoever asks for this original again has it read again."""
    _examined.pop(home.files / sha256, None)


def _stamp(folder: Path) -> tuple[tuple[str, int, int, int, int], ...]:
    """Every file below a folder with inode, size and both times."""
    paths = [os.path.join(place, name) for place, _names, files in os.walk(folder) for name in files]
    facts = [(path, os.lstat(path)) for path in paths]
    return tuple(sorted((path, item.st_ino, item.st_size, item.st_mtime_ns, item.st_ctime_ns) for path, item in facts))


def _damaged_steps(folder: Path, file: StoredFile) -> Steps[list[str]]:
    found = [] if (yield from _all_match_steps(folder, original_hashes(file))) else ["bytes"]
    for name in SIDECARS:
        recorded = (file.record.get("sidecars") or {}).get(name)
        if recorded:
            found += [] if (yield from _all_match_steps(folder, {name: str(recorded)})) else [name]
        elif name == "record.json" or (name == "examples.fp" and file.kind != "docs"):
            # Admitted before the sidecars' hashes were recorded: that it is there is all that can be asked.
            found += [] if (folder / name).is_file() else [name]
    return found


def _all_match_steps(folder: Path, hashes: Mapping[str, str]) -> Steps[bool]:
    for name, digest in hashes.items():
        if not (folder / name).is_file() or (yield from hash_steps(folder / name)) != digest:
            return False
    return bool(hashes)


def _all_match(folder: Path, hashes: Mapping[str, str]) -> bool:
    return drain(_all_match_steps(folder, hashes))


def stray_is_sound(folder: Path, sha256: str, identity: Path) -> bool:
    """Whether a folder that no ledger knows holds these bytes and sidecars that fit what was found in them just now."""
    names = [path.name for path in folder.iterdir() if path.name not in SIDECARS]
    if not names or not _all_match(folder, dict.fromkeys(names, sha256)):
        return False
    fresh = {"examples.fp": sha256_file(identity / "examples.fp")} if (identity / "examples.fp").is_file() else {}
    try:
        record = orjson.loads((folder / "record.json").read_bytes())
    except (OSError, ValueError):
        return False
    return record.get("sha256") == sha256 and (not fresh or _all_match(folder, fresh))


def mendable_parts(damaged: list[str], file: StoredFile, record: Mapping[str, Any], identity: Path) -> list[str]:
    """Which of the damaged parts an arrival of the same bytes can make good; `record`, `identity`: what was found in it.

    Bytes always. Sidecars only when it was read as the same kind, or when a document becomes training text.
    """
    if file.kind == "docs" != record["kind"]:
        return damaged  # everything is written anew: a document had no examples that anything could count on
    if file.kind != record["kind"]:
        return [part for part in damaged if part == "bytes"]
    recorded = (file.record.get("sidecars") or {}).get("examples.fp")
    fresh = sha256_file(identity / "examples.fp") if (identity / "examples.fp").is_file() else None
    same = fresh == recorded if recorded else record["examples"] == file.examples
    # A side file's settings were frozen into the record; another arrival may have brought others, or none.
    return [part for part in damaged if part != "meta.yaml" and (part != "examples.fp" or same)]
