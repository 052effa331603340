"""Which token ranges share a sequence: best fit for whole documents, or one document each, or as earlier releases did.

A document is a conversation, a row of pretraining text, or what stands side by side of a plain text: its segments follow
one another and may see one another. A segment that is left out (held out, known) ends a document, for what comes behind
it was never its continuation. What is longer than a block is cut into blocks that share one token, so that nothing of it
goes unpredicted; the rest is a piece like any other. Pieces are put into sequences so that few tokens are wasted
(`trainer/best_fit.py`; for language models "Fewer Truncations Improve Language Modeling", arXiv 2404.10830), and none is
cut again. That the pieces of a sequence do not see one another is the model's business (`trainer/model.py`).
Not here: choosing what is trained (`trainer/choose.py`) and turning it into batches (`trainer/batches.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.best_fit import fit
from trainer.dataset import CUT_LENGTH, CUT_START, FILE, LENGTH, ORDINAL, START, Dataset

__all__ = ["Packed", "document_starts", "is_plain_text", "most_that_fit", "pack", "touches"]

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """Sequences over one dataset, and which of them carry each example."""

    ranges: Integers
    """[R, 3]: dataset, start token, length."""
    sequences: Integers
    """[S, 2]: first range and end range."""
    documents: Integers | None
    """[R]: number of the range's document within its sequence; None: a sequence is one document."""
    first: Integers
    last: Integers
    """[E]: the pieces that carry an example's loss, first and last; no piece where last < first."""
    place: Integers
    """[P]: the sequence in which a piece stands."""
    begins: NDArray[np.bool_]
    """[E]: the example's first token has nothing before it to be predicted from."""


@dataclass(frozen=True)
class _Pieces:
    """What is never cut again: each piece becomes one document of one sequence."""

    ranges: Integers
    bounds: Integers
    """[P, 2]: first range and end range."""
    sizes: Integers
    """[P]: predictions, which are one less than tokens."""
    first: Integers
    last: Integers
    begins: NDArray[np.bool_]


def is_plain_text(file: dict[str, object]) -> bool:
    """Are a dataset's file's examples the segments of one text? Else each is a document of its own."""
    return str(file.get("container", "jsonl")).split(".")[0] == "text"


def document_starts(dataset: Dataset, table: Integers) -> NDArray[np.bool_]:
    """[E]: the example begins a document. It does not where it goes on in the same plain text without a gap."""
    plain = np.array([is_plain_text(file) for file in dataset.files], dtype=bool)
    fresh = np.ones(len(table), dtype=bool)
    before, after = table[:-1], table[1:]
    follows = (before[:, FILE] == after[:, FILE]) & (before[:, ORDINAL] + 1 == after[:, ORDINAL])
    follows &= before[:, START] + before[:, LENGTH] == after[:, START]
    fresh[1:] = ~(follows & plain[after[:, FILE]])
    return fresh


def _text_pieces(dataset: Dataset, table: Integers, block_size: int, dataset_index: int) -> _Pieces:
    """Documents cut into blocks that share one token. Token t >= 1 of a document is predicted in its block (t - 1) // block."""
    fresh = document_starts(dataset, table)
    document = np.cumsum(fresh) - 1
    starts = table[fresh, START]
    tokens = np.bincount(document, weights=table[:, LENGTH], minlength=len(starts)).astype(np.int64)
    # A document of a single token predicts nothing: it has no piece.
    counts = -(-(tokens - 1) // block_size)
    ends = np.cumsum(counts)
    owner = np.repeat(np.arange(len(starts)), counts)
    offset = (np.arange(int(counts.sum())) - (ends - counts)[owner]) * block_size
    sizes = np.minimum(block_size, tokens[owner] - 1 - offset)
    ranges = np.stack([np.full(len(owner), dataset_index), starts[owner] + offset, sizes + 1], axis=1).astype(np.int64)
    each = np.arange(len(owner), dtype=np.int64)
    inside = table[:, START] - starts[document]
    before = (ends - counts)[document]
    first = before + np.maximum(inside - 1, 0) // block_size
    last = before + np.maximum(inside + table[:, LENGTH] - 2, 0) // block_size
    return _Pieces(ranges, np.stack([each, each + 1], axis=1), sizes, first, np.where(tokens[document] > 1, last, -1), fresh)


def _conversation_pieces(rows: Integers, block_size: int, dataset_index: int) -> _Pieces:
    """One piece per conversation ([n, 7] rows of the example table); the tail of a long context is left out."""
    excess = np.maximum(rows[:, LENGTH] - (block_size + 1), 0)
    head = np.where(excess > 0, rows[:, CUT_START] + rows[:, CUT_LENGTH] - excess, rows[:, LENGTH])
    tail_start = rows[:, START] + rows[:, CUT_START] + rows[:, CUT_LENGTH]
    tail = np.where(excess > 0, rows[:, LENGTH] - rows[:, CUT_START] - rows[:, CUT_LENGTH], 0)
    counts = np.where(excess > 0, 2, 1)
    ends = np.cumsum(counts)
    ranges = np.zeros((int(counts.sum()), 3), dtype=np.int64)
    ranges[:, 0] = dataset_index
    ranges[ends - counts, 1:] = np.stack([rows[:, START], head], axis=1)
    cut = excess > 0
    ranges[ends[cut] - 1, 1:] = np.stack([tail_start, tail], axis=1)[cut]
    bounds = np.stack([ends - counts, ends], axis=1).astype(np.int64)
    each = np.arange(len(rows), dtype=np.int64)
    return _Pieces(ranges, bounds, head + tail - 1, each, each, np.zeros(len(rows), dtype=bool))


def _pack_stream(starts: Integers, lengths: Integers, block_size: int, dataset_index: int) -> Packed:
    """As releases before packing did, kept to make their versions again: all examples in a row as one stream.

    It is cut every `block_size` tokens into sequences of one token more, which is the next one's first input: so every
    token but the stream's first is predicted once. A sequence needs two tokens; examples that follow each other on disk
    share a range.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    count = max(0, -(-(total - 1) // block_size))
    # Stretches of examples without a gap on disk: where they begin in the stream and on disk.
    fresh = np.ones(len(starts), dtype=bool)
    fresh[1:] = starts[1:] != starts[:-1] + lengths[:-1]
    stretch_stream, stretch_disk = (ends - lengths)[fresh], starts[fresh]
    begin = np.arange(count, dtype=np.int64) * block_size
    end = np.minimum(begin + block_size + 1, total)
    first = np.searchsorted(stretch_stream, begin, side="right") - 1
    last = np.searchsorted(stretch_stream, end - 1, side="right") - 1
    pieces = last - first + 1
    range_ends = np.cumsum(pieces)
    owner = np.repeat(np.arange(count), pieces)
    stretch = np.arange(int(pieces.sum())) - (range_ends - pieces)[owner] + first[owner]
    stretch_end = np.append(stretch_stream[1:], total)[stretch]
    low, high = np.maximum(begin[owner], stretch_stream[stretch]), np.minimum(end[owner], stretch_end)
    disk = stretch_disk[stretch] + low - stretch_stream[stretch]
    ranges = np.stack([np.full(len(disk), dataset_index), disk, high - low], axis=1).astype(np.int64)
    sequences = np.stack([range_ends - pieces, range_ends], axis=1).astype(np.int64)
    # Token t (t >= 1) is predicted in sequence (t - 1) // block; an example begins at end - length.
    touch_first = np.maximum(ends - lengths - 1, 0) // block_size
    touch_last = np.maximum(ends - 2, 0) // block_size if count else np.full(len(ends), -1, dtype=np.int64)
    begins = np.arange(len(starts)) == 0
    return Packed(ranges, sequences, None, touch_first, touch_last, np.arange(count, dtype=np.int64), begins)


def _pieces_of(dataset: Dataset, table: Integers, block_size: int, dataset_index: int) -> _Pieces:
    if dataset.stage == "pretrain":
        return _text_pieces(dataset, table, block_size, dataset_index)
    return _conversation_pieces(table, block_size, dataset_index)


def _joined(pieces: _Pieces, place: Integers) -> Packed:
    """The pieces in the order of their sequences [P], each a document of its own."""
    order = np.argsort(place, kind="stable")
    counts = (pieces.bounds[:, 1] - pieces.bounds[:, 0])[order]
    ends = np.cumsum(counts)
    owner = np.repeat(np.arange(len(order)), counts)
    rows = np.arange(len(owner)) - (ends - counts)[owner] + pieces.bounds[order, 0][owner]
    per_sequence = np.bincount(place)
    sequence_ends = np.cumsum(per_sequence)
    within = np.arange(len(order)) - (sequence_ends - per_sequence)[place[order]]
    range_counts = np.bincount(place[order], weights=counts).astype(np.int64)
    range_ends = np.cumsum(range_counts)
    sequences = np.stack([range_ends - range_counts, range_ends], axis=1).astype(np.int64)
    return Packed(pieces.ranges[rows], sequences, within[owner].astype(np.int64), pieces.first, pieces.last, place,
                  pieces.begins)  # fmt: skip


def pack(dataset: Dataset, rows: Integers, block_size: int, dataset_index: int, packing: str | None) -> Packed:
    """Sequences over these rows of a train split, none above `block_size` predictions.

    `packing`: `bestfit`, `off` (each piece is a sequence), or None: as releases before packing did.
    """
    table = np.asarray(dataset.train.examples[rows])
    if packing is None and dataset.stage == "pretrain":
        return _pack_stream(table[:, START], table[:, LENGTH], block_size, dataset_index)
    pieces = _pieces_of(dataset, table, block_size, dataset_index)
    if packing is None:
        return Packed(pieces.ranges, pieces.bounds, None, pieces.first, pieces.last, pieces.first, pieces.begins)
    place = fit(pieces.sizes, block_size) if packing == "bestfit" else np.arange(len(pieces.sizes), dtype=np.int64)
    return _joined(pieces, place)


def touches(packed: Packed, of_interest: Integers) -> Integers:
    """(sequence, example) pairs [n, 2]; `of_interest` are the positions of the counted examples among the packed ones."""
    first, last = packed.first[of_interest], packed.last[of_interest]
    counts = np.maximum(last - first + 1, 0)
    example = np.repeat(np.arange(len(of_interest)), counts)
    step = np.arange(int(counts.sum())) - (np.cumsum(counts) - counts)[example]
    return np.stack([packed.place[first[example] + step], example], axis=1).astype(np.int64)


def most_that_fit(dataset: Dataset, rows: Integers, block_size: int, count: int) -> int:
    """How many of the rows, from the first on, best fit puts into at most `count` sequences; at least one row."""
    table = np.asarray(dataset.train.examples[rows])
    filled = np.cumsum(np.minimum(table[:, LENGTH], block_size + 1) if dataset.stage == "sft" else table[:, LENGTH])
    # No packing holds more than full sequences: so many rows at most, and each row costs a token of its own at most.
    most = int(np.searchsorted(filled - np.arange(1, len(filled) + 1), count * block_size, side="right"))

    def fits(number: int) -> bool:
        sizes = _pieces_of(dataset, table[:number], block_size, 0).sizes
        return int(fit(sizes, block_size).max(initial=-1)) < count

    return max(1, _largest(fits, min(most, len(rows))))


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, where each smaller one does too (halving)."""
    if most < 1 or fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
