"""What is known of one dropped file, as plain values: the record that goes with it for ever, and what may be forgiven it.

Not here: finding it out (`identify.py`) and the verdict (`judging.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from guard.checks.jsonl import MAX_LINE_BYTES
from guard.checks.rows import RULES_VERSION
from guard.checks.scan import RowFault
from guard.errors import UsageError
from guard.fingerprint import CANONICAL_VERSION
from guard.segment import SEGMENTER_VERSION

__all__ = ["Identity", "Limits"]


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
    # The tokenizer that the ids must be of: its name and its hash; "": not known.
    tokenization: str = ""
    content_hash: str = ""
    # vocab_size, tokenization and content_hash for other lines, for a file whose side file names one.
    of_lines: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    # The time to wait is over: what would be `wait` for a truncated or zero-filled file is `reject`.
    final: bool = False

    def of_line(self, line: str) -> Limits:
        """The limits for a file that is meant for this line, "" for the usual one."""
        return dataclasses.replace(self, **self.of_lines.get(line, {}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Limits:
        """Limits from a request. Raises UsageError for an unknown name."""
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise UsageError(f"unknown limit {sorted(unknown)[0]!r}", hint="see guard/checks/identity.py")
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
    tokenizer: dict[str, str] = dataclasses.field(default_factory=dict)
    """What was said of the tokenizer that made its token ids (`made_with.py`); {} when nothing was, or it holds no ids."""
    card: str = ""
    """Of a packed folder: the first words of its card."""
    unread: tuple[str, ...] = ()
    """Of a packed folder: Arrow files in it that its `state.json` does not name; their rows are not its own."""

    def as_record(self) -> dict[str, Any]:
        """The identity as plain values: `record.json`, and the child's reply."""
        record = dataclasses.asdict(self)
        for name in ("bad_rows", "unusable_rows"):
            record[name] = [fault.as_dict() for fault in getattr(self, name)]
        record["splits"], record["unread"] = list(self.splits), list(self.unread)
        return {key: value for key, value in record.items() if value or key not in ("splits", "card", "unread")}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Identity:
        """The inverse of `as_record`; keys it does not know are left out."""
        known = {key: record[key] for key in (field.name for field in dataclasses.fields(cls)) if key in record}
        for name in ("bad_rows", "unusable_rows"):
            known[name] = tuple(RowFault(**fault) for fault in known.get(name, ()))
        return cls(**{**known, "splits": tuple(known.get("splits", ())), "unread": tuple(known.get("unread", ()))})
