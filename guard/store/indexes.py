"""Retrieval indexes as the ledger knows them: which documents are current, and the switch to a new index.

An index folder is immutable and derived: it can always be made again from the stored documents. The switch is an
intent, a rename, a transaction and then the `latest` link, so that a reader sees the old index or the new one.
Not here: building one (`trainer/retrieval/`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from guard.durable import fsync_tree, make_dir, remove_tree, rename_new, replace_link, seal_tree, write_text
from guard.errors import Damage
from guard.failpoints import point
from guard.folders import sync_parents
from guard.names import index_name, parse_version_number, safe_name
from guard.store.birth import hash_folder
from guard.store.jobs import find_job, set_job
from guard.store.keeper import Keeper
from guard.store.views import refresh

__all__ = [
    "active_index", "announce_index", "current_documents", "finish_index", "index_high_water", "link_documents",
    "next_index_number",
]  # fmt: skip


def current_documents(keeper: Keeper) -> list[dict[str, str]]:
    """The documents the next index is made of: sha256, name, path of the stored bytes, and where it was dropped."""
    rows = keeper.ledger.rows("SELECT * FROM files WHERE current_doc = 1 ORDER BY name, sha256")
    documents = []
    for row in rows:
        record = orjson.loads(row["record"])
        path = keeper.home.files / row["sha256"] / str(record["stored_as"])
        documents.append({"sha256": row["sha256"], "name": row["name"], "path": str(path),
                          "dropped_as": str(record.get("dropped_as", row["name"]))})  # fmt: skip
    return documents


def active_index(keeper: Keeper) -> dict[str, Any] | None:
    """The active index's record with its `id` and `name`, or None."""
    row = keeper.ledger.row("SELECT * FROM indexes WHERE state = 'active' ORDER BY id DESC LIMIT 1")
    return {**orjson.loads(row["record"]), "id": row["id"], "name": index_name(row["id"])} if row else None


def index_high_water(keeper: Keeper) -> int:
    """The highest index number ever given, from every place that knows one: a number means one index for ever."""
    try:
        in_file = int(keeper.home.index_high_water_file.read_text("ascii"))
    except (OSError, ValueError):
        in_file = 0
    place = keeper.home.indexes
    on_disk = [parse_version_number(path.name) or 0 for path in place.iterdir()] if place.is_dir() else []
    recorded = keeper.ledger.value("SELECT coalesce(max(id), 0) FROM indexes")
    return max(in_file, int(keeper.ledger.meta("index_high_water") or 0), recorded, *on_disk, 0)


def next_index_number(keeper: Keeper) -> int:
    """One above every index ever made."""
    return index_high_water(keeper) + 1


def announce_index(keeper: Keeper, job: int, number: int, record: Mapping[str, Any]) -> None:
    """Write the intent to make the built index number `number` the active one; the number is never given again.

    The file is written first: a crash in between costs a number and never repeats one.
    """
    mark = max(number, index_high_water(keeper))
    write_text(keeper.home.index_high_water_file, f"{mark}\n")
    point("index.marked")
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("index_high_water", str(mark))
        plan = {**find_job(keeper.ledger, job).plan, "index": {"id": number, "record": dict(record)}}
        set_job(keeper.ledger, job, "committing", plan=plan, output_id=number)
    point("index.intended")


def finish_index(keeper: Keeper, number: int) -> str:
    """Bring an announced index to its end from wherever it stands; returns its name. Raises Damage."""
    job = find_job(keeper.ledger, number)
    plan = job.plan["index"]
    name = index_name(plan["id"])
    target = keeper.home.indexes / name
    staged = keeper.home.staging_of(job.id) / "out"
    if not target.exists():
        if not staged.is_dir():
            raise Damage(f"the built index {name} has vanished from staging", subject=str(staged),
                         hint="heirloom queue retry ID builds it again")  # fmt: skip
        fsync_tree(staged)
        point("index.synced")
        rename_new(staged, target)
    else:
        sync_parents(target, staged)
    if hash_folder(target) != plan["record"]["files"]:
        raise Damage(f"the index {name} is not what the child built", subject=str(target), hint="heirloom verify --all")
    point("index.renamed")
    _record(keeper, job.id, plan)
    point("index.recorded")
    replace_link(keeper.home.indexes / "latest", name)
    point("index.linked")
    seal_tree(target)
    refresh(keeper)
    remove_tree(keeper.home.staging_of(job.id))
    point("index.cleaned")
    return name


def _record(keeper: Keeper, job: int, plan: Mapping[str, Any]) -> None:
    ledger = keeper.ledger
    if ledger.row("SELECT 1 FROM indexes WHERE id = ?", (plan["id"],)):
        return
    with ledger.transaction():
        ledger.run("UPDATE indexes SET state = 'kept' WHERE state = 'active'")
        ledger.run("INSERT INTO indexes VALUES (?, 'active', ?, ?)",
                   (plan["id"], ledger.clock.utc(), orjson.dumps(plan["record"]).decode()))  # fmt: skip
        ledger.event("index.switched", index_name(plan["id"]), documents=len(plan["record"]["documents"]))
        set_job(ledger, job, "done")


def link_documents(keeper: Keeper, admitted: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Make `data/docs/` show the current documents as links to the stored originals; links are all it holds.

    `admitted`: records of documents that just became current: only their links are looked at, and none is missed.
    """
    docs, wanted = keeper.home.docs, {}
    if admitted is None:
        for item in current_documents(keeper):
            wanted[safe_name(item["dropped_as"])] = os.path.relpath(item["path"], docs)
    for record in admitted or ():
        stored = keeper.home.files / str(record["sha256"]) / str(record["stored_as"])
        wanted[safe_name(str(record.get("dropped_as", record["name"])))] = os.path.relpath(stored, docs)
    make_dir(docs)
    for path in docs.iterdir() if admitted is None else [docs / name for name in wanted]:
        if path.is_symlink() and wanted.get(path.name) != os.readlink(path):
            path.unlink()
            point("documents.unlinked")
    for name, target in wanted.items():
        if not (docs / name).is_symlink():
            replace_link(docs / name, target)
            point("documents.linked")
