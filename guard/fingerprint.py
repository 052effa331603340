"""An example's identity: the canonical form of its trained fields and the fingerprint of that form.

Two examples are the same when training on them is the same: text in Unicode NFC, CRLF as LF, outer white space
stripped, and nothing else folded, so that indentation inside code still counts. Keys that are not trained on
(ids, sources, scores) never reach this file.
Fingerprints are kept for ever. The encoding is therefore our own, length-prefixed and independent of any JSON
library, and its version is mixed into the hash: a change here must raise CANONICAL_VERSION.
It is not about files: a file's SHA-256 is made in `guard/durable.py`.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from hashlib import blake2b
from typing import Any

__all__ = ["CANONICAL_VERSION", "FINGERPRINT_BYTES", "canonical_bytes", "canonical_text", "example_fingerprint"]

CANONICAL_VERSION = 1
FINGERPRINT_BYTES = 16

# blake2b's `person` separates these hashes from any other use of blake2b, and one canonical version from the next.
_SEED = blake2b(digest_size=FINGERPRINT_BYTES, person=b"heirloom.ex.%d" % CANONICAL_VERSION)


def canonical_text(text: str) -> str:
    """NFC, CRLF as LF, outer white space (as `str.strip` knows it) removed; nothing else is folded."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return text.strip() if text.isascii() else unicodedata.normalize("NFC", text).strip()


def canonical_bytes(value: object) -> bytes:
    """An unambiguous encoding of text, lists and dictionaries with text keys: every part carries its length.

    `s<bytes>:<UTF-8>` for text, `l<items>:...` for lists, `d<pairs>:...` for dictionaries sorted by key.
    Raises TypeError for any other type and UnicodeEncodeError for a lone surrogate: no reader lets either through.
    """
    parts: list[bytes] = []
    _append(parts, value)
    return b"".join(parts)


def _append(parts: list[bytes], value: object) -> None:
    if isinstance(value, str):
        parts.append(_text_bytes(canonical_text(value)))
    elif isinstance(value, dict):
        parts.append(b"d%d:" % len(value))
        for key in sorted(value):
            parts.append(_key_bytes(key))
            _append(parts, value[key])
    elif isinstance(value, (list, tuple)):
        parts.append(b"l%d:" % len(value))
        for item in value:
            _append(parts, item)
    else:
        raise TypeError(f"a trained field holds text, lists and dictionaries, not {type(value).__name__}")


def _text_bytes(text: str) -> bytes:
    data = text.encode()
    return b"s%d:%b" % (len(data), data)


# The same few names come back in every row. A key is taken as it is: it is a name, not a text.
_key_bytes = lru_cache(maxsize=256)(_text_bytes)


def example_fingerprint(fields: dict[str, Any]) -> bytes:
    """16 bytes of blake2b over the canonical trained fields (`{"text": ...}`, or `{"messages": [...], ...}`)."""
    digest = _SEED.copy()
    digest.update(canonical_bytes(fields))
    return digest.digest()
