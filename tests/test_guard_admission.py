"""Admission decides: what becomes of sound bytes, judged by bytes, by examples, and against the model that would learn them.

Not here: what an admission stores and queues, documents, and disks that fail (`test_guard_admission_storing.py`).
"""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from admission_help import BASE, _keeper, _template, judge, rows, take  # noqa: F401 - fixtures
from homes import add_job_row, add_version, keeper_of, read_sidecar, set_tip

from guard.heldout import is_held_out
from guard.store.decision import Decision
from guard.store.jobs import set_job
from guard.store.keeper import Keeper
from guard.store.learnt import judge_novelty


def finish(keeper: Keeper, job: int | None) -> None:
    assert job is not None
    with keeper.ledger.transaction():
        set_job(keeper.ledger, job, "done")


def test_new_data_is_admitted_and_queued_under_the_file_s_name(keeper: Keeper) -> None:
    decision = judge(keeper, "My Data (1).jsonl", rows(1, 2, 3))
    assert decision == Decision("admit", "train", "3 new examples", "policy", "my_data_1", "", 0, 3, 0)


@pytest.mark.parametrize("state", ["queued", "held", "preparing", "training", "committing", "parked"])
def test_bytes_that_wait_in_a_job_are_a_duplicate(keeper: Keeper, state: str) -> None:
    _sha256, job = take(keeper, "a.jsonl", rows(1, 2))
    assert job is not None
    with keeper.ledger.transaction():
        set_job(keeper.ledger, job, state)
    decision = judge(keeper, "b.jsonl", rows(1, 2))
    assert decision.verdict == "duplicate" and decision.reason == f"the same bytes are already in job {job} ({state})"


@pytest.mark.parametrize("state", ["failed", "cancelled", "quarantined"])
def test_bytes_whose_job_came_to_nothing_train_when_dropped_again(keeper: Keeper, state: str) -> None:
    _sha256, job = take(keeper, "a.jsonl", rows(1, 2))
    assert job is not None
    with keeper.ledger.transaction():
        set_job(keeper.ledger, job, state)
    sha256, again = take(keeper, "b.jsonl", rows(1, 2))
    assert again != job and keeper.ledger.value("SELECT count(*) FROM files") == 1
    assert [path.name for path in keeper.home.files.iterdir()] == [sha256]


def learn(keeper: Keeper, name: str, content: bytes, *ordinals: int, tip: bool = True) -> tuple[str, str]:
    """Admit a file and seal a version that learnt these of its examples."""
    sha256, job = take(keeper, name, content)
    finish(keeper, job)
    parent = keeper.ledger.value("SELECT v.name FROM lines l JOIN versions v ON v.id = l.tip_id WHERE l.name = 'policy'")
    return sha256, add_version(keeper, Path(name).stem, parent, tip=tip, learnt={sha256: ordinals})


def test_bytes_the_model_has_learnt_are_a_duplicate_naming_the_version(keeper: Keeper) -> None:
    _sha256, version = learn(keeper, "a.jsonl", rows(1, 2, 3), 0, 1, 2)
    decision = judge(keeper, "other name.jsonl", rows(1, 2, 3))
    assert (decision.verdict, decision.queue) == ("duplicate", "none")
    assert decision.reason == f"nothing new for policy: trained in {version}"
    assert (decision.new_examples, decision.known_examples) == (0, 3)


@pytest.mark.parametrize("content", [
    rows(3, 1, 2), rows(1, 2, 3).replace(b"\n", b"\r\n"), rows(1, 1, 2, 2, 3, 3),
    b'{"id": 9, "text":   "row 2"}\n{"text": " row 1 ", "source": "web"}\n',
])  # fmt: skip
def test_the_same_examples_in_another_dress_are_a_duplicate(keeper: Keeper, content: bytes) -> None:
    learn(keeper, "a.jsonl", rows(1, 2, 3), 0, 1, 2)
    decision = judge(keeper, "b.jsonl", content)
    assert decision.verdict == "duplicate" and "every example in it was learnt from other files" in decision.reason


def test_examples_known_from_several_files_together_are_known(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2), 0, 1)
    learn(keeper, "b.jsonl", rows(3, 4), 0, 1)
    assert judge(keeper, "c.jsonl", rows(2, 3)).verdict == "duplicate"


def test_of_a_partly_known_file_the_rest_is_counted_and_trained(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2, 3), 0, 1, 2)
    decision = judge(keeper, "b.jsonl", rows(2, 3, 4, 4, 5))
    assert (decision.verdict, decision.queue) == ("admit", "train")
    assert (decision.new_examples, decision.known_examples) == (2, 2)
    assert decision.reason == "2 new examples, 2 were learnt before"


def test_a_partly_learnt_file_dropped_again_trains_the_rest(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2, 3, 4), 0, 2)
    decision = judge(keeper, "a.jsonl", rows(1, 2, 3, 4))
    assert (decision.verdict, decision.new_examples, decision.known_examples) == ("admit", 2, 2)


def test_an_indentation_is_not_a_duplicate_in_code(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", orjson.dumps({"text": "if x:\n    y()\nz()"}) + b"\n", 0)
    decision = judge(keeper, "b.jsonl", orjson.dumps({"text": "if x:\n    y()\n    z()"}) + b"\n")
    assert (decision.verdict, decision.new_examples) == ("admit", 1)


def test_rolled_back_data_is_trainable_again_by_itself(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2, 3), 0, 1, 2)
    assert judge(keeper, "b.jsonl", rows(1, 2, 3)).verdict == "duplicate"
    set_tip(keeper, "policy", BASE)
    decision = judge(keeper, "c.jsonl", rows(1, 2, 3))
    assert (decision.verdict, decision.queue, decision.new_examples) == ("admit", "train", 3)


def test_what_only_another_branch_learnt_is_new_to_this_one(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2), 0, 1, tip=False)
    assert judge(keeper, "b.jsonl", rows(1, 2)).queue == "train"


def test_a_quarantined_child_s_lessons_are_not_the_line_s(keeper: Keeper) -> None:
    sha256, job = take(keeper, "a.jsonl", rows(1, 2))
    finish(keeper, job)
    add_version(keeper, "bad", BASE, state="quarantined", learnt={sha256: (0, 1)})
    assert judge(keeper, "b.jsonl", rows(1, 2)).queue == "train"


def test_what_another_objective_learnt_may_be_learnt_again(keeper: Keeper) -> None:
    sha256, _version = learn(keeper, "a.jsonl", rows(1, 2), 0, 1)
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE learnt SET objective = 'sft' WHERE sha256 = ?", (sha256,))
    assert judge(keeper, "b.jsonl", rows(1, 2)).queue == "train"


def test_a_line_of_its_own_and_wishes_are_kept(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2), 0, 1)
    add_version(keeper, "branch", BASE, line="side")
    wished = {"line": "side", "recipe": "pretrain/tiny", "priority": 3, "slug": "mine"}
    decision = judge(keeper, "b.jsonl", rows(1, 2), **wished)
    assert (decision.line, decision.recipe, decision.priority, decision.slug) == ("side", "pretrain/tiny", 3, "mine")
    assert decision.queue == "train", "the side line has not learnt what policy has"
    assert judge(keeper, "c.jsonl", rows(1, 2), line="not there yet").verdict == "duplicate", "a new line forks from policy"


def test_a_file_that_is_held_out_as_a_whole_is_kept_and_not_trained(keeper: Keeper) -> None:
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("validation_fraction", "1")
    decision = judge(keeper, "a.jsonl", rows(1, 2))
    assert (decision.verdict, decision.queue) == ("admit", "none") and "all 2 examples are held out" in decision.reason


def test_held_out_examples_are_neither_new_nor_known(keeper: Keeper) -> None:
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("validation_fraction", "0.5")
    numbers = tuple(range(40))
    sha256, job = take(keeper, "a.jsonl", rows(*numbers))
    finish(keeper, job)
    known = read_sidecar(keeper.home.files / sha256)
    held = [is_held_out(item, "fixed", 0.5) for item in known]
    novelty = judge_novelty(keeper, known + known[:3], None, "pretrain")
    assert 5 < sum(held) < 35
    assert (novelty.examples, novelty.new, novelty.known, novelty.held_out, novelty.repeated) == (
        43, 40 - sum(held), 0, sum(held), 3)  # fmt: skip
    add_version(keeper, "a", BASE, learnt={sha256: [place for place, out in enumerate(held) if not out]})
    assert judge(keeper, "b.jsonl", rows(*numbers[::-1])).verdict == "duplicate"


def test_the_salt_of_the_home_decides_and_not_the_settings_of_the_day(keeper: Keeper, scratch: Path) -> None:
    keys = [bytes([number]) * 16 for number in range(64)]
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("validation_fraction", "0.5")
    before = judge_novelty(keeper, keys, None, "pretrain")
    later = keeper_of(scratch / "home", validation__fraction=0.9, validation__salt="another")
    assert judge_novelty(later, keys, None, "pretrain") == before
    later.ledger.close()


def test_a_job_of_another_line_is_nobody_s_obstacle_to_new_bytes(keeper: Keeper) -> None:
    add_job_row(keeper, "training", line="side")
    assert judge(keeper, "a.jsonl", rows(1)).queue == "train"
