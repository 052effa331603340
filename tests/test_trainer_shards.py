"""Token shards: nothing lost or moved over any number of files, ids that do not fit refused, damage told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard import durable
from guard.durable import sha256_file
from guard.errors import CheckFailed, Damage, UsageError
from trainer.shards import Shard, ShardReader, ShardWriter, mask_name, shard_name


def write(folder: Path, rows: list[list[int]], size: int, *, mask: bool = True, vocab: int = 300) -> list[Shard]:
    with ShardWriter(folder, vocab_size=vocab, shard_size_tokens=size, with_mask=mask) as writer:
        for row in rows:
            ids = np.array(row, dtype=np.int64)
            writer.add(ids, (ids % 2).astype(np.uint8) if mask else None)
    return writer.shards


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=12), max_size=12), size=st.integers(1, 20))
def test_every_span_reads_back_as_written(tmp_path_factory: pytest.TempPathFactory, rows: Any, size: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    reader = ShardReader(folder, write(folder, rows, size), with_mask=True)
    everything = [value for row in rows for value in row]
    assert reader.total_tokens == len(everything)
    for start in range(0, len(everything), 3):
        for length in (0, 1, 5, len(everything) - start):
            length = min(length, len(everything) - start)
            expected = everything[start : start + length]
            assert reader.tokens(start, length).tolist() == expected
            assert reader.mask(start, length).tolist() == [value % 2 for value in expected]


def test_shards_are_cut_between_examples_unless_one_is_longer_than_a_shard(tmp_path: Path) -> None:
    shards = write(tmp_path, [[1] * 4, [2] * 4, [3] * 3, [4] * 25, [5]], 10)
    assert [shard.tokens for shard in shards] == [8, 3, 10, 10, 6]


def test_files_are_little_endian_uint16_with_a_byte_of_mask_and_their_hashes(tmp_path: Path) -> None:
    shard = write(tmp_path, [[1, 256, 299]], 10)[0]
    assert (tmp_path / shard_name(0)).read_bytes() == b"\x01\x00\x00\x01\x2b\x01"
    assert (tmp_path / mask_name(0)).read_bytes() == b"\x01\x00\x01"
    assert shard.sha256 == sha256_file(tmp_path / "shard_00000.bin")
    assert shard.mask_sha256 == sha256_file(tmp_path / "shard_00000_mask.bin")
    assert Shard.from_dict(shard.as_dict()) == shard


def test_without_a_mask_every_token_counts(tmp_path: Path) -> None:
    reader = ShardReader(tmp_path, write(tmp_path, [[1, 2, 3]], 10, mask=False), with_mask=False)
    assert reader.mask(1, 2).tolist() == [1, 1]
    assert not (tmp_path / mask_name(0)).exists()


@pytest.mark.parametrize("wrong", [300, 65536 + 5, -1])
def test_an_id_outside_the_vocabulary_is_refused_and_leaves_no_shard(tmp_path: Path, wrong: int) -> None:
    # 65541 would otherwise wrap to a harmless-looking 5.
    with pytest.raises(CheckFailed, match="outside the vocabulary"):
        write(tmp_path, [[1, 2], [3, wrong]], 10)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="4294967297"):
        write(tmp_path, [], 10, vocab=(1 << 32) + 1)


def test_a_failed_sync_leaves_neither_shard_nor_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(durable, "_fsync", fail)
    with pytest.raises(OSError, match="input/output"):
        write(tmp_path, [[1, 2, 3]], 10)
    assert list(tmp_path.iterdir()) == []


def test_spans_outside_and_missing_or_short_files_are_damage(tmp_path: Path) -> None:
    shards = write(tmp_path, [[1, 2, 3], [4, 5, 6]], 3)
    reader = ShardReader(tmp_path, shards, with_mask=True)
    for start, length in ((-1, 2), (5, 2), (0, -1)):
        with pytest.raises(Damage, match="do not lie in"):
            reader.tokens(start, length)
    with (tmp_path / shard_name(1)).open("ab") as handle:
        handle.write(b"x")
    with pytest.raises(Damage, match="7 bytes, expected 6"):
        ShardReader(tmp_path, shards, with_mask=True)
    (tmp_path / shard_name(1)).unlink()
    with pytest.raises(Damage, match="is missing"):
        ShardReader(tmp_path, shards, with_mask=True)


@pytest.mark.parametrize(("name", "data", "told"), [(shard_name(0), b"\xff\xff" * 3, "outside the vocabulary"),
                                                    (mask_name(0), b"\x02\x00\x00", "else than 0 and 1")])  # fmt: skip
def test_ids_and_masks_that_cannot_be_are_found(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    reader = ShardReader(tmp_path, write(tmp_path, [[1, 2, 3]], 10), with_mask=True)
    reader.check_ids(300)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Damage, match=told):
        ShardReader(tmp_path, reader.shards, with_mask=True).check_ids(300)
