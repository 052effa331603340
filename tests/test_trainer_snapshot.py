"""Snapshots: atomic, checked, newest intact first, and never a fresh start when all are damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trainer_help  # noqa: F401 (sets the environment before torch is loaded)

torch = pytest.importorskip("torch")

import trainer.weights  # noqa: E402
from guard import failpoints  # noqa: E402
from guard.durable import remove_tree  # noqa: E402
from guard.errors import Damage, is_environment  # noqa: E402
from guard.failpoints import POINTS, Crash  # noqa: E402
from trainer.snapshot import newest_snapshot, save_snapshot  # noqa: E402


def _save(folder: Path, step: int) -> Path:
    weights = {"w": torch.full((3, 4), float(step))}
    moments = {"w.exp_avg": torch.full((3, 4), step / 2), "w.step": torch.tensor(float(step))}
    return save_snapshot(folder, step, {"rows": step * 10}, weights, moments)


def _step(folder: Path) -> int:
    found = newest_snapshot(folder)
    assert found is not None
    return found.step


def test_what_was_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    assert newest_snapshot(tmp_path / "s") is None
    _save(tmp_path / "s", 7)
    found = newest_snapshot(tmp_path / "s")
    assert found is not None and (found.step, found.state["rows"], found.damaged) == (7, 70, ())
    assert torch.equal(found.model["w"], torch.full((3, 4), 7.0))
    assert torch.equal(found.optimizer["w.step"], torch.tensor(7.0))


def test_the_newest_is_the_highest_number_and_two_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 99_999_999, 100_000_000):  # the last is longer than the padding: as text it sorts first
        _save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100000000", "step-99999999"]
    assert _step(tmp_path) == 100_000_000


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("harm", ["missing", "torn", "flipped"])
def test_a_damaged_newest_gives_way_to_the_older_and_is_told(part: str, harm: str, tmp_path: Path) -> None:
    _save(tmp_path, 4)
    _harm(_save(tmp_path, 5) / part, harm)
    found = newest_snapshot(tmp_path)
    assert found is not None and found.step == 4
    assert len(found.damaged) == 1 and found.damaged[0].startswith("step-00000005")


def _harm(path: Path, harm: str) -> None:
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "torn":
        path.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


def test_when_all_are_damaged_it_is_damage_and_not_a_fresh_start(tmp_path: Path) -> None:
    for step in (4, 5):
        (_save(tmp_path, step) / "optimizer.safetensors").unlink()
    with pytest.raises(Damage, match=r"no snapshot .* is intact") as told:
        newest_snapshot(tmp_path)
    assert "step-00000004" in str(told.value) and "step-00000005" in str(told.value)


def test_a_snapshot_moved_under_another_name_is_not_believed(tmp_path: Path) -> None:
    _save(tmp_path, 4)
    (tmp_path / "step-00000004").rename(tmp_path / "step-00000009")
    with pytest.raises(Damage):
        newest_snapshot(tmp_path)


INSIDE = [name for name in POINTS if name.startswith("snapshot.")]
BEFORE_THE_RENAME = INSIDE[: INSIDE.index("snapshot.renamed")]


@pytest.mark.parametrize("where", INSIDE)
def test_a_death_anywhere_while_saving_leaves_one_that_is_whole_and_the_next_save_works(where: str, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    if where != "snapshot.marked":
        _save(folder, 4)
    if where == "snapshot.aside":
        _harm(_save(folder, 5) / "state.json", "torn")
    failpoints.arm(where)
    with pytest.raises(Crash):
        _save(folder, 5)
    failpoints.disarm()
    assert _step(folder) == (4 if where in BEFORE_THE_RENAME else 5)
    _save(folder, 6)
    assert _step(folder) == 6
    assert not [path for path in folder.iterdir() if path.name.startswith(".")], "the torn one was cleared away"


@pytest.mark.parametrize("where", BEFORE_THE_RENAME)
@pytest.mark.parametrize("fault", ["enospc", "eio"])
def test_a_disk_that_fails_anywhere_leaves_the_older_and_nothing_half(where: str, fault: str, tmp_path: Path) -> None:
    _save(tmp_path, 4)
    if where == "snapshot.aside":
        _harm(_save(tmp_path, 5) / "state.json", "torn")
    failpoints.arm(where, fault)
    with pytest.raises(OSError) as told:
        _save(tmp_path, 5)
    failpoints.disarm()
    assert is_environment(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_a_full_disk_is_told_as_such_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 4)
    from safetensors import SafetensorError

    full = SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})")
    monkeypatch.setattr(trainer.weights, "save_file", _raise(full))
    with pytest.raises(OSError) as told:
        _save(tmp_path, 5)
    assert told.value.errno == errno.ENOSPC and is_environment(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def _raise(error: BaseException) -> Callable[..., None]:
    def fail(*_arguments: object, **_named: object) -> None:
        raise error

    return fail


def test_snapshots_that_vanished_are_damage_and_not_a_fresh_start(tmp_path: Path) -> None:
    _save(tmp_path / "snapshots", 4)
    remove_tree(tmp_path / "snapshots")
    with pytest.raises(Damage, match="all that were taken are gone") as told:
        newest_snapshot(tmp_path / "snapshots")
    assert "queue retry" in told.value.hint
