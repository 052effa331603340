"""Is a stored original still what was admitted, and what may a second arrival of the same bytes put right?

An original is its bytes and two sidecars, each known by its SHA-256 in the ledger. The bytes may come from any file of
that hash; fingerprints only when they are the very ones that were recorded, for what was learnt is counted by their
places. Here are facts alone. Not here: putting it right (`intake.py`), finding all damage of a home (`verify_data.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from guard.durable import sha256_file
from guard.home import Home
from guard.store.files import SIDECARS, StoredFile, original_hashes

__all__ = ["damaged_parts", "is_sound", "mendable_parts", "stray_is_sound"]


def damaged_parts(home: Home, file: StoredFile) -> list[str]:
    """What of a stored original is missing or not what was admitted: "bytes", then names of sidecars. Reads everything."""
    folder = home.files / file.sha256
    found = [] if _all_match(folder, original_hashes(file)) else ["bytes"]
    for name in SIDECARS:
        recorded = (file.record.get("sidecars") or {}).get(name)
        if recorded:
            found += [] if _all_match(folder, {name: str(recorded)}) else [name]
        elif name == "record.json" or (name == "examples.fp" and file.kind != "docs"):
            # Admitted before the sidecars' hashes were recorded: that it is there is all that can be asked.
            found += [] if (folder / name).is_file() else [name]
    return found


def is_sound(home: Home, file: StoredFile) -> bool:
    """Whether a stored original is whole; only then may a second copy of its bytes be let go."""
    return not damaged_parts(home, file)


def _all_match(folder: Path, hashes: Mapping[str, str]) -> bool:
    return bool(hashes) and all((folder / name).is_file() and sha256_file(folder / name) == digest
                                for name, digest in hashes.items())  # fmt: skip


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
