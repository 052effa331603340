"""Where an example stands among the stored files, and which versions have learnt it: the answer of `heirloom seen`.

Exact by fingerprint, through the index of known examples and the sidecars it does not cover; near by signature
(`guard/store/near.py`). Not here: what is told beside the places (`seen_about.py`), or the words (`daemon/cli/seen.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from guard.bitmap import bitmap_bits
from guard.checks.kinds import kinds_of
from guard.checks.rows import text_examples, validate
from guard.errors import Damage, UsageError
from guard.fingerprint import FINGERPRINT_BYTES, example_fingerprint
from guard.key_columns import split_keys
from guard.minhash import trained_text
from guard.store.keeper import Keeper
from guard.store.known import open_index, sidecar_bytes, uncovered
from guard.store.near import NearAnswer, near_answer
from guard.store.versions import ancestors, tips

__all__ = ["broken_row", "examples_meant", "is_row", "name_of", "rows_meant", "seen", "seen_rows", "with_versions"]

_MOST = 100


def examples_meant(text: str) -> list[dict[str, Any]]:
    """The trained fields that a text may stand for, each once.

    A JSON object whose columns say a kind is a row, of every kind it is valid for; anything else is a plain text: one
    row of pretraining data, and the segments it would be cut into as a file. Raises UsageError for a row that no kind
    takes, and for an empty text.
    """
    if not text.strip():
        raise UsageError("the text is empty", hint='heirloom seen "some text", or - to read it from standard input')
    row = _row(text)
    if row is None:
        found = [{"text": text}, *(example.fields for example in text_examples(iter([text])))]
    else:
        judged = [validate(kind, row) for kind in kinds_of(row)]
        found = [fields for fields in judged if isinstance(fields, dict)]
        if not found:
            fault = next(fault for faults in judged if isinstance(faults, list) for fault in faults)
            raise UsageError(f"that row could not be trained on: {fault.reason}", subject=fault.field,
                             hint=f"expected: {fault.expected}")  # fmt: skip
    return list({example_fingerprint(fields): fields for fields in found}.values())


def broken_row(text: str) -> str:
    """Why a text that begins like a row is none, "" for any other: it is asked as plain text, and a person should know."""
    if not text.lstrip().startswith("{") or _row(text) is not None:
        return ""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return f"it begins with {{ and is not JSON ({error.msg} at line {error.lineno}, column {error.colno})"
    return "it is a JSON object without text or messages, or the columns of another kind"


def rows_meant(text: str) -> list[tuple[int, list[dict[str, Any]], str]] | None:
    """A text of several JSONL rows: (line, the examples it may stand for, why there are none) of each; None for any other."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) < 2 or not lines[0][1].lstrip("\ufeff \t").startswith("{") or _row(text) is not None:
        return None
    if all(_row(line) is None for _number, line in lines):
        return None
    found: list[tuple[int, list[dict[str, Any]], str]] = []
    for number, line in lines:
        try:
            why = broken_row(line) or ("" if _row(line) is not None else "it is no JSON object")
            found.append((number, [] if why else examples_meant(line), why))
        except UsageError as error:
            found.append((number, [], f"{error.subject}: {error.message}" if error.subject else error.message))
    return found


def is_row(text: str) -> bool:
    """Whether a text is one JSON row, and no plain text."""
    return _row(text) is not None


def name_of(keeper: Keeper, sha256: str) -> str | None:
    """The name a stored file came under; None for one that is not known."""
    name: str | None = keeper.ledger.value("SELECT name FROM files WHERE sha256 = ?", (sha256,))
    return name


def _row(text: str) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text.removeprefix("\ufeff"))
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and kinds_of(value) else None


def seen(keeper: Keeper, examples: Sequence[Mapping[str, Any]], *, least: float | None = None) -> dict[str, Any]:
    """{"exact": [...], "near": [...], "unasked", "unasked_lost"}: stored examples that are one of these, or resemble one by
    `least` (None: not asked).

    Each {sha256, file, ordinal, similarity, versions: [{name, state, line, objective, active_in}]}; `active_in` names the
    lines whose tip has learnt it. At most 100 of each; `unasked` counts files whose resemblance cannot be told,
    `unasked_lost` those of them that could be asked once. Raises Damage when what a file holds cannot be known.
    """
    found = _exact(keeper, [example_fingerprint(dict(fields)) for fields in examples])
    exact = _named(keeper, {place for places in found.values() for place in places})
    places = {(item["sha256"], item["ordinal"]) for item in exact}
    asked = NearAnswer([], {}) if least is None else \
        near_answer(keeper, [trained_text(fields) for fields in examples], least, most=_MOST)  # fmt: skip
    near = [item for item in asked.hits if (item["sha256"], item["ordinal"]) not in places]
    told = with_versions(keeper, [*exact[:_MOST], *near[:_MOST]])
    first = len(exact[:_MOST])
    return {"exact": told[:first], "near": told[first:],
            "unasked": len(asked.unasked), "unasked_lost": sum(asked.unasked.values())}  # fmt: skip


def with_versions(keeper: Keeper, hits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Hits with the versions that have learnt them."""
    families = {line: set(ancestors(keeper.ledger, tip.id)) for line, tip in tips(keeper.ledger).items()} if hits else {}
    return [{**item, "versions": _versions(keeper, item["sha256"], item["ordinal"], families)} for item in hits]


def seen_rows(keeper: Keeper, rows: Sequence[Sequence[Mapping[str, Any]]], *, least: float | None = None,
              most_near: int = _MOST) -> dict[str, Any]:  # fmt: skip
    """Many rows at once, each as the examples it may stand for: `places` [rows]: where each stands, as (sha256, ordinal).

    Beside them `near` {place in rows: hits} of the first `most_near` rows that stand nowhere, `near_asked`, and as in `seen`
    `unasked` and `unasked_lost`. Raises Damage.
    """
    prints = [[example_fingerprint(dict(fields)) for fields in row] for row in rows]
    found = _exact(keeper, [fingerprint for row in prints for fingerprint in row])
    places = [sorted({place for fingerprint in row for place in found.get(fingerprint, ())}) for row in prints]
    near: dict[int, list[dict[str, Any]]] = {}
    unasked: dict[str, bool] = {}
    chosen = [] if least is None else [number for number, here in enumerate(places) if not here and rows[number]][:most_near]
    for number in chosen:
        asked = near_answer(keeper, [trained_text(fields) for fields in rows[number]], least or 0.0, most=_MOST)
        unasked |= asked.unasked
        if asked.hits:
            near[number] = asked.hits
    return {"places": places, "near": near, "near_asked": len(chosen),
            "unasked": len(unasked), "unasked_lost": sum(unasked.values())}  # fmt: skip


def _exact(keeper: Keeper, fingerprints: Sequence[bytes]) -> dict[bytes, set[tuple[str, int]]]:
    """For each fingerprint that stands somewhere its places: (sha256, ordinal). Raises Damage."""
    found: dict[bytes, set[tuple[str, int]]] = {}
    index = open_index(keeper)
    high, low = split_keys(b"".join(fingerprints))
    for name, part in list(index.parts.items()):
        try:
            hits = [(fingerprints[question], part.columns.file(file), ordinal) for batch in part.find(high, low)
                    for question, file, ordinal in zip(*(column.tolist() for column in batch), strict=True)]  # fmt: skip
        except Damage as damage:
            index.leave_out(name, damage.message)  # its files are uncovered from here on, and asked themselves
            continue
        for fingerprint, sha256, ordinal in hits:
            if _holds(keeper, sha256, ordinal, fingerprint):
                found.setdefault(fingerprint, set()).add((sha256, ordinal))
    asked = np.sort(high)
    wanted = set(fingerprints)
    for sha256, _examples in uncovered(keeper, index):
        sidecar = sidecar_bytes(keeper.home.files / sha256)
        keys = split_keys(sidecar)[0]
        if not len(keys) or not len(asked):
            continue
        near = asked[np.minimum(np.searchsorted(asked, keys), len(asked) - 1)]
        for place in np.flatnonzero(near == keys).tolist():
            fingerprint = sidecar[FINGERPRINT_BYTES * place : FINGERPRINT_BYTES * (place + 1)]
            if fingerprint in wanted:
                found.setdefault(fingerprint, set()).add((sha256, place))
    return found


def _named(keeper: Keeper, places: Collection[tuple[str, int]]) -> list[dict[str, Any]]:
    names = {sha256: name_of(keeper, sha256) for sha256 in {sha256 for sha256, _ in places}}
    return [{"sha256": sha256, "file": names[sha256], "ordinal": ordinal, "similarity": 1.0}
            for sha256, ordinal in sorted(places) if names[sha256] is not None]  # fmt: skip


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
