"""What becomes of a drop once its bytes are known: admitted and queued, admitted only, or a duplicate.

The decision reads the ledger and is written into the drop before anything moves, so that recovery finishes the same
decision. Not here: whether the bytes are sound (`guard/checks/identify.py` said so before).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from guard.durable import Folders, sha256_bytes
from guard.errors import Damage, HeirloomError, is_environment
from guard.failpoints import point
from guard.names import safe_name, slugify
from guard.store.estimate import tip_of, touchable
from guard.store.evaluation import record_set
from guard.store.files import StoredFile, get_file, trained_in, with_sidecars
from guard.store.indexes import active_index, link_documents
from guard.store.intake import discard, drop_folder, set_drop
from guard.store.jobs import add_job, queued_with_file
from guard.store.keeper import Keeper
from guard.store.known import sidecar_bytes
from guard.store.learnt import Novelty, judge_novelty
from guard.store.originals import damaged_parts, mendable_parts
from guard.store.placing import intend_admission, make_durable, put_in_place
from guard.store.standing import settle_damage
from guard.store.versions import DEFAULT_LINE

__all__ = ["Admission", "Decision", "decide", "finish_admission", "finish_admissions", "queue_index"]

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
    overrides: dict[str, Any] = field(default_factory=dict)
    max_steps: int = 0
    mends: Sequence[str] = ()
    """Parts of the stored original that were damaged and are made good by this arrival."""
    untouchable_examples: int = 0
    """In a registered evaluation set, and so kept out; as every count here an estimate, made again at job start."""


def decide(keeper: Keeper, record: Mapping[str, Any], options: Mapping[str, Any], sidecar: Path,
           novelty: Novelty | None = None) -> Decision:  # fmt: skip
    """Judge sound bytes against everything known. `options`: line, recipe, priority, queue (False: register only).

    `novelty`: what is new in the file, where the reader said so already. A known file whose stored copy is damaged is
    mended, and beside that gets the verdict it would get anyway.
    """
    known = get_file(keeper.ledger, record["sha256"])
    if options.get("untouchable"):
        return _decide_evaluation(record)
    damaged = damaged_parts(keeper.home, known) if known else []
    mends = mendable_parts(damaged, known, record, sidecar) if known and damaged else []
    if record["kind"] == "docs":
        usual = _decide_document(keeper, known, mends)
    else:
        usual = _decide_examples(keeper, record, options, sidecar, mends, novelty)
    if not damaged:
        return usual
    left = [part for part in damaged if part not in mends]
    told = [f"mended: the stored copy was damaged ({', '.join(mends)}){'' if left else ' and is whole again'}" if mends else "",
            f"the stored copy stays damaged ({', '.join(left)}): {_LEFT}" if left else "", usual.reason]  # fmt: skip
    return replace(usual, verdict="admit" if mends else usual.verdict, mends=mends, reason="; ".join(filter(None, told)))


_LEFT = "register it again as the kind it was admitted as, or copy it back from a vault"


def _decide_examples(
    keeper: Keeper, record: Mapping[str, Any], options: Mapping[str, Any], sidecar: Path, mends: Sequence[str],
    novelty: Novelty | None,
) -> Decision:  # fmt: skip
    line = str(options.get("line") or DEFAULT_LINE)
    common: dict[str, Any] = {"line": line, "slug": str(options.get("slug") or slugify(Path(str(record["name"])).stem)),
              "recipe": str(options.get("recipe") or ""), "priority": int(options.get("priority") or 0),
              "overrides": dict(options.get("overrides") or {}), "max_steps": int(options.get("max_steps") or 0)}  # fmt: skip
    job = queued_with_file(keeper.ledger, record["sha256"])
    if job:
        more = f": heirloom queue retry {job.id} goes on with it" if job.state == "parked" and mends else ""
        return Decision("duplicate", "none", f"the same bytes are already in job {job.id} ({job.state}){more}", **common)
    if novelty is None:
        fingerprints = touchable(sidecar_bytes(sidecar), (record.get("untouchable") or {}).get("rows", ""))
        # What is about to be mended is not asked what it holds.
        instead = {record["sha256"]: sidecar_bytes(sidecar)} if "examples.fp" in mends else {}
        novelty = judge_novelty(keeper, fingerprints, tip_of(keeper, line), OBJECTIVES[record["kind"]], instead)
    return _decide_training(keeper, record, options, novelty, common)


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


def _decide_document(keeper: Keeper, known: StoredFile | None, mends: Sequence[str]) -> Decision:
    current = known and keeper.ledger.value("SELECT current_doc FROM files WHERE sha256 = ?", (known.sha256,))
    if known is None or not current:
        return Decision("admit", "index", "goes into the next index")
    if mends and _left_out(keeper, known):
        return Decision("admit", "index", "the index has it not: it goes into the next one")
    return Decision("duplicate", "none", f"the same document is in the index already, as {known.name}")


def _left_out(keeper: Keeper, file: StoredFile) -> bool:
    """Whether a current document is missing from the active index and no build waits that would take it in."""
    index = active_index(keeper)
    waits = keeper.ledger.value("SELECT count(*) FROM jobs WHERE kind = 'index' AND state IN "
                                "('queued', 'held', 'preparing', 'committing')")  # fmt: skip
    if index is None or waits:
        return not waits
    skipped = {str(item.get("name")) for item in index.get("skipped", [])}
    return file.sha256 not in index["documents"] or bool(skipped & {file.name, str(file.record.get("dropped_as"))})


@dataclass(frozen=True)
class Admission:
    """A drop that was judged: its row, what was found in it, and what becomes of it."""

    drop: sqlite3.Row
    record: Mapping[str, Any]
    decision: Decision

    @property
    def stored(self) -> dict[str, Any]:
        """The record as it is kept: with the name the bytes are stored under and the decision."""
        return {**self.record, "stored_as": safe_name(str(self.record["name"])), "decision": asdict(self.decision)}


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
    stored = [item.stored for item in admissions]
    for item in admissions:
        make_durable(keeper, item.drop["id"])
    with keeper.ledger.transaction():
        for item, record in zip(admissions, stored, strict=True):
            intend_admission(keeper, item.drop["id"], record)
    point("admit.intended")
    later = Folders()
    problems = [_place(keeper, item, record, later) for item, record in zip(admissions, stored, strict=True)]
    later.sync()
    jobs: list[int | None] = []
    with keeper.ledger.transaction():
        for item, record, problem in zip(admissions, stored, problems, strict=True):
            known = with_sidecars(keeper.home, record) if problem is None else record
            jobs.append(_record(keeper, item.drop, known, item.decision) if problem is None else None)
    point("admit.recorded")
    _clear_away(keeper, [item for item, problem in zip(admissions, problems, strict=True) if problem is None], later)
    return list(zip(jobs, problems, strict=True))


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


def _place(
    keeper: Keeper, item: Admission, record: Mapping[str, Any], later: Folders
) -> OSError | HeirloomError | None:
    try:
        put_in_place(keeper, item.drop["id"], record, later)
    except (OSError, HeirloomError) as error:
        return error
    return None


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
        else:
            _note_mended(keeper, record, decision)
            if record["kind"] != "docs":
                _become_trainable(keeper, record)
        if record["kind"] == "docs":
            _make_current(keeper, record)
        if options.get("untouchable"):
            record_set(keeper, record["sha256"], str(record["name"]), int(record["evaluation"]["rows"]), keys)
        job = _queue(keeper, record, decision)
        set_drop(keeper, drop["id"], "admitted" if job else "registered", decision.reason)
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
