"""What becomes of a drop once its bytes are known: admitted and queued, admitted only, or a duplicate.

The decision reads the ledger and is written into the drop before anything moves, so that recovery finishes the same
decision. Not here: whether the bytes are sound (`guard/checks/identify.py` said so before).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from guard.bitmap import unpack_bitmap
from guard.durable import sha256_bytes
from guard.errors import Damage
from guard.failpoints import point
from guard.names import safe_name, slugify
from guard.store.evaluation import record_set
from guard.store.files import get_file, trained_in, with_sidecars
from guard.store.indexes import link_documents
from guard.store.intake import admit, discard, drop_folder, original_is_sound, set_drop
from guard.store.jobs import add_job, queued_with_file
from guard.store.keeper import Keeper
from guard.store.learnt import Novelty, judge_novelty, read_sidecar
from guard.store.versions import DEFAULT_LINE, line_tip

__all__ = ["Decision", "decide", "finish_admission", "queue_index"]

OBJECTIVES = {"pretrain": "pretrain", "sft": "sft"}


@dataclass(frozen=True)
class Decision:
    """`verdict`: admit or duplicate. `queue`: train, index or none."""

    verdict: str
    queue: str
    reason: str
    line: str = DEFAULT_LINE
    slug: str = "data"
    recipe: str = ""
    priority: int = 0
    new_examples: int = 0
    known_examples: int = 0
    untouchable_examples: int = 0
    """In a registered evaluation set, and so kept out; as every count here an estimate, made again at job start."""


def decide(keeper: Keeper, record: Mapping[str, Any], options: Mapping[str, Any], sidecar: Path) -> Decision:
    """Judge sound bytes against everything known. `options`: line, recipe, priority, queue (False: register only)."""
    known = get_file(keeper.ledger, record["sha256"])
    if options.get("untouchable"):
        return _decide_evaluation(record)
    if record["kind"] == "docs":
        return _decide_document(keeper, record, known is not None)
    line = str(options.get("line") or DEFAULT_LINE)
    common: dict[str, Any] = {"line": line, "slug": str(options.get("slug") or slugify(Path(str(record["name"])).stem)),
              "recipe": str(options.get("recipe") or ""), "priority": int(options.get("priority") or 0)}  # fmt: skip
    job = queued_with_file(keeper.ledger, record["sha256"])
    if known and not original_is_sound(keeper.home, known.sha256, known):
        return Decision("admit", "none" if job else "train", "replaces the stored copy, which was damaged", **common)
    if job:
        return Decision("duplicate", "none", f"the same bytes are already in job {job.id} ({job.state})", **common)
    tip = line_tip(keeper.ledger, line) or line_tip(keeper.ledger, DEFAULT_LINE)
    novelty = judge_novelty(keeper, _touchable(record, read_sidecar(sidecar)), tip.id if tip else None,
                            OBJECTIVES[record["kind"]])  # fmt: skip
    return _decide_training(keeper, record, options, novelty, common)


def _touchable(record: Mapping[str, Any], fingerprints: list[bytes]) -> list[bytes]:
    """The fingerprints of a file less those of examples that are in a registered evaluation set."""
    held = record.get("untouchable") or {}
    if not held.get("examples"):
        return fingerprints
    outside = set(unpack_bitmap(held["rows"]))
    return [fingerprint for ordinal, fingerprint in enumerate(fingerprints) if ordinal not in outside]


def _decide_evaluation(record: Mapping[str, Any]) -> Decision:
    rows = int((record.get("evaluation") or {}).get("rows") or 0)
    return Decision("admit", "none", f"registered as an evaluation set: its {rows:,} rows are never trained from now on")


def _decide_training(
    keeper: Keeper, record: Mapping[str, Any], options: Mapping[str, Any], novelty: Novelty, common: dict[str, Any]
) -> Decision:
    held = record.get("untouchable") or {}
    count = int(held.get("examples") or 0)
    counts: dict[str, Any] = {"new_examples": novelty.new, "known_examples": novelty.known, "untouchable_examples": count}
    names = ", ".join(held.get("sets") or ())
    kept_out = f"in the evaluation set{'s' if len(held.get('sets') or ()) > 1 else ''} {names}: kept out"
    if count and count == record["examples"]:
        reason = f"all {count:,} examples are {kept_out}, and nothing is left to train"
        return Decision("admit", "none", reason, **common, **counts)
    out = f", {count:,} of its rows are {kept_out}" if count else ""
    wanted = "train" if options.get("queue", True) else "none"
    if novelty.new == 0 and novelty.known:
        where = trained_in(keeper.ledger, record["sha256"])
        what = f"trained in {', '.join(where)}" if where else "every example in it was learnt from other files"
        return Decision("duplicate", "none", f"nothing new for {common['line']}: {what}{out}", **common, **counts)
    if novelty.new == 0:
        rest = "all" if not count else "the other"
        reason = f"{rest} {novelty.held_out} examples are held out for judging; nothing is left to train{out}"
        return Decision("admit", "none", reason, **common, **counts)
    overlap = f", {novelty.known:,} were learnt before" if novelty.known else ""
    return Decision("admit", wanted, f"{novelty.new:,} new examples{overlap}{out}", **common, **counts)


def _decide_document(keeper: Keeper, record: Mapping[str, Any], known: bool) -> Decision:
    if known and keeper.ledger.value("SELECT current_doc FROM files WHERE sha256 = ?", (record["sha256"],)):
        name = keeper.ledger.value("SELECT name FROM files WHERE sha256 = ?", (record["sha256"],))
        return Decision("duplicate", "none", f"the same document is in the index already, as {name}")
    return Decision("admit", "index", "goes into the next index")


def finish_admission(keeper: Keeper, drop: sqlite3.Row, record: Mapping[str, Any], decision: Decision) -> int | None:
    """Store the bytes, record the file and queue its job; returns the job's id. Idempotent."""
    stored = {**record, "stored_as": safe_name(str(record["name"])), "decision": asdict(decision)}
    admit(keeper, drop["id"], stored)
    stored = with_sidecars(keeper.home, stored)
    job = _record(keeper, drop, stored, decision)
    point("admit.recorded")
    if record["kind"] == "docs":
        link_documents(keeper)
    discard(keeper, drop["id"])
    point("admit.cleared")
    return job


def _record(keeper: Keeper, drop: sqlite3.Row, record: dict[str, Any], decision: Decision) -> int | None:
    ledger = keeper.ledger
    options = orjson.loads(drop["options"])
    keys = _evaluation_keys(keeper, drop["id"], record) if options.get("untouchable") else b""
    with ledger.transaction():
        if get_file(ledger, record["sha256"]) is None:
            ledger.run(
                "INSERT INTO files (sha256, name, kind, size_bytes, examples, tokens_approx, description, first_seen, record) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (record["sha256"], record["name"], record["kind"], record["size_bytes"], record["examples"],
                 record["tokens_approx"], str(options.get("description") or ""), ledger.clock.utc(),
                 orjson.dumps(record).decode()))  # fmt: skip
            # What record.json beside the bytes does not say.
            ledger.event("file.admitted", str(record["name"]), sha256=record["sha256"], kind=record["kind"],
                         stored_as=record["stored_as"], dropped_as=record.get("dropped_as"), sidecars=record["sidecars"],
                         description=str(options.get("description") or ""))  # fmt: skip
        elif record["kind"] != "docs":
            _become_trainable(keeper, record)
        if record["kind"] == "docs":
            _make_current(keeper, record)
        if options.get("untouchable"):
            record_set(keeper, record["sha256"], str(record["name"]), int(record["evaluation"]["rows"]), keys)
        job = _queue(keeper, record, decision)
        set_drop(keeper, drop["id"], "admitted" if job else "registered", decision.reason)
    return job


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
        return add_job(keeper.ledger, kind="train", stage=record["kind"], line=decision.line, slug=decision.slug,
                       files=[record["sha256"]], request=request, priority=decision.priority)  # fmt: skip
    return None


def queue_index(keeper: Keeper) -> int:
    """Queue one rebuild of the index inside the current transaction; a waiting one is enough for many documents."""
    waiting = keeper.ledger.value("SELECT id FROM jobs WHERE kind = 'index' AND state IN ('queued', 'held') LIMIT 1")
    if waiting:
        return int(waiting)
    return add_job(keeper.ledger, kind="index", stage="docs", line="docs", slug="index")


def source_of(drop: sqlite3.Row) -> Path:
    """Where a drop came from."""
    return Path(os.fsdecode(drop["source"]))
