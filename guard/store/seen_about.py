"""What is told beside the places of an example: the line it stands in, evaluation sets that hold it, documents with it.

Each is small and bounded: an answer of `heirloom seen` has half a second. Reads only. Not here: the search (`seen.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guard.checks.columns import Reading
from guard.checks.rows import iter_examples
from guard.durable import sha256_bytes
from guard.errors import HeirloomError
from guard.fingerprint import example_fingerprint
from guard.store.evaluation import keys_of_set
from guard.store.files import find_file, get_file, stored_path
from guard.store.keeper import Keeper
from guard.untouchable import SHORTEST, asks

__all__ = ["documents_with", "sets_with", "with_lines"]

_COUNTED_BYTES = 2 << 20
"""Lines are counted in files of at most so many bytes in all; so much of the documents, the newest first, is looked through:"""
_MOST_DOCUMENTS, _DOCUMENT_BYTES = 500, 32 << 20


def with_lines(keeper: Keeper, hits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Hits with `number`, their place counted from 1, and `line` in the file as it was dropped; None where that is not cheap."""
    wanted: dict[str, set[int]] = {}
    for hit in hits:
        wanted.setdefault(hit["sha256"], set()).add(hit["ordinal"])
    lines: dict[tuple[str, int], int] = {}
    room = _COUNTED_BYTES
    for sha256, ordinals in wanted.items():
        file = get_file(keeper.ledger, sha256)
        if file is None or file.size_bytes > room or file.record.get("prepared"):
            continue
        room -= file.size_bytes
        try:
            reading = Reading(**file.record.get("reading") or {})
            for example in iter_examples(stored_path(keeper.home, file), file.kind, reading):
                if example.ordinal in ordinals:
                    lines[sha256, example.ordinal] = example.line_number
        except (OSError, HeirloomError):
            continue  # the line is a courtesy; `heirloom verify` tells what is wrong with the file
    return [{**hit, "number": hit["ordinal"] + 1, "line": lines.get((hit["sha256"], hit["ordinal"]))} for hit in hits]


def sets_with(keeper: Keeper, examples: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The evaluation sets that keep one of these examples out of training: {sha256, name}. Raises Damage."""
    wanted = {key for fields in examples for key in (example_fingerprint(dict(fields)), *asks(fields))}
    found = []
    for facts, keys in keys_of_set(keeper.ledger):
        if any(_holds(keys, key) for key in wanted):
            found.append({"sha256": str(facts["sha256"]), "name": str(facts["name"])})
    return found


def _holds(keys: bytes, key: bytes) -> bool:
    """Whether a key is among 16-byte keys in ascending order."""
    low, high = 0, len(keys) // 16
    while low < high:
        middle = (low + high) // 2
        if keys[16 * middle : 16 * middle + 16] < key:
            low = middle + 1
        else:
            high = middle
    return keys[16 * low : 16 * low + 16] == key


def documents_with(keeper: Keeper, text: str) -> tuple[list[dict[str, Any]], int]:
    """Stored documents that are this text or hold it, and how many were not looked through.

    Each {sha256, file, whole, line (from 1), current}, at most 100. Shorter texts than SHORTEST bytes are held by any document
    and are only compared with whole ones.
    """
    whole = sorted({sha256_bytes(data) for data in (text.encode("utf-8"), f"{text}\n".encode())})
    rows = keeper.ledger.rows("SELECT sha256, current_doc FROM files WHERE kind = 'docs' AND sha256 IN "
                              f"({', '.join('?' * len(whole))})", whole)  # fmt: skip
    found = [_told(keeper, row, whole=True, line=1) for row in rows]
    wanted = _plain(text).strip()
    if len(wanted.encode("utf-8")) < SHORTEST:
        return found, 0
    total = int(keeper.ledger.value("SELECT count(*) FROM files WHERE kind = 'docs'")) - len(rows)
    looked, room = 0, _DOCUMENT_BYTES
    for row in keeper.ledger.rows("SELECT sha256, size_bytes, current_doc FROM files WHERE kind = 'docs' "
                                  "ORDER BY current_doc DESC, rowid DESC LIMIT ?", (_MOST_DOCUMENTS,)):  # fmt: skip
        if row["sha256"] in whole or row["size_bytes"] > room:
            continue
        room -= row["size_bytes"]
        try:
            content = _plain(stored_path(keeper.home, find_file(keeper.ledger, row["sha256"])).read_bytes().decode("utf-8-sig"))
        except (OSError, ValueError):
            continue  # counted with those that were not looked through
        looked += 1
        place = content.find(wanted)
        if place >= 0:
            found.append(_told(keeper, row, whole=content.strip() == wanted, line=content.count("\n", 0, place) + 1))
    return found[:100], total - looked


def _told(keeper: Keeper, row: sqlite3.Row, *, whole: bool, line: int) -> dict[str, Any]:
    name = keeper.ledger.value("SELECT name FROM files WHERE sha256 = ?", (row["sha256"],))
    return {"sha256": row["sha256"], "file": name, "whole": whole, "line": line, "current": bool(row["current_doc"])}


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n")
