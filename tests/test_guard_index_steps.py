"""Keeping and asking the index comes in steps of bounded work, however large or lopsided a file is: rows are counted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from homes import add_original, add_version, clone, small_family
from hypothesis import given, settings
from hypothesis import strategies as st

from guard import columns, durable, key_runs
from guard.columns import BLOCK_ROWS, Columns
from guard.heldout import held_out_mask
from guard.key_columns import KeyColumns
from guard.key_runs import Rows, Runs, in_order, key_rows, merged
from guard.steps import Steps, drain
from guard.store import known, learnt
from guard.store.keeper import Keeper
from guard.store.known import keep_index_steps, open_index, uncovered
from guard.store.learnt import known_mask_steps, novelty_steps, write_known_steps

RUN, MERGE, SYNC = 20_000, 10_000, 300_000


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keeper = small_family(tmp_path_factory.mktemp("family") / "home")
    keeper.ledger.close()
    return keeper.home.root


@pytest.fixture
def keeper(family: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    for module in (key_runs, known, learnt):
        monkeypatch.setattr(module, "RUN_ROWS", RUN)
    monkeypatch.setattr(key_runs, "MERGE_ROWS", MERGE)
    monkeypatch.setattr(columns, "PROOF_BLOCKS", 2)
    monkeypatch.setattr(columns, "SYNC_BYTES", SYNC)
    monkeypatch.setattr(learnt, "_AT_ONCE", 5_000)
    monkeypatch.setattr("guard.key_columns._HITS_AT_ONCE", 5_000)
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    return clone(family, scratch / "home")


def large(keeper: Keeper, name: str, data: bytes) -> str:
    """A stored file whose sidecar is this."""
    sha256 = add_original(keeper, name, rows=1)
    folder = keeper.home.files / sha256
    folder.chmod(0o755)
    (folder / "examples.fp").chmod(0o644)
    (folder / "examples.fp").write_bytes(data)
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE files SET examples = ?, record = json_remove(record, '$.sidecars') WHERE sha256 = ?",
                          (len(data) // 16, sha256))  # fmt: skip
    return sha256


def random_keys(count: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(16 * count)


class Meter:
    """Rows that were sorted, compared, found or written since it was last asked, and the most of any step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = self.most = self.steps = 0
        self._count(monkeypatch, key_runs, "in_order", lambda rows: len(rows["high"]))
        self._count(monkeypatch, columns, "_crc", lambda *_rest: BLOCK_ROWS)
        self._count(monkeypatch, learnt, "_mark", lambda _mask, _ancestry, hits: len(hits.question))
        self._count(monkeypatch, learnt, "distinct_keys", lambda high, _low: len(high))
        self._count(monkeypatch, learnt, "held_out_mask", lambda keys, *_rest: len(keys) // 16)

    def _count(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, size: Callable[..., int]) -> None:
        really = getattr(module, name)

        def counting(*arguments: Any) -> Any:
            self.rows += size(*arguments)
            return really(*arguments)

        monkeypatch.setattr(module, name, counting)

    def drain(self, steps: Steps[Any]) -> Any:
        self.rows = self.most = self.steps = 0
        while True:
            try:
                next(steps)
            except StopIteration as done:
                self.most = max(self.most, self.rows)
                return done.value
            self.steps, self.most, self.rows = self.steps + 1, max(self.most, self.rows), 0


@pytest.mark.parametrize("shape", ["random", "one key", "half one key", "ascending"])
def test_a_large_file_is_taken_in_by_steps_of_bounded_work(shape: str, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    same, count = b"\x77" * 16, 200_000
    data = {"random": random_keys(count, 1), "one key": same * count,
            "half one key": random_keys(count // 2, 2) + same * (count // 2),
            "ascending": b"".join(number.to_bytes(16, "big") for number in range(count))}[shape]  # fmt: skip
    sha256 = large(keeper, "large.jsonl", data)
    syncs = []
    monkeypatch.setattr(columns, "sync_so_far", lambda handle: syncs.append(handle.tell()))
    meter = Meter(monkeypatch)
    keys = meter.drain(keep_index_steps(keeper))
    assert keys == count + 30 and uncovered(keeper, open_index(keeper)) == []
    assert meter.most <= 3 * MERGE + RUN and meter.steps > count // RUN, (meter.most, meter.steps)
    # Two merge portions at most are written between two syncs of what will have four megabytes.
    assert len(syncs) >= count * 20 // (SYNC + 2 * MERGE * 20) - 1
    part = next(iter(open_index(keeper).parts.values()))
    assert bool((part.high[1:] >= part.high[:-1]).all())
    number = part.columns.file_names().index(sha256)
    mine = part.columns.columns["ordinal"][part.columns.columns["file"] == number]
    assert np.array_equal(np.sort(mine), np.arange(count)), "every example stands in it once"


def test_joining_proves_and_merges_by_steps_of_bounded_work(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "FLUSH_KEYS", 1)
    monkeypatch.setattr(known, "SMALLEST_TIER", 1 << 20)
    names = [large(keeper, f"{number}.jsonl", random_keys(60_000, number)) for number in range(5)]
    meter = Meter(monkeypatch)
    meter.drain(keep_index_steps(keeper))
    [part] = open_index(keeper).parts.values()
    assert part.columns.rows == 5 * 60_000 + 30 and set(names) <= set(part.columns.file_names())
    assert meter.most <= 3 * MERGE + RUN + 2 * 8 * BLOCK_ROWS, meter.most
    assert bool((part.high[1:] >= part.high[:-1]).all())


def test_asking_about_a_large_file_comes_in_steps_of_bounded_work(keeper: Keeper, monkeypatch: pytest.MonkeyPatch,
                                                                 tmp_path: Path) -> None:  # fmt: skip
    data = random_keys(50_000, 1) + b"\x55" * 16 * 30_000
    sha256 = large(keeper, "large.jsonl", data)
    add_version(keeper, "large", "v004_full_stack", learnt={sha256: range(len(data) // 16)})
    for covered in (False, True):
        if covered:
            drain(keep_index_steps(keeper))
        meter = Meter(monkeypatch)
        mask = meter.drain(known_mask_steps(keeper, data + random_keys(9, 8), 5, "pretrain"))
        assert mask[:-9].all() and not mask[-9:].any()
        assert meter.most <= RUN + 3 * BLOCK_ROWS and meter.steps > 10, meter.most
        novelty = meter.drain(novelty_steps(keeper, data, 5, "pretrain"))
        held = int(held_out_mask(data[: 50_000 * 16] + b"\x55" * 16, keeper.salt, 0.05).sum())
        assert (novelty.new, novelty.known, novelty.held_out, novelty.repeated) == (0, 50_001 - held, held, 29_999)
        assert meter.most <= RUN + 3 * MERGE + 3 * BLOCK_ROWS, meter.most
        count = meter.drain(write_known_steps(keeper, [keeper.home.files / sha256], 5, "pretrain", tmp_path / "known.fp"))
        assert count == 80_000 and (tmp_path / "known.fp").read_bytes() == data and meter.most <= RUN + 3 * BLOCK_ROWS


def test_a_row_that_fills_two_files_is_looked_up_once_and_not_once_for_each_pair(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"\x11" * 16 * 20_000
    sha256 = large(keeper, "same.jsonl", data)
    add_version(keeper, "same", "v004_full_stack", learnt={sha256: range(20_000)})
    drain(keep_index_steps(keeper))
    met, really = [], KeyColumns.find

    def find(self: KeyColumns, *asked: Any) -> Iterator[Any]:
        for hits in really(self, *asked):
            met.append(len(hits.question))
            yield hits

    monkeypatch.setattr(KeyColumns, "find", find)
    assert drain(known_mask_steps(keeper, data, 5, "pretrain")).all()
    assert max(met) <= 5_000 and sum(met) == 20_000 * (20_000 // 5_000), "once for each portion of the questions"


def test_what_was_proven_is_not_read_again_until_it_was_written_to(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    large(keeper, "a.jsonl", random_keys(40_000, 1))
    drain(keep_index_steps(keeper))
    proven: list[str] = []
    really = Columns.prove

    def prove(self: Columns, blocks: Any) -> None:
        proven.extend([self.folder.name] * len(blocks))
        really(self, blocks)

    monkeypatch.setattr(Columns, "prove", prove)
    drain(keep_index_steps(keeper))
    blocks = -(-40_030 // BLOCK_ROWS)
    assert proven == ["00000001"] * blocks, "what was just written is read back once"
    large(keeper, "b.jsonl", random_keys(100, 2))
    proven.clear()
    drain(keep_index_steps(keeper))
    drain(keep_index_steps(keeper))
    assert proven == ["00000002"], "only the new folder is"
    path = keeper.home.data / "known" / "00000001" / "columns.bin"
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    proven.clear()
    drain(keep_index_steps(keeper))
    assert "00000001" in proven and keeper.ledger.value("SELECT count(*) FROM events WHERE verb = 'known.damaged'") == 1
    assert uncovered(keeper, open_index(keeper)) == []


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1), max_size=60), max_size=6),
       st.integers(1, 40), st.integers(1, 7))  # fmt: skip
@settings(max_examples=75, deadline=None)
def test_merged_runs_are_all_rows_in_order_in_bounded_portions(parts: list[list[int]], at_once: int, window: int) -> None:
    runs = Runs()
    for number, keys in enumerate(parts):
        if keys:
            runs.add(key_rows(b"".join(key.to_bytes(8, "big") + bytes(8) for key in keys), number))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_runs, "MERGE_ROWS", at_once)
        patch.setattr(key_runs, "_LEAST_WINDOW", window)
        portions: list[Rows] = list(merged(runs.sorted()))
    assert all(0 < len(rows["high"]) <= max(at_once, window * len(parts)) for rows in portions)
    found = [item for rows in portions for item in zip(rows["high"].tolist(), rows["file"].tolist(), rows["ordinal"].tolist(),
                                                       strict=True)]  # fmt: skip
    assert [key for key, _file, _ordinal in found] == sorted(key for keys in parts for key in keys)
    assert sorted(found) == sorted((key, number, place) for number, keys in enumerate(parts) for place, key in enumerate(keys))


def test_runs_on_disk_are_the_runs_in_memory_and_leave_nothing(tmp_path: Path) -> None:
    stretches = [key_rows(random_keys(count, count), count) for count in (3, 1, 17)]
    found = []
    for folder in (None, tmp_path):
        runs = Runs(folder)
        for rows in stretches:
            runs.add(rows)
        found.append([{name: column.tolist() for name, column in item.columns.items()} for item in runs.sorted()])
        runs.close()
    assert found[0] == found[1] == [{name: column.tolist() for name, column in in_order(rows).items()} for rows in stretches]
    assert list(tmp_path.iterdir()) == []
