"""A model that goes on learning, really trained: text, code and chat one after the other, and what becomes of ruined children.

Small models and real children; the figures of larger ones stand in docs/PERFORMANCE.md (`benchmarks/forgetting.py`).
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from homes import copy_home
from test_daemon_remake import RealServer, RealToy, real_child
from toy import RECIPE

from daemon.remake import remake
from guard.bitmap import unpack_bitmap
from guard.store.jobs import add_job
from guard.store.matrix import forgetting_matrix
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.store.versions import find_version
from trainer.selection import load_selection


class Keeping(RealServer):
    """Real children whose frozen list and plan are copied before the birth takes them away."""

    kept: Path

    def spawn(self, job: int, folder: Path, nice: int = 0) -> None:
        super().spawn(job, folder, nice)
        for name in ("job.json", "selection.json", "selection.npz"):
            shutil.copy(folder / name, self.kept / name)


TRAINING = {"learning_rate": 0.005, "batch_sequences": 4, "warmup_steps": 4}


def recipe(root: Path, stage: str, **training: Any) -> None:
    """Replace a home's micro recipe of a stage."""
    told = {"stage": stage, "training": {**TRAINING, **training}}
    (root / "configs" / stage / "micro.yaml").write_text(yaml.safe_dump(told))


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    """A home with a base of a few thousand weights, and its recipes."""
    root = shared_scratch / "continual-template"
    toy = RealToy(root, gate="enforce", training__threads=1, backup__auto=False)
    with toy.keeper.ledger.transaction():
        small = {**RECIPE, "model": {"layers": 2, "heads": 2, "width": 48, "block_size": 96}}
        add_job(toy.keeper.ledger, kind="base", stage="base", line="policy", slug="baseline",
                request={"recipe": small, "tokenization": "char", "origin": "init"})  # fmt: skip
    toy.settle()
    recipe(root, "pretrain")
    recipe(root, "sft", learning_rate=0.005)
    toy.die()
    return root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Iterator[RealToy]:
    copy_home(template, scratch / "home")
    toy = RealToy(scratch / "home", gate="enforce", training__threads=1, backup__auto=False)
    yield toy
    toy.die()


def lines(words: list[str], count: int, seed: int = 1) -> str:
    """Rows of text over a vocabulary, as JSONL."""
    dice = random.Random(seed)
    return "".join(json.dumps({"text": f"{' '.join(dice.choice(words) for _ in range(9))} {row}"}) + "\n" for row in range(count))


TEXT = ["the", "old", "ship", "sails", "over", "a", "calm", "sea", "at", "night"]
CODE = ["fn", "let", "mut", "=", "0;", "for", "in", "{", "}", "return", *TEXT]
"""Code has words of the language in its names and comments."""


def take(toy: RealToy, name: str, content: str) -> Any:
    """Drop a file, let it be trained, and return the newest version."""
    toy.drop(name, content)
    toy.settle()
    return find_version(toy.keeper.ledger, str(toy.keeper.ledger.value("SELECT name FROM versions ORDER BY id DESC LIMIT 1")))


def chat(count: int, seed: int, *, scrambled: bool = False) -> str:
    """Conversations whose answers are long enough to be judged; `scrambled`: their letters in another order."""
    dice = random.Random(seed)
    rows = []
    for row in range(count):
        left, right = dice.randrange(90), dice.randrange(90)
        answer = f"the old ship sails {left + right} at night over a calm sea"
        told = "".join(dice.sample(answer, len(answer))) if scrambled else answer
        rows.append({"messages": [{"role": "user", "content": f"the sea {left} and {right} #{seed}{row}"},
                                  {"role": "assistant", "content": told}]})  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


def healthy(toy: RealToy) -> list[Any]:
    """Text, then code, then chat; what comes later is learnt more gently."""
    recipe(toy.home.root, "pretrain", learning_rate=0.01)
    versions = [take(toy, "pretrain/text.jsonl", lines(TEXT, 500))]
    recipe(toy.home.root, "pretrain", learning_rate=0.001)
    recipe(toy.home.root, "sft", learning_rate=0.0001)
    return [*versions, take(toy, "pretrain/code.jsonl", lines(CODE, 300)), take(toy, "chat.jsonl", chat(200, 1))]


@pytest.mark.sweep
def test_text_then_code_then_chat_pass_the_gate_and_the_matrix_tells_what_was_forgotten(toy: RealToy) -> None:
    versions = healthy(toy)
    assert [version.state for version in versions] == ["sealed"] * 3, [version.record["gate"]["reason"] for version in versions]
    matrix = forgetting_matrix(toy.keeper.ledger, versions[-1])
    assert [item["learnt_in"] for item in matrix["sets"]] == [version.name for version in versions]
    text, code, chat = matrix["sets"]
    assert [len(item["losses"]) for item in (text, code, chat)] == [3, 2, 1]
    assert text["before"] > text["best"]["loss"] + 1 and chat["rise"] == 0
    assert all(item["rise"] <= max(0.3, 0.15 * item["best"]["loss"]) for item in (text, code))


@pytest.mark.sweep
@pytest.mark.parametrize("how", ["a rate a hundred times too high", "labels whose letters are shuffled"])
def test_a_ruined_child_is_quarantined_and_the_next_goes_on_from_the_last_good_one(toy: RealToy, how: str) -> None:
    good = take(toy, "chat0.jsonl", chat(300, 1))
    assert good.state == "sealed", good.record["gate"]
    recipe(toy.home.root, "sft", learning_rate=0.5 if how.startswith("a rate") else 0.02)
    ruined = take(toy, "chat1.jsonl", chat(300, 2, scrambled=not how.startswith("a rate")))
    assert ruined.state == "quarantined", ruined.record["gate"]
    recipe(toy.home.root, "sft", learning_rate=0.005)
    after = take(toy, "chat2.jsonl", chat(300, 3))
    assert after.record["parent"] == good.name and after.state == "sealed"


def test_what_was_replayed_is_frozen_in_the_plan_told_in_the_record_and_never_learnt_anew(toy: RealToy, scratch: Path) -> None:
    first = take(toy, "pretrain/text.jsonl", lines(TEXT, 300))
    server = toy.server = toy.engine.runner.server = Keeping(toy.engine.runner._exited)  # type: ignore[assignment]
    server.kept = scratch
    second = take(toy, "pretrain/code.jsonl", lines(CODE, 300))
    record, plan = second.record, json.loads((scratch / "job.json").read_text())
    selection = load_selection(scratch)
    assert selection.content_hash() == plan["selection_sha256"] == record["selection_sha256"]
    replayed = selection.sequence_lengths()[selection.replay].sum()
    fresh = selection.sequence_lengths()[~selection.replay].sum()
    assert 0.08 * fresh < replayed < 0.12 * fresh and 0 < record["replay"]["tokens"] <= replayed
    assert record["replay"]["datasets"] == [first.record["dataset"]["id"]]
    assert record["planned"]["replay_fraction"] == 0.1
    files = {item["sha256"] for item in record["data"]}
    assert files.isdisjoint(item["sha256"] for item in first.record["data"])
    rows = toy.keeper.ledger.rows("SELECT sha256 FROM learnt WHERE version_id = ?", (second.id,))
    assert {row["sha256"] for row in rows} == files
    assert record["metrics"]["tokens"] == sum(item["tokens"] for item in record["data"])
    assert record["metrics"]["tokens_processed"] > record["metrics"]["tokens"], "replay was fed and does not count"


def test_a_poisoned_batch_is_skipped_the_state_is_sealed_and_both_are_made_again(toy: RealToy) -> None:
    """One row of noise among many that are alike, in real training: found, skipped, told, not learnt, and made again."""
    recipe(toy.home.root, "pretrain", learning_rate=0.02, batch_sequences=1, seal_optimizer=True, spike_factor=4.0)
    dice = random.Random(5)
    rows = [f"the old ship sails over a calm sea at night and comes home {row}" for row in range(160)]
    rows += ["".join(dice.choice("~^`|<>@#%&*+=QXZJ") for _ in range(60)) for _ in range(3)]
    first = take(toy, "pretrain/text.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows))
    record = first.record
    told = record["anomalies"]
    assert told and all(item["kind"] == "loss_spike" and item["value"] > item["limit"] for item in told)
    assert record["metrics"]["steps_skipped"] == len({step for item in told for step in item["skipped"]})
    plan = json.loads(toy.keeper.ledger.value("SELECT plan FROM jobs WHERE output_id = ?", (first.id,)))["train"]
    planned = set(unpack_bitmap(plan["prepared"]["learnt"][0]["bitmap"]))
    unlearnt = planned - set(unpack_bitmap(record["data"][0]["bitmap"]))
    assert unlearnt and min(unlearnt) >= 160, "rows of noise that came late enough to be noticed are not learnt"
    second = take(toy, "pretrain/code.jsonl", lines(CODE, 60))
    assert (first.record["optimizer"], second.record["optimizer"]) == ("fresh", "parent's")
    for version in (first, second):
        assert "optimizer.safetensors" in version.record["files"]
        made = remake(toy.keeper, version.name, child=real_child)
        assert made["verdict"] == "identical" and made["files"]["optimizer.safetensors"], made["reason"]
    run_backup(toy.keeper)
    assert verify(toy.keeper, everything=True, backup=True).ok
