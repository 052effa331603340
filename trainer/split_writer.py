"""One split of a prepared dataset in the making: shards, the table of its examples, and their fingerprints.

Takes a batch of examples at a time, because a step of Python for each costs an eighth of what encoding it costs.
What the files look like stands in docs/FORMATS.md; reading them is `trainer/dataset.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guard.checks.rows import Example
from guard.durable import make_dir, open_new, sha256_file
from trainer.dataset import COLUMNS
from trainer.shards import ShardWriter
from trainer.template import Encoded
from trainer.tokenizer import Tokenizer
from trainer.unspelt import unknown_in, unknown_record

__all__ = ["SplitWriter"]


class SplitWriter:
    """Writes into a new folder; everything is finished when `stack` is closed, and nothing is left when it ends badly."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_size_tokens: int, with_mask: bool,
                 stack: contextlib.ExitStack) -> None:  # fmt: skip
        make_dir(folder)
        self.folder = folder
        self.tokenizer, self.with_mask = tokenizer, with_mask
        self.count = self.loss_tokens = self.unknown = 0
        self.table = stack.enter_context(open_new(folder / "examples.npy"))
        self._write_header()
        self.fingerprints = stack.enter_context(open_new(folder / "examples.fp"))
        self.writer = stack.enter_context(ShardWriter(folder, vocab_size=tokenizer.vocab_size, with_mask=with_mask,
                                                      shard_size_tokens=shard_size_tokens))  # fmt: skip

    def _write_header(self) -> None:
        """numpy pads the header so that the first dimension can be rewritten in place when it is known."""
        self.table.seek(0)
        shape = (self.count, len(COLUMNS))
        np.lib.format.write_array_header_1_0(self.table, {"descr": "<i8", "fortran_order": False, "shape": shape})

    def add_batch(self, file_index: int, rows: Sequence[tuple[Example, Encoded]]) -> None:
        """Append examples of one file. Raises CheckFailed for an id outside the vocabulary."""
        if not rows:
            return
        lengths = np.array([len(encoded.ids) for _example, encoded in rows], dtype=np.int64)
        mask = np.concatenate([encoded.mask for _example, encoded in rows]) if self.with_mask else None
        table = np.empty((len(rows), len(COLUMNS)), dtype="<i8")
        table[:, 0] = file_index
        table[:, 1] = [example.ordinal for example, _encoded in rows]
        table[:, 2] = self.writer.add_many(np.concatenate([encoded.ids for _example, encoded in rows]), lengths, mask)
        table[:, 3] = lengths
        table[:, 4] = lengths if mask is None else _sums(mask, lengths)
        table[:, 5:] = [(encoded.cut_start, encoded.cut_length) for _example, encoded in rows]
        self.table.write(table.data)
        self.fingerprints.write(b"".join(example.fingerprint for example, _encoded in rows))
        self.count += len(rows)
        self.loss_tokens += int(table[:, 4].sum())
        self.unknown += unknown_in([encoded.ids for _example, encoded in rows], self.tokenizer)

    def finish(self) -> None:
        """Put the number of examples into the header; before the files are closed."""
        self._write_header()

    def record(self) -> dict[str, Any]:
        """What `dataset_metadata.json` says of this split; after everything is closed."""
        return {
            "examples": self.count,
            "tokens": self.writer.total_tokens,
            "loss_tokens": self.loss_tokens,
            **unknown_record(self.unknown),
            "shards": [shard.as_dict() for shard in self.writer.shards],
            "examples_sha256": sha256_file(self.folder / "examples.npy"),
            "fingerprints_sha256": sha256_file(self.folder / "examples.fp"),
        }


def _sums(mask: np.ndarray[Any, np.dtype[np.uint8]], lengths: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    """[n]: the sum of each example's part of the mask."""
    ends = np.cumsum(lengths)
    sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(mask, dtype=np.int64)])
    return sums[ends] - sums[ends - lengths]
