"""One pair as a line of `pairs_all.jsonl`: `id`, `prefix` {messages}, `chosen`, `rejected`, `src`.

The prefix always ends with the user. The id is a name-based UUID (RFC 9562, version 5) of the pair's canonical form, so
the same pair has the same id wherever and whenever it is made. Not here: reading a row (`guard/checks/rows.py`).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import orjson

from guard.fingerprint import canonical_bytes

__all__ = ["PAIRS_FILE", "id_of_line", "pair_id", "pair_line"]

PAIRS_FILE = "pairs_all.jsonl"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "heirloom:preference-pair:1")
_ID_STARTS, _ID_LENGTH = len(b'{"id":"'), 36


def pair_id(fields: Mapping[str, Any]) -> str:
    """The id of a pair's fields; white space at the ends of a text and the form of its Unicode do not change it."""
    return str(uuid.uuid5(_NAMESPACE, canonical_bytes(dict(fields)).decode()))


def pair_line(fields: Mapping[str, Any], src: str, name: str = "") -> bytes:
    """The line of a pair, with its end: `fields` as `guard.checks.rows.validate` gives them; `name`: an id it had before."""
    prefix = fields["prefix"]
    system = [{"role": "system", "content": prefix["system"]}] if prefix.get("system") else []
    row = {"id": name or pair_id(fields), "prefix": {"messages": system + prefix["messages"]},
           "chosen": fields["chosen"], "rejected": fields["rejected"], "src": src}  # fmt: skip
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def id_of_line(line: bytes) -> str:
    """The id in a line that `pair_line` made without a name; nothing else of it is parsed."""
    return line[_ID_STARTS : _ID_STARTS + _ID_LENGTH].decode("ascii")
