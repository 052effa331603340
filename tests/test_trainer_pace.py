"""What is told of a run's speed and end, also right after a resume: from a clock that is passed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kill_help import RECIPES, make_home, run_here

torch = pytest.importorskip("torch")

import trainer.scribe  # noqa: E402
from guard import failpoints  # noqa: E402
from trainer.batches import Feed  # noqa: E402
from trainer.hardware import hardware_facts  # noqa: E402
from trainer.loop import LoopPlan, Outcome, StopRequested, train  # noqa: E402
from trainer.objectives import find_objective  # noqa: E402
from trainer.pace import SMOOTHED_OVER_SECONDS, Pace  # noqa: E402
from trainer.selection import Selection  # noqa: E402
from trainer.surroundings import besides, changes, surroundings  # noqa: E402
from trainer.train_job import _exactness  # noqa: E402
from trainer.version_files import load_version  # noqa: E402


@pytest.fixture(scope="module")
def home(shared_scratch: Path) -> Path:
    return make_home(shared_scratch / "pace")


def test_the_pace_is_smoothed_over_time_and_not_over_steps() -> None:
    pace = Pace()
    for _ in range(5):
        pace.step(2.0, 100)
    assert pace.seconds_per_step == pytest.approx(2.0) and pace.tokens_per_second == pytest.approx(50.0)
    pace.step(4.0, 100)
    assert 2.0 < pace.seconds_per_step < 3.0 and 40.0 < pace.tokens_per_second < 50.0
    for _ in range(20):
        pace.step(SMOOTHED_OVER_SECONDS, 100)
    assert pace.seconds_per_step == pytest.approx(SMOOTHED_OVER_SECONDS, rel=0.01), "what was long ago is forgotten"


def test_what_an_earlier_part_measured_is_told_until_the_first_step_of_this_one() -> None:
    pace = Pace(seconds_per_step=9.0, tokens_per_second=7.0)
    assert (pace.seconds_per_step, pace.tokens_per_second) == (9.0, 7.0)
    pace.step(1.0, 50)
    assert (pace.seconds_per_step, pace.tokens_per_second) == (1.0, 50.0), "the speed since the resume alone"


class _Time:
    """A clock on which every step of training takes `per_step` seconds."""

    def __init__(self, at: float, per_step: float) -> None:
        self.now, self.per_step = at, per_step

    def __call__(self) -> float:
        return self.now


class _TimedFeed(Feed):
    time: _Time

    def step(self, step: int) -> Any:
        self.time.now += self.time.per_step
        return super().step(step)


def _train(home: Path, staging: Path, time: _Time, stop_at: int = 0) -> tuple[Outcome, list[dict[str, Any]]]:
    """Train on that clock; returns the run and every progress that was told."""
    job = RECIPES["pretrain"](home, staging)
    model, _tokenizer = load_version(home / "base" / "out")
    feed = _TimedFeed(Selection.load(staging), find_objective("pretrain"), seed=1, batch_sequences=4, micro_sequences=4,
                      use_mask=False)  # fmt: skip
    feed.time = time
    told: list[dict[str, Any]] = []

    def stop() -> bool:
        told.append(json.loads((staging / "progress.json").read_text()))
        return told[-1]["step"] == stop_at

    plan = LoopPlan(steps=9, training=job["recipe"]["training"], dtype="float32", staging=staging, identity="x")
    return train(model, feed, find_objective("pretrain"), plan, stop=stop, clock=time), told


def test_after_a_resume_the_end_is_told_from_the_speed_since_and_seconds_go_on(home: Path) -> None:
    staging = home / "resumed"
    with pytest.raises(StopRequested):
        _train(home, staging, _Time(100.0, per_step=2.0), stop_at=4)
    before = json.loads((staging / "progress.json").read_text())
    assert (before["step"], before["eta_seconds"]) == (4, pytest.approx(10.0))
    run, told = _train(home, staging, _Time(1_000_000.0, per_step=5.0))  # days later, on a machine that is busier
    assert told[0]["step"] == 5 and told[0]["resumes"] == 1
    assert told[0]["eta_seconds"] == pytest.approx(4 * 5.0), "neither the pause nor the older speed has a part in it"
    assert run.wall_seconds == pytest.approx(4 * 2.0 + 5 * 5.0)
    rows = [json.loads(line) for line in (staging / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row["seconds"] for row in rows] == pytest.approx([2.0, 4.0, 6.0, 8.0, 13.0, 18.0, 23.0, 28.0, 33.0])
    assert told[-1]["eta_seconds"] == 0.0 and told[-1]["tokens_per_second"] == pytest.approx(rows[-1]["tokens"] / 5.0, rel=0.2)


def test_while_a_resumed_job_still_loads_it_tells_where_it_will_go_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = RECIPES["sft"](home, home / "loading")
    failpoints.arm("snapshot.forgotten", at_visit=2)
    assert not run_here(job)
    failpoints.disarm()
    told: list[dict[str, Any]] = []
    publish = trainer.scribe.publish

    def seen(path: Path, data: bytes) -> None:
        told.append(json.loads(data))
        publish(path, data)

    monkeypatch.setattr(trainer.scribe, "publish", seen)
    assert run_here(job)
    first = told[0]
    assert first["phase"] == "loading" and first["step"] >= 6 and first["steps"] == 9
    assert first["loss"] > 0 and first["tokens_per_second"] > 0
    assert (first["eta_seconds"] > 0) == (first["step"] < 9), "on a slow disk the second snapshot may be that of the last step"
    assert [item["step"] for item in told] == sorted(item["step"] for item in told), "it never goes back"


def test_only_what_changes_arithmetic_makes_a_run_declared() -> None:
    now = surroundings({"MKL_CBWR": "AVX2", "HOME": "/root"})
    assert now["steering"] == {"MKL_CBWR": "AVX2"} and {"torch", "numpy", "heirloom"} <= now["libraries"].keys()
    assert "cores" in hardware_facts() and "cores" not in now["processor"], "free cores decide nothing: threads are planned"
    assert changes(now, json.loads(json.dumps(now))) == []
    other = {**now, "libraries": {**now["libraries"], "torch": "1.0"}, "steering": {}}
    assert changes(now, other) == [f"library torch: {now['libraries']['torch']} -> 1.0", "setting MKL_CBWR: AVX2 -> none"]


def test_a_version_says_what_else_its_bits_depend_on() -> None:
    found = surroundings({"MKL_CBWR": "AVX2"}, compiled=True)
    assert besides(found) == {"kernels": found["processor"]["kernels"], "steering": {"MKL_CBWR": "AVX2"},
                              "compiler": found["compiler"]}  # fmt: skip
    assert "compiler" not in besides(surroundings({}))


def test_labels_say_what_happened() -> None:
    assert _exactness(Outcome(), "cpu")[0] == "EXACT"
    assert _exactness(Outcome(resumes=1), "cpu") == (
        "RESUMED-EXACT", "resumed once from checked snapshots on the same processor and libraries")
    assert "3 times" in _exactness(Outcome(resumes=3), "cpu")[1]
    label, reason = _exactness(Outcome(resumes=2, changed_surroundings=True, changes=["library torch: 1 -> 2"]), "cpu")
    assert label == "DECLARED" and reason.endswith("library torch: 1 -> 2")
