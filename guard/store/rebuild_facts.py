"""What is left of a home when its ledger is lost, read from the disk: the audit trail, versions, originals, indexes.

Everything is only read. What carries a hash is believed only when the hash fits; what does not fit is left where it is
and told. Not here: making a ledger of it (`rebuild.py`), or what the events tell (`rebuild_story.py`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from guard.durable import sha256_file
from guard.home import Home
from guard.names import parse_version_number
from guard.store.event_export import EVENT_KEYS, GENESIS, is_whole, read_events
from guard.store.files import SIDECARS
from guard.store.sums import SUMS, read_sums

__all__ = [
    "FoundFile", "FoundVersion", "elders", "found_files", "found_indexes", "found_versions", "hidden_folders", "read_trail",
    "rows_of",
]  # fmt: skip



@dataclass(frozen=True)
class FoundVersion:
    """A version's folder with a version.json that its SHA256SUMS vouches for."""

    name: str
    folder: Path
    trashed: bool
    record: dict[str, Any]
    sums_sha256: str
    size_bytes: int

    @property
    def leaving(self) -> bool:
        """An archiving or a purge stopped while it lay hidden in the trash."""
        return self.folder.name.startswith((".archiving-", ".purging-"))


@dataclass(frozen=True)
class FoundFile:
    """A stored original with its record.json."""

    sha256: str
    record: dict[str, Any]
    first_seen: float
    """Modification time of the folder: only where no event tells better."""


@dataclass
class Trail:
    """The longest unbroken chain of events that is left, and what was wrong with its sources."""

    events: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# --- the audit trail -----------------------------------------------------------------------------------------------


def elders(home: Home, vault: Path) -> list[Path]:
    """Every other ledger that is left, best first: the damaged one, those moved aside earlier, the vault's copies."""
    aside = sorted(home.data.glob("ledger.db.damaged-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    copies = sorted((vault / "ledger").glob("ledger-*.db"), reverse=True) if (vault / "ledger").is_dir() else []
    paths = [home.ledger, *(path for path in aside if path.name.rpartition("-")[2].isdecimal()), *copies]
    return [path for path in paths if path.is_file()]


def rows_of(path: Path, query: str) -> list[sqlite3.Row]:
    """Rows of a ledger that may be damaged; empty when it cannot be read as far as this. Never writes to it."""
    # `immutable`: a damaged ledger's WAL is left as it is, and no file is made beside it.
    with_wal = path.with_name(f"{path.name}-wal").exists()
    options = "mode=ro" if with_wal else "mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{urllib.parse.quote(os.fspath(path))}?{options}", uri=True)) as database:
            database.row_factory = sqlite3.Row
            return database.execute(query).fetchall()
    except sqlite3.DatabaseError:
        return []


def _chain(events: Iterable[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The unbroken beginning of a list of events."""
    whole: list[dict[str, Any]] = []
    for event in events:
        previous = whole[-1]["hash"] if whole else GENESIS
        if event is None or event["seq"] != len(whole) + 1 or event["previous"] != previous or not is_whole(event):
            break
        whole.append(event)
    return whole


def read_trail(home: Home, ledgers: Iterable[Path]) -> Trail:
    """The audit trail from whichever source holds most of it; none of them is changed.

    Chains that agree are one chain: the longest is taken. Two that tell different stories of one event are told of, and
    the export's, which belongs to no single copy of the ledger, is believed.
    """
    trail = Trail()
    lines = list(read_events(home.events)) if home.events.is_dir() else []
    chain = _chain(event for _name, event in lines)
    if len(chain) < len(lines):
        trail.notes.append(f"the event export is damaged after event {len(chain)} of {len(lines)}")
    trail.events = chain
    for path in ledgers:
        query = f"SELECT {', '.join(EVENT_KEYS)} FROM events ORDER BY seq"
        other = _chain({key: row[key] for key in EVENT_KEYS} for row in rows_of(path, query))
        shared = min(len(other), len(trail.events))
        if shared and other[shared - 1]["hash"] != trail.events[shared - 1]["hash"]:
            trail.notes.append(f"{path.name} tells another story than the export and was not believed")
        elif len(other) > len(trail.events):
            trail.notes.append(f"events {len(trail.events) + 1} to {len(other)} come from {path.name}")
            trail.events = other
    return trail


# --- versions ------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _version_in(folder: Path, name: str, trashed: bool) -> FoundVersion | str:
    """The version in a folder, or why it is none."""
    try:
        sums = read_sums(folder)
        if sha256_file(folder / "version.json") != sums.get("version.json"):
            return "its version.json is not the one that was sealed"
        digest = sha256_file(folder / SUMS)
    except (OSError, ValueError) as error:
        return f"it cannot be read as a version: {error}"
    record = _read_json(folder / "version.json")
    if record is None or record.get("name") != name or parse_version_number(name) != record.get("id"):
        return "its version.json is of another version"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return FoundVersion(name, folder, trashed, record, digest, size)


def _folders(place: Path) -> Iterator[tuple[Path, str]]:
    """Folders named like versions, with the version's name (what is behind `~` only tells trash folders apart)."""
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        name = path.name.split("~")[0]
        if path.is_dir() and not path.is_symlink() and parse_version_number(name) is not None:
            yield path, name


def hidden_folders(home: Home) -> list[tuple[str, Path, str]]:
    """Folders of the trash that an archiving or a purge left under way: (operation, folder, version)."""
    found = []
    for path in sorted(home.trash.iterdir()) if home.trash.is_dir() else ():
        for operation, prefix in (("archive", ".archiving-"), ("purge", ".purging-")):
            name = path.name.removeprefix(prefix).split("~")[0]
            if path.name.startswith(prefix) and path.is_dir() and parse_version_number(name) is not None:
                found.append((operation, path, name))
    return found


def _places(home: Home) -> Iterator[tuple[Path, str, bool]]:
    """Every folder a version may lie in, best first: (folder, version, whether that is the trash)."""
    yield from ((folder, name, False) for folder, name in _folders(home.models))
    # On its way out of models/ and not recorded: recovery brings it back or ends what was begun.
    yield from ((folder, name, False) for operation, folder, name in hidden_folders(home) if operation == "archive")
    for folder, name in _folders(home.trash):
        if not any(word in folder.name for word in ("~damaged", "~unproven", "~unfinished", "~leftover")):
            yield folder, name, True
    yield from ((folder, name, True) for operation, folder, name in hidden_folders(home) if operation == "purge")


def found_versions(home: Home) -> tuple[dict[int, FoundVersion], list[str]]:
    """Versions by id from models/ and, where they are not there, from the trash; and what lies there and is none."""
    found: dict[int, FoundVersion] = {}
    notes = []
    for folder, name, trashed in _places(home):
        version = _version_in(folder, name, trashed)
        if isinstance(version, str):
            notes.append(f"{folder.relative_to(home.root)} was left alone: {version}")
        elif version.record["id"] in found:
            other = found[version.record["id"]].folder
            notes.append(f"{folder.relative_to(home.root)} was left alone: {other.relative_to(home.root)} has its number")
        else:
            found[version.record["id"]] = version
    return found, notes


# --- originals and indexes -----------------------------------------------------------------------------------------


def found_files(home: Home) -> tuple[list[FoundFile], list[str]]:
    """Every stored original that its record.json describes; and folders that are none."""
    found, notes = [], []
    for folder in sorted(home.files.iterdir()):
        if folder.name.startswith("."):
            continue
        record = _read_json(folder / "record.json")
        names = [path.name for path in folder.iterdir() if path.name not in SIDECARS] if folder.is_dir() else []
        if record is None or record.get("sha256") != folder.name or len(names) != 1:
            notes.append(f"data/files/{folder.name[:12]}... was left alone: its record.json does not describe it")
            continue
        found.append(FoundFile(folder.name, {**record, "stored_as": names[0]}, folder.stat().st_mtime))
    return found, notes


def found_indexes(home: Home) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """The records of intact retrieval indexes by number; and what lies there and is none."""
    found, notes = {}, []
    for folder, name in _folders(home.indexes):
        number = parse_version_number(name)
        assert number is not None
        try:
            sums = read_sums(folder)
            sound = all(sha256_file(folder / item) == digest for item, digest in sums.items())
        except (OSError, ValueError):
            sound = False
        if not sound:
            notes.append(f"the index {name} was left alone: it does not match its SHA256SUMS")
            continue
        config = _read_json(folder / "config.json") or {}
        found[number] = {
            "files": sums,
            "documents": [item["sha256"] for item in config.get("documents", []) if "sha256" in item],
            "chunks": (config.get("counts") or {}).get("chunks", 0), "skipped": config.get("skipped", []),
            "embedded_new": 0, "reused": 0, "seconds": 0.0,
        }  # fmt: skip
    return found, notes

