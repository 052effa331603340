"""How alike two examples are: frozen MinHash signatures of 64 bytes, made with numpy alone.

Signatures are kept beside stored files, so this definition never changes; a better one gets another VERSION.

    text     the trained texts in their order (`guard/trained.py`: system, context, turns; or text), joined by line
             feeds, in Unicode NFC, as UTF-8; A-Z as a-z; every run of the bytes 9-13 and 32 as one space, none outside
    shingle  every 8 bytes in a row, little-endian, as a number x
    hash     x + 0x9E3779B97F4A7C15, then z ^= z >> 30, z *= 0xBF58476D1CE4E5B9, z ^= z >> 27, z *= 0x94D049BB133111EB,
             z ^= z >> 31, all modulo 2^64: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)
    bin      the highest 6 bits of a hash; a bin keeps the smallest hash that falls into it
    empty    an empty bin takes the value of the first bin that is not, in an order of its own: bin i asks the other bins j
             by ascending (hash(64 i + j), j)
    kept     the lowest 8 bits of each bin's value, bins ascending

A text below SHORTEST bytes has no signature (64 zero bytes): short texts are alike by their form, and only exactness
says something of them. Sources: Broder 1997 (resemblance), Li & Koenig 2010 (b bits of a minimum), Li, Owen & Zhang 2012
(one permutation), Shrivastava 2017 (an empty bin asks others at random, which has the least variance).
Bytes only decide: tables of letters (`str.lower`, what is white space) grow with every Unicode release.
Not here: files of signatures (`guard/near_file.py`), or finding alike ones among millions (`guard/near_join.py`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.trained import texts_of

__all__ = ["BINS", "SHORTEST", "VERSION", "normal_bytes", "signatures", "similarity", "trained_text"]

VERSION = 1
BINS = 64
SHORTEST = 32
_SHINGLE = 8
_AT_ONCE = 1 << 14
"""Bytes of text hashed in one go: eight times as much in numbers stays in the cache."""
_TABLE = bytes(32 if code in (9, 10, 11, 12, 13, 32) else code + 32 if 65 <= code <= 90 else code for code in range(256))
_EMPTY = np.uint64(2**64 - 1)
Bytes = NDArray[np.uint8]


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hash of each number, in place."""
    numbers += np.uint64(0x9E3779B97F4A7C15)
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers


def _orders() -> NDArray[np.int64]:
    """[64, 63]: whom each empty bin asks, one after the other."""
    keys = _mix(np.arange(BINS * BINS, dtype=np.uint64)).reshape(BINS, BINS)
    order = np.argsort(keys, axis=1, kind="stable")
    return order[order != np.arange(BINS)[:, None]].reshape(BINS, BINS - 1)


_ORDERS = _orders()


def trained_text(fields: Mapping[str, Any]) -> str:
    """The texts of an example's trained fields, joined by line feeds, in NFC (which never changes for a text)."""
    text = "\n".join(texts_of(fields))
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def normal_bytes(text: str) -> bytes:
    """The bytes that shingles are cut from."""
    return _normal([text.encode("utf-8").strip()])[0].tobytes()


def _normal(batch: Sequence[bytes]) -> tuple[Bytes, NDArray[np.int64]]:
    """Stripped texts made normal, one after the other, and the length of each."""
    array = np.frombuffer(b"".join(batch).translate(_TABLE), dtype=np.uint8)
    lengths = np.fromiter(map(len, batch), dtype=np.int64, count=len(batch))
    keep = array != 32
    # No text begins with a space, so the one before is always of the same text.
    keep[1:] |= keep[:-1].copy()
    if keep.all():
        return array, lengths
    kept = np.concatenate([[0], np.cumsum(keep)])
    ends = np.cumsum(lengths)
    return array[keep], kept[ends] - kept[ends - lengths]


def signatures(texts: Iterable[str]) -> Bytes:
    """One signature for each text: [n, 64]. Raises UnicodeEncodeError for a lone surrogate, which no reader lets through."""
    rows: list[Bytes] = []
    batch: list[bytes] = []
    size = 0
    for text in texts:
        batch.append(text.encode("utf-8").strip())
        size += len(batch[-1])
        if size >= _AT_ONCE:
            rows.append(_of_batch(batch))
            batch, size = [], 0
    rows.append(_of_batch(batch))
    return np.concatenate(rows)


def _of_batch(batch: Sequence[bytes]) -> Bytes:
    """[n, 64] of texts that fit into memory together, or of one giant text in pieces."""
    least = np.full(len(batch) * BINS, _EMPTY)
    joined, lengths = _normal(batch)
    ends = np.cumsum(lengths)
    for start in range(0, len(joined) - _SHINGLE + 1, _AT_ONCE):
        stop = min(start + _AT_ONCE, len(joined) - _SHINGLE + 1)
        first, last = np.searchsorted(ends, [start, stop - 1], "right")
        touched = slice(first, last + 1)
        inside = np.minimum(ends[touched], stop) - np.maximum((ends - lengths)[touched], start)
        owner = np.repeat(np.arange(first, last + 1), inside)
        # A shingle that reaches into the next text belongs to neither.
        crossing = (ends[touched, None] + np.arange(1 - _SHINGLE, 0) - start).ravel()
        valid = np.ones(stop - start, dtype=bool)
        valid[crossing[(crossing >= 0) & (crossing < stop - start)]] = False
        _into_bins(joined, start, owner, valid, least)
    table = least.reshape(-1, BINS)
    long_enough = lengths >= SHORTEST
    _fill(table, np.flatnonzero(long_enough))
    kept = (table & np.uint64(0xFF)).astype(np.uint8)
    kept[~long_enough] = 0
    return kept


def _into_bins(joined: Bytes, start: int, owner: NDArray[np.int64], valid: NDArray[np.bool_],
               least: NDArray[np.uint64]) -> None:  # fmt: skip
    windows = np.ndarray((len(owner),), dtype="<u8", buffer=joined, offset=start, strides=(1,))
    hashes = _mix(windows.astype(np.uint64))
    place = owner * BINS + (hashes >> np.uint64(58)).astype(np.int64)
    if not valid.all():
        place, hashes = place[valid], hashes[valid]
    np.minimum.at(least, place, hashes)


def _fill(table: NDArray[np.uint64], chosen: NDArray[np.int64]) -> None:
    """Give every empty bin the value of the first bin in its order that is not."""
    here = table[chosen]
    full = here != _EMPTY
    row, bin_ = np.nonzero(~full)
    for step in range(BINS - 1):
        if not len(row):
            break
        asked = _ORDERS[bin_, step]
        found = full[row, asked]
        here[row[found], bin_[found]] = here[row[found], asked[found]]
        row, bin_ = row[~found], bin_[~found]
    table[chosen] = here


def similarity(equal: NDArray[Any] | int) -> NDArray[np.float64]:
    """The estimated Jaccard resemblance of shingles when so many of 64 bytes are equal; two strangers share 1 in 256.

    Unbiased but for the cut at 0; its standard error is about sqrt(J (1 - J) / 64): 0.05 at 0.8.
    """
    chance = 1 / 256
    return np.maximum(0.0, (np.asarray(equal) / BINS - chance) / (1 - chance))
