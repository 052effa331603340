"""The documents an index is made of: found below a folder, or named by the ledger, and read with their hash checked.

A document that is no text is a DataFault: it is skipped, with the reason. A stored one that has vanished or changed is
not: missing is not empty, so that ends a build. Not here: cutting (`chunk.py`) and embedding (`embed.py`).
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guard.checks.kinds import container_of, container_reason, holds_rows, ignored_name
from guard.containers.unpack import unpacked
from guard.durable import sha256_bytes, sha256_file
from guard.errors import Damage, DataFault, EnvironmentFault
from guard.names import safe_name

__all__ = ["Document", "decode", "documents_below", "read_document"]


@dataclass(frozen=True)
class Document:
    """One document: SHA-256 of its bytes in hex, the name it was dropped under, and where its bytes are."""

    sha256: str
    name: str
    path: Path | str


def read_document(document: Document) -> str:
    """Its text. Raises DataFault (no text), EnvironmentFault (cannot be read), Damage (not the bytes of its hash)."""
    try:
        data = Path(document.path).read_bytes()
    except OSError as error:
        raise EnvironmentFault(f"document {document.name} cannot be read: {error.strerror}", subject=document.sha256,
                               hint="is the disk there? heirloom verify --all", cause=error) from error  # fmt: skip
    if sha256_bytes(data) != document.sha256:
        raise Damage(f"the document {document.name} is not what it was", subject=document.sha256,
                     hint="heirloom verify --all tells what else is damaged")  # fmt: skip
    with unpacked(io.BytesIO(data), container_of(document.name) or "text") as (plain, _inner):
        return decode(plain.read(), document.name)


def decode(data: bytes, name: str) -> str:
    """Bytes as text, without a byte order mark. Raises DataFault naming a document that is no UTF-8 text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFault(f"{name} is not UTF-8: byte {error.start} cannot be read", subject=name, cause=error,
                        hint="save it as UTF-8, with iconv -f WINDOWS-1252 -t UTF-8") from error  # fmt: skip
    if "\0" in text:
        raise DataFault(f"{name} is not plain text: it holds NUL bytes", subject=name,
                        hint="UTF-16 must be saved as UTF-8")  # fmt: skip
    return text


def documents_below(folder: Path) -> tuple[list[Document], list[dict[str, str]]]:
    """Every .txt and .md below a folder, named by its path, in a fixed order; and {name, reason} of what is skipped.

    Hidden and temporary files and symbolic links are passed over in silence. Raises EnvironmentFault.
    """
    documents, skipped = [], []
    for path in _files_below(folder):
        name = "/".join(safe_name(part) for part in path.relative_to(folder).parts)
        container = container_of(path.name)
        reason = "" if container else container_reason(path.name)
        if holds_rows(container):
            reason = "rows are not a document; only .txt and .md are"
        try:
            if not reason:
                documents.append(Document(sha256_file(path), name, path))
        except PermissionError as error:
            reason = f"cannot be read: {error.strerror}"
        if reason:
            skipped.append({"name": name, "reason": reason})
    return documents, skipped


def _files_below(folder: Path) -> Iterator[Path]:
    """Plain files, those of a folder before those of its folders, by the bytes of their names."""

    def refuse(error: OSError) -> None:
        raise EnvironmentFault(f"{error.filename} cannot be listed: {error.strerror}", subject=str(error.filename),
                               hint="check who may read it", cause=error)  # fmt: skip

    for place, names, files in os.walk(folder, onerror=refuse):
        names[:] = sorted((name for name in names if not ignored_name(name)), key=os.fsencode)
        for name in sorted(files, key=os.fsencode):
            path = Path(place, name)
            if not ignored_name(name) and stat.S_ISREG(path.lstat().st_mode):
                yield path
