"""Version names: `v{id:03d}_{slug}`, read and compared as integers, never as strings (v999 < v1000).

Not here: who owns a number. Numbers are taken in the ledger (`guard/store/versions.py`).
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable

from guard.errors import UsageError

__all__ = ["first_free", "index_name", "parse_version_number", "safe_name", "slugify", "split_output", "version_name"]

_NAME = re.compile(r"v(\d{3,})(?:_(.+))?")
_MAX_SLUG = 48
_MAX_NAME_BYTES = 180


def version_name(number: int, slug: str) -> str:
    """`v004_full_stack` for (4, "full_stack")."""
    return f"v{number:03d}_{slug}"


def index_name(number: int) -> str:
    """`v002` for the retrieval index number 2."""
    return f"v{number:03d}"


def slugify(text: str) -> str:
    """A file stem or a name as lower-case ASCII words joined by `_`; "data" when nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")[:_MAX_SLUG].strip("_")
    return slug or "data"


def parse_version_number(text: str) -> int | None:
    """The number in `v003` or `v003_name`; None when the text is not a version name."""
    match = _NAME.fullmatch(text)
    return int(match.group(1)) if match else None


def split_output(text: str) -> tuple[int | None, str]:
    """`v005_math` -> (5, "math"); `math` -> (None, "math"). Raises UsageError for an empty or unusable name."""
    match = _NAME.fullmatch(text.strip())
    if match:
        return int(match.group(1)), slugify(match.group(2) or "data")
    if not re.search(r"[A-Za-z0-9]", text):
        raise UsageError(f"{text!r} cannot be a version name", hint="use letters, digits and _: --output v005_math")
    return None, slugify(text)


def safe_name(raw: bytes | str) -> str:
    """A file name as text that SQLite, JSON and every file system hold: odd bytes escaped, at most 180 bytes.

    The end of a long name is kept, so that its suffix still tells what it is.
    """
    data = os.fsencode(raw)
    text = data.decode("utf-8", "backslashreplace").replace("/", "_").replace("\0", "_")
    encoded = text.encode()
    if len(encoded) <= _MAX_NAME_BYTES:
        return text
    mark = hashlib.sha256(data).hexdigest()[:12]
    return f"{encoded[:120].decode(errors='ignore')}~{mark}~{encoded[-40:].decode(errors='ignore')}"


def first_free(taken: Callable[[int], bool]) -> int:
    """A number from 1 on that is not taken and follows one that is; the lowest where no lower one was freed again.

    `taken` costs a look at the disk, and thousands of files of one name may lie there: by doubling, then by halving what
    is left (Bentley and Yao's unbounded search, 1976), about 2 log2(n) looks instead of n. Whoever takes the number may
    still find that somebody was faster.
    """
    free = 1
    while taken(free):
        free *= 2
    below = free // 2
    while free - below > 1:
        middle = (below + free) // 2
        below, free = (middle, free) if taken(middle) else (below, middle)
    return free
