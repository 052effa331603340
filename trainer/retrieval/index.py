"""A retrieval index on disk: opening it, reading its rows, and checking that it is whole.

    embeddings.npy   float32 [N, dimensions], rows of length 1 (or zero)
    meta.jsonl       N lines: {"chunk_id", "text", "source": {filename, sha256, page, start_line, end_line, start_char,
                     end_char}}; line i belongs to row i
    config.json      embedder and chunk settings, documents, what was skipped, counts
    SHA256SUMS       written last: a folder without it was never finished

Embeddings and lines are mapped, not loaded; a row is parsed when somebody asks for it. Nothing is written here
(`build.py`) and nothing ranked (`search.py`).
"""

from __future__ import annotations

import mmap
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from guard.errors import CheckFailed, Damage, NotFound
from guard.store.sums import Problem, folder_problems
from trainer.retrieval.embed import HashedNgramEmbedder

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CONFIG", "EMBEDDINGS", "INDEX_SCHEMA", "META", "Index", "open_index", "verify_index"]

EMBEDDINGS, META, CONFIG = "embeddings.npy", "meta.jsonl", "config.json"
INDEX_SCHEMA = 1
_HINT = "heirloom index build makes it again from the stored documents"


@dataclass(frozen=True)
class Index:
    """An open index. `embeddings` is float32 [N, dimensions], mapped read-only; `lines` holds N + 1 offsets."""

    folder: Path
    config: dict[str, Any]
    embedder: HashedNgramEmbedder
    embeddings: np.ndarray[Any, np.dtype[np.float32]]
    meta: mmap.mmap | bytes
    lines: array[int]

    def __len__(self) -> int:
        return len(self.lines) - 1

    def row(self, number: int) -> dict[str, Any]:
        """The `number`-th line of meta.jsonl. Raises Damage when it is not a chunk's record."""
        try:
            row = orjson.loads(self.meta[self.lines[number] : self.lines[number + 1]])
            row["chunk_id"], row["text"], row["source"]["filename"]
        except (ValueError, KeyError, TypeError) as error:
            raise Damage(f"line {number + 1} of {META} in {self.folder.name} cannot be read", subject=str(self.folder),
                         hint=_HINT, cause=error) from error  # fmt: skip
        return row


def open_index(folder: Path | str, *, hashed: bool = True) -> Index:
    """Open an index that is what was written: every file is hashed, for a wrong letter in it makes no error.

    `hashed=False`: the caller has just done so. Raises NotFound, Damage (changed, unreadable, or parts that do not
    fit), CheckFailed (made by another version).
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise NotFound(f"there is no index at {folder}", subject=str(folder), hint="heirloom index ls lists them")
    try:
        config = orjson.loads((folder / CONFIG).read_bytes())
        schema, settings = config["schema"], config["embedder"]
        expected = (config["counts"]["chunks"], settings["dimensions"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damage(folder, f"{CONFIG} cannot be read", error) from error
    if schema != INDEX_SCHEMA:
        raise CheckFailed(f"the index {folder.name} has format {schema}; this version reads {INDEX_SCHEMA}",
                          subject=str(folder), hint="heirloom index build")  # fmt: skip
    embedder = HashedNgramEmbedder.from_config(settings)
    problems = folder_problems(folder, None) if hashed else []
    if problems:
        raise _damage(folder, f"{problems[0][0]} {problems[0][1]}".strip())
    embeddings = _map_embeddings(folder)
    meta, lines = _map_lines(folder)
    if embeddings.shape != expected or len(lines) - 1 != expected[0]:
        raise _damage(folder, f"{EMBEDDINGS} is {embeddings.shape}, {META} has {len(lines) - 1} lines,"
                      f" {CONFIG} says {expected}")  # fmt: skip
    return Index(folder, config, embedder, embeddings, meta, lines)


def verify_index(folder: Path | str) -> list[Problem]:
    """Everything wrong with an index as (file, what), read from disk and hashed now; empty when it is whole."""
    folder = Path(folder)
    problems = folder_problems(folder, None)
    if not problems:
        try:
            open_index(folder, hashed=False)
        except (Damage, CheckFailed, NotFound) as error:
            problems = [("", error.message)]
    return problems


def _damage(folder: Path, what: str, error: Exception | None = None) -> Damage:
    return Damage(f"the index {folder.name} is damaged: {what}", subject=str(folder), hint=_HINT, cause=error)


def _map_embeddings(folder: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    import numpy as np

    try:
        embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damage(folder, f"{EMBEDDINGS} cannot be read", error) from error
    if not isinstance(embeddings, np.ndarray) or embeddings.dtype != np.dtype("<f4") or embeddings.ndim != 2:
        raise _damage(folder, f"{EMBEDDINGS} does not hold rows of float32")
    return embeddings


def _map_lines(folder: Path) -> tuple[mmap.mmap | bytes, array[int]]:
    """The bytes of meta.jsonl and where its lines start, with the end of the last one."""
    try:
        with (folder / META).open("rb") as handle:
            size = handle.seek(0, 2)
            meta: mmap.mmap | bytes = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise _damage(folder, f"{META} cannot be read", error) from error
    starts = array("q", [0])
    while starts[-1] < size:
        end = meta.find(b"\n", starts[-1])
        if end < 0:
            raise _damage(folder, f"{META} ends in the middle of a line")
        starts.append(end + 1)
    return meta, starts
