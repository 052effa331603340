"""What a dropped file is, proven from its bytes: hash, kind, examples, faults, and a verdict with its reason.

Runs in a limited child (`guard/identify_child.py`), never in the daemon's own process. It knows neither the ledger
nor what was learnt before, moves nothing and deletes nothing; when the verdict is `ok` it leaves two files in
`out_folder`: `examples.fp` (16 bytes for each usable example, in order) and `record.json`. They are drafts: whoever
stores them syncs them first.
It protects nothing against a hostile file by itself: memory and time are watched from outside.

With a side file (`side.py`) what it says of kind and columns is obeyed, and all of it stands in the identity.

Verdicts: `ok`; `wait` (`wait_for`: empty, truncated_tail, zero_filled, changed, unreadable); `reject`; `ignore`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from guard import durable
from guard.checks import kinds
from guard.checks.columns import PLAIN, Reading
from guard.checks.folders import shown_name
from guard.checks.identity import Identity, Limits
from guard.checks.judging import counted, cut_short, ignore, judged, wait, zero_filled
from guard.checks.made_with import said_by_side
from guard.checks.rows import Row, open_regular
from guard.checks.scan import detect_kind, scan_document, scan_jsonl, scan_rows, scan_text
from guard.checks.why import why_text
from guard.containers.faults import CutShort
from guard.containers.read import read_container
from guard.containers.unpack import unpacked
from guard.errors import DataFault

__all__ = ["EXAMPLES_FILE", "RECORD_FILE", "Identity", "Limits", "identify", "why_text"]

EXAMPLES_FILE = "examples.fp"
RECORD_FILE = "record.json"
_COUNTED_BAD_ROWS = 100_000  # up to here all are counted, for whoever wants to know
_READ_BYTES = 1 << 20
_FILE_TYPES = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO",
               stat.S_IFSOCK: "a socket"}  # fmt: skip
_ENDS_IN_TEXT = ("jsonl", "json", "csv", "text")
_ZERO_TAIL_BYTES = 8  # UTF-16 and UTF-32 text may end in up to three


class _Verdict(Exception):
    """The way out of an open `examples.fp`, which then leaves no trace; not an error."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity


def identify(path: Path | str, name: str, forced_kind: str | None = None, limits: Limits | None = None, *,
             out_folder: Path | str | None = None, side: Path | str | None = None,
             reading: Mapping[str, Any] | None = None, container: str = "") -> Identity:  # fmt: skip
    """Identify the file at `path`, which was dropped under `name`; `side` is its side file, `reading` a recorded one.

    `container`: what it is, where the name cannot say so: a folder that was packed.

    Reads it twice (hash, then content) through one descriptor that follows no symbolic link. Raises OSError for
    what the machine refuses, apart from permission (`wait`, unreadable); nothing in the content makes it raise.
    """
    limits = limits or Limits()
    base = Identity(name=name, verdict="ok", container=container or kinds.container_of(name))
    try:
        base, forced_kind = _with_side(base, forced_kind, side, PLAIN if reading is None else Reading(**reading))
    except DataFault as fault:
        return dataclasses.replace(base, verdict="reject", reason=f"its side file: {fault.message}", hint=fault.hint)
    early = _by_name(base, forced_kind) or _by_type(base, path)
    if early:
        return early
    try:
        stream = open_regular(path)
    except PermissionError:
        return wait(base, "unreadable", "its permissions forbid reading it", "chmod it, nothing else")
    with stream:
        try:
            return _identify_open(stream, base, forced_kind, limits, out_folder)
        except _Verdict as verdict:
            return verdict.identity


def _with_side(base: Identity, forced_kind: str | None, side: Path | str | None,
               reading: Reading) -> tuple[Identity, str | None]:  # fmt: skip
    """What the side file says, where nothing stronger (a folder, a flag) says otherwise. Raises DataFault."""
    settings: dict[str, Any] = {}
    if side is not None:
        from guard.checks.side import read_side, reading_in  # yaml is for those who bring a side file

        settings = read_side(side)
        reading = dataclasses.replace(reading_in(settings) or reading, rules=reading.rules)
    kind = forced_kind or settings.get("kind")
    if reading and base.container and not kinds.holds_rows(base.container):
        raise DataFault("columns and roles are for rows, and this is plain text", hint="take columns and roles out")
    if reading and kind and not reading.fits(kind):
        raise DataFault(f"its columns are those of {reading.kind()} and it was dropped as {kind}",
                        hint=f"drop it outside inbox/{kind}/, or name the columns of {kind}")  # fmt: skip
    base = dataclasses.replace(base, reading=reading.as_dict(), rules_version=reading.rules, settings=settings,
                               tokenizer=said_by_side(str(settings.get("tokenization") or "")))  # fmt: skip
    return base, kind or reading.kind() or None


def _identify_open(stream: BinaryIO, base: Identity, forced_kind: str | None, limits: Limits,
                   out_folder: Path | str | None) -> Identity:  # fmt: skip
    before = os.fstat(stream.fileno())
    if not stat.S_ISREG(before.st_mode):
        raise _Verdict(ignore(base, "not a regular file"))
    if before.st_size == 0:
        raise _Verdict(wait(base, "empty", "the file is empty", "it is taken when something is in it"))
    sha256, zeros = _hash(stream)
    if zeros == "tail" and base.container not in _ENDS_IN_TEXT:
        zeros = ""  # numbers may be zero, and a packed file may end in them; whoever reads it knows where it ends
    base = dataclasses.replace(base, sha256=sha256, size_bytes=before.st_size)
    if zeros and base.container != "tar":  # a tar ends in zeroes, and says by itself where
        raise _Verdict(_changed_or(stream, before, base, zero_filled(base, zeros, limits)))
    if out_folder is None:
        return _changed_or(stream, before, base, _content(stream, base, forced_kind, limits, lambda _: None))
    durable.make_dir(out_folder)
    with durable.open_new(Path(out_folder) / EXAMPLES_FILE, synced=False) as sidecar:
        identity = _content(stream, base, forced_kind, limits, sidecar.write)
        identity = _changed_or(stream, before, base, identity)
        if identity.verdict != "ok":
            raise _Verdict(identity)
    # ASCII with escapes: a file name that is not UTF-8 survives in it, which UTF-8 JSON cannot promise.
    text = json.dumps(identity.as_record(), indent=2, sort_keys=True) + "\n"
    durable.write_bytes(Path(out_folder) / RECORD_FILE, text.encode("ascii"), synced=False)
    return identity


def _by_name(base: Identity, forced_kind: str | None) -> Identity | None:
    reason = kinds.ignored_name(base.name.rpartition("/")[2])
    if not reason and forced_kind and forced_kind not in kinds.KINDS:
        reason = f"{forced_kind} is not a kind; the kinds are {', '.join(kinds.KINDS)}"
    if not reason and not base.container:
        reason = kinds.container_reason(base.name)
    if not reason and forced_kind:
        reason = kinds.kind_reason(forced_kind, base.container)
    return ignore(base, reason) if reason else None


def _by_type(base: Identity, path: Path | str) -> Identity | None:
    """Looked at before opening: to open a device or a FIFO can already do something."""
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode):
        return None
    return ignore(base, f"{_FILE_TYPES.get(stat.S_IFMT(mode), 'a device')}, not a regular file")


def _hash(stream: BinaryIO) -> tuple[str, str]:
    """SHA-256 in hex, and "all" or "tail" when all bytes, or the last ones, are NUL; "" otherwise."""
    digest, all_zero, tail = hashlib.sha256(), True, b""
    while block := stream.read(_READ_BYTES):
        digest.update(block)
        all_zero = all_zero and block.count(0) == len(block)
        tail = (tail + block[-_ZERO_TAIL_BYTES:])[-_ZERO_TAIL_BYTES:]
    stream.seek(0)
    zeros = "all" if all_zero else "tail" if tail == bytes(_ZERO_TAIL_BYTES) else ""
    return digest.hexdigest(), zeros


def _changed_or(stream: BinaryIO, before: os.stat_result, base: Identity, identity: Identity) -> Identity:
    """The identity, unless the file was changed while it was read: then nothing that was read counts."""
    after = os.fstat(stream.fileno())
    same = ("st_size", "st_mtime_ns", "st_ctime_ns")
    if all(getattr(before, field) == getattr(after, field) for field in same):
        return identity
    fresh = Identity(name=base.name, verdict="wait", container=base.container)
    return wait(fresh, "changed", "changed while being read", "it is read again when it has settled")


def _content(stream: BinaryIO, base: Identity, forced_kind: str | None, limits: Limits, write: Any) -> Identity:
    """Kind and examples, then the verdict on what was counted."""
    try:
        with unpacked(stream, base.container, limits.max_unpacked_bytes) as (plain, inner):
            if inner == "tar":
                return _folder(plain, base, forced_kind, limits, write)
            if kinds.holds_rows(inner):
                return _rows(plain, inner, base, forced_kind, limits, write)
            kind = forced_kind or "docs"
            base = dataclasses.replace(base, kind=kind)
            tally = scan_document(plain) if kind == "docs" else scan_text(plain, write)
    except CutShort as fault:
        return cut_short(base, fault, limits)
    except DataFault as fault:
        return dataclasses.replace(base, verdict="reject", reason=fault.message, hint=fault.hint)
    base = counted(base, tally)
    if not tally.rows:
        return dataclasses.replace(base, verdict="reject", reason="no usable example: the file is only white space")
    return base


def _rows(stream: BinaryIO, container: str, base: Identity, forced_kind: str | None, limits: Limits, write: Any) -> Identity:
    """A file of rows; `stream` and `container` without packing. Raises DataFault when the container is broken."""
    reading = Reading(**base.reading)

    def rows() -> Iterator[Row]:
        return read_container(stream, container, max_line_bytes=limits.max_line_bytes, most_bytes=limits.max_unpacked_bytes)

    detected, columns = detect_kind(rows(), reading)
    stream.seek(0)
    kind = forced_kind or (detected.kind if detected else "")
    base = dataclasses.replace(base, kind=kind)
    if detected and not forced_kind and kinds.kind_reason(kind, base.container):
        return ignore(base, kinds.kind_reason(kind, base.container))
    if container == "jsonl":  # packed or not: the quick way is for lines of JSON
        tally = scan_jsonl(stream, kind or None, limits.max_line_bytes, write, reading, _hopeless(base.size_bytes, limits))
    else:
        tally = scan_rows(rows(), kind or None, write, reading)
    return judged(counted(base, tally), tally, columns, limits)


def _folder(stream: BinaryIO, base: Identity, forced_kind: str | None, limits: Limits, write: Any) -> Identity:
    """A packed data set. Raises DataFault for what is none."""
    from guard.checks.members import card_text, data_set_in, tokenizer_in
    from guard.checks.scan_folder import detect_folder_kind, scan_folder

    reading = Reading(**base.reading)
    found = data_set_in(stream)
    detected, columns = detect_folder_kind(stream, found, limits.max_line_bytes, reading)
    kind = forced_kind or (detected.kind if detected else "")
    base = dataclasses.replace(base, kind=kind, card=card_text(stream, found.files),
                               unread=tuple(map(shown_name, found.unread[:20])),
                               tokenizer=tokenizer_in(stream, found.files) or base.tokenizer)  # fmt: skip
    if kinds.kind_reason(kind, base.container) and kind:
        return ignore(base, kinds.kind_reason(kind, base.container))
    hopeless = _hopeless(base.size_bytes, limits)
    tally = scan_folder(stream, found, kind or None, limits.max_line_bytes, write, reading, hopeless)
    return judged(dataclasses.replace(counted(base, tally), splits=tuple(tally.splits)), tally, columns, limits)


def _hopeless(size_bytes: int, limits: Limits) -> int:
    """So many bad rows are too many however many good ones follow: a row takes two bytes at least, with its line end."""
    return max(_COUNTED_BAD_ROWS, int(limits.max_bad_rows * size_bytes / 2) + 1)
