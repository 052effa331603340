"""Packing as a person asks for it: by flag, by side file, by recipe; frozen with the plan and told afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from runner_help import ask
from toy import Toy, chat_of, text_of

from daemon.costs import cost_of
from guard.errors import UsageError
from guard.store.versions import find_version
from trainer.model_config import ModelConfig
from trainer.numbers import Numbers
from trainer.recipe import parse_recipe
from trainer.selection import load_selection

BASE = "v001_baseline"


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "home").make_base()


def trained(toy: Toy, name: str) -> tuple[dict[str, Any], Any]:
    """The record of a version, and what it says of packing."""
    record = find_version(toy.keeper.ledger, name).record
    return record, record["packing"]


def register(toy: Toy, name: str, content: str) -> None:
    path = toy.home.root.parent / name
    path.write_text(content)
    ask(toy, "register", paths=[str(path)])
    toy.settle()


def test_packing_is_on_by_default_and_the_version_says_what_it_used(toy: Toy) -> None:
    seen = []
    toy.server.spoil = lambda job, _result: seen.append(load_selection(job["staging"])) if job["task"] == "train" else None
    toy.drop("pretrain/a.txt", text_of(800))
    toy.settle()
    record, told = trained(toy, "v002")
    assert record["recipe"]["training"]["packing"] == told["mode"] == "bestfit"
    assert told["documents"] > 1 and told["used"] == round(seen[0].used(32), 4) > 0.98
    assert seen[0].documents is not None


@pytest.mark.parametrize("how", ["flag", "side file"])
def test_a_person_may_have_one_conversation_in_a_sequence(toy: Toy, how: str) -> None:
    if how == "flag":
        register(toy, "a.jsonl", chat_of(30))
        assert ask(toy, "plan", base=BASE, files=["a.jsonl"], output="a", packing="off", iterations=2)["ok"]
    else:
        toy.drop("a.jsonl.meta.yaml", "training: {packing: off}\n")
        toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    plan = orjson.loads(toy.keeper.ledger.value("SELECT plan FROM jobs WHERE kind = 'train'"))
    assert plan["request"]["recipe"]["training"]["packing"] == "off"
    prepared = plan["train"]["prepared"]
    assert prepared["packing"]["mode"] == "off" and prepared["packing"]["documents"] == prepared["sequences"]
    assert trained(toy, "v002")[1]["mode"] == "off"


def test_another_packing_than_there_is_is_refused(toy: Toy) -> None:
    register(toy, "a.jsonl", chat_of(30))
    with pytest.raises(UsageError, match="--packing tight"):
        ask(toy, "plan", base=BASE, files=["a.jsonl"], output="a", packing="tight")
    assert toy.keeper.ledger.value("SELECT count(*) FROM jobs WHERE kind = 'train'") == 0


def test_why_documents_were_fed_one_by_one_stands_in_the_version(toy: Toy) -> None:
    toy.server.spoil = lambda _job, result: result.update(fed_apart="this model cannot be told")
    toy.drop("pretrain/a.txt", text_of(300))
    toy.settle()
    assert trained(toy, "v002")[1]["fed_apart"] == "this model cannot be told"


def test_estimates_count_conversations_where_each_has_a_sequence_of_its_own() -> None:
    shape = ModelConfig(layers=1, heads=2, width=16, hidden=64, block_size=512, vocab_size=320)
    steps = {}
    for packing in ("off", "bestfit"):
        training = {"learning_rate": 1e-3, "batch_sequences": 8, "epochs": 3, "packing": packing}
        recipe = parse_recipe({"stage": "sft", "training": training})
        steps[packing] = cost_of(recipe, shape, Numbers(1, "float32", 4), 64_000, examples=400, iterations=None,
                                 measured=None)[0]  # fmt: skip
    assert steps == {"off": 150, "bestfit": 47}
