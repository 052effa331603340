"""Readable views of the ledger in seed 002's shapes: `models/registry.json` (through TinyDB), `data/manifest.json`,
and `models/README.md` for people.

Views are never believed (law 8): each is rendered from the ledger, written durably, and noted in
`.heirloom/views.json` with the ledger sequence and hash it reflects. A stale or edited one is made again.
Not here: `status.json`, which the daemon publishes (`daemon/report.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from tinydb import TinyDB
from tinydb.storages import Storage
from tinydb.table import Document, Table

from guard.durable import json_bytes, sha256_bytes, sha256_file, write_bytes, write_json
from guard.failpoints import point
from guard.store.files import trained_in
from guard.store.keeper import Keeper
from guard.store.versions import all_versions, dependants, tips

__all__ = ["DurableStorage", "open_registry", "refresh", "render_manifest", "render_readme", "render_registry", "stale"]

_TABLE = "versions"


class DurableStorage(Storage):
    """TinyDB's door over our own durable writing: on disk the one table lies bare, keyed by version name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, dict[str, Any]] | None:
        try:
            return {_TABLE: orjson.loads(self.path.read_bytes())}
        except FileNotFoundError:
            return None

    def write(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        write_bytes(self.path, json_bytes(dict(data.get(_TABLE, {}))))


class _NamedTable(Table):
    document_id_class = str  # type: ignore[assignment]


class _Registry(TinyDB):
    table_class = _NamedTable


def open_registry(path: Path) -> Table:
    """The registry as a TinyDB table keyed by version name; queries are TinyDB's, `cache_size=0` so none is stale."""
    return _Registry(path, storage=DurableStorage).table(_TABLE, cache_size=0)


def render_registry(keeper: Keeper) -> dict[str, dict[str, Any]]:
    """Every version that is not in the trash, in seed 002's shape."""
    versions = [version for version in all_versions(keeper.ledger) if version.state != "trashed"]
    names = {version.id: version.name for version in all_versions(keeper.ledger)}
    active = {version.id for version in tips(keeper.ledger).values()}
    registry = {}
    for version in versions:
        data = version.record.get("data", [])
        metrics = version.record.get("metrics", {})
        registry[version.name] = {
            "name": version.name,
            "parent": names.get(version.parent_id) if version.parent_id else None,
            "training_data": [{"file": item["file"], "hash": item["sha256"], "tokens": item["tokens"]} for item in data],
            "created": version.created,
            "metrics": {"final_loss": metrics.get("final_loss"), "steps": metrics.get("steps")},
            "active": version.id in active,
            "line": version.line,
            "state": version.state,
        }
    return registry


def render_manifest(keeper: Keeper) -> dict[str, dict[str, Any]]:
    """Every admitted file, keyed by its SHA-256, in seed 002's shape."""
    ledger = keeper.ledger
    trained: dict[str, list[str]] = {}
    for row in ledger.rows("SELECT DISTINCT l.sha256, v.name FROM learnt l JOIN versions v ON v.id = l.version_id "
                           "WHERE l.count > 0 ORDER BY v.id"):  # fmt: skip
        trained.setdefault(row["sha256"], []).append(row["name"])
    waiting = {row[0]: row[1] for row in ledger.rows(
        "SELECT f.sha256, j.state FROM job_files f JOIN jobs j ON j.id = f.job_id WHERE j.state IN "
        "('queued', 'held', 'parked', 'preparing', 'training', 'committing', 'failed', 'quarantined') "
        "ORDER BY j.id")}  # fmt: skip
    indexed = _indexed_files(keeper)
    return {
        row["sha256"]: {
            "filename": row["name"], "hash": row["sha256"], "size_bytes": row["size_bytes"],
            "num_examples": row["examples"], "tokens_approx": row["tokens_approx"], "first_seen": row["first_seen"],
            "trained_in": trained.get(row["sha256"], []), "kind": row["kind"], "description": row["description"],
            "status": _file_status(row["sha256"], trained, waiting, indexed),
        }
        for row in ledger.rows("SELECT * FROM files ORDER BY first_seen, sha256")
    }  # fmt: skip


def _indexed_files(keeper: Keeper) -> set[str]:
    record = keeper.ledger.value("SELECT record FROM indexes WHERE state = 'active' ORDER BY id DESC LIMIT 1")
    return set(orjson.loads(record).get("documents", [])) if record else set()


def _file_status(sha256: str, trained: Mapping[str, object], waiting: Mapping[str, str], indexed: set[str]) -> str:
    if sha256 in waiting and waiting[sha256] not in ("failed", "quarantined"):
        return "parked" if waiting[sha256] == "parked" else "queued"
    if sha256 in trained:
        return "trained"
    if sha256 in indexed:
        return "indexed"
    return waiting.get(sha256, "registered")


def file_status(keeper: Keeper, sha256: str) -> str:
    """One file's status word, as in the manifest."""
    from guard.store.jobs import queued_with_file

    job = queued_with_file(keeper.ledger, sha256)
    names = trained_in(keeper.ledger, sha256)
    return _file_status(sha256, {sha256: names} if names else {}, {sha256: job.state} if job else {},
                        _indexed_files(keeper))  # fmt: skip


def render_readme(keeper: Keeper) -> str:
    """`models/README.md`: what each folder is, what came from it, and how not to lose it."""
    active = {version.id: line for line, version in tips(keeper.ledger).items()}
    lines = [
        "# The models of this Heirloom",
        "",
        "Every folder here is one immutable version of a language model. None of them is junk, however old: later",
        "versions were trained from earlier ones. Please do not move, rename or delete them by hand;",
        "`heirloom lineage` shows how they hang together and `heirloom delete` removes one safely.",
        "",
        "| version | from | learnt | state | what stands on it |",
        "|---|---|---|---|---|",
    ]
    versions = all_versions(keeper.ledger)
    names = {version.id: version.name for version in versions}
    for version in versions:
        learnt = ", ".join(_plain(item["file"]) for item in version.record.get("data", [])) or "nothing yet (base)"
        state = f"ACTIVE on {active[version.id]}" if version.id in active else version.state
        children = ", ".join(child.name for child in dependants(keeper.ledger, version.id)) or "-"
        parent = names.get(version.parent_id, "-") if version.parent_id else "-"
        lines.append(f"| {version.name} | {parent} | {learnt} | {state} | {children} |")
    return "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    """A file name for a Markdown table: no pipes, no line breaks, no control characters."""
    return "".join(char if char.isprintable() and char not in "|<>`" else "?" for char in name)


def _rendered(keeper: Keeper) -> dict[str, tuple[Path, bytes]]:
    home = keeper.home
    return {
        "registry": (home.registry, json_bytes(render_registry(keeper))),
        "manifest": (home.manifest, json_bytes(render_manifest(keeper))),
        "readme": (home.models / "README.md", render_readme(keeper).encode("utf-8", "backslashreplace")),
    }


def refresh(keeper: Keeper) -> None:
    """Make every view again from the ledger; unchanged ones are not rewritten. The event export is made durable too."""
    keeper.ledger.sync_export()
    sequence = keeper.ledger.sequence()
    notes = {}
    for name, (path, data) in _rendered(keeper).items():
        point("view.rendered")
        if not path.exists() or path.read_bytes() != data:
            if name == "registry":
                _write_registry(path, orjson.loads(data))
            else:
                write_bytes(path, data)
        point("view.written")
        notes[name] = {"sequence": sequence, "sha256": sha256_bytes(data)}
    write_json(keeper.home.state / "views.json", notes)
    point("view.noted")


def _write_registry(path: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the whole registry through TinyDB's own door, in one durable write."""
    documents = {name: dict(record) for name, record in records.items()}
    DurableStorage(path).write({_TABLE: documents})
    table = open_registry(path)
    assert len(table) == len(documents) and all(isinstance(item, Document) for item in table)


def stale(keeper: Keeper) -> list[str]:
    """Which views do not show what the ledger says: missing, edited or out of date."""
    problems = []
    for path, data in _rendered(keeper).values():
        if not path.exists():
            problems.append(f"{path.relative_to(keeper.home.root)} is missing")
        elif sha256_file(path) != sha256_bytes(data):
            problems.append(f"{path.relative_to(keeper.home.root)} does not show what the ledger says")
    return problems
