"""Text into packed sequences of several lengths, for curricula and for other programs (`heirloom prepare pack`).

Every document is encoded once, followed by the separator, and put behind the one before; the stream of a split is cut into
rows of each length. Which side a document falls on is decided by its fingerprint, as everywhere, so a document is in `val`
at every length or at none. Same input, same bytes. Read and written as a stream, in memory of a few batches.
Not here: the files (`packed_writer.py`), shards for our own training (`prepare.py`).
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guard.checks.rows import Example
from guard.durable import fsync_tree, make_dir, rename_new, write_json
from guard.errors import CheckFailed, DataFault, NotFound, UsageError
from guard.heldout import held_out_mask
from trainer.dataset import METADATA, STATE
from trainer.making import made_beside
from trainer.packed_writer import ArrowRows, Ids, NpyRows, PackedRows
from trainer.pipeline import in_order
from trainer.prepare import Progress
from trainer.prepare_folder import check_output, skipped_rows, source_of
from trainer.source_file import SourceFile, batches_of
from trainer.tokenizer import Tokenizer
from trainer.unspelt import unknown_in, unspelt_warnings

__all__ = ["FORMATS", "PackPlan", "expand", "pack_folder"]

FORMATS: dict[str, Callable[[Path, int, int], PackedRows]] = {"npy": NpyRows, "arrow": ArrowRows}
_FORMAT_VERSION = "packed-1"
_LISTED_ROWS = 20
_MOST_LENGTH = 1 << 20


@dataclass(frozen=True)
class PackPlan:
    """What is asked for. `shard_rows`: most sequences in one file, 0 for as many as the format likes."""

    lengths: tuple[int, ...]
    format: str = "npy"
    val_split: float = 0.1
    shard_rows: int = 0
    salt: str = ""

    def check(self) -> None:
        """Raises UsageError for what cannot be made."""
        if self.format not in FORMATS:
            raise UsageError(f"unknown format {self.format!r}", subject="--format", hint=f"one of {', '.join(FORMATS)}")
        if not self.lengths or not all(2 <= length <= _MOST_LENGTH for length in self.lengths):
            raise UsageError(f"a sequence has 2 to {_MOST_LENGTH:,} tokens, not {', '.join(map(str, self.lengths)) or 'none'}",
                             subject="--seq-length", hint="--seq-length 512,1024,2048")  # fmt: skip
        if not 0 <= self.val_split < 1:
            raise UsageError(f"--val-split {self.val_split} must be at least 0 and below 1", hint="for example 0.1")
        if self.shard_rows < 0:
            raise UsageError(f"--shard-rows {self.shard_rows} is below 0", hint="0: one file")


def expand(words: Sequence[str], folder: Path) -> list[Path]:
    """The files that were named, in the order given; what stands for several (`raw/*.parquet`) sorted by name.

    What a pattern finds again is left out; a file that is named again is there again.
    A name that is there as it stands is itself, whatever signs are in it. Raises NotFound when nothing fits.
    """
    found: list[Path] = []
    for word in words:
        path = folder / Path(word).expanduser()
        names = [str(path)] if os.path.lexists(path) or not glob.has_magic(word) else sorted(glob.glob(str(path), recursive=True))
        if not names:
            raise NotFound(f"no file fits {word}", subject=word, hint="check the path after --input")
        named = names == [str(path)]
        found += [path for path in map(Path, names) if named or (path not in found and (len(names) == 1 or path.is_file()))]
    if not found:
        raise UsageError("no input file", hint="--input 'raw/*.parquet'")
    return found


def pack_folder(inputs: Sequence[Path], output_dir: Path, tokenizer: Tokenizer, plan: PackPlan, *, threads: int = 1,
                progress: Progress | None = None) -> dict[str, Any]:  # fmt: skip
    """Pack files of text into `output_dir` (missing or empty), whole or not at all, and tell what became of them.

    Raises UsageError for wrong words or a folder in use, NotFound for a missing file, DataFault when nothing can be used,
    CheckFailed when there is not enough for one sequence to train.
    """
    plan.check()
    check_output(output_dir)
    tokenizer.check_specials()
    named = [source_of(path, "pretrain") for path in inputs]
    files = list({file.identity: file for file in named}.values())
    skipped = [skipped_rows(file, "pretrain") for file in files]
    output_dir = output_dir.absolute()
    with made_beside(output_dir) as (making, removed):
        make_dir(making)
        packing = _Packing(making, tokenizer, plan, threads, progress)
        counts = packing.run(files)
        metadata = _metadata(packing, files, counts)
        write_json(making / STATE, tokenizer.state())
        write_json(making / METADATA, metadata)
        fsync_tree(making)
        with contextlib.suppress(FileNotFoundError):
            output_dir.rmdir()
        rename_new(making, output_dir)
    return {"output_dir": str(output_dir), **metadata, "removed": removed,
            "warnings": [*metadata["warnings"], *_repeated(named)], "skipped_rows": sum(count for count, _rows in skipped),
            "skipped": [row for _count, rows in skipped for row in rows][:_LISTED_ROWS]}  # fmt: skip


def _repeated(named: Sequence[SourceFile]) -> list[str]:
    """A sentence for every file that is there twice: it is packed once."""
    first: dict[tuple[str, str], SourceFile] = {}
    said: dict[str, None] = {}
    for file in named:
        before = first.setdefault(file.identity, file)
        if before is not file:
            what = "is named twice" if before.path == file.path else f"is the same as {before.name}"
            said[f"{file.name} {what}: it is packed once"] = None
    return list(said)


class _Packing:
    """One run: files in, rows of every length and split out."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, plan: PackPlan, threads: int, progress: Progress | None) -> None:
        self.tokenizer, self.plan, self.threads, self.progress = tokenizer, plan, threads, progress
        self.examples = {"train": 0, "val": 0}
        self.tokens = {"train": 0, "val": 0}
        self.unknown = {"train": 0, "val": 0}
        make = FORMATS[plan.format]
        self.rows = {split: [make(folder / f"{split}_{length}", length, plan.shard_rows)
                             for length in sorted(set(plan.lengths))] for split in self.tokens}  # fmt: skip
        self._separator = np.array([tokenizer.separator_id], dtype=np.int64)

    def run(self, files: Sequence[SourceFile]) -> list[int]:
        """Pack everything; how many examples each file had. Raises DataFault, CheckFailed."""
        with contextlib.ExitStack() as stack:
            for rows in (rows for some in self.rows.values() for rows in some):
                stack.enter_context(rows)
            counts = [self._file(file) for file in files]
            if not sum(counts):
                raise DataFault("no row can be used", subject=files[0].name, hint="heirloom prepare validate PATH says why")
            for rows in self.rows["train"]:
                if not rows.rows:
                    raise CheckFailed(f"{self.tokens['train']:,} tokens to train do not fill one sequence of {rows.length:,}",
                                      subject="--seq-length", hint="give more data, or a shorter --seq-length")  # fmt: skip
        return counts

    def _file(self, file: SourceFile) -> int:
        count, last = 0, dict.fromkeys(self.tokens, False)
        with contextlib.closing(in_order(_batches(file), lambda batch: self._encode(batch, file), self.threads)) as encoded:
            for batch, ids in encoded:
                held = held_out_mask(b"".join(item.fingerprint for item in batch), self.plan.salt, self.plan.val_split)
                for split, side in (("train", False), ("val", True)):
                    mine = [row for row, is_held in zip(ids, held.tolist(), strict=True) if is_held is side]
                    self._add(split, mine)
                    last[split] = last[split] or bool(mine)
                    self.examples[split] += len(mine)
                    self.unknown[split] += unknown_in(mine, self.tokenizer)
                count += len(batch)
                if self.progress:
                    self.progress(sum(self.examples.values()), sum(self.tokens.values()))
        if _is_one_document(file):
            # A plain text is one document; its segments in a split follow each other, and what is next begins anew.
            for split in (split for split, any_of_it in last.items() if any_of_it):
                self._add(split, [self._separator])
        return count

    def _encode(self, batch: Sequence[Example], file: SourceFile) -> list[Ids]:
        """Ids of each example, with the separator behind a row of text. Runs in any thread."""
        texts = self.tokenizer.encode_batch([example.fields["text"] for example in batch])
        ends = [] if _is_one_document(file) else [self._separator]
        return [np.concatenate([ids.astype(np.int64), *ends]) for ids in texts]

    def _add(self, split: str, arrays: Sequence[Ids]) -> None:
        if arrays:
            ids = np.concatenate(arrays)
            self.tokens[split] += len(ids)
            for rows in self.rows[split]:
                rows.add(ids)


def _is_one_document(file: SourceFile) -> bool:
    """A plain text, packed (`text.gz`) or not; everything else holds a document in each row."""
    return file.container.partition(".")[0] == "text"


def _batches(file: SourceFile) -> Iterator[list[Example]]:
    """Examples in batches of bounded size. Raises DataFault for rows that are packed already."""
    for batch, _last in batches_of(file, "pretrain"):
        packed = next((example for example in batch if "text" not in example.fields), None)
        if packed is not None:
            raise DataFault(f"{file.name}, line {packed.line_number}: the row holds token ids, not text", subject=file.name,
                            hint="it is packed already; drop it as it is, or give the text it was made from")  # fmt: skip
        yield batch


def _metadata(packing: _Packing, files: Sequence[SourceFile], counts: Sequence[int]) -> dict[str, Any]:
    tokenizer, plan = packing.tokenizer, packing.plan
    made = {rows.folder.name: rows for some in packing.rows.values() for rows in some}
    # Nothing is held out by wish: then nobody misses the folders.
    missing = [name for name, rows in made.items() if not rows.rows and plan.val_split]
    return {
        "format_version": _FORMAT_VERSION,
        "format": plan.format,
        "kind": "pretrain",
        "tokenization": tokenizer.tokenization,
        "tokenizer_hash": tokenizer.content_hash,
        "vocab_size": tokenizer.vocab_size,
        "separator_id": tokenizer.separator_id,
        "options": {"val_split": plan.val_split, "shard_rows": plan.shard_rows},
        "files": [{"sha256": file.sha256, "name": file.name, "container": file.container, "examples": count}
                  for file, count in zip(files, counts, strict=True)],
        "examples": packing.examples,
        "tokens": packing.tokens,
        **({"unknown_tokens": unknown} if (unknown := {name: n for name, n in packing.unknown.items() if n}) else {}),
        "splits": {name: rows.record() for name, rows in made.items() if rows.rows},
        "warnings": [*(f"{name} is not there: too few tokens are held out for one sequence" for name in missing),
                     *unspelt_warnings(packing.unknown, sum(packing.tokens.values()), tokenizer)],
    }  # fmt: skip
