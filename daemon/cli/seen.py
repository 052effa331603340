"""`heirloom seen TEXT|-`: which stored files hold this example, and which versions have learnt it.

Reads only; needs neither lock nor daemon. Imports no typer: people ask it often, and it shall take half a second of
process time. Not here: the search (`guard/store/seen.py`), the words (`seen_words.py`), its place on the command line
(`seen_command.py`).
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from daemon.cli.caller import Caller
from daemon.cli.seen_words import seen_lines
from guard.errors import CheckFailed, Damage, NotFound, UsageError

if TYPE_CHECKING:
    from guard.store.keeper import Keeper

__all__ = ["answer"]

_MOST_BYTES = 64 << 20
_MOST = 100
"""Places, lines and rows that are listed; everything is counted."""


def answer(caller: Caller, text: str, *, near: bool) -> int:
    """Say it; returns the exit code: 0 found, 4 not; 8 or 3 when not, and some files could not be asked (lost, not yet read)."""
    # One thread is enough here, and starting the others costs a tenth of the command.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from guard.store.keeper import open_reader
    from guard.store.seen import rows_meant

    home = caller.home()
    typed = _typed(text)
    rows = rows_meant(typed)
    with open_reader(home) as keeper:
        threshold = keeper.settings.near.threshold if near else None
        found = _of_text(keeper, typed, threshold) if rows is None else _of_rows(keeper, rows, threshold)
        off = keeper.settings.near.policy == "off"
    record = {"asked_near": near, "threshold": threshold, "near_off": off, **found}
    caller.console.emit(record)
    caller.console.say(*seen_lines(record))
    if record["found"]:
        return 0
    if record["unasked"]:
        return Damage.exit_code if record["unasked_lost"] else CheckFailed.exit_code
    return NotFound.exit_code


def _typed(text: str) -> str:
    if text != "-":
        return text
    data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise UsageError("standard input is longer than 64 MiB", hint="heirloom register FILE --dry-run judges a whole file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 (byte {error.start})", hint="save it as UTF-8 text") from error


def _of_text(keeper: Keeper, text: str, least: float | None) -> dict[str, Any]:
    """One text or row, as every example that it may stand for."""
    from guard.store.seen import broken_row, examples_meant, is_row, seen

    examples = examples_meant(text)
    found = seen(keeper, examples, least=least)
    documents, left = ([], 0) if is_row(text) else _documents(keeper, text)
    note = broken_row(text)
    return {
        "taken_as": "row" if is_row(text) else "text", "notes": [f"{note}: asked as plain text"] if note else [],
        "examples_meant": len(examples), "found": bool(found["exact"] or found["near"] or documents), **found,
        "exact": _with_lines(keeper, found["exact"]), "near": _with_lines(keeper, found["near"]),
        "documents": documents, "documents_left": left, "rows": None, **_untouchable(keeper, examples),
    }  # fmt: skip


# What `seen_about.py` needs takes a tenth of the command to load: only where there is something to tell.


def _with_lines(keeper: Keeper, hits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not hits:
        return []
    from guard.store.seen_about import with_lines

    return with_lines(keeper, hits)


def _documents(keeper: Keeper, text: str) -> tuple[list[dict[str, Any]], int]:
    if not keeper.ledger.value("SELECT 1 FROM files WHERE kind = 'docs' LIMIT 1"):
        return [], 0
    from guard.store.seen_about import documents_with

    return documents_with(keeper, text)


def _untouchable(keeper: Keeper, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not keeper.ledger.value("SELECT 1 FROM meta WHERE key >= 'evaluation:' AND key < 'evaluation;' LIMIT 1"):
        return {"untouchable": [], "untouchable_problem": ""}
    from guard.store.seen_about import sets_with

    try:
        return {"untouchable": sets_with(keeper, examples), "untouchable_problem": ""}
    except Damage as damage:  # the answer about files stands; a job on such a home is refused
        return {"untouchable": [], "untouchable_problem": damage.message}


def _of_rows(keeper: Keeper, rows: Sequence[tuple[int, list[dict[str, Any]], str]], least: float | None) -> dict[str, Any]:
    """Many JSONL rows: how many are stored, which are not, in which files."""
    from guard.store.seen import name_of, seen_rows, with_versions

    found = seen_rows(keeper, [examples for _line, examples, _why in rows], least=least, most_near=_MOST)
    here = [(line, places) for (line, _examples, _why), places in zip(rows, found["places"], strict=True) if places]
    unseen = [line for (line, examples, _why), places in zip(rows, found["places"], strict=True) if examples and not places]
    wrong = [{"line": line, "reason": why} for line, examples, why in rows if not examples]
    files = Counter(sha256 for _line, places in here for sha256 in {sha256 for sha256, _ordinal in places})
    exact = [{"asked_line": line, "sha256": sha256, "file": name_of(keeper, sha256), "ordinal": ordinal, "similarity": 1.0}
             for line, places in here for sha256, ordinal in places][:_MOST]  # fmt: skip
    near = [{"asked_line": rows[number][0], **hits[0]} for number, hits in found["near"].items()]
    return {
        "taken_as": "rows", "notes": [], "examples_meant": sum(len(examples) for _line, examples, _why in rows),
        "found": bool(here or found["near"]),
        "exact": _with_lines(keeper, with_versions(keeper, exact)), "near": _with_lines(keeper, with_versions(keeper, near)),
        "rows": {"total": len(rows), "seen": len(here), "unseen": len(unseen), "unseen_lines": unseen[:_MOST],
                 "unusable": len(wrong), "unusable_lines": wrong[:_MOST],
                 "near_asked": found["near_asked"], "resembling": len(found["near"]),
                 "files": [{"sha256": sha256, "file": name_of(keeper, sha256), "rows": count}
                           for sha256, count in files.most_common(_MOST)]},
        "documents": [], "documents_left": 0, "unasked": found["unasked"], "unasked_lost": found["unasked_lost"],
        **_untouchable(keeper, [fields for _line, examples, _why in rows for fields in examples]),
    }  # fmt: skip
