"""Token shards on disk: little-endian uint16 (or uint32) ids, beside them one byte of loss mask per token, cut between examples.

The writer streams: one example in, bytes out, a new shard when the next example would not fit. An example is split
over shards only when it is longer than a whole shard. The reader maps shards into memory and gathers any span.
This file knows no examples, files or tokenizers: `trainer/dataset.py` does. Damage is told, never repaired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from guard.durable import open_new
from guard.errors import CheckFailed, Damage, UsageError

__all__ = ["TOKEN_DTYPES", "Shard", "ShardReader", "ShardWriter", "mask_name", "shard_name", "token_dtype"]

TOKEN_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
"""By the name that the metadata has."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type of ids below `vocab_size`: uint16 when they fit, else uint32. Raises UsageError beyond that."""
    if not 0 < vocab_size <= 1 << 32:
        raise UsageError(f"a vocabulary of {vocab_size} ids does not fit uint32 shards", subject="vocab_size")
    return TOKEN_DTYPES["uint16" if vocab_size <= 1 << 16 else "uint32"]


def shard_name(number: int) -> str:
    """`shard_00003.bin`."""
    return f"shard_{number:05d}.bin"


def mask_name(number: int) -> str:
    """`shard_00003_mask.bin`."""
    return f"shard_{number:05d}_mask.bin"


@dataclass(frozen=True)
class Shard:
    """A finished shard: how many tokens, and the SHA-256 of its files (`mask_sha256` is "" without a mask)."""

    tokens: int
    sha256: str
    mask_sha256: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For `dataset_metadata.json`."""
        return {"tokens": self.tokens, "sha256": self.sha256, "mask_sha256": self.mask_sha256}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shard:
        """Back from `as_dict`; the two hashes may be missing in a foreign dataset."""
        return cls(int(data["tokens"]), str(data.get("sha256", "")), str(data.get("mask_sha256", "")))


class _Stream:
    """One file being written through `open_new`, hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._context: AbstractContextManager[BinaryIO] = open_new(path)
        self._handle = self._context.__enter__()
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self._handle.write(data)
        self._digest.update(data)

    def close(self) -> str:
        self._context.__exit__(None, None, None)
        return self._digest.hexdigest()

    def abandon(self, error: BaseException) -> None:
        self._context.__exit__(type(error), error, error.__traceback__)


class ShardWriter:
    """Writes the shards of one split into an existing folder. Use as a context manager.

    Each finished shard is durable; the one in the making leaves no trace when the block ends with an error.
    """

    def __init__(self, folder: Path | str, *, vocab_size: int, shard_size_tokens: int, with_mask: bool) -> None:
        self.dtype = token_dtype(vocab_size)
        if shard_size_tokens < 1:
            raise UsageError(f"shard size {shard_size_tokens}: must be at least 1 token", subject="shard_size_tokens")
        self.folder = Path(folder)
        self.vocab_size = vocab_size
        self.shard_size_tokens = shard_size_tokens
        self.with_mask = with_mask
        self.shards: list[Shard] = []
        self.total_tokens = 0
        self._open_tokens = 0
        self._streams: list[_Stream] = []

    def add(self, ids: NDArray[Any], mask: NDArray[np.uint8] | None = None) -> int:
        """Append one example's ids [n] (and mask [n] of 0 and 1); returns its start in tokens within the split.

        Raises CheckFailed like `add_many`.
        """
        return int(self.add_many(ids, np.array([len(ids)]), mask)[0])

    def add_many(self, ids: NDArray[Any], lengths: NDArray[np.int64], mask: NDArray[np.uint8] | None = None) -> NDArray[np.int64]:
        """Append n examples of `lengths` [n] that stand in a row in `ids` [total] (and mask [total]); their starts [n].

        Raises CheckFailed for an id outside the vocabulary: it would wrap or index past the embedding.
        """
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size):
            raise CheckFailed(f"token id {max(int(ids.max()), -int(ids.min()))} is outside the vocabulary of"
                              f" {self.vocab_size} ids", hint="prepare with the tokenizer of the model")  # fmt: skip
        assert (mask is not None) == self.with_mask and (mask is None or len(mask) == len(ids))
        ends = np.cumsum(lengths)
        assert int(ends[-1]) == len(ids)
        starts = self.total_tokens + ends - lengths
        first = begin = 0
        while first < len(ends):
            fitting = int(np.searchsorted(ends, begin + self.shard_size_tokens - self._open_tokens, side="right"))
            if fitting > first:
                end = int(ends[fitting - 1])
                self._write(ids[begin:end], None if mask is None else mask[begin:end])
                first, begin = fitting, end
            elif self._open_tokens:
                self._finish_shard()
            else:
                # Longer than a whole shard: begun in a fresh one, and its end may be followed by others.
                end = min(begin + self.shard_size_tokens, int(ends[first]))
                self._write(ids[begin:end], None if mask is None else mask[begin:end])
                begin = end
        return starts

    def _write(self, ids: NDArray[Any], mask: NDArray[np.uint8] | None) -> None:
        if not len(ids):
            return
        if not self._streams:
            number = len(self.shards)
            self._streams.append(_Stream(self.folder / shard_name(number)))
            if self.with_mask:
                self._streams.append(_Stream(self.folder / mask_name(number)))
        self._streams[0].write(np.ascontiguousarray(ids, dtype=self.dtype).data)
        if mask is not None:
            self._streams[1].write(np.ascontiguousarray(mask, dtype=np.uint8).data)
        self._open_tokens += len(ids)
        self.total_tokens += len(ids)

    def _finish_shard(self) -> None:
        hashes = []
        while self._streams:
            hashes.append(self._streams.pop(0).close())
        if hashes:
            self.shards.append(Shard(self._open_tokens, *hashes))
        self._open_tokens = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish_shard()
        except BaseException as raised:
            self._abandon(raised)
            raise
        if error is not None:
            self._abandon(error)

    def _abandon(self, error: BaseException) -> None:
        while self._streams:
            try:
                self._streams.pop().abandon(error)
            except BaseException as raised:
                # open_new passes the same error on after it has removed its temporary file.
                if raised is not error:
                    raise


class ShardReader:
    """Any span of a split's tokens and masks, counted over all its shards in a row.

    Raises Damage when a shard is missing or has another size than recorded.
    """

    def __init__(self, folder: Path | str, shards: Sequence[Shard], *, with_mask: bool, dtype: str = "uint16") -> None:
        self.folder = Path(folder)
        self.dtype = TOKEN_DTYPES[dtype]
        self.shards = list(shards)
        self.with_mask = with_mask
        self._ends = np.cumsum([shard.tokens for shard in self.shards], dtype=np.int64)
        self._maps: dict[str, NDArray[Any]] = {}
        self._check_sizes()

    @property
    def total_tokens(self) -> int:
        """Tokens in the split."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def tokens(self, start: int, length: int) -> NDArray[Any]:
        """Ids [length] from `start` on, as a copy. Raises Damage when the span leaves the split."""
        return self._gather(start, length, mask=False)

    def mask(self, start: int, length: int) -> NDArray[np.uint8]:
        """Loss mask [length] from `start` on; ones where the split has none (plain text is learnt whole)."""
        if not self.with_mask:
            self._check_span(start, length)
            return np.ones(length, dtype=np.uint8)
        return self._gather(start, length, mask=True)

    def check_ids(self, vocab_size: int, numbers: Sequence[int] | None = None) -> None:
        """Read all shards (or those) and prove that ids lie below `vocab_size` and masks are 0 or 1. Raises Damage."""
        for number in range(len(self.shards)) if numbers is None else numbers:
            shard = self.shards[number]
            if shard.tokens and int(self._map(number, mask=False).max()) >= vocab_size:
                raise Damage(f"{self.folder / shard_name(number)} holds an id outside the vocabulary of {vocab_size}",
                             subject=str(self.folder / shard_name(number)),
                             hint="prepare the data again with the tokenizer of the base")  # fmt: skip
            if shard.tokens and self.with_mask and int(self._map(number, mask=True).max()) > 1:
                raise Damage(f"{self.folder / mask_name(number)} holds something else than 0 and 1")

    def _files(self) -> list[tuple[str, int]]:
        files = [(shard_name(i), shard.tokens * self.dtype.itemsize) for i, shard in enumerate(self.shards)]
        if self.with_mask:
            files += [(mask_name(i), shard.tokens) for i, shard in enumerate(self.shards)]
        return files

    def _check_sizes(self) -> None:
        for name, size_bytes in self._files():
            path = self.folder / name
            if not path.is_file():
                raise Damage(f"{path} is missing", subject=str(path), hint="prepare the dataset again")
            if path.stat().st_size != size_bytes:
                raise Damage(f"{path} has {path.stat().st_size} bytes, expected {size_bytes}", subject=str(path),
                             hint="prepare the dataset again")  # fmt: skip

    def _check_span(self, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > self.total_tokens:
            raise Damage(f"tokens {start}..{start + length} do not lie in {self.folder} ({self.total_tokens} tokens)",
                         hint="the selection belongs to another dataset")  # fmt: skip

    def _map(self, number: int, *, mask: bool) -> NDArray[Any]:
        name = mask_name(number) if mask else shard_name(number)
        if name not in self._maps:
            dtype = np.dtype(np.uint8) if mask else self.dtype
            self._maps[name] = np.memmap(self.folder / name, dtype=dtype, mode="r")
        return self._maps[name]

    def _gather(self, start: int, length: int, *, mask: bool) -> NDArray[Any]:
        self._check_span(start, length)
        pieces: list[NDArray[Any]] = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while length:
            shard_start = int(self._ends[number]) - self.shards[number].tokens
            piece = self._map(number, mask=mask)[start - shard_start : start - shard_start + length]
            pieces.append(piece)
            start, length, number = start + len(piece), length - len(piece), number + 1
        dtype = np.dtype(np.uint8) if mask else self.dtype
        return np.concatenate(pieces).astype(dtype, copy=False) if pieces else np.empty(0, dtype=dtype)
