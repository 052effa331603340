"""Prepared datasets, as the ledger knows them: the hashes of the two files that hold all the other hashes.

`dataset_metadata.json` carries the SHA-256 of every shard; nobody carried that of `dataset_metadata.json` itself, so a
changed one could vouch for changed shards. It is noted once, when the dataset takes its place in `data/shards/`.
Shards are derived: what is damaged is made again from the originals. Not here: preparing (`trainer/prepare.py`).
"""

from __future__ import annotations

from pathlib import Path

import orjson

from guard.durable import sha256_file
from guard.store.keeper import Keeper

__all__ = ["HEADS", "record_dataset", "recorded_heads"]

HEADS = ("dataset_metadata.json", "tokenizer_state.json")


def recorded_heads(keeper: Keeper, dataset: str) -> dict[str, str]:
    """SHA-256 of the dataset's two head files by name; empty for one that was prepared by an earlier release."""
    noted = keeper.ledger.meta(f"dataset:{dataset}")
    return orjson.loads(noted) if noted else {}


def record_dataset(keeper: Keeper, folder: Path) -> None:
    """Note a dataset that has just taken its place; does nothing when it is noted as it is. Raises OSError."""
    heads = {name: sha256_file(folder / name) for name in HEADS if (folder / name).is_file()}
    if heads and heads != recorded_heads(keeper, folder.name):
        with keeper.ledger.transaction():
            keeper.ledger.set_meta(f"dataset:{folder.name}", orjson.dumps(heads, option=orjson.OPT_SORT_KEYS).decode())
            keeper.ledger.event("dataset.prepared", folder.name, heads=heads)
