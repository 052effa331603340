"""Lanes: dealt by a pure rule, added along one tree, so that several processes end in the very bits of one."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from kill_help import RECIPES, make_home, outcome, run_here
from trainer_help import shared_server, steps_logged, wait_until

torch = pytest.importorskip("torch")

from guard.errors import Damage, EnvironmentFault, UsageError  # noqa: E402
from guard.settings_read import load_settings  # noqa: E402
from trainer.batches import Feed  # noqa: E402
from trainer.dealing import deal, own_lanes  # noqa: E402
from trainer.distributed import Group  # noqa: E402
from trainer.lanes import LaneSum  # noqa: E402
from trainer.objectives import find_objective  # noqa: E402
from trainer.selection import Selection  # noqa: E402


@pytest.fixture(scope="module")
def home(shared_scratch: Path) -> Path:
    return make_home(shared_scratch / "lanes")


def test_every_sequence_is_dealt_once_and_the_lanes_have_as_much_to_do() -> None:
    dice = random.Random(1)
    for lanes in range(1, 9):
        for count in (1, 2, 5, 8, 33):
            lengths = [dice.randrange(2, 500) for _ in range(count)]
            dealt = deal(lengths, lanes)
            assert sorted(position for lane in dealt for position in lane) == list(range(count))
            assert [bool(lane) for lane in dealt] == [lane < count for lane in range(lanes)], "the last ones are left empty"
            assert all(lane == sorted(lane) for lane in dealt) and dealt == deal(lengths, lanes)
            sums = [sum(lengths[position] for position in lane) for lane in dealt]
            assert max(sums) - min(sums) <= max(lengths)
    assert deal([9, 1, 5], 1) == [[0, 1, 2]], "one lane is the list as it is"


def test_processes_have_neighbouring_lanes_and_what_does_not_fit_is_refused_in_time(tmp_path: Path) -> None:
    assert [list(own_lanes(6, 3, rank)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert list(own_lanes(7, 1, 0)) == list(range(7))
    for lanes, processes in ((6, 2), (3, 2), (1, 2)):
        with pytest.raises(UsageError, match="cannot be shared"):
            own_lanes(lanes, processes, 0)
    with pytest.raises(UsageError, match="cannot be shared") as told:
        load_settings(tmp_path, {"HEIRLOOM_TRAINING__LANES": "6", "HEIRLOOM_TRAINING__PROCESSES": "2"}, {})
    assert "environment" in str(told.value) and "1, 2, 4, 8" in told.value.hint
    assert load_settings(tmp_path, {"HEIRLOOM_TRAINING__PROCESSES": "2"}, {}).training.processes == 2


class _Threads:
    """A team whose processes are threads of a test."""

    def __init__(self, rank: int, rows: list[Any], meeting: threading.Barrier) -> None:
        self.rank, self.size, self._rows, self._meeting = rank, len(rows), rows, meeting

    def gather(self, values: Any) -> Any:
        self._rows[self.rank] = values
        self._meeting.wait()
        found = torch.stack(self._rows)
        self._meeting.wait()
        return found

    def agree(self, stop: bool, step: int, norm: float) -> bool:
        return stop

    def close(self) -> None:
        """Nothing is open."""


def _summed(gradients: list[list[Any]], lanes: int, team: Any = None) -> tuple[list[Any], float]:
    """What is left in the parameters, and the loss, when each lane has the gradients given for it."""
    parameters = [torch.nn.Parameter(torch.zeros_like(one)) for one in gradients[0]]
    lane_sum = LaneSum(lanes, team)
    for lane in lane_sum.own:
        if lane < len(gradients):
            for parameter, gradient in zip(parameters, gradients[lane], strict=True):
                parameter.grad = gradient.clone()
            lane_sum.add(lane, 0.1 * lane + 0.3, parameters)
    loss = lane_sum.finish(parameters, len(gradients))
    return [parameter.grad for parameter in parameters], loss


@pytest.mark.parametrize("lanes, processes", [(2, 2), (3, 3), (4, 2), (4, 4), (6, 3), (8, 2), (12, 3)])
def test_any_number_of_processes_adds_to_the_bits_of_one(lanes: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.lanes.EXCHANGED_AT_ONCE", 50)  # so that there are several exchanges
    generator = torch.Generator().manual_seed(lanes)
    for used in {1, lanes // 2 + 1, lanes}:
        gradients = [[torch.randn(shape, generator=generator) * 10.0 ** dice for dice, shape in enumerate([(7, 5), (40,), (3,)])]
                     for _ in range(used)]  # fmt: skip
        alone, loss = _summed(gradients, lanes)
        assert loss == pytest.approx(sum(0.1 * lane + 0.3 for lane in range(used)))
        rows, meeting = [None] * processes, threading.Barrier(processes)
        found: dict[int, Any] = {}

        def work(rank: int, rows: list[Any] = rows, meeting: Any = meeting, found: Any = found, terms: Any = gradients) -> None:
            found[rank] = _summed(terms, lanes, _Threads(rank, rows, meeting))

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for rank in range(processes):
            assert found[rank][1] == loss
            assert all(torch.equal(one, other) for one, other in zip(found[rank][0], alone, strict=True))


def test_what_the_objective_tells_beside_the_loss_is_summed_over_all_processes() -> None:
    """Rank 0 writes metrics.jsonl, and would else tell of its own lanes only."""
    told: list[dict[str, float]] = [{"won": 1.0}, {"won": 2.0, "lead": 0.5}, {"lead": float("inf")}]
    alone = LaneSum(4)
    for lane, sums in enumerate(told):
        alone.add(lane, 0.0, [torch.nn.Parameter(torch.zeros(1))], sums)
    alone.finish([torch.nn.Parameter(torch.zeros(1))], 3)
    assert alone.metrics == {"won": 3.0, "lead": float("inf")}
    for processes in (2, 4):  # of four, the last has nothing to tell
        rows, meeting, found = [None] * processes, threading.Barrier(processes), {}

        def work(rank: int, rows: list[Any] = rows, meeting: Any = meeting, found: Any = found) -> None:
            mine = LaneSum(4, _Threads(rank, rows, meeting))
            for lane in mine.own:
                if lane < len(told):
                    mine.add(lane, 0.0, [torch.nn.Parameter(torch.zeros(1))], told[lane])
            mine.finish([torch.nn.Parameter(torch.zeros(1))], len(told))
            found[rank] = mine.metrics
            mine.finish([torch.nn.Parameter(torch.zeros(1))], 1)
            assert mine.metrics == {}, "of the newest step only"

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == dict.fromkeys(range(processes), alone.metrics)


def test_the_order_of_adding_is_a_tree_and_matters() -> None:
    terms = [[torch.tensor([value])] for value in (1.0, 1e8, -1e8, 1.0)]
    (tree,), _loss = _summed(terms, 4)
    (first, second, third, fourth) = (term[0] for term in terms)
    assert torch.equal(tree, (first + second) + (third + fourth))
    assert not torch.equal(tree, ((first + second) + third) + fourth), "floating point addition is not associative"


def test_a_rank_makes_the_batches_of_its_own_lanes_only(home: Path) -> None:
    job = RECIPES["lanes"](home, home / "feed")
    parts = []
    for own in (range(2), range(1), range(1, 2)):
        feed = Feed(Selection.load(home / "feed"), find_objective("sft"), seed=1, batch_sequences=4, micro_sequences=1,
                    use_mask=True, lanes=job["lanes"])  # fmt: skip
        feed.keep_lanes(own)
        parts.append(feed.step(0))
    whole, first, second = parts
    assert list(whole.lane_sizes) == [0, 1] and list(first.lane_sizes) == [0] and list(second.lane_sizes) == [1]
    assert len(first.micro_batches) + len(second.micro_batches) == len(whole.micro_batches)
    assert first.weight == second.weight == whole.weight, "normalised by the trained tokens of all lanes"
    assert sum(float(batch.weights.sum()) for batch in whole.micro_batches) == whole.weight


def test_two_processes_end_in_the_bits_of_one_and_the_proof_says_how_many(home: Path) -> None:
    assert run_here(RECIPES["lanes"](home, home / "one"))
    RECIPES["processes"](home, home / "two")
    assert shared_server().run(home / "two") == 0
    assert outcome(home / "two") == outcome(home / "one")
    results = [json.loads((home / name / "result.json").read_text()) for name in ("one", "two")]
    assert [result["processes"] for result in results] == [1, 2] and results[1]["exactness"] == "EXACT"
    assert run_here(RECIPES["sft"](home, home / "single"))
    assert outcome(home / "single")[0] != outcome(home / "one")[0], "the number of lanes is a part of the plan"


def test_a_lost_process_ends_the_job_as_the_machines_fault_and_one_process_can_finish_it(home: Path) -> None:
    RECIPES["processes"](home, home / "lost")
    _number, pid = shared_server().spawn(home / "lost")
    wait_until(lambda: steps_logged(home / "lost") >= 4)
    (helper,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    os.kill(helper, signal.SIGKILL)
    assert shared_server().ended() == 1
    told = json.loads((home / "lost" / "error.json").read_text())
    assert told["fault"] == "environment" and "gone or hangs" in told["message"] and "snapshot" in told["hint"]
    assert run_here({**RECIPES["processes"](home, home / "lost"), "processes": 1})
    assert outcome(home / "lost") == outcome(home / "one")


def test_helpers_end_with_a_job_that_is_killed(home: Path) -> None:
    RECIPES["processes"](home, home / "orphan")
    _number, pid = shared_server().spawn(home / "orphan")
    wait_until(lambda: steps_logged(home / "orphan") >= 1)
    (helper,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    os.kill(pid, signal.SIGKILL)
    assert shared_server().ended() == -signal.SIGKILL
    status = Path(f"/proc/{helper}/status")
    assert wait_until(lambda: not status.exists() or "zombie" in status.read_text())


def test_processes_that_came_apart_are_told_and_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    group = object.__new__(Group)
    alike, norms, steps = [[0, 3, 0.5], [0, 3, 0.5]], [[0, 3, 0.5], [0, 3, 0.25]], [[1, 3, 0.5], [0, 4, 0.5]]
    for rows, damaged in ((alike, False), (norms, True), (steps, True)):
        monkeypatch.setattr(Group, "gather", lambda _self, _values, rows=rows: torch.tensor(rows, dtype=torch.float64))
        if damaged:
            with pytest.raises(Damage, match="differ"):
                group.agree(False, 3, 0.5)
        else:
            assert group.agree(True, 3, 0.5) is False, "what rank 0 wants counts"


def test_a_neighbour_that_never_comes_is_the_machines_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="gone or hangs"):
        Group(0, 2, f"file://{tmp_path / 'meeting'}", hang_seconds=0.2)
