"""A family with an index, a dataset, a trashed version and a vault, and ways to corrupt its files. Not a test itself."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from homes import add_version, clone, no_syncing, small_family

from guard import durable
from guard.store import views
from guard.store.keeper import Keeper
from guard.store.trash import delete
from guard.store.verify import Report

VERSION = "v003_reasoning"


@pytest.fixture(scope="module", name="template")
def _template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family with an index, a dataset, a trashed version and a vault that was copied along."""
    root = tmp_path_factory.mktemp("verify") / "home"
    keeper = small_family(root)
    add_version(keeper, "leaf", VERSION, tip=False)
    delete(keeper, "v005_leaf", force=True)
    _add_index(keeper)
    _add_dataset(keeper)
    views.refresh(keeper)
    keeper.ledger.close()
    return root


def _add_index(keeper: Keeper) -> None:
    folder = keeper.home.indexes / "v001"
    folder.mkdir()
    for name in ("embeddings.npy", "meta.jsonl", "config.json"):
        (folder / name).write_bytes(random.Random(name).randbytes(300))
    files = {path.name: durable.sha256_file(path) for path in folder.iterdir()}
    os.symlink("v001", keeper.home.indexes / "latest")
    with keeper.ledger.transaction():
        keeper.ledger.run("INSERT INTO indexes VALUES (1, 'active', '', ?)",
                          (orjson.dumps({"files": files, "documents": []}).decode(),))  # fmt: skip


def _add_dataset(keeper: Keeper) -> None:
    folder = keeper.home.shards / "ds1"
    splits = {}
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for name in ("shard_00000.bin", "shard_00000_mask.bin", "examples.npy", "examples.fp"):
            (folder / split / name).write_bytes(random.Random(split + name).randbytes(200))
        at = folder / split
        splits[split] = {"examples_sha256": durable.sha256_file(at / "examples.npy"),
                         "fingerprints_sha256": durable.sha256_file(at / "examples.fp"),
                         "shards": [{"tokens": 100, "sha256": durable.sha256_file(at / "shard_00000.bin"),
                                     "mask_sha256": durable.sha256_file(at / "shard_00000_mask.bin")}]}  # fmt: skip
    (folder / "dataset_metadata.json").write_bytes(durable.json_bytes({"splits": splits}))


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncing(monkeypatch)


@pytest.fixture(name="keeper")
def _keeper(template: Path, tmp_path: Path) -> Iterator[Keeper]:
    yield clone(template, tmp_path / "home")


def flip_a_bit(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def zero_the_end(data: bytes, chance: random.Random) -> bytes:
    """What a power cut leaves of a file whose size was written and whose data was not."""
    size = max(1, len(data) - chance.randrange(len(data)))
    kept = data[: len(data) - size]
    return kept + bytes(size) if kept + bytes(size) != data else kept


def append(data: bytes, _chance: random.Random) -> bytes:
    return data + b"\n"


def corrupt(path: Path, how: Callable[[bytes, random.Random], bytes]) -> None:
    """Change a file as a failing disk would: without touching mode or time."""
    facts = path.stat()
    os.chmod(path, 0o644)
    path.write_bytes(how(path.read_bytes(), random.Random(str(path.name))))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    os.chmod(path, facts.st_mode)


def named(report: Report) -> set[tuple[str, str, str]]:
    return {(item.what, item.name, item.file) for item in report.damage}


def each_corruption(path: Path, *ways: Callable[[bytes, random.Random], bytes]) -> Iterator[str]:
    """The file corrupted in one way after the other, each time from its sound bytes, and sound again at the end."""
    sound = path.read_bytes()
    for how in ways or (flip_a_bit, truncate, zero_the_end, append):
        corrupt(path, how)
        yield f"{path.name} after {how.__name__}"
        corrupt(path, lambda _data, _chance: sound)
