"""Looking at data without touching it: what a file, a folder or a prepared dataset holds, and every row that is at fault.

The verdict on a file is intake's own (`guard/checks/identify.py`), so that what is fine here is taken when it is
dropped; the list of faults may be asked for whole, which intake never keeps. Nothing is written and no home is needed.
Not here: words for a person (`daemon/cli/prepare_checks.py`).
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from guard.checks.columns import PLAIN, Reading
from guard.checks.identify import identify
from guard.checks.identity import Identity
from guard.checks.jsonl import Fault, Row
from guard.checks.kinds import KINDS, container_of, detect_columns, holds_rows
from guard.checks.rows import read_fields
from guard.errors import Damage, DataFault, NotFound, UsageError
from guard.folder_tree import list_tree, regular
from trainer.dataset import METADATA, Split, open_dataset, verify_dataset
from trainer.row_files import data_files, rows_of, side_beside, unread_in, whole_problem
from trainer.shards import shard_name

__all__ = ["LISTED", "token_fault", "validate_path"]

LISTED = 20
_ROWS_TO_LOOK_AT = 100
_BLOCK_TOKENS = 1 << 20


def validate_path(path: Path, kind: str | None = None, *, everything: bool = False,
                  vocab_size: int | None = None) -> dict[str, Any]:  # fmt: skip
    """What was found at `path`: a file, a folder of data files, or a prepared dataset.

    `everything`: list every fault and not the first 20. `vocab_size`: ids in `input_ids` must lie below it. Keys: `path
    type ok kind container rows examples tokens columns sample faults_count faults[] reason hint`; of a folder also
    `files[]` (the same for each) and `unread[]` (Arrow files that its `state.json` does not name).
    A fault is `{file, line, field, reason, expected}`. Raises NotFound and UsageError.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"{kind} is not a kind", hint=f"one of {', '.join(KINDS)}")
    if not path.exists():
        raise NotFound(f"there is nothing at {path}", subject=str(path), hint="check the path")
    if path.is_file():
        return _File(path, path.name, kind, everything, vocab_size, side_beside(path)).judge()
    if (path / METADATA).is_file():
        return _prepared(path, everything)
    return _folder(path, kind, everything, vocab_size)


# --- a file ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _File:
    """One file on its way to a report."""

    path: Path
    name: str
    kind: str | None
    everything: bool
    vocab_size: int | None
    side: Path | None
    """The side file that goes with it, or with the folder it lies in."""
    reading: Reading = PLAIN

    def judge(self) -> dict[str, Any]:
        """The report on the file."""
        identity = identify(self.path.resolve(), self.name.rpartition("/")[2], self.kind, side=self.side)
        self.reading = Reading(**identity.reading) if identity.reading else PLAIN
        base = {"path": str(self.path), "type": "file", "container": container_of(self.path.name), "reason": identity.reason,
                "hint": identity.hint, "duplicates": identity.duplicates, "tokens": identity.tokens_approx,
                "verdict": identity.verdict}  # fmt: skip
        if not self._has_rows():
            return base | self._of_text(identity)
        try:
            columns, sample, detected = _first_rows(self.path, self.reading)
            found = self._found(identity, detected)
        except DataFault as fault:
            return base | {"ok": False, "kind": self.kind or "", "rows": 0, "examples": 0, "columns": [], "sample": None,
                           "faults_count": 1, "faults": [_record(self.name, 0, Fault("", fault.message))],
                           "verdict": "reject", "reason": fault.message, "hint": fault.hint}  # fmt: skip
        report = base | {"columns": columns, "sample": sample} | found
        return report | {"ok": not report["faults_count"] and report["verdict"] == "ok"}

    def _has_rows(self) -> bool:
        return holds_rows(container_of(self.path.name))

    def _of_text(self, identity: Identity) -> dict[str, Any]:
        """A plain text or document: it has no rows and no columns; its faults are faults of the whole."""
        ok = identity.verdict == "ok"
        faults = [] if ok else [_record(self.name, 0, Fault("", identity.reason))]
        sample = self.path.read_bytes()[:2000].decode("utf-8", "replace") if ok else None
        return {"ok": ok, "kind": identity.kind or self.kind or "", "rows": identity.rows, "examples": identity.examples,
                "columns": [], "sample": sample, "faults_count": len(faults), "faults": faults}  # fmt: skip

    def _found(self, identity: Identity, detected: str) -> dict[str, Any]:
        """Counts and faults: intake's where it knows the kind and lists enough, else of a pass of our own."""
        kind = self.kind or identity.kind or detected
        faults = identity.bad_rows_count + identity.unusable_rows_count
        listed = [*identity.bad_rows, *identity.unusable_rows]
        judged = identity.kind == kind and identity.verdict != "ignore" and bool(identity.rows)
        if judged and not self.everything and self.vocab_size is None and faults <= len(listed):
            records = [_record(self.name, item.line, Fault(item.field, item.reason, item.expected))
                       for item in sorted(listed)][:LISTED]  # fmt: skip
            return {"kind": kind, "rows": identity.rows, "examples": identity.examples, "faults_count": faults,
                    "faults": records}  # fmt: skip
        found = self._scan(kind)
        if judged or identity.verdict != "ignore":
            return found
        # Intake does not take this kind or container; its rows were judged all the same.
        return found | {"verdict": "ok" if not found["faults_count"] else "reject",
                        "reason": identity.reason if container_of(self.path.name) else ""}  # fmt: skip

    def _scan(self, kind: str) -> dict[str, Any]:
        rows = examples = count = 0
        listed: list[dict[str, Any]] = []
        for row in rows_of(self.path):
            rows += 1
            faults = _faults_of(kind, row, self.vocab_size, self.reading)
            examples += not faults
            count += bool(faults)
            if self.everything or len(listed) < LISTED:
                listed += [_record(self.name, row.line_number, fault) for fault in faults]
        if not rows:
            listed, count = [_record(self.name, 0, Fault("", "no row in it"))], 1
        return {"kind": kind, "rows": rows, "examples": examples, "faults_count": count,
                "faults": listed if self.everything else listed[:LISTED]}  # fmt: skip


def _faults_of(kind: str, row: Row, vocab_size: int | None, reading: Reading) -> list[Fault]:
    if row.value is None:
        return [row.fault or Fault("", "not valid JSON")]
    if not kind:
        return [Fault("", "the columns say no known kind", "text, messages, chosen and rejected, ...")]
    if kind == "docs":
        return [Fault("", "rows are no document", "a text, or another kind")]
    found = read_fields(kind, row.value, reading)
    if isinstance(found, list):
        return reading.told(found)
    if vocab_size is None or "input_ids" not in found:
        return []
    fault = token_fault([int(item) for item in found["input_ids"].split(" ")], vocab_size)  # without padding
    return [fault] if fault else []


def token_fault(ids: Any, vocab_size: int) -> Fault | None:
    """The first id that no token has: `Token ID 50000 out of vocabulary range`."""
    if not isinstance(ids, list):
        return None
    wrong = next((item for item in ids if not isinstance(item, int) or not 0 <= item < vocab_size), None)
    if wrong is None:
        return None
    return Fault("input_ids", f"Token ID {wrong} out of vocabulary range", f"0 to {vocab_size - 1}")


def _first_rows(path: Path, reading: Reading) -> tuple[list[str], dict[str, Any] | None, str]:
    """The columns, the first row, and the kind that the first row to say one says."""
    columns: list[str] = []
    sample = None
    for row, _ in zip(rows_of(path), range(_ROWS_TO_LOOK_AT), strict=False):
        if row.value is None:
            continue
        sample, columns = sample or row.value, columns or list(row.value)
        detected = detect_columns(reading.apply(row.value))
        if detected:
            return columns, sample, detected.kind
    return columns, sample, ""


def _record(file: str, line: int, fault: Fault) -> dict[str, Any]:
    return {"file": file, "line": line, "field": fault.field, "reason": fault.reason, "expected": fault.expected}


# --- a folder ----------------------------------------------------------------------------------------------------


def _folder(path: Path, kind: str | None, everything: bool, vocab_size: int | None) -> dict[str, Any]:
    """All data files of a folder, one after another."""
    entries = list_tree(path)
    names = regular(entries)
    if problem := whole_problem(path, names, [name for name, facts in entries if not stat.S_ISREG(facts.st_mode)]):
        # As intake would say it, which follows no link.
        return _hopeless(path, DataFault(f"{path} is not whole: {problem}", hint="make it whole, and look again"))
    try:
        files = data_files(path)
    except DataFault as fault:
        return _hopeless(path, fault)
    if not files:
        return _hopeless(path, DataFault("there is no data file in it", hint="rows: .jsonl, .parquet or Arrow"))
    side = side_beside(path)
    reports = [_File(item.path, item.name, kind, everything, vocab_size, side_beside(item.path) or side).judge() |
               {"split": item.split} for item in files]  # fmt: skip
    faults = [fault for report in reports for fault in report["faults"]]
    first = reports[0]
    splits = {name: sum(report["rows"] for report in reports if report["split"] == name) for name in ("train", "val")}
    return {
        "path": str(path), "type": "folder", "ok": all(report["ok"] for report in reports), "kind": first["kind"],
        "container": first["container"], "rows": sum(report["rows"] for report in reports),
        "examples": sum(report["examples"] for report in reports), "tokens": sum(report["tokens"] for report in reports),
        "columns": first["columns"], "sample": first["sample"], "splits": splits, "unread": unread_in(path, names),
        "faults_count": sum(report["faults_count"] for report in reports),
        "faults": faults if everything else faults[:LISTED], "files": reports,
        "reason": next((report["reason"] for report in reports if not report["ok"]), ""), "hint": "",
    }  # fmt: skip


def _hopeless(path: Path, fault: DataFault) -> dict[str, Any]:
    return {"path": str(path), "type": "folder", "ok": False, "kind": "", "container": "", "rows": 0, "examples": 0, "tokens": 0,
            "columns": [], "sample": None, "faults_count": 1, "faults": [_record("", 0, Fault("", fault.message))],
            "reason": fault.message, "hint": fault.hint}  # fmt: skip


# --- a prepared dataset ------------------------------------------------------------------------------------------


def _prepared(path: Path, everything: bool) -> dict[str, Any]:
    """Token shards: sizes, ids, then every hash. Raises what `open_dataset` raises for a folder of another release."""
    report = _hopeless(path, DataFault("")) | {"type": "dataset", "container": "shards"}
    try:
        dataset = open_dataset(path)
        vocab_size = int(dataset.tokenizer_state["vocab_size"])
        faults = [fault for split in (dataset.train, dataset.val) for fault in _shard_faults(split, vocab_size)]
        if not faults:
            verify_dataset(path)
    except Damage as damage:
        return report | {"faults": [_record("", 0, Fault("", damage.message))], "reason": damage.message, "hint": damage.hint}
    splits = {name: {"examples": split.count, "tokens": split.total_tokens, "loss_tokens": int(split.record["loss_tokens"])}
              for name, split in (("train", dataset.train), ("val", dataset.val))}  # fmt: skip
    return report | {
        "ok": not faults, "kind": dataset.stage, "rows": dataset.train.count + dataset.val.count,
        "examples": dataset.train.count + dataset.val.count, "tokens": dataset.train.total_tokens + dataset.val.total_tokens,
        "splits": splits, "tokenization": dataset.tokenizer_state["tokenization"], "vocab_size": vocab_size,
        "mask_ratio": dataset.mask_ratio, "dataset_id": dataset.id, "faults_count": len(faults),
        "faults": faults if everything else faults[:LISTED], "reason": faults[0]["reason"] if faults else "",
        "hint": "prepare it again with the model's own tokenizer" if faults else "",
    }  # fmt: skip


def _shard_faults(split: Split, vocab_size: int) -> Iterator[dict[str, Any]]:
    """The first wrong id of each shard, with the place of the token in the split."""
    start = 0
    for number, shard in enumerate(split.reader.shards):
        for place in range(0, shard.tokens, _BLOCK_TOKENS):
            ids = split.tokens(start + place, min(_BLOCK_TOKENS, shard.tokens - place))
            wrong = np.flatnonzero(ids >= vocab_size)
            if len(wrong):
                where = int(wrong[0])
                fault = Fault("tokens", f"Token ID {int(ids[where])} out of vocabulary range", f"0 to {vocab_size - 1}")
                yield _record(f"{split.folder.name}/{shard_name(number)}", start + place + where + 1, fault)
                break
        start += shard.tokens
