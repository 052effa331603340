"""An example's identity: the canonical form of its trained fields and the fingerprint of that form.

Two examples are the same when training on them is the same: text in Unicode NFC, CRLF as LF, outer white space
stripped, and nothing else folded, so that indentation inside code still counts. Keys that are not trained on
(ids, sources, scores) never reach this file.
Fingerprints are kept for ever. The form is therefore a published one, the JSON Canonicalization Scheme (RFC 8785) of a
value that holds text, lists and objects only (no numbers, where canonical forms differ), and its version is mixed into
the hash: a change here must raise CANONICAL_VERSION.
It is not about files: a file's SHA-256 is made in `guard/durable.py`.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from hashlib import blake2b
from itertools import repeat, starmap
from typing import Any

import orjson

__all__ = ["CANONICAL_VERSION", "FINGERPRINT_BYTES", "canonical_bytes", "canonical_text", "example_fingerprint",
           "fingerprints_of", "new_hash"]  # fmt: skip

CANONICAL_VERSION = 2
FINGERPRINT_BYTES = 16

# blake2b's `person` separates these hashes from any other use of blake2b, and one canonical version from the next.
_SEED = blake2b(digest_size=FINGERPRINT_BYTES, person=b"heirloom.ex.%d" % CANONICAL_VERSION)
new_hash = _SEED.copy
"""A fresh hash of the fingerprint's kind, to be fed canonical bytes."""


def canonical_text(text: str) -> str:
    """NFC, CRLF as LF, outer white space (as `str.strip` knows it) removed; nothing else is folded."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return text.strip() if text.isascii() else unicodedata.normalize("NFC", text).strip()


def canonical_bytes(value: object) -> bytes:
    """RFC 8785 of text, lists and dictionaries with text keys, every text made canonical first; keys as they are.

    Keys are sorted by code point, which for the names used here is the order of the RFC (UTF-16 code units).
    Raises TypeError for any other type and for a lone surrogate: no reader lets either through.
    """
    return orjson.dumps(_canonical(value), option=orjson.OPT_SORT_KEYS)


def _canonical(value: object) -> object:
    if isinstance(value, str):
        return canonical_text(value)
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    raise TypeError(f"a trained field holds text, lists and dictionaries, not {type(value).__name__}")


def fingerprints_of(forms: list[bytes]) -> list[bytes]:
    """The fingerprints of many canonical forms: what `new_hash` gives for each, without a step of Python for it."""
    hashes = list(starmap(new_hash, repeat((), len(forms))))
    deque(map(blake2b.update, hashes, forms), maxlen=0)
    return list(map(blake2b.digest, hashes))


def example_fingerprint(fields: dict[str, Any]) -> bytes:
    """16 bytes of blake2b over the canonical trained fields (`{"text": ...}`, or `{"messages": [...], ...}`)."""
    digest = new_hash()
    digest.update(canonical_bytes(fields))
    return digest.digest()
