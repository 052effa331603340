"""Session logs into one file of trajectory rows: read, judged, repeats dropped, written whole.

Files are taken in the order given (a folder's by name), sessions in the order in which they begin; so the same logs
always give the same bytes. Of an event log all sessions of one file are held in memory at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from guard.durable import make_dir, open_new
from guard.errors import DataFault, NotFound, UsageError
from trainer.making import check_writable
from trainer.row_files import data_files, rows_of
from trainer.templates.harmony_simple import encode_harmony_messages
from trainer.trajectories.events import Piece, Unreadable, pieces_of, session_key, starts_session, whole_session
from trainer.trajectories.session import row_of

__all__ = ["OUTPUT_FILE", "make_trajectories"]

OUTPUT_FILE = "trajectories.jsonl"
_LISTED = 20


@dataclass
class _Session:
    """A session while its log is read: where it begins, its pieces, or why it cannot be used."""

    file: str
    line: int
    pieces: list[Piece] = field(default_factory=list)
    fault: str = ""
    tools: Any = None

    def take(self, value: Any) -> None:
        if self.fault:
            return
        try:
            self.pieces += pieces_of(value)
        except Unreadable as error:
            self.fault = str(error)


@dataclass
class _Tally:
    sessions: int = 0
    rows: int = 0
    repeated: int = 0
    bad_lines: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)

    def leave(self, session: _Session, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        if len(self.listed) < _LISTED:
            self.listed.append({"file": session.file, "line": session.line, "reason": reason})


def make_trajectories(inputs: Sequence[Path], output: Path, *, form: str = "messages", max_samples: int | None = None,
                      plain: bool = False) -> dict[str, Any]:  # fmt: skip
    """Write the finished sessions of the logs as rows {"messages", ...}, or {"text"} in simplified Harmony.

    `output`: a new `.jsonl` file, or a folder for `trajectories.jsonl`; `max_samples`: only the first so many rows. The
    report: `output sessions rows repeated bad_lines left_out{reason: count} listed[] (file line reason: the first 20)`.
    Raises NotFound, UsageError, DataFault when no session can be used.
    """
    target = output if output.suffix == ".jsonl" else output / OUTPUT_FILE
    if target.exists():
        raise UsageError(f"{target} exists already", subject=str(target), hint="name another --output")
    files = [item for path in inputs for item in _files(path)]
    render, tally = _renderer(form), _Tally()
    check_writable(target.parent)
    make_dir(target.parent)
    with open_new(target) as handle:
        for session in (session for path, name in files for session in _sessions(path, name, tally)):
            if max_samples is not None and tally.rows >= max_samples:
                break
            _use(session, tally, render, handle, plain)
        if not tally.rows:
            reasons = [f"{reason} ({count})" for reason, count in tally.left_out.items()]
            raise DataFault("no session can be used", subject=str(inputs[0]), hint=", ".join(reasons) or "there is none in it")
    return {"output": str(target), "format": form, "sessions": tally.sessions, "rows": tally.rows, "repeated": tally.repeated,
            "bad_lines": tally.bad_lines, "left_out": dict(sorted(tally.left_out.items())), "listed": tally.listed}  # fmt: skip


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    if not path.exists():
        raise NotFound(f"there is nothing at {path}", subject=str(path), hint="check the path after --input")
    found = [(path, path.name)] if path.is_file() else [(item.path, item.name) for item in data_files(path)]
    if not found:
        raise NotFound(f"there is no log in {path}", subject=str(path), hint="session logs are .jsonl files")
    yield from found


def _sessions(path: Path, name: str, tally: _Tally) -> Iterator[_Session]:
    """The sessions of one file: a row that is a whole one at once, those told event by event at the file's end."""
    waiting: dict[str, _Session] = {}
    parts = 0
    for row in rows_of(path):
        if row.value is None:
            tally.bad_lines += 1
            continue
        events = whole_session(row.value)
        if events is not None:
            yield _whole(name, row.line_number, row.value, events)
            continue
        parts += starts_session(row.value)
        key = session_key(row.value) or f"part {parts}"
        session = waiting.setdefault(key, _Session(name, row.line_number))
        session.take(row.value)
    yield from (session for session in waiting.values() if session.pieces or session.fault)


def _whole(name: str, line: int, value: Mapping[str, Any], events: Sequence[Any]) -> _Session:
    session = _Session(name, line, tools=value.get("tools"))
    session.pieces += [Piece(key, value[key]) for key in ("system", "developer") if isinstance(value.get(key), str)]
    for event in events:
        session.take(event)
    return session


def _use(session: _Session, tally: _Tally, render: Callable[[dict[str, Any]], dict[str, Any]], handle: BinaryIO,
         plain: bool) -> None:  # fmt: skip
    """Write the row of a session, or count why there is none."""
    tally.sessions += 1
    row = session.fault or row_of(session.pieces, tools=session.tools, plain=plain)
    if isinstance(row, str):
        tally.leave(session, row)
        return
    try:
        line = json.dumps(render(row), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except DataFault as fault:
        tally.leave(session, fault.message)
        return
    digest = hashlib.sha256(line).digest()
    if digest in tally.seen:
        tally.repeated += 1
        return
    tally.seen.add(digest)
    tally.rows += 1
    handle.write(line)


def _renderer(form: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What makes the row that is written. Raises UsageError for a form that is not known here."""
    if form == "messages":
        return lambda row: row
    if form == "text":
        return lambda row: {"text": encode_harmony_messages(_spoken(row), developer_instructions=row.get("developer"))}
    raise UsageError(f"there is no form {form!r}", hint="--format messages, or --format text")


def _spoken(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return system + list(row["messages"])
