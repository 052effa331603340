"""Building a retrieval index from documents, embedding only what an earlier index has not embedded.

Chunks, embeddings and records are pure functions of the documents and settings, so the folder has the same bytes
whether its rows were embedded now or taken from the previous index. SHA256SUMS is written last; whatever stops a build
earlier leaves a folder that no check accepts. One bad document never stops the others: it is skipped, with the reason.
A stored document that has vanished or changed is another matter (missing is not empty) and ends the build.
Not here: which documents are current and which index is active (`guard/store/indexes.py`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from guard.checks.kinds import container_of, container_reason, ignored_name
from guard.durable import (
    fsync_dir, json_bytes, make_dir, open_new, remove_tree, rename_new, sha256_bytes, sha256_file, write_bytes,
)  # fmt: skip
from guard.errors import Damage, DataFault, EnvironmentFault, HeirloomError, NotFound, UsageError
from guard.names import safe_name
from guard.store.sums import SUMS
from trainer.retrieval.chunk import CHUNKER_VERSION, Chunk, check_sizes, chunk_text, decode_document
from trainer.retrieval.embed import DIMENSIONS, HashedNgramEmbedder
from trainer.retrieval.index import CONFIG, EMBEDDINGS, INDEX_SCHEMA, META, Index, open_index, verify_index

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CHUNK_SIZE", "OVERLAP", "Document", "build_from_folder", "build_index"]

CHUNK_SIZE, OVERLAP = 800, 120
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Document:
    """One document: SHA-256 of its bytes, the name it was dropped under, and where its bytes are."""

    sha256: str
    name: str
    path: Path


@dataclass
class _Build:
    """What has been gathered so far."""

    embedder: HashedNgramEmbedder
    known: _Known
    blocks: list[np.ndarray[Any, np.dtype[np.float32]]] = field(default_factory=list)
    documents: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    chunks: int = 0
    reused: int = 0


def build_index(
    documents: Sequence[Document], out_folder: Path | str, *, previous: Path | str | None = None,
    chunk_size: int = CHUNK_SIZE, overlap: int = OVERLAP, dimensions: int = DIMENSIONS,
    embedder: HashedNgramEmbedder | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the index of `documents` into `out_folder`, which must be empty or not exist.

    Returns {chunks, documents, embedded_new, reused, skipped: [{name, reason}], previous: null or what became of it}.
    Raises UsageError, Damage (a document is not what its hash says), EnvironmentFault (a document cannot be read).
    """
    check_sizes(chunk_size, overlap)
    folder = Path(out_folder)
    _claim_empty(folder)
    embedder = embedder or HashedNgramEmbedder(dimensions)
    known = _Known.of(previous, embedder)
    build = _Build(embedder, known)
    # The order of arrival must not show in the bytes.
    ordered = sorted(documents, key=lambda document: (document.name, document.sha256))
    tell = progress or (lambda _phase, _done, _total: None)
    with open_new(folder / META) as meta:
        for number, document in enumerate(ordered):
            tell("embedding", number, len(ordered))
            for chunk, row in _add_document(build, document, chunk_size, overlap):
                meta.write(_meta_line(document, chunk, row))
    tell("writing", len(ordered), len(ordered))
    _write_embeddings(folder / EMBEDDINGS, build)
    write_bytes(folder / CONFIG, json_bytes(_config(build, chunk_size, overlap)))
    sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in sorted((EMBEDDINGS, META, CONFIG)))
    write_bytes(folder / SUMS, sums.encode())
    fsync_dir(folder)
    return {
        "chunks": build.chunks, "documents": len(build.documents), "embedded_new": build.chunks - build.reused,
        "reused": build.reused, "skipped": build.skipped, "previous": known.note,
    }  # fmt: skip


def build_from_folder(
    docs_dir: Path | str, out_dir: Path | str, *, previous: Path | str | None = None, chunk_size: int = CHUNK_SIZE,
    overlap: int = OVERLAP, dimensions: int = DIMENSIONS, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Index every .txt and .md below `docs_dir`; `out_dir` appears when the index is finished, or not at all.

    Hidden and temporary files, and symbolic links, are passed over; files of other types are listed in `skipped`.
    Documents are named by their path below `docs_dir`. Returns what `build_index` returns.
    Raises NotFound, UsageError (out_dir holds something already, or sizes make no sense), EnvironmentFault.
    """
    docs, out = Path(docs_dir), Path(out_dir)
    if not docs.is_dir():
        raise NotFound(f"there is no folder {docs}", subject=str(docs), hint="--docs-dir names the folder of documents")
    check_sizes(chunk_size, overlap)
    _claim_empty(out)
    documents, refused = _documents_below(docs)
    staging = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        report = build_index(documents, staging, previous=previous, chunk_size=chunk_size, overlap=overlap,
                             dimensions=dimensions, progress=progress)  # fmt: skip
        out.rmdir()
        rename_new(staging, out)
    finally:
        remove_tree(staging)
    report["skipped"] = sorted(report["skipped"] + refused, key=lambda item: (item["name"], item["reason"]))
    return report


def _claim_empty(folder: Path) -> None:
    try:
        make_dir(folder)
        occupied = any(folder.iterdir())
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} cannot be a folder", subject=str(folder), hint="name another folder") from error
    if occupied:
        raise UsageError(f"{folder} is not empty", subject=str(folder),
                         hint="an index is built into a new folder, for example --out-dir index/v2")  # fmt: skip


def _documents_below(folder: Path) -> tuple[list[Document], list[dict[str, str]]]:
    """Documents in the order of their names, and what cannot be one with the reason."""
    documents, refused, seen = [], [], {}
    for path in _files_below(folder):
        name = safe_name_of(path.relative_to(folder))
        if container_of(path.name) != "text":
            reason = container_reason(path.name) or "rows are not a document; only .txt and .md are"
            refused.append({"name": name, "reason": reason})
            continue
        digest = _read_hash(path, name)
        if digest in seen:
            refused.append({"name": name, "reason": f"the same bytes as {seen[digest]}"})
            continue
        seen[digest] = name
        documents.append(Document(digest, name, path))
    return documents, refused


def safe_name_of(relative: Path) -> str:
    """A relative path as text that JSON holds, parts joined by `/`."""
    return "/".join(safe_name(part) for part in relative.parts)


def _read_hash(path: Path, name: str) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise EnvironmentFault(f"{name} cannot be read: {error.strerror}", subject=name, cause=error,
                               hint=f"ls -l {path}") from error  # fmt: skip


def _files_below(folder: Path) -> Iterator[Path]:
    """Plain files, parents before children, in the order of their names' bytes; never through a symbolic link."""
    def fail(error: OSError) -> None:
        raise EnvironmentFault(f"{error.filename} cannot be listed: {error.strerror}", cause=error, hint="check its rights")

    for place, names, files in os.walk(folder, onerror=fail):
        names[:] = sorted((name for name in names if not ignored_name(name)), key=os.fsencode)
        for name in sorted(files, key=os.fsencode):
            path = Path(place, name)
            if not ignored_name(name) and stat.S_ISREG(path.lstat().st_mode):
                yield path


def _add_document(build: _Build, document: Document, size: int, overlap: int) -> Iterator[tuple[Chunk, int]]:
    """Chunk and embed one document; yields its chunks with their row numbers, nothing when it is skipped."""
    try:
        chunks = chunk_text(_read(document), size, overlap)
        if not chunks:
            raise DataFault(f"{document.name} holds no text", subject=document.name)
    except DataFault as fault:
        build.skipped.append({"name": document.name, "reason": fault.message})
        return
    rows, reused = build.known.rows([chunk.text for chunk in chunks], build.embedder)
    build.blocks.append(rows)
    build.reused += reused
    build.documents.append({"name": document.name, "sha256": document.sha256, "chunks": len(chunks)})
    first = build.chunks
    build.chunks += len(chunks)
    for number, chunk in enumerate(chunks):
        yield chunk, first + number


def _read(document: Document) -> str:
    try:
        data = Path(document.path).read_bytes()
    except OSError as error:
        raise EnvironmentFault(f"the stored document {document.name} cannot be read: {error.strerror}", cause=error,
                               subject=document.sha256, hint="is the disk there? heirloom verify --all") from error  # fmt: skip
    if sha256_bytes(data) != document.sha256:
        raise Damage(f"the stored document {document.name} is not what it was", subject=document.sha256,
                     hint="heirloom verify --all")  # fmt: skip
    return decode_document(data, document.name)
