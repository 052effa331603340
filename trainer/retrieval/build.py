"""Building a retrieval index from documents, embedding only what an earlier index has not embedded.

Chunks, rows and records are pure functions of documents and settings, so the folder has the same bytes whether its
rows were embedded now or taken from the previous index. SHA256SUMS is written last; whatever stops a build earlier
leaves a folder that no check accepts. One document that cannot be read as text never stops the others.
Not here: which documents are current and which index is active (`guard/store/indexes.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from guard.durable import json_bytes, make_dir, open_new, remove_tree, rename_new, sha256_file, write_bytes
from guard.errors import DataFault, NotFound, UsageError
from guard.store.sums import SUMS
from trainer.retrieval.chunk import CHUNKER_VERSION, Chunk, check_sizes, chunk_text, estimate_chunks
from trainer.retrieval.documents import Document, documents_below, read_document
from trainer.retrieval.embed import DIMENSIONS, HashedNgramEmbedder
from trainer.retrieval.index import CONFIG, EMBEDDINGS, INDEX_SCHEMA, META
from trainer.retrieval.reuse import EarlierRows, earlier_rows, embed_new

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CHUNK_SIZE", "OVERLAP", "Document", "Progress", "build_from_folder", "build_index", "plan_from_folder"]

CHUNK_SIZE, OVERLAP = 800, 120

Progress = Callable[[str, int, int], None]
"""Called with the phase, how many documents are done, and how many there are."""


@dataclass
class _Build:
    """What has been gathered so far."""

    embedder: HashedNgramEmbedder
    earlier: EarlierRows
    blocks: list[np.ndarray[Any, np.dtype[np.float32]]] = field(default_factory=list)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    chunks: int = 0
    reused: int = 0


def build_index(
    documents: Sequence[Document], out_folder: Path | str, *, previous: Path | str | None = None,
    chunk_size: int = CHUNK_SIZE, overlap: int = OVERLAP, dimensions: int = DIMENSIONS,
    embedder: HashedNgramEmbedder | None = None, progress: Progress = lambda _phase, _done, _total: None,
) -> dict[str, Any]:  # fmt: skip
    """Write the index of `documents` into `out_folder`, which must be empty or not exist yet.

    Returns {chunks, documents, embedded_new, reused, skipped: [{name, reason}], note}; `note` says why a previous index
    could not be used, or is "". `embedder` overrides `dimensions`.
    Raises UsageError, Damage (a document is not what its hash says), EnvironmentFault (a document cannot be read).
    """
    check_sizes(chunk_size, overlap)
    folder = Path(out_folder)
    _claim_empty(folder)
    embedder = embedder or HashedNgramEmbedder(dimensions)
    build = _Build(embedder, earlier_rows(previous, embedder))
    # The order of arrival must not show in the bytes.
    ordered = sorted(documents, key=lambda document: (document.name, document.sha256))
    with open_new(folder / META) as meta:
        for number, document in enumerate(ordered):
            progress("embedding", number, len(ordered))
            _add_document(build, document, chunk_size, overlap, meta)
    progress("writing", len(ordered), len(ordered))
    _write_embeddings(folder / EMBEDDINGS, build)
    write_bytes(folder / CONFIG, json_bytes(_config(build, chunk_size, overlap)))
    hashes = {name: sha256_file(folder / name) for name in sorted((CONFIG, EMBEDDINGS, META))}
    write_bytes(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in hashes.items()).encode())
    return {"chunks": build.chunks, "documents": len(build.documents), "embedded_new": build.chunks - build.reused,
            "reused": build.reused, "skipped": build.skipped, "note": build.earlier.note}  # fmt: skip


def build_from_folder(
    docs_dir: Path | str, out_dir: Path | str, *, previous: Path | str | None = None, chunk_size: int = CHUNK_SIZE,
    overlap: int = OVERLAP, dimensions: int = DIMENSIONS, progress: Progress = lambda _phase, _done, _total: None,
) -> dict[str, Any]:  # fmt: skip
    """Index every .txt and .md below `docs_dir`; `out_dir` holds the finished index or is left as it was.

    Documents are named by their path below `docs_dir`; files of other types are listed in `skipped`, hidden and
    temporary files and symbolic links are passed over. Returns what `build_index` returns.
    Raises NotFound, UsageError (`out_dir` is not empty, or sizes make no sense), EnvironmentFault.
    """
    docs, out = Path(docs_dir), Path(out_dir).absolute()
    if not docs.is_dir():
        raise _no_documents(docs)
    check_sizes(chunk_size, overlap)
    _claim_empty(out)
    documents, refused = documents_below(docs)
    staging = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        report = build_index(documents, staging, previous=previous, chunk_size=chunk_size, overlap=overlap,
                             dimensions=dimensions, progress=progress)  # fmt: skip
        out.rmdir()  # empty: only now does the finished folder take its name
        rename_new(staging, out)
    finally:
        remove_tree(staging)
    report["skipped"] = sorted(report["skipped"] + refused, key=lambda item: item["name"])
    return report


def plan_from_folder(docs_dir: Path | str, out_dir: Path | str, *, chunk_size: int = CHUNK_SIZE,
                     overlap: int = OVERLAP) -> dict[str, Any]:  # fmt: skip
    """What `build_from_folder` would index: {documents, bytes, chunks (about), skipped}; writes nothing.

    Raises what `build_from_folder` raises before it builds.
    """
    docs, out = Path(docs_dir), Path(out_dir).absolute()
    if not docs.is_dir():
        raise _no_documents(docs)
    check_sizes(chunk_size, overlap)
    if os.path.lexists(out):
        _claim_empty(out)
    documents, refused = documents_below(docs)
    lengths = [Path(document.path).stat().st_size for document in documents]
    return {"documents": len(documents), "bytes": sum(lengths), "skipped": refused,
            "chunks": sum(estimate_chunks(length, chunk_size, overlap) for length in lengths)}  # fmt: skip


def _no_documents(docs: Path) -> NotFound:
    return NotFound(f"there is no folder {docs}", subject=str(docs), hint="--docs-dir names the folder of documents")


def _claim_empty(folder: Path) -> None:
    try:
        make_dir(folder)
        occupied = any(folder.iterdir())
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} is not a folder", subject=str(folder), hint="name a new folder") from error
    if occupied:
        raise UsageError(f"{folder} is not empty", subject=str(folder),
                         hint="an index is built into a new folder, for example --out-dir index/v2")  # fmt: skip


def _add_document(build: _Build, document: Document, size: int, overlap: int, meta: BinaryIO) -> None:
    """Chunk and embed one document and write its lines; a document that is no text is only noted."""
    try:
        if document.sha256 in build.documents:
            raise DataFault(f"the same bytes as {build.documents[document.sha256]['name']}", subject=document.name)
        chunks = chunk_text(read_document(document), size, overlap)
        if not chunks:
            raise DataFault(f"{document.name} holds no text", subject=document.name)
    except DataFault as fault:
        build.skipped.append({"name": document.name, "reason": fault.message})
        return
    rows, reused = embed_new([chunk.text for chunk in chunks], build.earlier, build.embedder)
    build.blocks.append(rows)
    build.chunks += len(chunks)
    build.reused += reused
    build.documents[document.sha256] = {"name": document.name, "sha256": document.sha256, "chunks": len(chunks)}
    for line in _meta_lines(document, chunks):
        meta.write(line)


def _meta_lines(document: Document, chunks: Sequence[Chunk]) -> Iterator[bytes]:
    """One line for each chunk. Its id says which bytes of which content, whatever name and place the document has."""
    for chunk in chunks:
        place = f"{document.sha256} {chunk.start_char} {chunk.end_char}"
        source = {"filename": document.name, "sha256": document.sha256, "page": None, "start_line": chunk.start_line,
                  "end_line": chunk.end_line, "start_char": chunk.start_char, "end_char": chunk.end_char}  # fmt: skip
        chunk_id = hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
        yield orjson.dumps({"chunk_id": chunk_id, "text": chunk.text, "source": source}) + b"\n"


def _write_embeddings(path: Path, build: _Build) -> None:
    """The rows as a plain .npy (format 1.0), block by block."""
    from numpy.lib.format import write_array_header_1_0

    header = {"descr": "<f4", "fortran_order": False, "shape": (build.chunks, build.embedder.dimensions)}
    with open_new(path) as handle:
        write_array_header_1_0(handle, header)
        for block in build.blocks:
            handle.write(block.astype("<f4", copy=False).tobytes())


def _config(build: _Build, chunk_size: int, overlap: int) -> dict[str, Any]:
    """What was new and what was reused is not told here: it depends on the day, and these bytes must not."""
    return {
        "schema": INDEX_SCHEMA,
        "embedder": build.embedder.config(),
        "embedder_sha256": build.embedder.content_hash,
        "chunks": {"size": chunk_size, "overlap": overlap, "version": CHUNKER_VERSION},
        "documents": list(build.documents.values()),
        "skipped": build.skipped,
        "counts": {"documents": len(build.documents), "chunks": build.chunks, "skipped": len(build.skipped)},
    }
