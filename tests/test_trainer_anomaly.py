"""Anomalies: what is one, what is skipped for it, and that a run with skipped steps is exact wherever it was killed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_help

torch = pytest.importorskip("torch")

from guard import failpoints  # noqa: E402
from guard.bitmap import pack_bitmap, unpack_bitmap  # noqa: E402
from guard.errors import Damage, DataFault  # noqa: E402
from guard.failpoints import Crash  # noqa: E402
from trainer.anomaly import LEAST, find_anomaly, guilty_steps, rules_of, spike_limit  # noqa: E402
from trainer.batches import Feed  # noqa: E402
from trainer.loop import LoopPlan, Outcome, StopRequested, train  # noqa: E402
from trainer.model import new_model  # noqa: E402
from trainer.model_config import ModelConfig  # noqa: E402
from trainer.objectives import find_objective  # noqa: E402
from trainer.rewind import noted_anomalies  # noqa: E402
from trainer.selection import Selection  # noqa: E402
from trainer.skipped import what_is_left  # noqa: E402

STEPS = 24
BAD = 18
SHAPE = {**trainer_help.SHAPE, "layers": 1, "heads": 2, "kv_heads": 1, "width": 16, "hidden": 32}
POLICY = {"on_anomaly": "skip", "spike_factor": 10.0, "max_skipped_steps": 4}


# --- the decision --------------------------------------------------------------------------------------------------


def _spike(value: float, recent: list[float], factor: float = 10.0) -> bool:
    return find_anomaly("loss", value, 99, recent, factor) is not None


def test_a_loss_far_above_the_others_is_a_spike_and_one_among_them_is_none() -> None:
    dice = random.Random(1)
    recent = [3.0 + dice.gauss(0, 0.1) for _ in range(64)]
    assert not _spike(3.5, recent) and not _spike(5.9, recent)
    assert _spike(6.5, recent)
    assert not _spike(6.5, recent, factor=0), "factor 0: never"
    assert not _spike(6.5, recent[: LEAST - 1]), "too few to judge by"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_an_anomaly_from_the_first_step(value: float) -> None:
    for what in ("loss", "gradient"):
        found = find_anomaly(what, value, 0, [], 0.0)
        assert found is not None and found.kind == f"{what}_not_finite" and found.as_dict()["value"] == str(value)
    assert find_anomaly("gradient", 1e9, 5, [1.0] * 64, 10.0) is None, "clipping deals with a large gradient"


def test_a_loss_that_hardly_moves_and_data_of_two_sorts_trip_nothing() -> None:
    assert not _spike(0.9, [0.01] * 64), "the least spread"
    easy_and_hard = [0.01] * 60 + [4.0] * 4
    assert not _spike(5.9, easy_and_hard) and _spike(6.1, easy_and_hard), "half above the worst of its kind"
    falling = [10.8 - 0.1 * step for step in range(64)]
    assert not _spike(10.8, falling), "as bad as at the beginning is no accident yet"


def test_one_bad_batch_is_guilty_alone_and_two_in_a_row_accuse_the_update_before() -> None:
    assert guilty_steps(7, frozenset()) == (7,)
    assert guilty_steps(7, frozenset({5})) == (7,)
    assert guilty_steps(7, frozenset({6})) == (5, 7)
    assert guilty_steps(8, frozenset({5, 6, 7})) == (4, 8)
    assert guilty_steps(1, frozenset({0})) == (1,), "nothing was learnt before it"


def test_no_more_than_a_tenth_of_the_steps_is_ever_skipped() -> None:
    assert rules_of(POLICY, 1000).most_skipped == 4 and rules_of(POLICY, 24).most_skipped == 2
    assert rules_of(POLICY, 3).most_skipped == 1 and rules_of(POLICY, 1).most_skipped == 0
    old = rules_of({}, 1000)
    assert (old.on_anomaly, old.spike_factor, old.most_skipped) == ("halt", 0.0, 0), "as releases before did"


def test_the_limit_is_what_the_formula_says() -> None:
    recent = [1.0, 2.0, 3.0, 4.0, 100.0]
    assert spike_limit(recent, 10.0) == 150.0, "the worst, and half of it"
    assert spike_limit([2.0] * 20, 10.0) == pytest.approx(4.0), "median + 10 * a tenth of it"
    assert spike_limit([1.0, 2.0, 3.0] * 7, 10.0) == pytest.approx(2.0 + 14.826), "median + 10 * 1.4826 * MAD"


# --- the run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trainer_help.make_dataset(tmp_path_factory.mktemp("anomaly") / "text", amount=1600)


class Poisoned:
    """The pretraining objective over a feed in which some steps' losses are multiplied."""

    def __init__(self, feed: Feed, factors: dict[int, float]) -> None:
        self.feed, self.factors, self.at = feed, factors, 0
        self.selection = feed.selection
        self.fed: list[int] = []

    def step(self, step: int) -> Any:
        self.at = step
        return self.feed.step(step)

    def loss(self, model: Any, batch: Any, dtype: Any) -> Any:
        self.fed.append(self.at)
        return find_objective("pretrain").loss(model, batch, dtype) * self.factors.get(self.at, 1.0)


def _fresh() -> Any:
    return new_model(ModelConfig.from_recipe(SHAPE), 1)


def _run(staging: Path, text: Any, factors: dict[int, float], model: Any = None, **changes: Any) -> tuple[Any, Outcome]:
    """A run of STEPS steps in a staging folder, begun or taken up again; returns (model, outcome)."""
    if not (staging / "selection.json").exists():
        trainer_help.train_job(staging, staging, text)
    model = model or _fresh()
    feed = Feed(Selection.load(staging), find_objective("pretrain"), seed=1, batch_sequences=2, micro_sequences=2, use_mask=False)
    poisoned = Poisoned(feed, factors)
    stop = changes.pop("stop", lambda: False)
    policy = {**POLICY, **changes.pop("policy", {})}
    training = {**trainer_help.TRAINING, **policy}
    values = {"steps": STEPS, "training": training, "dtype": "float32", "staging": staging, "identity": "x", "snapshot_steps": 0,
              "start": lambda: dict(_fresh().named_parameters()), **changes}  # fmt: skip
    run = train(model, poisoned, poisoned, LoopPlan(**values), stop=stop, clock=lambda: 0.0)  # type: ignore[arg-type]
    return model, run


def _same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def _steps_of(staging: Path, skipped: bool) -> list[int]:
    rows = [json.loads(line) for line in (staging / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "each step stands there exactly once"
    return [row["step"] - 1 for row in rows if bool(row.get("skipped")) is skipped]


@pytest.fixture(scope="module")
def skipped_once(text: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Outcome, Path]:
    """A run whose step 30 is a spike, without any snapshot: it goes back to its beginning."""
    staging = tmp_path_factory.mktemp("once") / "job"
    return (*_run(staging, text, {BAD: 50.0}), staging)


def test_a_spike_is_skipped_told_and_everything_else_is_learnt(skipped_once: tuple[Any, Outcome, Path], text: Any) -> None:
    _model, run, staging = skipped_once
    assert (run.step, run.skipped, run.resumes) == (STEPS, [BAD], 0)
    (told,) = noted_anomalies(staging)
    assert (told["step"], told["kind"], told["skipped"]) == (BAD + 1, "loss_spike", [BAD + 1])
    assert told["value"] > 2 * told["limit"] > 0
    assert _steps_of(staging, skipped=True) == [BAD] and len(_steps_of(staging, skipped=False)) == STEPS - 1
    selection = Selection.load(staging)
    assert run.consumed == selection.consumed_hash(1, STEPS, 2, [BAD]) != selection.consumed_hash(1, STEPS, 2)


def test_the_weights_are_those_of_a_run_that_never_saw_the_step(
    skipped_once: tuple[Any, Outcome, Path], text: Any, tmp_path: Path
) -> None:
    staging = tmp_path / "job"
    trainer_help.train_job(staging, staging, text)
    (staging / "anomalies.json").write_text(json.dumps({"schema": 1, "anomalies": [{"skipped": [BAD + 1]}]}))
    clean, run = _run(staging, text, {})
    assert run.skipped == [BAD] and _same(clean, skipped_once[0])
    whole, _run_of_all = _run(tmp_path / "whole", text, {})
    assert not _same(clean, whole)


@pytest.mark.parametrize("every", [1, 7])
def test_whatever_snapshots_there_were_the_weights_are_the_same(
    every: int, skipped_once: tuple[Any, Outcome, Path], text: Any, tmp_path: Path
) -> None:
    model, run = _run(tmp_path / "job", text, {BAD: 50.0}, snapshot_steps=every)
    assert _same(model, skipped_once[0]) and run.consumed == skipped_once[1].consumed and run.resumes == 0
    assert run.recent == skipped_once[1].recent


@pytest.mark.parametrize("where", ["anomaly.noted", "anomaly.settled"])
@pytest.mark.parametrize("every", [0, 5])
def test_killed_while_it_goes_back_the_weights_are_the_same(
    where: str, every: int, skipped_once: tuple[Any, Outcome, Path], text: Any, tmp_path: Path
) -> None:
    failpoints.arm(where, "crash", at_visit=2 if where == "anomaly.settled" else 1)
    with pytest.raises(Crash):
        _run(tmp_path / "job", text, {BAD: 50.0}, snapshot_steps=every)
    assert failpoints.hits(where) >= 1
    failpoints.disarm()
    model, run = _run(tmp_path / "job", text, {BAD: 50.0}, snapshot_steps=every)
    assert _same(model, skipped_once[0]) and run.skipped == [BAD] and run.consumed == skipped_once[1].consumed


@pytest.mark.parametrize("after", [12, BAD, BAD + 1, 22])
def test_stopped_before_or_after_the_spike_the_weights_are_the_same(
    after: int, skipped_once: tuple[Any, Outcome, Path], text: Any, tmp_path: Path
) -> None:
    left = iter(range(1, 1000))
    with pytest.raises(StopRequested):
        _run(tmp_path / "job", text, {BAD: 50.0}, stop=lambda: next(left) >= after)
    model, run = _run(tmp_path / "job", text, {BAD: 50.0})
    assert _same(model, skipped_once[0]) and run.skipped == [BAD] and run.resumes == 1
    assert _steps_of(tmp_path / "job", skipped=True) == [BAD]


def test_two_bad_steps_in_a_row_take_the_one_before_along_and_its_snapshots_go(text: Any, tmp_path: Path) -> None:
    factors = {BAD: 50.0, BAD + 1: math.nan}
    plain, run = _run(tmp_path / "plain", text, factors, steps=30)
    assert run.skipped == [BAD - 1, BAD, BAD + 1]
    assert [item["skipped"] for item in noted_anomalies(tmp_path / "plain")] == [[BAD + 1], [BAD, BAD + 2]]
    often, again = _run(tmp_path / "often", text, factors, steps=30, snapshot_steps=1)
    assert _same(plain, often) and again.skipped == run.skipped and again.consumed == run.consumed


def test_a_gradient_that_is_not_finite_is_skipped_before_the_weights_are_touched(text: Any, tmp_path: Path) -> None:
    class Steep(Poisoned):
        def loss(self, model: Any, batch: Any, dtype: Any) -> Any:
            steep = (model.head_weight * 0.0).sqrt().sum() if self.at == 3 else 0.0  # its derivative at 0 is not finite
            return super().loss(model, batch, dtype) + steep

    staging, model = tmp_path / "job", _fresh()
    trainer_help.train_job(staging, staging, text)
    feed = Feed(Selection.load(staging), find_objective("pretrain"), seed=1, batch_sequences=2, micro_sequences=2, use_mask=False)
    steep = Steep(feed, {})
    plan = LoopPlan(steps=20, training={**trainer_help.TRAINING, **POLICY}, dtype="float32", staging=staging, identity="x",
                    snapshot_steps=2, start=lambda: dict(_fresh().named_parameters()))  # fmt: skip
    run = train(model, steep, steep, plan, stop=lambda: False, clock=lambda: 0.0)  # type: ignore[arg-type]
    assert run.skipped == [3] and noted_anomalies(staging)[0]["kind"] == "gradient_not_finite"
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def test_above_the_limit_it_halts_and_says_what_it_had_skipped(text: Any, tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"no more than 1 steps.*these were: 6") as told:
        _run(tmp_path / "job", text, {5: math.nan, 9: math.nan}, policy={"max_skipped_steps": 1})
    assert "learning_rate" in told.value.hint


def test_by_the_policy_halt_nothing_is_skipped(text: Any, tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="step 19 is a spike"):
        _run(tmp_path / "job", text, {BAD: 50.0}, policy={"on_anomaly": "halt"})
    assert noted_anomalies(tmp_path / "job") == []
    _model, run = _run(tmp_path / "off", text, {BAD: 50.0}, policy={"on_anomaly": "halt", "spike_factor": 0.0})
    assert run.skipped == []


def test_steps_skipped_in_other_surroundings_make_the_run_declared(text: Any, tmp_path: Path) -> None:
    """No snapshot is left of that part, but what it skipped is: made again here, the run might skip something else."""
    failpoints.arm("anomaly.noted", "crash")
    with pytest.raises(Crash):
        _run(tmp_path / "job", text, {BAD: 50.0}, surroundings={"torch": "1"})
    failpoints.disarm()
    _model, run = _run(tmp_path / "job", text, {BAD: 50.0}, surroundings={"torch": "2"})
    assert run.skipped == [BAD] and run.changed_surroundings and run.changes == ["torch: 1 -> 2"]
    _model, same = _run(tmp_path / "same", text, {BAD: 50.0}, surroundings={"torch": "2"})
    assert same.skipped == [BAD] and not same.changed_surroundings


def test_a_note_that_cannot_be_read_is_damage(text: Any, tmp_path: Path) -> None:
    trainer_help.train_job(tmp_path, tmp_path, text)
    (tmp_path / "anomalies.json").write_text("{")
    with pytest.raises(Damage, match=r"anomalies\.json"):
        _run(tmp_path, text, {})


def test_runs_over_ordinary_data_trip_nothing(text: Any, tmp_path: Path) -> None:
    """Also at a learning rate fifty times too high: that is the gate's to judge."""
    for rate in (3e-3, 0.15):
        _model, run = _run(tmp_path / str(rate), text, {}, policy={"learning_rate": rate, "max_skipped_steps": 0})
        assert run.skipped == [] and len(run.recent) == STEPS


# --- what is learnt --------------------------------------------------------------------------------------------------


def _plan(staging: Path, text: Any, steps: int, examples: Any) -> dict[str, Any]:
    selection = Selection.load(staging)
    learnt = selection.learnt_examples(1, steps, 4)
    count = int(text.files[0]["examples"])
    ordinals = selection.examples[learnt, 1].tolist()
    return {"seed": 1, "steps": steps, "recipe": {"training": {"batch_sequences": 4}}, "dataset": {"path": str(text.folder)},
            "prepared": {"learnt": [{"sha256": text.files[0]["sha256"], "bitmap": pack_bitmap(ordinals, count),
                                     "count": len(ordinals), "tokens": int(selection.examples[learnt, 2].sum())}],
                         "tokens": int(selection.examples[learnt, 2].sum()), "loss_tokens": 10_000}}  # fmt: skip


def test_what_only_a_skipped_step_held_is_not_learnt(text: Any, tmp_path: Path) -> None:
    trainer_help.train_job(tmp_path, tmp_path, text)
    selection = Selection.load(tmp_path)
    steps = selection.steps_per_epoch(4)
    plan = _plan(tmp_path, text, steps, selection.examples)
    left = what_is_left(selection, plan, [2])
    touched = set(selection.touches[np.isin(selection.touches[:, 0], selection.batch(1, 2, 4)), 1].tolist())
    gone = {int(selection.examples[example, 1]) for example in touched}
    before = set(unpack_bitmap(plan["prepared"]["learnt"][0]["bitmap"]))
    assert gone and set(unpack_bitmap(left.learnt[0]["bitmap"])) == before - gone
    assert left.learnt[0]["count"] == len(before - gone) and left.tokens == left.learnt[0]["tokens"]
    assert 0 < 10_000 - left.loss_tokens <= plan["prepared"]["tokens"] - left.tokens
    assert left.consumed_sha256 == selection.consumed_hash(1, steps, 4, [2])


def test_what_another_epoch_fed_is_learnt_all_the_same(text: Any, tmp_path: Path) -> None:
    trainer_help.train_job(tmp_path, tmp_path, text)
    selection = Selection.load(tmp_path)
    steps = 2 * selection.steps_per_epoch(4)
    plan = _plan(tmp_path, text, steps, selection.examples)
    left = what_is_left(selection, plan, [2])
    assert left.learnt == plan["prepared"]["learnt"] and left.consumed_sha256 != selection.consumed_hash(1, steps, 4)
