"""A prepared dataset as it lies on disk: token shards of a train and a val split, their examples, and what made them.

`open_dataset` proves that metadata and files agree in sizes, counts and tokenizer; `verify_dataset` reads every byte
and proves hashes, ids and masks too. The id is a hash of everything the tokens depend on, so that equal ids mean equal
tokens. Not here: making a dataset (`trainer/prepare.py`) and choosing from one (`trainer/selection.py`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.checks.rows import RULES_VERSION
from guard.durable import sha256_file
from guard.errors import CheckFailed, Damage, NotFound
from guard.fingerprint import CANONICAL_VERSION, FINGERPRINT_BYTES
from guard.segment import SEGMENTER_VERSION
from trainer.shards import TOKEN_DTYPES, Shard, ShardReader, mask_name, shard_name
from trainer.templates.base import Template
from trainer.templates.mypt import MYPT
from trainer.tokenizer import Tokenizer

__all__ = [
    "COLUMNS", "CUT_LENGTH", "CUT_START", "FILE", "FORMAT_VERSION", "KEY_DTYPE", "LENGTH", "LOSS_TOKENS", "METADATA",
    "ORDINAL", "SPLITS", "START", "STATE", "Dataset", "Split", "dataset_id", "maker_versions", "open_dataset",
    "verify_dataset",
]  # fmt: skip

FORMAT_VERSION = 1
METADATA, STATE = "dataset_metadata.json", "tokenizer_state.json"
SPLITS = ("train", "val")
COLUMNS = ("file", "ordinal", "start", "length", "loss_tokens", "cut_start", "cut_length")
FILE, ORDINAL, START, LENGTH, LOSS_TOKENS, CUT_START, CUT_LENGTH = range(len(COLUMNS))
# numpy drops trailing NULs of such strings only when it shows them: comparing and sorting 16 whole bytes is exact.
KEY_DTYPE = np.dtype(f"S{FINGERPRINT_BYTES}")


def maker_versions(template: Template = MYPT, rules: int = RULES_VERSION) -> dict[str, int]:
    """The versions of what turns bytes into examples and examples into tokens; `rules`: the newest rules of its files."""
    return {"template": template.version, "segmenter": SEGMENTER_VERSION, "rules": rules,
            "canonical": CANONICAL_VERSION, "format": FORMAT_VERSION}  # fmt: skip


def dataset_id(files: Iterable[tuple[str, str]], tokenizer: Tokenizer, stage: str, options: Mapping[str, Any],
               template: Template = MYPT) -> str:  # fmt: skip
    """32 hex digits over everything the tokens depend on; the order of the files does not matter.

    `files`: (SHA-256 in hex, container) pairs; behind the container stands what else decides about a file's examples: the
    digest of other names (`jsonl:5b2c...`), newer rules than the first (`jsonl:rules2`), a kind that is not called like the
    stage (`jsonl:mutation`). So datasets of files of old keep their ids. Plain text passes through no template: its id has
    mypt's.
    """
    identity = {
        "files": sorted(set(files)),
        "tokenizer": tokenizer.content_hash,
        "template": template.hash,
        "versions": maker_versions(template, rules=1),
        "stage": stage,
        "options": dict(options),
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


class Split:
    """The examples and tokens of one split."""

    def __init__(self, folder: Path, record: Mapping[str, Any], *, with_mask: bool, dtype: str = "uint16") -> None:
        self.folder = folder
        self.record = record
        self.reader = ShardReader(folder, [Shard.from_dict(item) for item in record["shards"]], with_mask=with_mask,
                                  dtype=dtype)  # fmt: skip
        self.count = int(record["examples"])
        self.total_tokens = self.reader.total_tokens
        self._check()

    @functools.cached_property
    def examples(self) -> NDArray[np.int64]:
        """int64 [n, 7], columns as in COLUMNS; mapped, not read."""
        if not self.count:
            return np.empty((0, len(COLUMNS)), dtype=np.int64)
        return np.load(self.folder / "examples.npy", mmap_mode="r", allow_pickle=False)

    @functools.cached_property
    def fingerprints(self) -> NDArray[np.bytes_]:
        """16-byte keys [n], in the order of `examples`; mapped, not read."""
        if not self.count:
            return np.empty(0, dtype=KEY_DTYPE)
        return np.memmap(self.folder / "examples.fp", dtype=KEY_DTYPE, mode="r")

    def tokens(self, start: int, length: int) -> NDArray[Any]:
        """Ids of a span of the split, of the dataset's dtype."""
        return self.reader.tokens(start, length)

    def mask(self, start: int, length: int) -> NDArray[np.uint8]:
        """Loss mask of a span of the split; ones for pretraining text."""
        return self.reader.mask(start, length)

    def files(self) -> dict[str, str]:
        """Name -> recorded SHA-256 of every file in the split's folder."""
        hashes = {"examples.npy": self.record["examples_sha256"], "examples.fp": self.record["fingerprints_sha256"]}
        for number, shard in enumerate(self.reader.shards):
            hashes[shard_name(number)] = shard.sha256
            if self.reader.with_mask:
                hashes[mask_name(number)] = shard.mask_sha256
        return hashes

    def _check(self) -> None:
        fingerprints = self.folder / "examples.fp"
        if not fingerprints.is_file() or fingerprints.stat().st_size != self.count * FINGERPRINT_BYTES:
            raise _damage(f"{fingerprints} does not hold {self.count} fingerprints")
        try:
            table = np.load(self.folder / "examples.npy", mmap_mode="r" if self.count else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _damage(f"{self.folder / 'examples.npy'} cannot be read: {error}") from error
        if table.shape != (self.count, len(COLUMNS)) or table.dtype != np.int64:
            raise _damage(f"{self.folder / 'examples.npy'} has shape {table.shape}, expected {self.count} examples")
        end = int(table[-1, START] + table[-1, LENGTH]) if self.count else 0
        if end != self.total_tokens or self.total_tokens != int(self.record["tokens"]):
            raise _damage(f"{self.folder}: examples end at token {end}, the shards hold {self.total_tokens}")


class Dataset:
    """A prepared dataset, opened for reading. Build with `open_dataset`."""

    def __init__(self, folder: Path, metadata: dict[str, Any], state: dict[str, Any]) -> None:
        self.folder = folder
        self.metadata = metadata
        self.tokenizer_state = state
        self.id = str(metadata["id"])
        self.stage = str(metadata["kind"])
        self.files: list[dict[str, Any]] = list(metadata["files"])
        self.mask_ratio = float(metadata["mask_ratio"])
        with_mask = self.stage == "sft"
        dtype = str(metadata["dtype"])
        self.train = Split(folder / "train", metadata["splits"]["train"], with_mask=with_mask, dtype=dtype)
        self.val = Split(folder / "val", metadata["splits"]["val"], with_mask=with_mask, dtype=dtype)

    @property
    def pin(self) -> str:
        """SHA-256 over what its metadata says of its bytes, whatever its files are called: what a plan freezes."""
        keys = ("id", "kind", "dtype", "tokenizer_hash", "template_hash", "splits")
        said = json.dumps({key: self.metadata.get(key) for key in keys}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(said.encode()).hexdigest()

    def split(self, name: str) -> Split:
        """`train` or `val`."""
        return {"train": self.train, "val": self.val}[name]


def _damage(message: str) -> Damage:
    return Damage(message, hint="prepare the dataset again; the originals are untouched")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"{path.parent} is not a prepared dataset: {path.name} is missing", subject=str(path.parent),
                       hint="heirloom prepare text|chat makes one") from error  # fmt: skip
    except orjson.JSONDecodeError as error:
        raise _damage(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _damage(f"{path} does not hold an object")
    return value


def open_dataset(folder: Path | str) -> Dataset:
    """Open a dataset and check what can be checked without reading the tokens.

    Raises NotFound when the folder is none, CheckFailed for a newer format, Damage when metadata and files disagree.
    """
    folder = Path(folder)
    metadata, state = _read_json(folder / METADATA), _read_json(folder / STATE)
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckFailed(f"{folder} has dataset format {metadata.get('format_version')}, this version reads"
                          f" {FORMAT_VERSION}", hint="prepare the dataset again")  # fmt: skip
    if metadata.get("dtype") not in TOKEN_DTYPES or metadata.get("byte_order") != "little":
        raise CheckFailed(f"{folder} holds {metadata.get('dtype')} tokens, expected little-endian {' or '.join(TOKEN_DTYPES)}")
    if not state.get("content_hash") or metadata.get("tokenizer_hash") != state["content_hash"]:
        raise _damage(f"{folder}: {STATE} and {METADATA} name different tokenizers")
    try:
        return Dataset(folder, metadata, state)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _damage(f"{folder / METADATA} is incomplete: {error!r}") from error


def verify_dataset(folder: Path | str) -> Dataset:
    """Open a dataset and read all of it: hashes, ids, masks, and examples that follow each other without a gap.

    Raises like `open_dataset`, and Damage for the first thing that is not as recorded.
    """
    dataset = open_dataset(folder)
    for split in (dataset.train, dataset.val):
        for name, expected in split.files().items():
            if sha256_file(split.folder / name) != expected:
                raise _damage(f"{split.folder / name} is not what was written (its SHA-256 differs)")
        split.reader.check_ids(int(dataset.tokenizer_state["vocab_size"]))
        ends = np.cumsum(split.examples[:, LENGTH])
        if not np.array_equal(split.examples[1:, START], ends[:-1]) or (split.count and split.examples[0, START] != 0):
            raise _damage(f"{split.folder / 'examples.npy'}: the examples do not follow each other")
    return dataset
