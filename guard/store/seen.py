"""Where an example stands among the stored files, and which versions have learnt it: the answer of `heirloom seen`.

Exact by fingerprint, through the index of known examples and the sidecars it does not cover; near by signature
(`guard/store/near.py`). Not here: reading what a person typed into words (`daemon/cli/seen.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from guard.bitmap import bitmap_bits
from guard.checks.rows import text_examples, validate
from guard.errors import Damage, UsageError
from guard.fingerprint import FINGERPRINT_BYTES, example_fingerprint
from guard.key_columns import split_keys
from guard.minhash import trained_text
from guard.store.keeper import Keeper
from guard.store.known import open_index, sidecar_bytes, uncovered
from guard.store.near import near_hits
from guard.store.versions import ancestors, tips

__all__ = ["examples_meant", "seen"]

KINDS = {"pretrain": "text", "sft": "messages"}
"""For each kind of training data the column without which a JSON object is no row of it."""
_MOST = 100


def examples_meant(text: str) -> list[dict[str, Any]]:
    """The trained fields that a text may stand for, each once.

    A JSON object with `text` or `messages` is a row, of every kind it is valid for; anything else is a plain text: one
    row of pretraining data, and the segments it would be cut into as a file. Raises UsageError for a row that no kind
    takes, and for an empty text.
    """
    if not text.strip():
        raise UsageError("the text is empty", hint='heirloom seen "some text", or - to read it from standard input')
    row = _row(text)
    if row is None:
        found = [{"text": text}, *(example.fields for example in text_examples(iter([text])))]
    else:
        judged = [validate(kind, row) for kind, column in KINDS.items() if column in row]
        found = [fields for fields in judged if isinstance(fields, dict)]
        if not found:
            fault = next(fault for faults in judged if isinstance(faults, list) for fault in faults)
            raise UsageError(f"that row could not be trained on: {fault.reason}", subject=fault.field,
                             hint=f"expected: {fault.expected}")  # fmt: skip
    return list({example_fingerprint(fields): fields for fields in found}.values())


def _row(text: str) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and set(KINDS.values()) & value.keys() else None


def seen(keeper: Keeper, examples: Sequence[Mapping[str, Any]], *, least: float | None = None) -> dict[str, Any]:
    """{"exact": [...], "near": [...]}: stored examples that are one of these, or resemble one by `least` (None: not asked).

    Each {sha256, file, ordinal, similarity, versions: [{name, state, line, objective, active_in}]}; `active_in` names the
    lines whose tip has learnt it. At most 100 of each. Raises Damage when what a file holds cannot be known.
    """
    exact = _exact(keeper, [example_fingerprint(dict(fields)) for fields in examples])
    places = {(item["sha256"], item["ordinal"]) for item in exact}
    near = [] if least is None else near_hits(keeper, [trained_text(fields) for fields in examples], least, most=_MOST)
    near = [item for item in near if (item["sha256"], item["ordinal"]) not in places]
    families = {line: set(ancestors(keeper.ledger, tip.id)) for line, tip in tips(keeper.ledger).items()} if exact or near else {}
    return {key: [{**item, "versions": _versions(keeper, item["sha256"], item["ordinal"], families)} for item in items[:_MOST]]
            for key, items in (("exact", exact), ("near", near))}  # fmt: skip


def _exact(keeper: Keeper, fingerprints: Sequence[bytes]) -> list[dict[str, Any]]:
    found: set[tuple[str, int]] = set()
    index = open_index(keeper)
    high, low = split_keys(b"".join(fingerprints))
    for name, part in list(index.parts.items()):
        try:
            hits = [(question, part.columns.file(file), ordinal) for batch in part.find(high, low)
                    for question, file, ordinal in zip(*(column.tolist() for column in batch), strict=True)]  # fmt: skip
        except Damage as damage:
            index.leave_out(name, damage.message)  # its files are uncovered from here on, and asked themselves
            continue
        found |= {(sha256, ordinal) for question, sha256, ordinal in hits
                  if _holds(keeper, sha256, ordinal, fingerprints[question])}  # fmt: skip
    for sha256, _examples in uncovered(keeper, index):
        keys = np.frombuffer(sidecar_bytes(keeper.home.files / sha256), dtype="V16")
        for fingerprint in fingerprints:
            found |= {(sha256, int(place)) for place in np.flatnonzero(keys == np.void(fingerprint))}
    names = {sha256: keeper.ledger.value("SELECT name FROM files WHERE sha256 = ?", (sha256,)) for sha256, _ in found}
    return [{"sha256": sha256, "file": names[sha256], "ordinal": ordinal, "similarity": 1.0}
            for sha256, ordinal in sorted(found) if names[sha256] is not None]  # fmt: skip


def _holds(keeper: Keeper, sha256: str, ordinal: int, fingerprint: bytes) -> bool:
    """The index knows 12 of 16 bytes; the sidecar has the last word."""
    path = keeper.home.files / sha256 / "examples.fp"
    try:
        with path.open("rb") as handle:
            handle.seek(ordinal * FINGERPRINT_BYTES)
            return handle.read(FINGERPRINT_BYTES) == fingerprint
    except OSError as error:
        raise Damage(f"{path} cannot be read: {error.strerror}", subject=str(path), hint="heirloom verify --all") from error


def _versions(keeper: Keeper, sha256: str, ordinal: int, families: Mapping[str, set[int]]) -> list[dict[str, Any]]:
    rows = keeper.ledger.rows(
        "SELECT v.id, v.name, v.state, v.line, l.objective, l.bitmap FROM learnt l JOIN versions v ON v.id = l.version_id "
        "WHERE l.sha256 = ? AND l.count > 0 ORDER BY v.id", (sha256,))  # fmt: skip
    found = []
    for row in rows:
        bits = bitmap_bits(row["bitmap"])
        if ordinal < len(bits) and bits[ordinal]:
            found.append({key: row[key] for key in ("name", "state", "line", "objective")}
                         | {"active_in": sorted(line for line, family in families.items() if row["id"] in family)})  # fmt: skip
    return found
