"""Copies that are read back before they take their name, and second names for the same bytes.

Not here: how a file becomes durable (`durable.py`).
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from guard.durable import fsync_dir, open_new, sha256_file
from guard.errors import Damage

__all__ = ["copy_verified", "link_or_copy"]

_CHUNK_BYTES = 1 << 20


def copy_verified(source: Path | str, target: Path | str, expected: str | None = None) -> str:
    """Copy a file durably, read the copy back and compare hashes; returns the SHA-256 in hex.

    Raises Damage when the copy, or the source against `expected`, differs; an older target then keeps its bytes.
    """
    digest = hashlib.sha256()

    def check(copy: Path) -> None:
        if sha256_file(copy) != digest.hexdigest() or digest.hexdigest() != (expected or digest.hexdigest()):
            raise Damage(f"the copy of {source} is not what it should be", subject=str(source),
                         hint="check the disk; the original was not touched")  # fmt: skip

    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as reader, open_new(target, check=check) as writer:
        while block := reader.read(_CHUNK_BYTES):
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Give the bytes a second name: a hard link, or a verified copy where links are not to be had."""
    try:
        os.link(source, target, follow_symlinks=False)
        fsync_dir(Path(target).parent)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        copy_verified(source, target)
