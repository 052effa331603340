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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from guard import durable
from guard.checks import kinds
from guard.checks.columns import PLAIN, Reading
from guard.checks.forms import columns_hint
from guard.checks.jsonl import FOREIGN, MAX_LINE_BYTES
from guard.checks.rows import RULES_VERSION, Row, open_regular
from guard.checks.scan import RowFault, Tally, detect_kind, scan_document, scan_jsonl, scan_rows, scan_text
from guard.checks.why import printable, why_text
from guard.containers.faults import CutShort
from guard.containers.read import read_container
from guard.containers.unpack import unpacked
from guard.errors import DataFault, UsageError
from guard.fingerprint import CANONICAL_VERSION
from guard.segment import SEGMENTER_VERSION

__all__ = ["EXAMPLES_FILE", "RECORD_FILE", "Identity", "Limits", "identify", "why_text"]

EXAMPLES_FILE = "examples.fp"
RECORD_FILE = "record.json"
BYTES_PER_TOKEN = 4  # GPT-2 on English prose; the exact count is made when the file is prepared
_COUNTED_BAD_ROWS = 100_000  # up to here all are counted, for whoever wants to know
_READ_BYTES = 1 << 20
_FILE_TYPES = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO",
               stat.S_IFSOCK: "a socket"}  # fmt: skip
_RENAMED = {"gzip": ".gz, such as data.jsonl.gz", "zstandard": ".zst, such as data.jsonl.zst", "parquet": ".parquet",
            "Arrow": ".arrow", "NumPy": ".npy"}  # fmt: skip
_ENDS_IN_TEXT = ("jsonl", "json", "csv", "text")
_ZERO_TAIL_BYTES = 8  # UTF-16 and UTF-32 text may end in up to three


@dataclass(frozen=True)
class Limits:
    """How much is forgiven, and how long a row may be."""

    # Rows that hold no JSON object, as a fraction of all rows: beyond it the file is rejected.
    max_bad_rows: float = 0.001
    # Rows that were read but cannot be trained on, as a fraction of all rows.
    max_unusable_rows: float = 0.05
    # A longer line is a bad row.
    max_line_bytes: int = MAX_LINE_BYTES
    # What a packed file may unpack to.
    max_unpacked_bytes: int = 100_000_000_000
    # Ids of tokens lie below it; 0: not known. A row with another makes the whole file one of another tokenizer.
    vocab_size: int = 0
    # The time to wait is over: what would be `wait` for a truncated or zero-filled file is `reject`.
    final: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Limits:
        """Limits from a request. Raises UsageError for an unknown name."""
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise UsageError(f"unknown limit {sorted(unknown)[0]!r}", hint="see guard/checks/identify.py")
        return cls(**values)


@dataclass(frozen=True)
class Identity:
    """Everything that was found out about one file. Row lists hold the first 20 by line; counts are complete."""

    name: str
    verdict: str
    reason: str = ""
    hint: str = ""
    wait_for: str = ""
    kind: str = ""
    container: str = ""
    sha256: str = ""
    size_bytes: int = 0
    rows: int = 0
    examples: int = 0
    tokens_approx: int = 0
    bad_rows_count: int = 0
    unusable_rows_count: int = 0
    duplicates: int = 0
    duplicates_exact: bool = True
    truncated_line: int = 0
    max_token_id: int = -1
    """The highest token id of its rows of `input_ids`; -1 without such rows."""
    evaluation_only: int = 0
    """Tasks without starter code among the examples: they judge models and are never trained."""
    bad_rows: tuple[RowFault, ...] = ()
    unusable_rows: tuple[RowFault, ...] = ()
    canonical_version: int = CANONICAL_VERSION
    segmenter_version: int = SEGMENTER_VERSION
    rules_version: int = RULES_VERSION
    reading: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How its rows are read: under other names, by which rules (`columns.py`)."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the side file said."""
    splits: tuple[dict[str, Any], ...] = ()
    """Of a packed folder: `split` (train or val), `member`, `start` and `count` in ordinals, for each of its files of rows."""
    card: str = ""
    """Of a packed folder: the first words of its card."""

    def as_record(self) -> dict[str, Any]:
        """The identity as plain values: `record.json`, and the child's reply."""
        record = dataclasses.asdict(self)
        for name in ("bad_rows", "unusable_rows"):
            record[name] = [fault.as_dict() for fault in getattr(self, name)]
        record["splits"] = list(self.splits)
        return {key: value for key, value in record.items() if value or key not in ("splits", "card")}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Identity:
        """The inverse of `as_record`; keys it does not know are left out."""
        known = {key: record[key] for key in (field.name for field in dataclasses.fields(cls)) if key in record}
        for name in ("bad_rows", "unusable_rows"):
            known[name] = tuple(RowFault(**fault) for fault in known.get(name, ()))
        return cls(**{**known, "splits": tuple(known.get("splits", ()))})


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
        return _wait(base, "unreadable", "its permissions forbid reading it", "chmod it, nothing else")
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
    base = dataclasses.replace(base, reading=reading.as_dict(), rules_version=reading.rules, settings=settings)
    return base, kind or reading.kind() or None


def _identify_open(stream: BinaryIO, base: Identity, forced_kind: str | None, limits: Limits,
                   out_folder: Path | str | None) -> Identity:  # fmt: skip
    before = os.fstat(stream.fileno())
    if not stat.S_ISREG(before.st_mode):
        raise _Verdict(_ignore(base, "not a regular file"))
    if before.st_size == 0:
        raise _Verdict(_wait(base, "empty", "the file is empty", "it is taken when something is in it"))
    sha256, zeros = _hash(stream)
    if zeros == "tail" and base.container not in _ENDS_IN_TEXT:
        zeros = ""  # numbers may be zero, and a packed file may end in them; whoever reads it knows where it ends
    base = dataclasses.replace(base, sha256=sha256, size_bytes=before.st_size)
    if zeros and base.container != "tar":  # a tar ends in zeroes, and says by itself where
        raise _Verdict(_changed_or(stream, before, base, _zero_filled(base, zeros, limits)))
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
    return _ignore(base, reason) if reason else None


def _by_type(base: Identity, path: Path | str) -> Identity | None:
    """Looked at before opening: to open a device or a FIFO can already do something."""
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode):
        return None
    return _ignore(base, f"{_FILE_TYPES.get(stat.S_IFMT(mode), 'a device')}, not a regular file")


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
    return _wait(fresh, "changed", "changed while being read", "it is read again when it has settled")


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
        return _cut_short(base, fault, limits)
    except DataFault as fault:
        return dataclasses.replace(base, verdict="reject", reason=fault.message, hint=fault.hint)
    base = _counted(base, tally)
    if not tally.rows:
        return dataclasses.replace(base, verdict="reject", reason="no usable example: the file is only white space")
    return base


def _cut_short(base: Identity, fault: CutShort, limits: Limits) -> Identity:
    reason = f"truncated at line {fault.line}: {fault.message}" if fault.line else f"truncated: {fault.message}"
    base = dataclasses.replace(base, truncated_line=fault.line)
    if limits.final:
        return dataclasses.replace(base, verdict="reject", reason=reason, hint=fault.hint)
    return _wait(base, "truncated_tail", reason, "perhaps it is still being written; " + fault.hint)


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
        return _ignore(base, kinds.kind_reason(kind, base.container))
    if container == "jsonl":  # packed or not: the quick way is for lines of JSON
        tally = scan_jsonl(stream, kind or None, limits.max_line_bytes, write, reading, _hopeless(base.size_bytes, limits))
    else:
        tally = scan_rows(rows(), kind or None, write, reading)
    return _judged(_counted(base, tally), tally, columns, limits)


def _folder(stream: BinaryIO, base: Identity, forced_kind: str | None, limits: Limits, write: Any) -> Identity:
    """A packed data set. Raises DataFault for what is none."""
    from guard.checks.members import card_text, data_set_in
    from guard.checks.scan_folder import detect_folder_kind, scan_folder

    reading = Reading(**base.reading)
    found = data_set_in(stream)
    detected, columns = detect_folder_kind(stream, found, limits.max_line_bytes, reading)
    kind = forced_kind or (detected.kind if detected else "")
    base = dataclasses.replace(base, kind=kind, card=card_text(stream, found.files))
    if kinds.kind_reason(kind, base.container) and kind:
        return _ignore(base, kinds.kind_reason(kind, base.container))
    hopeless = _hopeless(base.size_bytes, limits)
    tally = scan_folder(stream, found, kind or None, limits.max_line_bytes, write, reading, hopeless)
    return _judged(dataclasses.replace(_counted(base, tally), splits=tuple(tally.splits)), tally, columns, limits)


def _judged(base: Identity, tally: Tally, columns: list[str], limits: Limits) -> Identity:
    base = _judge(base, tally, columns, limits)
    return _within(base, tally, limits) if base.verdict == "ok" else base


def _hopeless(size_bytes: int, limits: Limits) -> int:
    """So many bad rows are too many however many good ones follow: a row takes two bytes at least, with its line end."""
    return max(_COUNTED_BAD_ROWS, int(limits.max_bad_rows * size_bytes / 2) + 1)


def _counted(base: Identity, tally: Tally) -> Identity:
    return dataclasses.replace(
        base, rows=tally.rows, examples=tally.examples, tokens_approx=tally.bytes_trained // BYTES_PER_TOKEN,
        bad_rows_count=tally.bad, unusable_rows_count=tally.unusable, duplicates=tally.duplicates,
        duplicates_exact=tally.duplicates_exact, truncated_line=tally.truncated_line,
        max_token_id=tally.max_token_id, evaluation_only=tally.evaluation_only,
        bad_rows=tuple(tally.bad_rows), unusable_rows=tuple(tally.unusable_rows),
    )  # fmt: skip


def _judge(base: Identity, tally: Tally, columns: list[str], limits: Limits) -> Identity:
    """The verdict on a file of rows; the first reason that holds is the one told."""
    if tally.truncated_line:
        reason = f"truncated at {tally.truncated_in + ':' if tally.truncated_in else 'line '}{tally.truncated_line}"
        hint = "the last row stops in the middle; copy the file again, or remove that line"
        if limits.final:
            return dataclasses.replace(base, verdict="reject", reason=reason, hint=hint)
        return _wait(base, "truncated_tail", reason, "perhaps it is still being written; " + hint)
    reason, hint = _reject_reason(base, tally, columns, limits)
    return dataclasses.replace(base, verdict="reject", reason=reason, hint=hint) if reason else base


def _reject_reason(base: Identity, tally: Tally, columns: list[str], limits: Limits) -> tuple[str, str]:
    if not tally.rows:
        return "no usable example: the file is only white space", ""
    if tally.bad_rows and tally.bad_rows[0].reason.startswith(FOREIGN):  # A70: the encoding, or the format, by its name
        return tally.bad_rows[0].reason, _foreign_hint(tally.bad_rows[0].reason)
    for count, limit, what in ((tally.bad, limits.max_bad_rows, "cannot be read"),
                               (0 if not base.kind else tally.unusable, limits.max_unusable_rows,
                                "cannot be trained on")):  # fmt: skip
        if count > limit * tally.rows + 1e-9:
            return f"{count} of {tally.rows} rows {what}; at most {limit:.2%} may be", _shape_hint(base, tally)
    if not base.kind:
        named = ", ".join(printable(column[:40]) for column in columns[:8]) or "none"
        return f"no kind of data has these columns: {named}", columns_hint(columns) or f"supported: {kinds.SUPPORTED}"
    return ("no usable example", _shape_hint(base, tally)) if not tally.examples else ("", "")


def _within(base: Identity, tally: Tally, limits: Limits) -> Identity:
    """The identity, unless rows hold ids that the vocabulary has not: then all of its ids mean something else.

    Such rows are not left out as unusable ones are: what is usable would then depend on the model of the day, and ordinals
    with it.
    """
    if not limits.vocab_size or tally.max_token_id < limits.vocab_size:
        return base
    fault = RowFault(tally.max_token_line, "input_ids", f"Token ID {tally.max_token_id} out of vocabulary range",
                     f"ids from 0 to {limits.vocab_size - 1}", tally.max_token_in)  # fmt: skip
    return dataclasses.replace(
        base, verdict="reject", reason=f"{fault.place}: {fault.reason}", unusable_rows=(fault,), unusable_rows_count=1,
        hint=f"it was made with another tokenizer; the model's has the ids 0 to {limits.vocab_size - 1}")  # fmt: skip


def _foreign_hint(reason: str) -> str:
    """What to do with a file that is something else than its name says."""
    suffix = next((suffix for word, suffix in _RENAMED.items() if f"a {word} file" in reason), "")
    return f"rename it: it must end in {suffix}" if suffix else "save it as UTF-8 text, one JSON object per line"


def _shape_hint(base: Identity, tally: Tally) -> str:
    """A guess, from the first row, at what a file of lines was meant to be."""
    first = tally.first_raw.lstrip()
    if not tally.bad_rows or kinds.unpacked_container(base.container) != "jsonl":
        return ""
    if first.startswith(b"["):
        return "this looks like one JSON array: rename it to end in .json, or write one per line (jq -c '.[]' OLD > NEW.jsonl)"
    if first.startswith(b"{") and tally.bad_rows[0].line == 1:
        return "if one object spans several lines: rename it to end in .json, or write one per line (jq -c . OLD > NEW.jsonl)"
    if not first.startswith(b"{") and (b"," in first or b"\t" in first):
        return "this looks like CSV: rename it to end in .csv, or write one JSON object per line"
    return ""


def _zero_filled(base: Identity, zeros: str, limits: Limits) -> Identity:
    reason = "zero-filled: every byte is NUL" if zeros == "all" else "zero-filled at its end"
    hint = "space was reserved and never written; copy the file again"
    if limits.final:
        return dataclasses.replace(base, verdict="reject", reason=reason, hint=hint)
    return _wait(base, "zero_filled", reason, "perhaps it is still being copied")


def _ignore(base: Identity, reason: str) -> Identity:
    return dataclasses.replace(base, verdict="ignore", reason=reason)


def _wait(base: Identity, wait_for: str, reason: str, hint: str) -> Identity:
    return dataclasses.replace(base, verdict="wait", wait_for=wait_for, reason=reason, hint=hint)
