"""What an ancestry has learnt is read once in the life of a process, and is then exactly what reading it anew gives."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scale import fill_home
from guard import durable
from guard.bitmap import unpack_bitmap
from guard.store import learnt
from guard.store.keeper import Keeper
from guard.store.learnt import judge_novelty, known_fingerprints, known_steps, write_known
from guard.store.versions import learnt_by


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    keeper = fill_home(tmp_path / "home", 12, 36)
    for row in keeper.ledger.rows("SELECT sha256 FROM files"):
        folder = keeper.home.files / row[0]
        folder.mkdir(parents=True)
        (folder / "examples.fp").write_bytes(b"".join(_key(row[0], place) for place in range(20)))
    yield keeper
    keeper.ledger.close()


def _key(sha256: str, place: int) -> bytes:
    return hashlib.blake2b(f"{sha256} {place}".encode(), digest_size=16).digest()


def _expected(keeper: Keeper, number: int) -> list[bytes]:
    return [_key(row["sha256"], place) for row in learnt_by(keeper.ledger, number, "pretrain")
            for place in unpack_bitmap(row["bitmap"])]  # fmt: skip


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the originals whose sidecar was read."""
    names: list[str] = []
    real = learnt.read_sidecar
    monkeypatch.setattr(learnt, "read_sidecar", lambda folder: names.append(folder.name) or real(folder))
    return names


def test_a_second_look_reads_no_sidecar_and_a_child_only_its_own(keeper: Keeper, opened: list[str]) -> None:
    assert list(known_fingerprints(keeper, 11, "pretrain")) == _expected(keeper, 11) and len(opened) == 30
    opened.clear()
    assert list(known_fingerprints(keeper, 11, "pretrain")) == _expected(keeper, 11) and opened == []
    assert list(known_fingerprints(keeper, 12, "pretrain")) == _expected(keeper, 12) and len(opened) == 3


def test_an_earlier_version_and_a_sibling_never_know_what_a_later_one_learnt(keeper: Keeper) -> None:
    assert len(list(known_fingerprints(keeper, 12, "pretrain"))) == 660
    assert list(known_fingerprints(keeper, 5, "pretrain")) == _expected(keeper, 5)
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE versions SET parent_id = 4 WHERE id = 12")
    list(known_fingerprints(keeper, 11, "pretrain"))
    assert list(known_fingerprints(keeper, 12, "pretrain")) == _expected(keeper, 12)
    assert list(known_fingerprints(keeper, 12, "sft")) == []


def test_an_ancestry_too_long_to_hold_is_read_anew(keeper: Keeper, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learnt, "HELD_BYTES", 16 * 100)
    for _ in range(2):
        assert list(known_fingerprints(keeper, 12, "pretrain")) == _expected(keeper, 12)
    assert len(opened) == 66 and keeper.known == {}


def test_what_a_drop_adds_and_what_a_child_is_told_are_the_same_before_and_after(keeper: Keeper, tmp_path: Path) -> None:
    known = _expected(keeper, 12)
    fresh = [_key("new", place) for place in range(50)]
    first = judge_novelty(keeper, [*known[:40], *fresh], 12, "pretrain")
    assert first == judge_novelty(keeper, [*known[:40], *fresh], 12, "pretrain")
    assert first.known and first.new and first.known + first.new + first.held_out == 90
    for name in ("cold.fp", "warm.fp"):
        assert write_known(keeper, 12, "pretrain", tmp_path / name) == len(known)
        assert (tmp_path / name).read_bytes() == b"".join(known)
        keeper.known.clear()


def test_reading_it_is_done_in_slices_and_one_that_is_given_up_leaves_nothing(keeper: Keeper) -> None:
    steps = known_steps(keeper, 12, "pretrain", lambda _run: None)
    assert [next(steps) for _ in range(5)] == [320] * 5
    steps.close()
    assert keeper.known == {}
