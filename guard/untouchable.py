"""Rows that must never be trained: the keys of an evaluation set, and how an example is held against them.

A row of an evaluation set is known by several keys, so that another spelling of the same question is kept out too:

    as it is        the fingerprint of its trained fields, of every kind it is valid for
    without frame   a conversation without system, context and tools, and each of its beginnings that ends with an answer
    as text         of a single question and answer: the question, the answer, and both with one or two line feeds
                    between, as rows of pretraining text
    the question    of a single question and answer: its user turn alone, whoever asks it in whatever conversation;
                    of a preference pair what its prefix asks, of a task its description, of a mutation what it becomes

Parts shorter than SHORTEST bytes are left out of the last two: "Hi" and "42" are nobody's. An example is kept out when it
is such a row, is one without its frame, or asks such a question. Not here: where sets are kept
(`guard/store/evaluation.py`).

A list is a file of 20-byte records, ascending by key: 16 bytes of key, 4 of the set's number (little-endian).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.checks.columns import Reading
from guard.checks.kinds import ROW_KINDS, container_of, holds_rows
from guard.checks.rows import Fields, iter_examples, iter_rows, read_fields
from guard.durable import sha256_bytes
from guard.errors import Damage
from guard.fingerprint import example_fingerprint
from guard.trained import questions_of, trained_fields

__all__ = ["RECORD", "KeyList", "asks", "evaluation_keys", "joined_list", "keys_of_file", "question_key", "touched_in_file"]

SHORTEST = 32
RECORD = np.dtype([("key", "V16"), ("set", "<u4")])
_BATCH = 4096


def _long(text: str) -> bool:
    return len(text.strip().encode("utf-8")) >= SHORTEST


def _asked(question: str) -> bytes:
    return example_fingerprint({"asked": question})


def question_key(question: str) -> bytes:
    """The key by which whoever asks this is known, as `asks` gives it; b"" for a question too short to be anybody's."""
    return _asked(question) if _long(question) else b""


def evaluation_keys(fields: Mapping[str, Any]) -> Iterator[bytes]:
    """Every key of a row of an evaluation set; one may come twice."""
    yield example_fingerprint(dict(fields))
    turns = trained_fields(fields).get("messages", ())
    for end in (end for end, turn in enumerate(turns, 1) if turn["role"] == "assistant" and
                (end == len(turns) or turns[end]["role"] == "user")):  # fmt: skip
        yield example_fingerprint({"messages": turns[:end]})
    questions = questions_of(fields)
    if len(questions) != 1 or len(turns) > 2 or len((fields.get("prefix") or {}).get("messages", ())) > 1:
        return
    question = questions[0]
    answers = [turns[1]["content"]] if turns else [fields[side] for side in ("chosen", "rejected") if side in fields]
    texts = [question, *answers, *(f"{question}{gap}{answer}" for answer in answers for gap in ("\n", "\n\n"))]
    yield from (example_fingerprint({"text": text}) for text in texts if _long(text))
    if _long(question):
        yield _asked(question)


def asks(fields: Mapping[str, Any]) -> Iterator[bytes]:
    """The keys by which an example is held against a list, beside its own fingerprint."""
    turns = trained_fields(fields).get("messages")
    if turns is not None and fields.keys() != {"messages"}:
        yield example_fingerprint({"messages": turns})
    yield from (_asked(question) for question in questions_of(fields) if _long(question))


def _examples(path: Path | str, kind: str, name: str, reading: Reading | None) -> Iterator[tuple[bytes, Fields]]:
    """(fingerprint, fields) of the usable examples in order: as `iter_examples`, for bytes that do not lie under their name."""
    for example in iter_examples(path, kind, reading, name=name):
        yield example.fingerprint, example.fields


def keys_of_file(path: Path | str, name: str, reading: Reading | None = None) -> tuple[bytes, int]:
    """(the distinct keys of an evaluation set in ascending order, how many rows they come from).

    Rows count as every kind they are valid for, plain text by its segments. Raises DataFault, OSError.
    """
    keys: set[bytes] = set()
    rows = 0
    if holds_rows(container_of(name)):
        for row in iter_rows(path, name=name):
            found = [read_fields(kind, row.value, reading) for kind in ROW_KINDS] if row.value is not None else []
            valid = [fields for fields in found if isinstance(fields, dict)]
            rows += bool(valid)
            keys |= {key for fields in valid for key in evaluation_keys(fields)}
    else:
        for _fingerprint, fields in _examples(path, "pretrain", name, None):
            rows += 1
            keys |= set(evaluation_keys(fields))
    return b"".join(sorted(keys)), rows


def joined_list(sets: Iterable[bytes]) -> bytes:
    """The list of several sets, each given as its keys; they are numbered as they come."""
    parts = []
    for number, keys in enumerate(sets):
        part = np.zeros(len(keys) // 16, dtype=RECORD)
        part["key"], part["set"] = np.frombuffer(keys, dtype="V16"), number
        parts.append(part)
    whole = np.concatenate(parts) if parts else np.zeros(0, dtype=RECORD)
    return whole[np.argsort(_sortable(whole["key"]), kind="stable")].tobytes()


def _sortable(keys: NDArray[Any]) -> NDArray[np.void]:
    """Keys as two big-endian words, which numpy can order; `S16` would take trailing zero bytes for padding."""
    return np.ascontiguousarray(keys).view([("high", ">u8"), ("low", ">u8")])


class KeyList:
    """A list opened for questions."""

    def __init__(self, path: Path | str, sha256: str) -> None:
        """Raises Damage when it is missing or not what was written: what cannot be read must not be trained (law 5)."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise self._damaged(path, str(error)) from error
        if sha256_bytes(data) != sha256 or len(data) % RECORD.itemsize:
            raise self._damaged(path, "it is not what was written")
        records = np.frombuffer(data, dtype=RECORD)
        words = _sortable(records["key"])
        self._high, self._low = words["high"].astype(np.uint64), words["low"].astype(np.uint64)
        self._set = records["set"].astype(np.int64)

    @staticmethod
    def _damaged(path: Path | str, what: str) -> Damage:
        return Damage(f"the list of untouchable rows {path} cannot be used: {what}", subject=str(path),
                      hint="heirloom queue retry JOB writes it again")  # fmt: skip

    def sets_of(self, keys: bytes) -> NDArray[np.int64]:
        """For each 16-byte key [n] the number of a set that holds it, -1 for none."""
        words = np.frombuffer(keys, dtype=[("high", ">u8"), ("low", ">u8")])
        high, low = words["high"].astype(np.uint64), words["low"].astype(np.uint64)
        found = np.full(len(words), -1, dtype=np.int64)
        place = np.searchsorted(self._high, high, "left")
        open_ = np.arange(len(words))
        while len(open_):  # once, but for keys that share their first half
            at = place[open_]
            open_ = open_[(at < len(self._high)) & (self._high[np.minimum(at, max(len(self._high) - 1, 0))] == high[open_])] \
                if len(self._high) else open_[:0]  # fmt: skip
            at = place[open_]
            same = self._low[at] == low[open_]
            found[open_[same]] = self._set[at[same]]
            open_ = open_[~same]
            place[open_] += 1
        return found


def touched_in_file(path: Path | str, kind: str, keys: KeyList, name: str, reading: Reading | None = None) -> NDArray[np.int64]:
    """For each example of a file called `name` [n] the number of a set it belongs to, -1 for none. Raises as `iter_examples`."""
    parts: list[NDArray[np.int64]] = []
    batch: list[tuple[bytes, ...]] = []
    for fingerprint, fields in _examples(path, kind, name, reading):
        batch.append((fingerprint, *asks(fields)))
        if len(batch) >= _BATCH:
            parts.append(_judge(batch, keys))
            batch = []
    parts.append(_judge(batch, keys))
    return np.concatenate(parts)


def _judge(batch: list[tuple[bytes, ...]], keys: KeyList) -> NDArray[np.int64]:
    owner = np.repeat(np.arange(len(batch)), [len(item) for item in batch]) if batch else np.empty(0, dtype=np.int64)
    sets = keys.sets_of(b"".join(key for item in batch for key in item))
    found = np.full(len(batch), -1, dtype=np.int64)
    np.maximum.at(found, owner, sets)
    return found
