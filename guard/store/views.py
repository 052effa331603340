"""Readable views of the ledger in seed 002's shapes: `models/registry.json` (through TinyDB), `data/manifest.json`,
and `models/README.md` for people.

Views are never believed (law 8): each is rendered from the ledger, written durably, and noted in
`.heirloom/views.json` with the ledger sequence and hash it reflects. A stale or edited one is made again.
Not here: `status.json`, which the daemon publishes (`daemon/report.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from tinydb import TinyDB
from tinydb.storages import Storage
from tinydb.table import Table

from guard.durable import json_bytes, sha256_bytes, sha256_file, write_bytes, write_json
from guard.failpoints import point
from guard.seal import open_shelf
from guard.store.files import trained_in
from guard.store.keeper import Keeper

__all__ = [
    "DurableStorage", "open_registry", "outdated", "refresh", "render_manifest", "render_readme", "render_registry", "stale",
]  # fmt: skip

_TABLE = "versions"
_MARKUP = frozenset("|<>`")


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


def _states(keeper: Keeper) -> dict[int, str]:
    return {row[0]: row[1] for row in keeper.ledger.rows("SELECT id, state FROM versions ORDER BY id")}


def _active(keeper: Keeper) -> dict[int, str]:
    """Version -> the line that it is the tip of."""
    return {row[0]: row[1] for row in keeper.ledger.rows("SELECT tip_id, name FROM lines ORDER BY name")}


def _registry_facts(keeper: Keeper) -> dict[str, tuple[Any, ...]]:
    """Every version that is in models/ or comes back from the vault by itself: (part, parent's name, active, state)."""
    parts, active = keeper.views.sealed(keeper.ledger), _active(keeper)
    return {
        parts[number]["name"]: (parts[number], _name(parts, parts[number]["parent_id"]), number in active, state)
        for number, state in _states(keeper).items() if state not in ("trashed", "purged")
    }  # fmt: skip


def _name(parts: Mapping[int, Mapping[str, Any]], number: int | None) -> str | None:
    return parts[number]["name"] if number else None


def _registry_entry(facts: tuple[Any, ...]) -> dict[str, Any]:
    part, parent, active, state = facts
    return {"name": part["name"], "parent": parent, "training_data": part["data"], "created": part["created"],
            "metrics": part["metrics"], "active": active, "line": part["line"], "state": state}  # fmt: skip


def render_registry(keeper: Keeper) -> dict[str, dict[str, Any]]:
    """The registry in seed 002's shape, keyed by name, ascending by id."""
    return {name: _registry_entry(facts) for name, facts in _registry_facts(keeper).items()}


def _manifest_facts(keeper: Keeper) -> dict[str, tuple[Any, ...]]:
    """Every admitted file: (its row, names of the versions that learnt of it, its status)."""
    ledger = keeper.ledger
    trained, indexed = keeper.views.trained(ledger), _indexed_files(keeper)
    waiting = {row[0]: row[1] for row in ledger.rows(
        "SELECT f.sha256, j.state FROM job_files f JOIN jobs j ON j.id = f.job_id WHERE j.state IN "
        "('queued', 'held', 'parked', 'preparing', 'training', 'committing', 'failed', 'quarantined') "
        "ORDER BY j.id")}  # fmt: skip
    return {sha256: (row, trained.get(sha256, ()), _file_status(sha256, trained, waiting, indexed))
            for sha256, row in keeper.views.files(ledger).items()}  # fmt: skip


def _manifest_entry(facts: tuple[Any, ...]) -> dict[str, Any]:
    row, names, status = facts
    return {"filename": row["name"], "hash": row["sha256"], "size_bytes": row["size_bytes"], "num_examples": row["examples"],
            "tokens_approx": row["tokens_approx"], "first_seen": row["first_seen"], "trained_in": list(names),
            "kind": row["kind"], "description": row["description"], "status": status}  # fmt: skip


def render_manifest(keeper: Keeper) -> dict[str, dict[str, Any]]:
    """The manifest in seed 002's shape, keyed by SHA-256."""
    return {sha256: _manifest_entry(facts) for sha256, facts in _manifest_facts(keeper).items()}


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


_README = (
    "# The models of this Heirloom\n\n"
    "Every folder here is one immutable version of a language model. None of them is junk, however old: later\n"
    "versions were trained from earlier ones. Please do not move, rename or delete them by hand;\n"
    "`heirloom lineage` shows how they hang together and `heirloom delete` removes one safely.\n\n"
    "| version | from | learnt | state | what stands on it |\n|---|---|---|---|---|\n"
)


def render_readme(keeper: Keeper) -> bytes:
    """`models/README.md`: what each folder is, what came from it, and how not to lose it."""
    parts, active, states = keeper.views.sealed(keeper.ledger), _active(keeper), _states(keeper)
    heirs: dict[int, list[str]] = {}
    for row in keeper.ledger.rows("SELECT parent_id, id FROM versions WHERE parent_id IS NOT NULL "
                                  "UNION SELECT input_id, version_id FROM version_inputs ORDER BY 1, 2"):  # fmt: skip
        if states[row[1]] not in ("trashed", "purged"):
            heirs.setdefault(row[0], []).append(parts[row[1]]["name"])
    facts = {
        parts[number]["name"]: (
            _name(parts, parts[number]["parent_id"]) or "-", parts[number]["files"],
            f"ACTIVE on {active[number]}" if number in active else state, tuple(heirs.get(number, ["-"])))
        for number, state in states.items()
    }  # fmt: skip
    return _README.encode() + b"".join(keeper.views.readme.texts(facts, _readme_lines))


def _readme_lines(entries: Mapping[str, tuple[Any, ...]]) -> Iterator[bytes]:
    for name, (parent, files, shown, heirs) in entries.items():
        learnt = ", ".join(map(_plain, files)) or "nothing yet (base)"
        yield f"| {name} | {parent} | {learnt} | {shown} | {', '.join(heirs)} |\n".encode("utf-8", "backslashreplace")


def _plain(name: str) -> str:
    """A file name for a Markdown table: no pipes, no line breaks, no control characters."""
    if name.isprintable() and not _MARKUP & set(name):
        return name
    return "".join(char if char.isprintable() and char not in _MARKUP else "?" for char in name)


def _rendered(keeper: Keeper) -> dict[str, tuple[Path, bytes]]:
    home = keeper.home
    return {
        "registry": (home.registry, keeper.views.registry.json(_registry_facts(keeper), _registry_entry)),
        "manifest": (home.manifest, keeper.views.manifest.json(_manifest_facts(keeper), _manifest_entry)),
        "readme": (home.models / "README.md", render_readme(keeper)),
    }


def refresh(keeper: Keeper) -> bool:
    """Make every view again from the ledger; unchanged ones are not rewritten. The event export is made durable too.

    Returns whether any view was not what the ledger says.
    """
    keeper.ledger.sync_export()
    sequence = keeper.ledger.sequence()
    notes, changed = {}, False
    for name, (path, data) in _rendered(keeper).items():
        point("view.rendered")
        if not path.exists() or path.read_bytes() != data:
            changed = True
            with open_shelf(keeper.home.models):
                if name == "registry":
                    _write_registry(path, data, len(keeper.views.registry))
                else:
                    write_bytes(path, data)
        point("view.written")
        notes[name] = {"sequence": sequence, "sha256": sha256_bytes(data), **_stamp(path)}
    write_json(keeper.home.state / "views.json", notes)
    point("view.noted")
    return changed


def _stamp(path: Path) -> dict[str, int]:
    facts = path.stat()
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def outdated(keeper: Keeper) -> bool:
    """Whether any view may not show what the ledger says, told in a moment: by the sequence it was made at, its size and
    time. `stale` reads and compares; a home of 50,000 files cannot do that at every command.
    """
    try:
        notes = orjson.loads((keeper.home.state / "views.json").read_bytes())
        wanted, sequence = {"registry", "manifest", "readme"}, keeper.ledger.sequence()
        return notes.keys() != wanted or any(
            note["sequence"] != sequence or not _stamp(_path(keeper, name)).items() <= note.items()
            for name, note in notes.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return True


def _path(keeper: Keeper, name: str) -> Path:
    home = keeper.home
    return {"registry": home.registry, "manifest": home.manifest, "readme": home.models / "README.md"}[name]


def _write_registry(path: Path, data: bytes, count: int) -> None:
    """Replace the registry in one durable write, and count its entries through TinyDB's own door."""
    write_bytes(path, data)
    assert len(open_registry(path)) == count


def stale(keeper: Keeper) -> list[str]:
    """Which views do not show what the ledger says: missing, edited or out of date."""
    problems = []
    for path, data in _rendered(keeper).values():
        if not path.exists():
            problems.append(f"{path.relative_to(keeper.home.root)} is missing")
        elif sha256_file(path) != sha256_bytes(data):
            problems.append(f"{path.relative_to(keeper.home.root)} does not show what the ledger says")
    return problems
