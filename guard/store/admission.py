"""Admission: a drop that was judged is stored, recorded and queued, together with others of its burst.

The decision is written into the drop before anything moves, so that recovery finishes the same decision. Not here: the
decision itself (`decision.py`), and how the bytes are moved (`placing.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from guard.checks.kinds import stage_of
from guard.durable import sha256_bytes
from guard.errors import Damage, HeirloomError, is_environment
from guard.failpoints import point
from guard.folders import Folders, together
from guard.store.decision import Decision
from guard.store.evaluation import record_set
from guard.store.files import get_file, with_sidecars
from guard.store.indexes import link_documents
from guard.store.intake import discard, drop_folder, set_drop
from guard.store.jobs import add_job
from guard.store.keeper import Keeper
from guard.store.placing import intend_admission, make_durable, put_in_place, stored_name
from guard.store.standing import settle_damage

__all__ = ["Admission", "finish_admission", "finish_admissions", "queue_index"]


@dataclass(frozen=True)
class Admission:
    """A drop that was judged: its row, what was found in it, and what becomes of it."""

    drop: sqlite3.Row
    record: Mapping[str, Any]
    decision: Decision
    synced: bool | None = None
    """Whether the reader made the bytes and what it found durable; None when it was not asked to."""

    @property
    def stored(self) -> dict[str, Any]:
        """The record as it is kept: with the name the bytes are stored under and the decision."""
        return {**self.record, "stored_as": stored_name(self.record), "decision": asdict(self.decision)}


def finish_admission(keeper: Keeper, drop: sqlite3.Row, record: Mapping[str, Any], decision: Decision) -> int | None:
    """Store the bytes, record the file and queue its job; returns the job's id. Idempotent."""
    job, problem = finish_admissions(keeper, [Admission(drop, record, decision)])[0]
    if problem is not None:
        raise problem
    return job


def finish_admissions(
    keeper: Keeper, admissions: Sequence[Admission]
) -> list[tuple[int | None, OSError | HeirloomError | None]]:
    """`finish_admission` for drops of different bytes, with two transactions in all; beside each job what kept it back."""
    kept_back: dict[int, OSError | HeirloomError] = {}

    def durable(item: Admission) -> None:
        try:
            make_durable(keeper, item.drop["id"], item.synced)
        except (OSError, HeirloomError) as error:
            kept_back[item.drop["id"]] = error

    together(durable, admissions)
    sound = [item for item in admissions if item.drop["id"] not in kept_back]
    jobs = _finish(keeper, sound, kept_back)
    return [(jobs.get(item.drop["id"]), kept_back.get(item.drop["id"])) for item in admissions]


def _finish(
    keeper: Keeper, admissions: Sequence[Admission], kept_back: dict[int, OSError | HeirloomError]
) -> dict[int, int | None]:
    """Store and record drops that are durable; returns the job of each, and puts down what kept one back."""
    stored = [item.stored for item in admissions]
    with keeper.ledger.transaction():
        for item, record in zip(admissions, stored, strict=True):
            intend_admission(keeper, item.drop["id"], record)
    point("admit.intended")
    later, placed = Folders(), []
    for item, record in zip(admissions, stored, strict=True):
        try:
            put_in_place(keeper, item.drop["id"], record, later)
            placed.append((item, record))
        except (OSError, HeirloomError) as error:
            kept_back[item.drop["id"]] = error
    later.sync()
    with keeper.ledger.transaction():
        jobs = {item.drop["id"]: _record(keeper, item.drop, with_sidecars(keeper.home, record), item.decision)
                for item, record in placed}  # fmt: skip
    point("admit.recorded")
    _clear_away(keeper, [item for item, _record in placed], later)
    return jobs


def _clear_away(keeper: Keeper, admitted: Sequence[Admission], later: Folders) -> None:
    """Link documents and remove what is left of the drops. They are admitted: a full disk here is nobody's fault of theirs.

    Links are made again by the next start and before every index, and folders of closed drops are cleared by recovery.
    """
    try:
        documents = [get_file(keeper.ledger, str(item.record["sha256"])) for item in admitted if item.record["kind"] == "docs"]
        if documents:
            link_documents(keeper, [file.record for file in documents if file is not None])
        for item in admitted:
            discard(keeper, item.drop["id"], later)
            point("admit.cleared")
        later.sync()
    except OSError as error:
        if not is_environment(error):
            raise


def _record(keeper: Keeper, drop: sqlite3.Row, record: dict[str, Any], decision: Decision) -> int | None:
    ledger = keeper.ledger
    options = orjson.loads(drop["options"])
    description = str(options.get("description") or record.get("card") or "")
    keys = _evaluation_keys(keeper, drop["id"], record) if options.get("untouchable") else b""
    with ledger.transaction():
        if get_file(ledger, record["sha256"]) is None:
            ledger.run(
                "INSERT INTO files (sha256, name, kind, size_bytes, examples, tokens_approx, description, first_seen, record) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (record["sha256"], record["name"], record["kind"], record["size_bytes"], record["examples"],
                 record["tokens_approx"], description, ledger.clock.utc(),
                 orjson.dumps(record).decode()))  # fmt: skip
            # What record.json beside the bytes does not say.
            ledger.event("file.admitted", str(record["name"]), sha256=record["sha256"], kind=record["kind"],
                         stored_as=record["stored_as"], dropped_as=record.get("dropped_as"), sidecars=record["sidecars"],
                         description=description)  # fmt: skip
        else:
            _note_mended(keeper, record, decision)
            if record["kind"] != "docs":
                _become_trainable(keeper, record)
        if record["kind"] == "docs":
            _make_current(keeper, record)
        if options.get("untouchable"):
            record_set(keeper, record["sha256"], str(record["name"]), int(record["evaluation"]["rows"]), keys)
        job = _queue(keeper, record, decision)
        set_drop(keeper, drop["id"], "admitted" if job else "registered", decision.reason, name=drop["name"])
    return job


def _note_mended(keeper: Keeper, record: Mapping[str, Any], decision: Decision) -> None:
    """Sidecars that were made anew are known by their new hashes; a lost ledger has them from the event."""
    if not decision.mends:
        return
    fresh = {name: digest for name, digest in record["sidecars"].items() if name in decision.mends}
    file = get_file(keeper.ledger, record["sha256"])
    assert file is not None, "only a known file is mended"
    sidecars = {**(file.record.get("sidecars") or {}), **fresh}
    settle_damage(keeper, f"original {file.sha256}")
    keeper.ledger.run("UPDATE files SET record = json_set(record, '$.sidecars', json(?)) WHERE sha256 = ?",
                      (orjson.dumps(sidecars).decode(), record["sha256"]))  # fmt: skip
    keeper.ledger.event("file.mended", str(record["name"]), sha256=record["sha256"], parts=list(decision.mends),
                        sidecars=sidecars, reason=decision.reason)  # fmt: skip


def _evaluation_keys(keeper: Keeper, drop: int, record: Mapping[str, Any]) -> bytes:
    """What the reader made of an evaluation set. Raises Damage when it is not that any more."""
    path = drop_folder(keeper, drop) / "untouchable.keys"
    keys = path.read_bytes() if path.is_file() else b""
    if sha256_bytes(keys) != record["evaluation"]["keys_sha256"]:
        raise Damage(f"the keys of the evaluation set {record['name']} are not what the reader wrote", subject=str(path),
                     hint="heirloom register FILE --untouchable once more")  # fmt: skip
    return keys


def _become_trainable(keeper: Keeper, record: Mapping[str, Any]) -> None:
    """Bytes that were only a document until now: the row tells of their examples from here on."""
    changes = {key: record[key] for key in ("kind", "examples", "tokens_approx", "sidecars")}
    keeper.ledger.run(
        "UPDATE files SET kind = ?, examples = ?, tokens_approx = ?, record = json_patch(record, ?) "
        "WHERE sha256 = ? AND kind = 'docs'",
        (changes["kind"], changes["examples"], changes["tokens_approx"], orjson.dumps(changes).decode(),
         record["sha256"]))  # fmt: skip
    keeper.ledger.event("file.trainable", str(record["name"]), sha256=record["sha256"], sidecars=record["sidecars"])


def _make_current(keeper: Keeper, record: Mapping[str, Any]) -> None:
    """The newest document dropped under a path replaces the older one in the index; both stay stored."""
    dropped_as = record.get("dropped_as", record["name"])
    keeper.ledger.run("UPDATE files SET current_doc = 0 WHERE current_doc = 1 AND json_extract(record, '$.dropped_as') = ?",
                      (dropped_as,))  # fmt: skip
    keeper.ledger.run("UPDATE files SET current_doc = 1, record = json_set(record, '$.dropped_as', ?) WHERE sha256 = ?",
                      (dropped_as, record["sha256"]))  # fmt: skip
    keeper.ledger.event("document.current", str(dropped_as), sha256=record["sha256"])


def _queue(keeper: Keeper, record: Mapping[str, Any], decision: Decision) -> int | None:
    if decision.queue == "index":
        return queue_index(keeper)
    if decision.queue == "train":
        request = {"recipe": decision.recipe, "origin": "drop"}
        request |= {key: value for key in ("overrides", "max_steps") if (value := getattr(decision, key))}
        return add_job(keeper.ledger, kind="train", stage=stage_of(str(record["kind"])), line=decision.line, slug=decision.slug,
                       files=[record["sha256"]], request=request, priority=decision.priority)  # fmt: skip
    return None


def queue_index(keeper: Keeper) -> int:
    """Queue one rebuild of the index inside the current transaction; a waiting one is enough for many documents."""
    waiting = keeper.ledger.value("SELECT id FROM jobs WHERE kind = 'index' AND state IN ('queued', 'held') LIMIT 1")
    if waiting:
        return int(waiting)
    return add_job(keeper.ledger, kind="index", stage="docs", line="docs", slug="index")
