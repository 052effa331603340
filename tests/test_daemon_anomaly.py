"""A child that skipped steps: proven from the frozen list, told everywhere, and what it skipped is still to be learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from homes import copy_home
from toy import Toy

from daemon.cli.versions import version_lines
from daemon.report import compose
from guard.bitmap import unpack_bitmap
from guard.store.birth import version_readme
from guard.store.lineage import lineage, tree_lines
from guard.store.versions import find_version
from trainer.selection import Selection

BAD = 3
"""The step (from 1) that is skipped."""
Job = dict[str, Any]
Spoil = Callable[[Job, dict[str, Any]], None]


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    root = shared_scratch / "anomaly-template"
    toy = Toy(root).make_base()
    recipe = root / "configs" / "pretrain" / "micro.yaml"
    text = recipe.read_text().replace("batch_sequences: 4", "batch_sequences: 2")
    recipe.write_text(text)
    toy.die()
    return root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Iterator[Toy]:
    copy_home(template, scratch / "home")
    toy = Toy(scratch / "home", backup__auto=False)
    yield toy
    toy.die()


def rows(count: int) -> str:
    return "".join(f'{{"text": "row number {row} of a file that is not long, and not short either"}}\n' for row in range(count))


def skipping(steps: list[int], **lies: Any) -> Spoil:
    """A child that passes over these steps (from 1), and says so but for `lies`."""

    def spoil(job: Job, result: dict[str, Any]) -> None:
        if job["task"] != "train":
            return
        selection, batch = Selection.load(job["staging"]), job["recipe"]["training"]["batch_sequences"]
        fed = selection.consumed_hash(job["seed"], job["steps"], batch, [step - 1 for step in steps])
        result |= {"steps_executed": job["steps"] - len(steps), "steps_skipped": steps, "consumed_sha256": fed,
                   "anomalies": [{"step": step, "kind": "loss_spike", "value": 9.5, "limit": 4.25, "skipped": [step]}
                                 for step in steps], **lies}  # fmt: skip

    return spoil


def test_a_skipped_step_is_told_everywhere_and_its_examples_are_trained_when_they_come_again(toy: Toy) -> None:
    toy.server.spoil = skipping([BAD])
    toy.drop("pretrain/rows.jsonl", rows(60))
    toy.settle()
    version = find_version(toy.keeper.ledger, "v002")
    record, metrics = version.record, version.record["metrics"]
    assert version.state == "sealed" and metrics["steps_skipped"] == 1
    assert record["anomalies"][0]["skipped"] == [BAD]
    (item,) = record["data"]
    planned = orjson.loads(toy.keeper.ledger.value("SELECT plan FROM jobs WHERE output_id = 2"))["train"]["prepared"]
    learnt = set(unpack_bitmap(item["bitmap"]))
    missing = set(unpack_bitmap(planned["learnt"][0]["bitmap"])) - learnt
    assert missing and item["examples"] == len(learnt) and metrics["tokens"] == item["tokens"] < planned["tokens"]
    assert 0 < planned["loss_tokens"] - metrics["loss_tokens"] <= planned["tokens"] - metrics["tokens"]
    assert toy.keeper.ledger.value("SELECT bitmap FROM learnt WHERE version_id = 2") == item["bitmap"]
    event = toy.keeper.ledger.row("SELECT subject, payload FROM events WHERE verb = 'training.skipped'")
    assert event and event["subject"] == version.name and orjson.loads(event["payload"])["anomalies"] == record["anomalies"]
    told = " ".join(item["what"] for item in compose(toy.keeper, {}, running=False)["alerts"])
    assert f"{version.name} was trained without 1 of its steps" in told
    assert f"step {BAD}: loss spike (9.5, at most 4.25 was to be expected); skipped: {BAD}" in "\n".join(version_lines(record))
    assert "1 of its steps were skipped" in version_readme(record)
    assert any("1 STEP SKIPPED" in line for line in tree_lines(lineage(toy.keeper)))
    toy.server.spoil = lambda job, result: None
    toy.drop("pretrain/rows.jsonl", rows(60))
    toy.settle()
    assert set(unpack_bitmap(find_version(toy.keeper.ledger, "v003").record["data"][0]["bitmap"])) == missing
    assert "was trained without" not in " ".join(item["what"] for item in compose(toy.keeper, {}, running=False)["alerts"])


@pytest.mark.parametrize(
    ("steps", "lies", "why"),
    [
        ([BAD], {"steps_skipped": []}, "steps: planned"),
        ([BAD], {"steps_skipped": [BAD + 1], "anomalies": [{"skipped": [BAD + 1]}]}, "examples: planned"),
        ([BAD], {"anomalies": []}, "each for an anomaly that is told"),
        ([1, 2, 3, 4, 5], {}, "4 may be"),
        ([BAD], {"steps_executed": 0}, "nothing was trained"),
    ],
)
def test_a_child_that_skips_otherwise_than_it_says_gets_no_version(
    toy: Toy, steps: list[int], lies: dict[str, Any], why: str
) -> None:
    toy.server.spoil = skipping(steps, **lies)
    toy.drop("pretrain/rows.jsonl", rows(60))
    toy.settle()
    assert list(toy.versions()) == ["v001_baseline"]
    (reason,) = [reason for _number, kind, state, reason in toy.jobs() if kind == "train" and state == "failed"]
    assert "no proof of training" in reason and why in reason


def test_a_recipe_that_says_halt_lets_no_step_be_skipped(toy: Toy) -> None:
    recipe = toy.home.configs / "pretrain" / "micro.yaml"
    recipe.write_text(recipe.read_text().replace("  grad_clip", "  on_anomaly: halt\n  grad_clip"))
    toy.server.spoil = skipping([BAD])
    toy.drop("pretrain/rows.jsonl", rows(60))
    toy.settle()
    assert list(toy.versions()) == ["v001_baseline"] and any("0 may be" in job[3] for job in toy.jobs())
