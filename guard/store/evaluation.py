"""Evaluation sets that were registered as untouchable: kept in the ledger for ever, never trained from on.

Their keys stand in the ledger itself and in its events, and not in a file beside: so they are in every copy of the
ledger in the vault, come back with `doctor --rebuild`, and do not go when the set's own file goes. A set is never taken
out again. Law 5: when a set that an event tells of cannot be read whole, nothing is prepared for training.
Not here: what a key is (`guard/untouchable.py`).

    meta  evaluation:<sha256>            {"name", "rows", "keys", "keys_sha256", "parts", "canonical", "since"}
          evaluation-keys:<sha256>:<n>   up to 4,096 keys of 16 bytes, base64
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.bitmap import bitmap_bits, bitmap_flags
from guard.checks.columns import Reading
from guard.checks.kinds import stage_of
from guard.checks.rows import iter_examples
from guard.durable import sha256_bytes, write_bytes
from guard.errors import Damage
from guard.fingerprint import CANONICAL_VERSION
from guard.store.files import StoredFile, stored_path
from guard.store.keeper import Keeper
from guard.store.known import open_index, sidecar_bytes, uncovered
from guard.store.ledger import Ledger
from guard.untouchable import asks, joined_list

__all__ = ["SETS", "evaluation_problem", "evaluation_sets", "keys_of_set", "learnt_before", "protected_for", "protected_now",
           "record_set", "set_marks", "touched_rows"]  # fmt: skip

SETS = "evaluation:"
_KEYS = "evaluation-keys:"
_PART = 4096 * 16
_READ_AGAIN_BYTES = 8 << 20


def record_set(keeper: Keeper, sha256: str, name: str, rows: int, keys: bytes) -> None:
    """Make a set untouchable for ever, inside the caller's transaction. Recording it again mends what was damaged."""
    parts = [base64.b64encode(keys[start : start + _PART]).decode() for start in range(0, len(keys), _PART)]
    facts = {"name": name, "rows": rows, "keys": len(keys) // 16, "keys_sha256": sha256_bytes(keys), "parts": len(parts),
             "canonical": CANONICAL_VERSION,
             "since": _since(keeper.ledger, sha256) or keeper.clock.utc()}  # fmt: skip
    for number, part in enumerate(parts):
        keeper.ledger.event("evaluation.keys", name, sha256=sha256, part=number, keys=part)
    keeper.ledger.event("evaluation.registered", name, sha256=sha256, **facts)
    for number, part in enumerate(parts):
        keeper.ledger.set_meta(f"{_KEYS}{sha256}:{number}", part)
    keeper.ledger.set_meta(f"{SETS}{sha256}", orjson.dumps(facts, option=orjson.OPT_SORT_KEYS).decode())


def _since(ledger: Ledger, sha256: str) -> str:
    try:
        return str(orjson.loads(ledger.meta(f"{SETS}{sha256}") or "{}").get("since") or "")
    except orjson.JSONDecodeError:
        return ""


def set_marks(verb: str, payload: Mapping[str, Any]) -> dict[str, str]:
    """What an event of this file says about the ledger's marks, for a ledger that is made again."""
    if verb == "evaluation.keys":
        return {f"{_KEYS}{payload['sha256']}:{payload['part']}": str(payload["keys"])}
    facts = {key: value for key, value in payload.items() if key != "sha256"}
    return {f"{SETS}{payload['sha256']}": orjson.dumps(facts, option=orjson.OPT_SORT_KEYS).decode()}


def evaluation_sets(ledger: Ledger) -> list[dict[str, Any]]:
    """Every set: sha256, name, rows, keys, since, oldest first. Raises Damage for one that cannot be read."""
    rows = ledger.rows("SELECT key, value FROM meta WHERE key >= ? AND key < ?", (SETS, "evaluation;"))
    try:
        found = [{"sha256": row["key"].removeprefix(SETS), **orjson.loads(row["value"])} for row in rows]
    except (orjson.JSONDecodeError, TypeError) as error:
        raise _lost("a set cannot be read") from error
    return sorted(found, key=lambda item: (str(item.get("since")), item["sha256"]))


def _lost(what: str) -> Damage:
    return Damage(f"the untouchable evaluation sets are damaged: {what}", subject="evaluation",
                  hint="heirloom register FILE --untouchable with the same file mends it; heirloom verify tells")  # fmt: skip


def _keys_of(ledger: Ledger, facts: Mapping[str, Any]) -> bytes:
    if facts.get("canonical") != CANONICAL_VERSION:
        # Fingerprints of other rules match nothing: a list of them would protect nothing and look as if it did.
        raise _lost(f"{facts['name']} was registered under other rules of identity")
    texts = [ledger.meta(f"{_KEYS}{facts['sha256']}:{number}") for number in range(int(facts["parts"]))]
    try:
        keys = b"".join(base64.b64decode(text or "", validate=True) for text in texts)
    except (binascii.Error, ValueError) as error:
        raise _lost(f"{facts['name']} is not what was registered") from error
    if sha256_bytes(keys) != facts["keys_sha256"]:
        raise _lost(f"{facts['name']} is not what was registered")
    return keys


def _chosen(keeper: Keeper, only: Sequence[str] | None) -> list[dict[str, Any]]:
    """The sets that are asked for, all of them there. Raises Damage."""
    sets = evaluation_sets(keeper.ledger)
    told = {row[0] for row in keeper.ledger.rows("SELECT DISTINCT json_extract(payload, '$.sha256') FROM events "
                                                 "WHERE verb = 'evaluation.registered'")}  # fmt: skip
    missing = (told if only is None else set(only)) - {item["sha256"] for item in sets}
    if missing:
        raise _lost(f"{sorted(missing)[0][:12]} was registered and is not there")
    return [item for item in sets if only is None or item["sha256"] in only]


def keys_of_set(ledger: Ledger) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Every set with its keys, 16 bytes each in ascending order. Raises Damage."""
    for facts in evaluation_sets(ledger):
        yield facts, _keys_of(ledger, facts)


def touched_rows(keeper: Keeper, file: StoredFile, fingerprints: bytes) -> NDArray[np.bool_]:
    """Which examples [n] of a stored file the present sets keep out of training, for a person to read: jobs ask anew.

    Its fingerprints say that of most; what asks the same question with another answer was found when the file was read, and
    for sets that came later the file is read again if it is small. Raises Damage, OSError.
    """
    count = len(fingerprints) // 16
    flags = np.zeros(count, dtype=bool)
    sets = list(keys_of_set(keeper.ledger))
    if not sets:
        return flags
    if bits := (file.record.get("untouchable") or {}).get("rows"):
        flags |= bitmap_flags(bits, count)
    wanted = {keys[place : place + 16] for _facts, keys in sets for place in range(0, len(keys), 16)}
    flags |= np.fromiter((fingerprints[16 * n : 16 * n + 16] in wanted for n in range(count)), dtype=bool, count=count)
    later = any(str(facts["since"]) >= file.first_seen for facts, _keys in sets)
    if stage_of(file.kind) == "sft" and later and not file.record.get("prepared") and file.size_bytes <= _READ_AGAIN_BYTES:
        reading = Reading(**file.record.get("reading") or {})
        for example in iter_examples(stored_path(keeper.home, file), file.kind, reading):
            flags[example.ordinal] |= any(key in wanted for key in asks(example.fields))
    return flags


def evaluation_problem(keeper: Keeper) -> str:
    """What is wrong with the sets, "" when each can be read whole."""
    try:
        for item in _chosen(keeper, None):
            _keys_of(keeper.ledger, item)
    except Damage as damage:
        return damage.message
    return ""


def protected_for(keeper: Keeper, path: Path, only: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Write the list for a child and say what it is: {path, sha256, sets: [{sha256, name}]}; None when there is no set.

    `only`: the sets of these hashes, as a version that is made again knew them. Raises Damage when a set that was
    registered cannot be read whole (law 5), OSError as the disk says.
    """
    chosen = _chosen(keeper, only)
    if not chosen:
        return None
    data = joined_list(_keys_of(keeper.ledger, item) for item in chosen)
    write_bytes(path, data)
    return {"path": str(path), "sha256": sha256_bytes(data),
            "sets": [{"sha256": item["sha256"], "name": item["name"]} for item in chosen]}  # fmt: skip


def protected_now(keeper: Keeper) -> dict[str, Any] | None:
    """The list for readers, whose verdict is an estimate: written once, and again when a set was added. As `protected_for`."""
    mark = tuple(item["sha256"] for item in evaluation_sets(keeper.ledger))
    path = keeper.home.state / "untouchable.fp"
    kept = keeper.memory.get("evaluation")
    if kept is None or kept[0] != mark or (kept[1] is not None and not path.exists()):
        kept = keeper.memory["evaluation"] = (mark, protected_for(keeper, path))
    found: dict[str, Any] | None = kept[1]
    return found


def learnt_before(keeper: Keeper, sha256: str) -> list[dict[str, Any]]:
    """Versions that have learnt rows of a set, by the keys of its rows: {version, state, file, examples}, by id.

    Computed now, from bitmaps and fingerprints; a question that was learnt with another answer is not told of here.
    Raises Damage when the set or a sidecar cannot be read.
    """
    facts = next((item for item in evaluation_sets(keeper.ledger) if item["sha256"] == sha256), None)
    if facts is None:
        return []
    keys = _keys_of(keeper.ledger, facts)
    places: dict[str, set[int]] = {}
    index = open_index(keeper)
    for hits in index.find(keys):
        places.setdefault(hits.sha256, set()).update(hits.ordinal.tolist())
    ordered = np.sort(np.frombuffer(keys, dtype=[("high", ">u8"), ("low", ">u8")]))
    for other, _examples in uncovered(keeper, index):
        held = np.frombuffer(sidecar_bytes(keeper.home.files / other), dtype=ordered.dtype)
        hits_here = np.flatnonzero(np.isin(held["high"], ordered["high"]) & np.isin(held["low"], ordered["low"]))
        if len(hits_here):
            places.setdefault(other, set()).update(hits_here.tolist())
    found = []
    for other, ordinals in places.items():
        for row in keeper.ledger.rows("SELECT v.id, v.name, v.state, f.name AS file, l.bitmap FROM learnt l "
                                      "JOIN versions v ON v.id = l.version_id JOIN files f ON f.sha256 = l.sha256 "
                                      "WHERE l.sha256 = ? AND l.count > 0", (other,)):  # fmt: skip
            bits = bitmap_bits(row["bitmap"])
            count = sum(bool(bits[ordinal]) for ordinal in ordinals if ordinal < len(bits))
            if count:
                found.append({"id": row["id"], "version": row["name"], "state": row["state"], "file": row["file"],
                              "examples": count})  # fmt: skip
    return [{key: value for key, value in item.items() if key != "id"}
            for item in sorted(found, key=lambda item: (item["id"], item["file"]))]  # fmt: skip
