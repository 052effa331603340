"""A file's whole story, read from the ledger: its arrivals, its verdicts, its jobs, and the versions that learnt it.

`heirloom why` must have an answer for every file that ever settled, so the search goes by name, by path, by hash and
by the place a refused file was given back to. Reads only; words for the terminal are made in `daemon/cli/files.py`.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from daemon.scan import KIND_FOLDERS, ignored_because
from daemon.story_parts import parts_of
from daemon.story_side import came_back, data_name, in_the_inbox, side_reason, taken_with
from guard.checks.kinds import ROW_KINDS, SIDE_SUFFIXES
from guard.checks.why import ignored_remedy
from guard.durable import sha256_file
from guard.errors import HeirloomError, NotFound
from guard.names import safe_name
from guard.store.evaluation import evaluation_sets, learnt_before
from guard.store.files import get_file
from guard.store.keeper import Keeper
from guard.store.known import sidecar_path
from guard.store.lineage import regrown_lines
from guard.store.standing import standing_damage

__all__ = ["tell_story"]

_MOST_EVENTS = 200
_SHORTEST_HASH = 8


def tell_story(keeper: Keeper, text: str, folder: Path) -> dict[str, Any]:
    """Everything known about a file called or hashed `text`; a relative path starts at `folder`.

    Raises NotFound when nothing of that name ever came and nothing of it lies in the inbox.
    """
    path = folder / Path(text).expanduser()
    hashes = _hashes(keeper, text, path)
    drops = _drops(keeper, text, hashes)
    hashes |= {row["sha256"] for row in drops if row["sha256"]}
    files = _rows_in(keeper, "SELECT * FROM files WHERE sha256 IN ({}) ORDER BY first_seen", hashes)
    if not drops and not files:
        data = taken_with(keeper, Path(text).name) if data_name(Path(text).name) else None
        lies = in_the_inbox(keeper.home, Path(text).name)
        if data is not None and (lies is None or came_back(keeper.home, lies)):
            return {**tell_story(keeper, data, folder), "query": text, "side_of": data}
        return _not_taken_yet(keeper, text)
    jobs = _jobs(keeper, hashes)
    versions = _versions(keeper, hashes)
    names = {row["name"] for row in (*drops, *files)}
    subjects = names | {f"job {job['id']}" for job in jobs} | {item["name"] for item in versions}
    name, status, reason = _standing(keeper, safe_name(Path(text).name), drops, files)
    return {
        "query": text,
        "name": name,
        "status": status,
        "reason": reason,
        "files": [_file(row) | _gone_where(keeper, row) | {"damage": _damage(keeper, row)} for row in files],
        "drops": _linked([_drop(row) for row in drops]),
        "waits": _waits(keeper, name),
        "jobs": jobs,
        "versions": versions,
        "left_out": _left_out(keeper, {row["sha256"] for row in files}),
        "near": _near(keeper, files), "evaluation": _evaluation(keeper, {row["sha256"] for row in files}),
        "events": _events(keeper, subjects), "side_of": None, "remedy": "",
    }


def _hashes(keeper: Keeper, text: str, path: Path) -> set[str]:
    """The hashes the text may mean: itself or its start, the bytes at that path, or a stored file's name."""
    found: set[str] = set()
    lower = text.lower()
    if _SHORTEST_HASH <= len(lower) <= 64 and set(lower) <= set("0123456789abcdef"):
        for name in ("files", "drops"):
            sql = f"SELECT sha256 FROM {name} WHERE sha256 >= ? AND sha256 < ?"
            rows = keeper.ledger.rows(sql, (lower, lower + "g"))
            found |= {row[0] for row in rows}
    if not found and _is_regular(path):
        found.add(sha256_file(path))
    name = safe_name(Path(text).name)
    return found | {row[0] for row in keeper.ledger.rows("SELECT sha256 FROM files WHERE name = ?", (name,))}


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _rows_in(keeper: Keeper, sql: str, values: Iterable[str]) -> list[sqlite3.Row]:
    wanted = sorted(values)
    return keeper.ledger.rows(sql.format(", ".join("?" * len(wanted))), wanted) if wanted else []


def _drops(keeper: Keeper, text: str, hashes: set[str]) -> list[sqlite3.Row]:
    name = safe_name(Path(text).name)
    places = [str(place / Path(text).name) for place in (keeper.home.rejected, keeper.home.duplicates)]
    marks = ", ".join("?" * len(hashes))
    # Asked by hash, the refusals that went before under the same name belong to the story too (A66).
    return keeper.ledger.rows(
        "WITH asked AS (SELECT * FROM drops WHERE name = ? OR returned_to IN (?, ?) "
        f"OR sha256 IN ({marks})) SELECT * FROM drops WHERE id IN (SELECT id FROM asked) "
        "OR (state = 'rejected' AND name IN (SELECT name FROM asked)) ORDER BY id",
        [name, *places, *sorted(hashes)],
    )


def _linked(drops: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arrival with the refusals of its name that it mends: those since the last arrival that was taken."""
    open_refusals: dict[str, list[int]] = {}
    for drop in drops:
        drop["mends"] = []
        if drop["state"] == "rejected":
            open_refusals.setdefault(drop["name"], []).append(drop["id"])
        elif drop["state"] in ("admitted", "registered"):
            drop["mends"] = open_refusals.pop(drop["name"], [])
    return drops


def _gone_where(keeper: Keeper, row: sqlite3.Row) -> dict[str, Any]:
    """`parts`: by line, where every row of the file went; `left`: of these, what the line's tip may still learn from it."""
    file = get_file(keeper.ledger, row["sha256"])
    parts = parts_of(keeper, file) if file is not None else None
    return {"parts": parts, "left": None if parts is None else {line: found["new"] for line, found in parts.items()}}


def _damage(keeper: Keeper, row: sqlite3.Row) -> str:
    """What is known to be wrong with a stored file and what to type, "" when nothing is."""
    told = standing_damage(keeper).get(f"original {row['sha256']}", "")
    try:
        if row["kind"] in ROW_KINDS:
            sidecar_path(keeper.home.files / row["sha256"])
    except HeirloomError as error:
        return told or f"{error.message}: {error.hint.partition('; then')[0]}"
    return told


def _waits(keeper: Keeper, name: str) -> list[dict[str, str]]:
    """What of that name, or for it, lies in the inbox now."""
    wanted = {name, *(name + suffix for suffix in SIDE_SUFFIXES)}
    home = keeper.home
    kinds = {home.inbox / kind for kind in (*KIND_FOLDERS, home.rejected.name, home.duplicates.name)}
    return [{"path": os.fsencode(path).decode("utf-8", "backslashreplace"), "reason": _waiting_reason(keeper, path),
             "remedy": _remedy(keeper, path)}
            for place, names, files in os.walk(home.inbox)
            for path in (Path(place) / item for item in (*files, *names) if item in wanted and Path(place, item) not in kinds)
            if not came_back(home, path)]  # fmt: skip


def _file(row: sqlite3.Row) -> dict[str, Any]:
    record = orjson.loads(row["record"])
    return {
        "sha256": row["sha256"], "name": row["name"], "kind": row["kind"], "size_bytes": row["size_bytes"],
        "examples": row["examples"], "tokens": row["tokens_approx"], "description": row["description"],
        "first_seen": row["first_seen"], "bad_rows": record.get("bad_rows") or [],
        "bad_rows_count": record.get("bad_rows_count") or len(record.get("bad_rows") or []),
        "reading": record.get("reading") or {}, "settings": record.get("settings") or {},
        "splits": record.get("splits") or [], "left_out": record.get("left_out") or [],
        "unread": record.get("unread") or [],
        "unusable_rows": record.get("unusable_rows") or [], "unusable_rows_count": record.get("unusable_rows_count") or 0,
    }  # fmt: skip


def _drop(row: sqlite3.Row) -> dict[str, Any]:
    verdict, side = orjson.loads(row["verdict"]), orjson.loads(row["options"]).get("side")
    return {
        "side": {"name": side.get("name"), "settings": side.get("settings") or {}} if side else None,
        "id": row["id"], "name": row["name"], "state": row["state"], "reason": row["reason"], "origin": row["origin"],
        "sha256": row["sha256"], "seen": row["seen"], "updated": row["updated"], "attempts": row["attempts"],
        "returned_to": row["returned_to"], "bad_rows": verdict.get("bad_rows") or [], "why": verdict.get("why") or "",
    }  # fmt: skip


def _jobs(keeper: Keeper, hashes: set[str]) -> list[dict[str, Any]]:
    rows = _rows_in(
        keeper,
        "SELECT DISTINCT j.*, v.name AS output FROM jobs j JOIN job_files f ON f.job_id = j.id "
        "LEFT JOIN versions v ON v.id = j.output_id AND j.kind = 'train' WHERE f.sha256 IN ({}) ORDER BY j.id",
        hashes,
    )
    keys = ("id", "kind", "state", "line", "output", "reason", "attempts", "created", "updated")
    return [{key: row[key] for key in keys} for row in rows]


def _versions(keeper: Keeper, hashes: set[str]) -> list[dict[str, Any]]:
    rows = _rows_in(
        keeper,
        "SELECT v.id, v.name, v.line, v.state, l.sha256, l.objective, l.count AS examples FROM learnt l "
        "JOIN versions v ON v.id = l.version_id WHERE l.sha256 IN ({}) AND l.count > 0 ORDER BY v.id, l.sha256",
        hashes,
    )
    return [dict(row) for row in rows]


def _left_out(keeper: Keeper, hashes: set[str]) -> list[dict[str, str]]:
    """The lines that were grown again without one of these files: line, of (the line before), base."""
    return [{key: item[key] for key in ("line", "of", "base")} for item in regrown_lines(keeper.ledger)
            if item["without"] in hashes]  # fmt: skip


def _near(keeper: Keeper, files: Sequence[sqlite3.Row]) -> list[dict[str, Any]]:
    """What was found of files' resemblance to older ones: sha256, examples, alike, resembles with the names of files."""
    sets = {item["sha256"] for item in evaluation_sets(keeper.ledger)}
    found = []
    for row in files:
        report = orjson.loads(row["record"]).get("near")
        if not report:
            continue
        resembled = [{**item, "name": keeper.ledger.value("SELECT name FROM files WHERE sha256 = ?", (item["sha256"],)),
                      "evaluation": item["sha256"] in sets} for item in report["resembles"]]  # fmt: skip
        found.append({"sha256": row["sha256"], **report, "resembles": resembled})
    return found


def _evaluation(keeper: Keeper, hashes: set[str]) -> list[dict[str, Any]]:
    """The evaluation sets among files, each with the versions that have learnt rows of it."""
    return [{**{key: item[key] for key in ("sha256", "name", "rows", "keys", "since")},
             "learnt": learnt_before(keeper, item["sha256"])}
            for item in evaluation_sets(keeper.ledger) if item["sha256"] in hashes]  # fmt: skip


def _events(keeper: Keeper, subjects: set[str]) -> list[dict[str, Any]]:
    rows = _rows_in(keeper, "SELECT * FROM events WHERE subject IN ({}) ORDER BY seq DESC LIMIT "
                    f"{_MOST_EVENTS}", subjects)  # fmt: skip
    keys = ("seq", "utc", "actor", "verb", "subject")
    return [{**{key: row[key] for key in keys}, "payload": orjson.loads(row["payload"])} for row in reversed(rows)]


def _standing(keeper: Keeper, name: str, drops: Sequence[sqlite3.Row], files: Sequence[sqlite3.Row]) -> tuple[str, str, str]:
    """(name, status, reason) now: of the newest arrival that was asked for, or what became of it once it was admitted.

    Asked for by hash, or by where a refused file lies now, no arrival has that name: then the stored one's counts.
    """
    from guard.store.views import file_status

    named = [row for row in drops if row["name"] == name]
    if not named and files:
        name = files[-1]["name"]
        named = [row for row in drops if row["name"] == name]
    named = named or list(drops)
    last = named[-1] if named else None
    own = [row for row in files if last is None or (row["sha256"] == last["sha256"] and row["name"] == last["name"])]
    if own and (last is None or last["state"] in ("admitted", "registered", "duplicate")):
        admitted = [row for row in named if row["state"] in ("admitted", "registered")]
        return own[-1]["name"], file_status(keeper, own[-1]["sha256"]), admitted[-1]["reason"] if admitted else ""
    assert last is not None, "a story has an arrival or a file"
    state = file_status(keeper, last["sha256"]) if last["state"] in ("admitted", "registered") else last["state"]
    return last["name"], state, last["reason"]


def _not_taken_yet(keeper: Keeper, text: str) -> dict[str, Any]:
    """A file that lies in the inbox and is not in the ledger yet. Raises NotFound."""
    name = Path(text).name
    path = in_the_inbox(keeper.home, name)
    if path is not None:
        return {"query": text, "name": name, "status": "waiting", "reason": _waiting_reason(keeper, path), "files": [],
                "drops": [], "jobs": [], "versions": [], "left_out": [], "near": [], "evaluation": [], "events": [],
                "waits": _waits(keeper, name), "side_of": data_name(name) or None, "remedy": _remedy(keeper, path)}  # fmt: skip
    raise NotFound(f"no file {text!r} was ever seen here", subject=text,
                   hint="heirloom register FILE makes it known; or copy it into inbox/")  # fmt: skip


def _remedy(keeper: Keeper, path: Path) -> str:
    """What to do with a file that is ignored; "" for one that waits, whose reason says it."""
    if data_name(path.name):
        return ""
    irregular = not _is_regular(path) and not _is_folder(path)
    reason = ignored_because(keeper.home, path) or ("not a regular file" if irregular else "")
    return ignored_remedy(reason) if reason else ""


def _waiting_reason(keeper: Keeper, path: Path) -> str:
    """Why it was not taken: its name, what the daemon last said of it, or whose side file it is."""
    if data_name(path.name):
        return side_reason(keeper, path, lambda data: _waiting_reason(keeper, data))
    home = keeper.home
    ignored = ignored_because(home, path) or ("" if _is_regular(path) or _is_folder(path) else "not a regular file")
    if ignored:
        return ignored
    try:
        live = orjson.loads(home.status_file.read_bytes()).get("live", {})
    except (OSError, ValueError):
        live = {}
    told = {**live.get("ignored", {}), **live.get("waiting", {})}
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    return str(told.get(shown) or "it lies in the inbox and was not taken yet")
