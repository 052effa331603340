"""Tokenizers: text to ids and back, and the identity that keeps ids of different tokenizers apart (law 11).

Three kinds: `gpt2` (ids 0..50256 and our special tokens from 50257), `char` (UTF-8 bytes 0..255 and special tokens
from 256) and `hf` (a Hugging Face folder, `trainer/tokenizer_hf.py`). Whatever text is given, `encode` returns ordinary
ids only: a tag written inside a record is spelt out, never turned into a control token. Control tokens are placed by
templates through `special`. Not here: the conversation format, shards, and the files (`trainer/hf_tokenizer.py`).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

from guard.errors import CheckFailed, UsageError
from trainer.runs import RUN_LIMIT_CHARACTERS, RUN_PATTERN
from trainer.runs import split_runs as _split_runs
from trainer.runs import valid_unicode as _valid_unicode
from trainer.templates.mypt import END_OF_TURN, SPECIAL_TOKENS
from trainer.vocabulary import gpt2_ranks

__all__ = [
    "GPT2_PATTERN",
    "RUN_LIMIT_CHARACTERS",
    "TOKENIZATIONS",
    "CharTokenizer",
    "Gpt2Tokenizer",
    "Tokenizer",
    "load_tokenizer",
    "require_same_tokenizer",
]

# GPT-2's split pattern in the form tiktoken 0.14 uses (possessive where it can be). Kept here, because tiktoken
# rewrites it from time to time and our tokenizer's hash must not move with an upgrade.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_STATE_SCHEMA = 1
# Its first character stands in it once, so that no end of a text can be taken for the beginning of a seam.
_SEAM, _SEAM_ID = "\0heirloom seam", 2**32 - 1
_SEAMS = frozenset([_SEAM])


class Tokenizer(ABC):
    """Text <-> ids for one tokenization. Build with `load_tokenizer`."""

    tokenization: str
    separator_id: int
    """Stands after every document of a pretraining text."""
    vocab_size: int
    """Ids in use: 0 .. vocab_size - 1."""
    padded_vocab_size: int
    """Rows of the embedding table; ids from vocab_size on never occur."""
    dtype: np.dtype[Any] = np.dtype("<u2")
    """Of its ids, in memory and on disk: uint16, or uint32 where the vocabulary needs it."""
    unknown_id: int | None = None
    """What text becomes that the vocabulary has no tokens for; None where anything can be spelt."""

    def __init__(self, first_special: int, padded_vocab_size: int) -> None:
        self._specials = {name: first_special + offset for offset, name in enumerate(SPECIAL_TOKENS)}
        self._first_special = first_special
        self.vocab_size = first_special + len(SPECIAL_TOKENS)
        self.padded_vocab_size = padded_vocab_size

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[Any]]:
        """Ordinary ids (of `dtype`) of each text; `threads` change the speed and never the result."""

    @abstractmethod
    def _identity(self) -> Iterable[bytes]:
        """Everything the ordinary ids depend on, in a fixed order, for the content hash."""

    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """The bytes of every ordinary token, by id (without the special tokens)."""

    def encode_array(self, text: str) -> NDArray[Any]:
        """Ordinary ids [n] of one text."""
        return self.encode_batch([text])[0]

    def encode(self, text: str) -> list[int]:
        """Ordinary ids of one text: never a control id, whatever the text says."""
        return self.encode_array(text).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; control ids give their tags, broken UTF-8 gives U+FFFD.

        Raises CheckFailed for an id outside the vocabulary (a model must never be let sample one).
        """
        table = self._table
        pieces = []
        for value in ids:
            if not 0 <= value < len(table):
                raise CheckFailed(f"id {value} is not in the {self.tokenization} vocabulary (0..{len(table) - 1})",
                                  hint="sample only the ids in use")  # fmt: skip
            pieces.append(table[value])
        return b"".join(pieces).decode("utf-8", "replace")

    @functools.cached_property
    def _table(self) -> list[bytes]:
        return [*self.token_bytes(), *(name.encode() for name in SPECIAL_TOKENS)]

    def special(self, name: str) -> int:
        """The id of a control token. Raises UsageError for an unknown name."""
        if name not in self._specials:
            raise UsageError(f"{name!r} is no special token", hint=f"known: {' '.join(self._specials)}")
        return self._specials[name]

    @property
    def special_tokens(self) -> dict[str, int]:
        """All control tokens by name, in the order of their ids."""
        return dict(self._specials)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids after which an answer is over."""
        return tuple(sorted({self.special("</myPT_assistant>"), self.special(END_OF_TURN), self.separator_id}))

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 over kind, ranks, split rules and special tokens: equal hash, equal ids for every text."""
        digest = hashlib.sha256(f"heirloom-tokenizer-1\n{self.tokenization}\n".encode())
        for line in self._identity():
            digest.update(line + b"\n")
        for name, value in self._specials.items():
            digest.update(f"{name} {value}\n".encode())
        digest.update(f"separator {self.separator_id}\n".encode())
        return digest.hexdigest()

    def state(self) -> dict[str, Any]:
        """The content of `tokenizer_state.json`."""
        return {
            "schema": _STATE_SCHEMA,
            "tokenization": self.tokenization,
            "content_hash": self.content_hash,
            "vocab_size": self.vocab_size,
            "padded_vocab_size": self.padded_vocab_size,
            "separator_id": self.separator_id,
            "dtype": self.dtype.name,
            "special_tokens": self.special_tokens,
        }

    def check_specials(self) -> None:
        """Prove that the special tokens are registered, distinct, and out of reach of text. Raises CheckFailed."""
        for offset, name in enumerate(SPECIAL_TOKENS):
            value = self._specials.get(name)
            if value != self._first_special + offset or value >= self.padded_vocab_size:
                raise CheckFailed(f"special token {name} has id {value}, expected {self._first_special + offset}",
                                  subject=self.tokenization)  # fmt: skip
            if self.decode([value]) != name:
                raise CheckFailed(f"special token {name} decodes as {self.decode([value])!r}", subject=name)
            spelt = self.encode(name)
            if self.decode(spelt) != name or any(part >= self._first_special for part in spelt):
                raise CheckFailed(f"the text {name!r} does not encode as ordinary text", subject=self.tokenization)


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's byte-pair encoding through tiktoken, documents separated by <|endoftext|>."""

    tokenization = "gpt2"
    separator_id = 50256

    def __init__(self) -> None:
        super().__init__(first_special=50257, padded_vocab_size=50304)
        self.ranks = gpt2_ranks()
        # No control token is registered with tiktoken at all: what it does not know it cannot produce from text. The seam
        # stands only between two texts that are encoded in one call, and is cut out again.
        self._encoding = tiktoken.Encoding("heirloom-gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=self.ranks,
                                           special_tokens={_SEAM: _SEAM_ID})  # fmt: skip

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[np.uint16]]:
        pieces = [_split_runs(_valid_unicode(text)) for text in texts]
        flat = [piece for parts in pieces for piece in parts]
        if threads > 1 and len(flat) > 1:
            size = -(-len(flat) // threads)
            with ThreadPoolExecutor(threads) as pool:
                groups = pool.map(self._encode_joined, [flat[at : at + size] for at in range(0, len(flat), size)])
                arrays = [ids for group in groups for ids in group]
        else:
            arrays = self._encode_joined(flat)
        if len(flat) == len(texts):
            return arrays
        rest = iter(arrays)
        return [np.concatenate([next(rest) for _part in parts]) for parts in pieces]

    def _encode_joined(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """Ids of each text, from one call of tiktoken for all: its fixed cost is paid once, and the lock on Python given
        back for long enough that a second thread can work. What stands beside a seam is encoded as at a text's ends."""
        joined = _SEAM.join(texts)
        if joined.count(_SEAM) != max(len(texts) - 1, 0):
            return [np.array(self._encoding.encode_ordinary(text), dtype=self.dtype) for text in texts]
        found = self._encoding.encode_to_numpy(joined, allowed_special=_SEAMS, disallowed_special=())
        ends = np.flatnonzero(found == _SEAM_ID).tolist()
        ids = found.astype(self.dtype)  # the seams wrap to an id that is never looked at
        bounds = zip([0, *(end + 1 for end in ends)], [*ends, len(ids)], strict=True)
        return [ids[start:end] for start, end in bounds] if texts else []

    def token_bytes(self) -> list[bytes]:
        ordered = sorted(self.ranks, key=self.ranks.__getitem__)
        return [*ordered, b"<|endoftext|>"]

    def _identity(self) -> Iterable[bytes]:
        yield GPT2_PATTERN.encode()
        yield RUN_PATTERN.encode()
        for token in sorted(self.ranks, key=self.ranks.__getitem__):
            yield base64.b64encode(token) + b" %d" % self.ranks[token]


class CharTokenizer(Tokenizer):
    """One id per UTF-8 byte. Documents are separated by <myPT_eot>."""

    tokenization = "char"

    def __init__(self) -> None:
        super().__init__(first_special=256, padded_vocab_size=320)
        self.separator_id = self.special(END_OF_TURN)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[Any]]:
        return [np.frombuffer(_valid_unicode(text).encode(), dtype=np.uint8).astype(np.uint16) for text in texts]

    def token_bytes(self) -> list[bytes]:
        return [bytes([value]) for value in range(256)]

    def _identity(self) -> Iterable[bytes]:
        return [b"utf-8 bytes 0..255"]


_KINDS: dict[str, Callable[[], Tokenizer]] = {"gpt2": Gpt2Tokenizer, "char": CharTokenizer}
TOKENIZATIONS = tuple(_KINDS)
"""Those that need no folder; the third is `hf`."""


def load_tokenizer(tokenization: str, folder: Path | str | None = None) -> Tokenizer:
    """The tokenizer of that name, made once per process; `hf` is read from `folder`, the others need none.

    Raises UsageError for an unknown name or a missing folder, EnvironmentFault when GPT-2's vocabulary is not to be had,
    NotFound and CheckFailed for a folder without a usable tokenizer.
    """
    if tokenization == "hf":
        if folder is None:
            raise UsageError("the tokenization hf needs the folder of its tokenizer", subject="tokenization",
                             hint="--tokenizer DIR, a folder with tokenizer.json")  # fmt: skip
        path = Path(folder).resolve()
        return _from_folder(str(path), tuple(_stamp(path / name) for name in ("tokenizer.json", "tokenizer_state.json")))
    return _named(tokenization)


@functools.cache
def _named(tokenization: str) -> Tokenizer:
    if tokenization not in _KINDS:
        raise UsageError(f"unknown tokenization {tokenization!r}", subject="tokenization",
                         hint=f"use one of: {', '.join(TOKENIZATIONS)}, hf")  # fmt: skip
    return _KINDS[tokenization]()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _from_folder(folder: str, stamps: tuple[object, ...]) -> Tokenizer:
    from trainer.tokenizer_hf import hf_tokenizer  # it stands on this file

    return hf_tokenizer(folder)


def require_same_tokenizer(expected: Mapping[str, Any], found: Mapping[str, Any], what_a: str, what_b: str) -> None:
    """Compare two tokenizer states; token ids of one tokenizer mean nothing to another (law 11).

    Raises CheckFailed naming both sides with their hashes, also when one side has no hash.
    """
    ours, theirs = expected.get("content_hash"), found.get("content_hash")
    if ours and ours == theirs:
        return
    raise CheckFailed(
        f"{what_a} uses the tokenizer {expected.get('tokenization')} ({_short(ours)}), "
        f"{what_b} uses {found.get('tokenization')} ({_short(theirs)})",
        subject=what_b,
        hint=f"prepare the data again with the tokenization of {what_a}: {expected.get('tokenization')}",
    )


def _short(content_hash: object) -> str:
    return f"sha256 {str(content_hash)[:16]}" if content_hash else "no hash"
