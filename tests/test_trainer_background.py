"""Snapshots beside the training: the state of the step they speak of, one at a time, and never a failure unsaid."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trainer_help  # noqa: F401 (sets the environment before torch is loaded)

torch = pytest.importorskip("torch")

import trainer.background  # noqa: E402
from guard import failpoints  # noqa: E402
from trainer.background import SnapshotWriter  # noqa: E402
from trainer.loop import LoopPlan, Outcome  # noqa: E402
from trainer.run_logs import RunLogs  # noqa: E402
from trainer.scribe import Scribe  # noqa: E402
from trainer.snapshot import newest_snapshot, save_snapshot  # noqa: E402


class _Model:
    """What a stepper hands out: tensors that training goes on changing."""

    def __init__(self) -> None:
        self.weights = {"w": torch.zeros(3, 4)}
        self.moments = {"w.exp_avg": torch.zeros(3, 4)}

    def tensors(self) -> Any:
        return self.weights, self.moments

    def train(self, value: float) -> None:
        self.weights["w"].fill_(value)
        self.moments["w.exp_avg"].fill_(value)


def _nothing() -> None:
    """There are no logs to sync."""


def _newest(folder: Path) -> Any:
    found = newest_snapshot(folder)
    assert found is not None
    return found


def _held_up(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """(begun, go on): every write stands still in between."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Path:
        begun.set()
        assert go_on.wait(60)
        return save_snapshot(*arguments)

    monkeypatch.setattr(trainer.background, "save_snapshot", slow)
    return begun, go_on


def test_what_is_written_is_the_moment_of_the_call_whatever_is_trained_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = _held_up(monkeypatch)
    model = _Model()
    model.train(1.0)
    with SnapshotWriter(tmp_path) as writer:
        writer.begin(1, {"x": 1}, *model.tensors(), before=_nothing)
        assert begun.wait(60) and writer.busy and newest_snapshot(tmp_path) is None
        model.train(2.0)
        go_on.set()
        writer.wait()
        assert not writer.busy
        writer.begin(2, {"x": 2}, *model.tensors(), before=_nothing)
    found = _newest(tmp_path)
    assert found.step == 2 and torch.equal(found.model["w"], torch.full((3, 4), 2.0))
    (tmp_path / "step-00000002" / "state.json").unlink()
    older = _newest(tmp_path)
    assert older.step == 1 and torch.equal(older.model["w"], torch.ones(3, 4)) and older.state["x"] == 1
    assert torch.equal(older.optimizer["w.exp_avg"], torch.ones(3, 4))


def test_a_failed_write_is_told_at_the_next_look_as_what_it_was_and_the_next_one_works(tmp_path: Path) -> None:
    model = _Model()
    with SnapshotWriter(tmp_path) as writer:
        failpoints.arm("snapshot.moments", "enospc")
        writer.begin(1, {}, *model.tensors(), before=_nothing)
        with pytest.raises(OSError) as told:
            writer.wait()
        assert told.value.errno == errno.ENOSPC
        writer.check()
        writer.begin(2, {}, *model.tensors(), before=_nothing)
    assert _newest(tmp_path).step == 2


def test_a_run_that_ends_well_hears_of_its_last_write_and_one_that_fails_tells_its_own_trouble(tmp_path: Path) -> None:
    failpoints.arm("snapshot.weights", "eio")
    with pytest.raises(OSError, match=r"snapshot\.weights"), SnapshotWriter(tmp_path) as writer:
        writer.begin(1, {}, *_Model().tensors(), before=_nothing)
    failpoints.arm("snapshot.weights", "eio")
    with pytest.raises(ValueError, match="worse"), SnapshotWriter(tmp_path) as writer:
        writer.begin(1, {}, *_Model().tensors(), before=_nothing)
        raise ValueError("worse")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "nothing half is left"


def test_copies_use_the_same_memory_again(tmp_path: Path) -> None:
    model = _Model()
    with SnapshotWriter(tmp_path) as writer:
        places = set()
        for step in (1, 2, 3):
            writer.begin(step, {}, *model.tensors(), before=_nothing)
            writer.wait()
            places.add(writer._copies[0]["w"].data_ptr())
    assert len(places) == 1 and places != {model.weights["w"].data_ptr()}


class _Batch:
    tokens = loss_tokens = 10
    replay_tokens = 0
    sequences = torch.arange(2).numpy()


def _scribe(folder: Path, run: Outcome, clock: Callable[[], float] = lambda: 0.0, **plan: Any) -> Scribe:
    values = {"steps": 9, "training": {}, "dtype": "float32", "staging": folder, "identity": "x", "snapshot_seconds": 0.0, **plan}
    return Scribe(LoopPlan(**values), run, {}, clock)


def _step(scribe: Scribe, run: Outcome, model: Any, stopping: bool = False) -> None:
    run.step += 1
    model.train(float(run.step))
    scribe.step(_Batch(), 0.1, 1.0, 1.0, {})  # type: ignore[arg-type]
    scribe.save_if_due(model, stopping)


def test_one_that_falls_due_during_a_write_is_taken_right_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = _held_up(monkeypatch)
    run, model = Outcome(), _Model()
    with _scribe(tmp_path, run, snapshot_steps=2) as scribe:
        for _ in range(5):  # the one of step 4 is due while the one of step 2 is being written
            _step(scribe, run, model)
        assert begun.wait(60)
        go_on.set()
        scribe.wait()
        _step(scribe, run, model)
        scribe.wait()
        _step(scribe, run, model)
        scribe.wait()
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["step-00000002", "step-00000006"]
    assert torch.equal(_newest(tmp_path / "snapshots").model["w"], torch.full((3, 4), 6.0))


def test_a_stop_waits_for_the_write_under_way_and_saves_its_own_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = _held_up(monkeypatch)
    run, model = Outcome(), _Model()
    with _scribe(tmp_path, run, snapshot_steps=2) as scribe:
        for _ in range(2):
            _step(scribe, run, model)
        assert begun.wait(60)
        go_on.set()
        _step(scribe, run, model, stopping=True)
        scribe.wait()
    assert _newest(tmp_path / "snapshots").step == 3


def test_the_logs_are_synced_for_the_step_that_the_snapshot_speaks_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = _held_up(monkeypatch)
    synced: list[int] = []
    real = RunLogs.sync
    monkeypatch.setattr(RunLogs, "sync", lambda logs: (synced.append(logs.mark()["consumed_bytes"]), real(logs)))
    run, model = Outcome(), _Model()
    with _scribe(tmp_path, run, snapshot_steps=2) as scribe:
        for _ in range(3):
            _step(scribe, run, model)
        assert begun.wait(60)
        go_on.set()
    state = _newest(tmp_path / "snapshots").state
    assert state["run"]["step"] == 2 and state["logs"]["consumed_bytes"] == 2 * 2 * 8
    assert synced and synced[0] >= state["logs"]["consumed_bytes"]
    with RunLogs(tmp_path, state["logs"]) as logs:
        assert logs.mark() == state["logs"], "the third step is cut off again"


def test_a_step_skipped_during_a_write_is_none_of_the_snapshot_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be turned down after a kill, as one that says it skipped what it had not come to."""
    begun, go_on = _held_up(monkeypatch)
    run, model = Outcome(skipped=[0]), _Model()
    with _scribe(tmp_path, run, snapshot_steps=2) as scribe:
        for _ in range(2):
            _step(scribe, run, model)
        assert begun.wait(60)
        run.skipped.append(2)
        go_on.set()
    assert _newest(tmp_path / "snapshots").state["run"]["skipped"] == [0]


def test_a_figure_of_the_objective_never_stands_in_the_place_of_the_loop_s_own(tmp_path: Path) -> None:
    run = Outcome(step=1, loss=2.5)
    with _scribe(tmp_path, run) as scribe:
        scribe.step(_Batch(), 0.1, 1.0, 1.0, {"loss": 0.0, "won": 0.75})  # type: ignore[arg-type]
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (row["loss"], row["won"]) == (2.5, 0.75)


def test_a_failed_write_ends_the_run_at_the_next_steps_end(tmp_path: Path) -> None:
    run, model = Outcome(), _Model()
    failpoints.arm("snapshot.synced", "enospc")
    with pytest.raises(OSError) as told, _scribe(tmp_path, run, snapshot_steps=2) as scribe:
        for _ in range(2):
            _step(scribe, run, model)
        thread = scribe._writer._thread
        assert thread is not None
        thread.join()
        _step(scribe, run, model)
    assert told.value.errno == errno.ENOSPC and run.step == 3
