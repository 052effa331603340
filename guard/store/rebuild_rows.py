"""The rows of a ledger that is made again: versions with what they learnt and what was measured of them, lines, files, drops,
jobs, indexes and marks.

Everything is written inside the caller's one transaction. Not here: where the facts come from (`rebuild_facts.py`), and
what follows from them (`rebuild_remains.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from guard.bitmap import pack_bitmap
from guard.clock import utc_text
from guard.durable import remove_tree, rename_new
from guard.home import Home
from guard.names import index_name, parse_version_number
from guard.store.evaluations import insert
from guard.store.files import SIDECARS
from guard.store.intents import put_intent
from guard.store.jobs import add_job
from guard.store.ledger import Ledger
from guard.store.matrix import record_losses
from guard.store.rebuild_facts import hidden_folders
from guard.store.rebuild_remains import Remains
from guard.store.rebuild_story import job_state

__all__ = ["write_rows"]

_OPEN = ("claiming", "claimed", "admitting", "returning")


def write_rows(ledger: Ledger, home: Home, remains: Remains) -> None:
    """Write everything but the events, inside the current transaction."""
    _write_marks(ledger, home, remains)
    _write_files(ledger, remains)
    _write_versions(ledger, remains)
    _write_evaluations(ledger, remains)
    _write_jobs(ledger, remains)
    _write_drops(ledger, home, remains)
    _write_indexes(ledger, home, remains)
    _write_intents(ledger, home, remains)


def _write_marks(ledger: Ledger, home: Home, remains: Remains) -> None:
    for key, value in remains.story.marks.items():
        ledger.set_meta(key, value)
    ledger.set_meta("events_written", str(len(remains.events)))
    ledger.set_meta("version_high_water", str(max([remains.story.highest, remains.marks.versions, *remains.records])))
    ledger.set_meta("index_high_water", str(max([remains.story.highest_index, remains.marks.indexes, *remains.indexes])))
    for folder in sorted(home.trash.iterdir()) if home.trash.is_dir() else ():
        name = folder.name.split("~")[0]
        guess = {"version": name, "was": "sealed", "why": _why(folder.name), "utc": utc_text(folder.stat().st_mtime)}
        note = remains.story.trash.get(folder.name) or guess
        if parse_version_number(name) is not None:
            ledger.set_meta(f"trash:{folder.name}", orjson.dumps(note, option=orjson.OPT_SORT_KEYS).decode())


def _why(folder: str) -> str:
    return next((word for word in ("damaged", "unproven", "unfinished", "leftover") if f"~{word}" in folder), "deleted")


def _write_intents(ledger: Ledger, home: Home, remains: Remains) -> None:
    """What an archiving or a purge had begun and not ended is announced once more, so that recovery ends it.

    Other operations leave nothing hidden: where a folder lies says what became of them.
    """
    numbers = {record["name"]: number for number, record in remains.records.items()}
    for operation, folder, name in hidden_folders(home):
        if name not in numbers:
            continue
        was = remains.story.marks.get(f"gone:{name}") or remains.gate_state(numbers[name])
        facts: dict[str, Any] = {"version": name, "was": was, "bytes": 0}
        if operation == "archive":
            put_intent(ledger, operation, name, {**facts, "vault": ""})
            continue
        inside = folder.name.removeprefix(".purging-")
        put_intent(ledger, operation, inside, {**facts, "folder": inside, "why": "deleted", "backed_up": True})
        if note := remains.story.trash.get(inside):
            ledger.set_meta(f"trash:{inside}", orjson.dumps(note, option=orjson.OPT_SORT_KEYS).decode())


# --- files ---------------------------------------------------------------------------------------------------------


def _file_values(sha256: str, record: Mapping[str, Any], told: Mapping[str, Any], seen: str) -> tuple[object, ...]:
    return (sha256, told.get("name") or record.get("name") or sha256[:12], record.get("kind") or told.get("kind") or "pretrain",
            int(record.get("size_bytes") or 0), int(record.get("examples") or 0), int(record.get("tokens_approx") or 0),
            str(told.get("description") or ""), told.get("utc") or seen, orjson.dumps(dict(record)).decode())  # fmt: skip


def _write_files(ledger: Ledger, remains: Remains) -> None:
    insert = ("INSERT INTO files (sha256, name, kind, size_bytes, examples, tokens_approx, description, first_seen, record) "
              "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")  # fmt: skip
    story, known = remains.story, set()
    for file in remains.files:
        told = story.files.get(file.sha256, {})
        dropped_as = told.get("dropped_as") or file.record.get("dropped_as")
        record = {**file.record, **({"dropped_as": dropped_as} if dropped_as else {}),
                  **({"sidecars": told["sidecars"]} if told.get("sidecars") else {})}  # fmt: skip
        ledger.run(insert, _file_values(file.sha256, record, told, utc_text(file.first_seen)))
        known.add(file.sha256)
    # What was learnt from stays known when its bytes are lost: `verify` names it, and a good drop replaces it.
    for sha256, item in _learnt_from(remains).items():
        if sha256 not in known:
            told = story.files.get(sha256, {})
            record = {"sha256": sha256, "name": item.get("file"), "kind": item.get("kind"), "stored_as": item.get("file")}
            ledger.run(insert, _file_values(sha256, record, told, str(item.get("created", ""))))
            known.add(sha256)
    _write_current(ledger, remains, known)


def _learnt_from(remains: Remains) -> dict[str, dict[str, Any]]:
    return {item["sha256"]: {**item, "created": record.get("created", "")}
            for record in remains.records.values() for item in record.get("data", [])}  # fmt: skip


def _write_current(ledger: Ledger, remains: Remains, known: set[str]) -> None:
    """The newest document of each path; where no event tells, the one that was admitted last."""
    current = {path: sha256 for path, sha256 in remains.story.current.items() if sha256 in known}
    if not remains.story.current:
        rows = ledger.rows("SELECT sha256, name, record FROM files WHERE kind = 'docs' ORDER BY first_seen, sha256")
        current = {orjson.loads(row["record"]).get("dropped_as", row["name"]): row["sha256"] for row in rows}
    for path, sha256 in current.items():
        ledger.run("UPDATE files SET current_doc = 1, record = json_set(record, '$.dropped_as', ?) WHERE sha256 = ?",
                   (path, sha256))  # fmt: skip


# --- versions ------------------------------------------------------------------------------------------------------


def _write_versions(ledger: Ledger, remains: Remains) -> None:
    numbers = {record["name"]: number for number, record in remains.records.items()}
    for number, record in remains.records.items():
        found, birth = remains.versions.get(number), remains.story.sealed.get(record["name"], {})
        # The event's hash is the one that was sealed; a folder that is another one is damage, which `verify` names.
        sums = str(birth.get("sums") or (found.sums_sha256 if found else ""))
        metrics = record.get("metrics") or {}
        ledger.run(
            "INSERT INTO versions (id, name, parent_id, line, state, job_id, created, tokens, size_bytes, sums_sha256, record) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, record["name"], numbers.get(str(record.get("parent"))), str(record.get("line") or "policy"),
             remains.state_of(number), birth.get("job"), record.get("created", ""), int(metrics.get("tokens") or 0),
             found.size_bytes if found else 0, sums, orjson.dumps(record, option=orjson.OPT_SORT_KEYS).decode()))  # fmt: skip
        record_losses(ledger, record)
        for item in record.get("data", []):
            _write_learnt(ledger, number, str(record.get("objective") or "pretrain"), item)
    for number, record in remains.records.items():
        for other in (item for item in record.get("inputs", []) if item["name"] in numbers):
            ledger.run("INSERT INTO version_inputs VALUES (?, ?, ?)", (number, numbers[other["name"]], other["role"]))
    for line, (tip, since) in remains.lines().items():
        ledger.run("INSERT INTO lines VALUES (?, ?, ?)", (line, numbers[tip], since))


def _write_learnt(ledger: Ledger, number: int, objective: str, item: Mapping[str, Any]) -> None:
    bitmap = item.get("bitmap")
    if not bitmap:
        if not item.get("examples"):
            return
        # Fail closed: an example that may have been learnt is not trained a second time unasked.
        count = int(ledger.value("SELECT examples FROM files WHERE sha256 = ?", (item["sha256"],)) or 0)
        bitmap = pack_bitmap(range(count), count)
    ledger.run("INSERT INTO learnt VALUES (?, ?, ?, ?, ?)",
               (number, item["sha256"], objective, int(item.get("examples") or 0), bitmap))  # fmt: skip


def _write_evaluations(ledger: Ledger, remains: Remains) -> None:
    """What was measured of versions that are known; a result says of which weights."""
    numbers = {record["name"]: number for number, record in remains.records.items()}
    for item in remains.story.measured:
        if item["version"] in numbers:
            insert(ledger, numbers[item["version"]], item, str(item["created"]))


# --- jobs, drops, indexes --------------------------------------------------------------------------------------------


def _known(ledger: Ledger, hashes: Iterable[str]) -> list[str]:
    return [sha256 for sha256 in dict.fromkeys(hashes) if ledger.row("SELECT 1 FROM files WHERE sha256 = ?", (sha256,))]


def _write_jobs(ledger: Ledger, remains: Remains) -> None:
    born = {birth.get("job"): parse_version_number(name) for name, birth in remains.story.sealed.items()}
    ids = set(remains.records)
    for number, job in sorted(remains.story.jobs.items()):
        state, reason = job_state(job, born=number in born)
        base = job.get("base_id") if job.get("base_id") in ids else None
        ledger.run(
            "INSERT INTO jobs (id, kind, state, position, stage, line, base_id, slug, wanted_id, output_id, request, reason, "
            "created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, job["kind"], state, -int(job.get("priority") or 0), job["stage"], job["line"], base,
             job.get("slug") or "data", job.get("wanted_id"), born.get(number),
             orjson.dumps(job.get("request") or {}).decode(), reason, job["created"], job["updated"]))  # fmt: skip
        ledger.run_many("INSERT INTO job_files VALUES (?, ?, ?)",
                        [(number, place, sha256) for place, sha256 in enumerate(_known(ledger, job["files"]))])  # fmt: skip


def _write_drops(ledger: Ledger, home: Home, remains: Remains) -> None:
    for number, drop in sorted(remains.story.drops.items()):
        state, reason = _drop_state(ledger, home, number, drop)
        source = bytes.fromhex(str(drop.get("source") or "")) or str(drop["name"]).encode()
        ledger.run(
            "INSERT INTO drops (id, name, source, origin, mode, state, forced_kind, options, sha256, reason, returned_to, "
            "seen, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, drop["name"], source, str(drop.get("origin") or "inbox"), str(drop.get("mode") or "move"), state,
             drop.get("forced_kind"), orjson.dumps(drop.get("options") or {}).decode(), drop.get("sha256"), reason,
             drop.get("returned_to"), drop["seen"], drop["updated"]))  # fmt: skip


def _drop_state(ledger: Ledger, home: Home, number: int, drop: Mapping[str, Any]) -> tuple[str, str]:
    """A drop that was under way is read again from its claimed bytes, wherever a crash left them."""
    state, reason = str(drop["state"]), str(drop["reason"])
    if state not in _OPEN or (state == "claiming" and drop.get("source")):
        return state, reason
    folder = home.incoming / f"drop-{number:08d}"
    content = folder / "content"
    ready = [path for path in (folder / "store").iterdir() if path.name not in SIDECARS] \
        if (folder / "store").is_dir() else []  # fmt: skip
    if content.is_dir():
        remove_tree(folder / "store")  # what a folder was packed into; it is packed again
    elif not content.exists() and len(ready) == 1:
        rename_new(ready[0], content)
    if content.exists():
        return "claimed", reason
    if drop.get("sha256") and _known(ledger, [str(drop["sha256"])]):
        return "registered", "the ledger was made again while it was admitted: drop it again to train it"
    return ("rejected" if drop.get("returned_to") else "gone"), reason or "the ledger was made again meanwhile"


def _write_indexes(ledger: Ledger, home: Home, remains: Remains) -> None:
    latest = home.indexes / "latest"
    wanted = [remains.story.index, latest.readlink().name if latest.is_symlink() else ""]
    numbers = {index_name(number): number for number in remains.indexes}
    active = next((numbers[name] for name in wanted if name in numbers), max(numbers.values(), default=0))
    for number, record in sorted(remains.indexes.items()):
        ledger.run("INSERT INTO indexes VALUES (?, ?, ?, ?)",
                   (number, "active" if number == active else "kept",
                    utc_text((home.indexes / index_name(number)).stat().st_mtime), orjson.dumps(record).decode()))  # fmt: skip
    documents = ledger.value("SELECT count(*) FROM files WHERE current_doc = 1")
    waiting = ledger.value("SELECT count(*) FROM jobs WHERE kind = 'index' AND state IN ('queued', 'held')")
    if documents and not active and not waiting:
        add_job(ledger, kind="index", stage="docs", line="docs", slug="index")
