"""Every kind of data on a toy daemon: what trains, what is registered and says for what, and what old records keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from toy import RECIPE, Toy, chat_of
from toy_fixtures import _begin, _no_syncing, _template, _toy  # noqa: F401 - fixtures

from daemon.cli.files import register_record
from daemon.cli.main import main
from daemon.cli.sample import sample_of
from daemon.client import wait_for_drops
from daemon.read_limits import read_limits
from daemon.story import tell_story
from guard.bitmap import bitmap_bits
from guard.checks.columns import Reading
from guard.checks.kinds import registered_reason
from guard.store.files import find_file
from guard.store.known import sidecar_bytes
from guard.store.seen import examples_meant, seen
from guard.store.verify import verify
from trainer.dataset import open_dataset

MUTATION = {"buggy_code": "a - b", "error_message": "assertion failed: 3 != -1", "fixed_code": "a + b"}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(count: int) -> str:
    return lines([{"id": n, "prompt": f"Is {n} even?", "chosen": f"{n}: no.", "rejected": f"{n}: yes.", "src": "x"}
                  for n in range(count)])  # fmt: skip


def test_mutations_train_as_conversations(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPE["model"], "block_size", 512)  # type: ignore[arg-type]  # a repair takes more than 32 bytes
    toy = Toy(scratch / "wide", backup__auto=False).make_base()
    toy.drop("m.jsonl", lines([{**MUTATION, "repo": f"r{n}"} for n in range(30)]))
    toy.settle()
    assert toy.drops()[0][:2] == ("m.jsonl", "admitted") and len(toy.versions()) == 2
    file = find_file(toy.keeper.ledger, "m.jsonl")
    row = toy.keeper.ledger.row("SELECT objective, count FROM learnt WHERE sha256 = ?", (file.sha256,))
    assert file.kind == "mutation" and row is not None and row["objective"] == "sft" and row["count"] > 20
    record = orjson.loads(toy.keeper.ledger.value("SELECT record FROM versions WHERE id = 2"))
    assert record["stage"] == "sft" and record["data"][0]["kind"] == "mutation"
    dataset = open_dataset(toy.home.shards / record["dataset"]["id"])
    told = dataset.files[0]
    assert (told["kind"], told["reading"]) == ("mutation", {"rules": 2})
    ids = bytes(id for id in dataset.train.tokens(0, int(dataset.train.examples[0, 3])).tolist() if id < 256)
    assert b"Mend the code." in ids and b"a + b" in ids
    toy.drop("again.jsonl", lines([{**MUTATION, "repo": f"r{n}"} for n in reversed(range(30))]))
    toy.settle()
    assert toy.drops()[-1][1] == "duplicate" and "learnt from other files" in toy.drops()[-1][2]
    toy.die()


def test_packed_token_ids_train_as_they_are_and_others_than_the_models_are_refused(toy: Toy) -> None:
    toy.drop("ids.jsonl", lines([{"input_ids": [65 + n % 26, *range(60), n]} for n in range(40)]))
    toy.settle()
    assert toy.drops()[0][:2] == ("ids.jsonl", "admitted") and len(toy.versions()) == 2
    record = orjson.loads(toy.keeper.ledger.value("SELECT record FROM versions WHERE id = 2"))
    dataset = open_dataset(toy.home.shards / record["dataset"]["id"])
    assert dataset.stage == "pretrain" and dataset.train.tokens(0, 5).tolist()[1:] == [0, 1, 2, 3]
    toy.drop("other.jsonl", lines([{"input_ids": [1, 2]}, {"input_ids": [3, 50000]}]))
    toy.settle()
    assert toy.drops()[-1][:2] == ("other.jsonl", "rejected")
    assert toy.drops()[-1][2] == "line 2: Token ID 50000 out of vocabulary range"
    assert "0 to 264" in (toy.home.rejected / "other.jsonl.why.txt").read_text()
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("INSERT INTO lines (name, tip_id, created) SELECT 'side', tip_id, created FROM lines LIMIT 1")
    assert {name: item["vocab_size"] for name, item in read_limits(toy.keeper)["of_lines"].items()} == {"side": 265}
    assert read_limits(toy.keeper, "side")["vocab_size"] == 265 and not read_limits(toy.keeper, "side")["of_lines"]


def test_a_sample_of_mutations_and_of_token_ids_is_what_is_trained_of_them(toy: Toy) -> None:
    mutation = {"buggy_code": "a - b", "error_message": "3 != -1", "fixed_code": "a + b"}
    toy.drop("mutations.jsonl", "".join(json.dumps({**mutation, "file": f"{n}.rs"}) + "\n" for n in range(20)))
    toy.drop("ids.jsonl", "".join(json.dumps({"input_ids": [104, 105, 256 + n % 9]}) + "\n" for n in range(20)))
    toy.settle()
    found = sample_of(toy.keeper, find_file(toy.keeper.ledger, "mutations.jsonl"), 1)
    assert "a + b" in "".join(part["text"] for part in found["sample"] if part["trained"])
    assert "3 != -1" in "".join(part["text"] for part in found["sample"] if not part["trained"])
    assert found["sample_about"]["template"] == "mypt" and found["sample_about"]["tokens"] > 20
    ids = sample_of(toy.keeper, find_file(toy.keeper.ledger, "ids.jsonl"), 1)
    assert [part["text"] for part in ids["sample"]] == ["hi<myPT_system>"] and ids["sample_about"]["tokens"] == 3
    toy.die()


def test_pairs_and_tasks_are_registered_with_their_fingerprints_and_say_what_they_are_kept_for(toy: Toy) -> None:
    toy.drop("pairs.jsonl", pairs(20))
    tasks = [{"description": f"d{n}", "tests": "t", **({"starter_code": "s"} if n else {})} for n in range(9)]
    toy.drop("task/t.jsonl", lines(tasks))
    toy.drop("eval.jsonl", lines([{"description": "d", "tests": "t"}]))
    toy.settle()
    told = {name: (state, reason) for name, state, reason in toy.drops()}
    assert {state for state, _reason in told.values()} == {"registered"} and len(toy.versions()) == 1
    assert told["pairs.jsonl"][1] == f"registered with 20 examples and not queued: {registered_reason('preference')}"
    assert "1 without starter_code: evaluation only, never trained" in told["t.jsonl"][1]
    assert "all without starter_code: evaluation only" in told["eval.jsonl"][1]
    for name, kind, count in (("pairs.jsonl", "preference", 20), ("t.jsonl", "task", 9)):
        file = find_file(toy.keeper.ledger, name)
        assert (file.kind, file.examples, len(sidecar_bytes(toy.home.files / file.sha256))) == (kind, count, 16 * count)
        story = tell_story(toy.keeper, name, toy.home.inbox)
        assert story["files"][0]["kind"] == kind and told[name][1] in json.dumps(story, ensure_ascii=False)
    assert list(toy.home.inbox.glob("**/*.jsonl")) == [] and verify(toy.keeper, everything=True).damage == ()
    asked = examples_meant('{"prompt": "Is 3 even?", "chosen": "3: no.", "rejected": "3: yes."}')
    assert [hit["file"] for hit in seen(toy.keeper, asked)["exact"]] == ["pairs.jsonl"]
    toy.drop("again.jsonl", pairs(20))
    toy.settle()
    assert toy.drops()[-1][1:] == ("duplicate", "the same bytes are registered already, as pairs.jsonl")


def test_register_and_plan_tell_of_pairs(toy: Toy, capfdbinary: Any) -> None:
    toy.drop("pairs.jsonl", pairs(4))
    toy.settle()
    told = register_record(wait_for_drops(toy.home, [1])[0])
    assert (told["kind"], told["examples"], told["bad_rows"], told["status"]) == ("preference", 4, 0, "registered")
    toy.die()
    code = main(["--home", str(toy.home.root), "plan", "--base", "v001", "--data", "pairs.jsonl", "--output", "x", "--dry-run"])
    assert code == 2 and "kept for reward, DPO and IPO" in capfdbinary.readouterr().err.decode()


def test_a_row_that_is_no_pair_is_told_by_line_and_field(toy: Toy) -> None:
    toy.drop("p.jsonl", pairs(3) + '{"prompt": "a", "chosen": " ", "rejected": "b"}\n')
    toy.settle()
    why = (toy.home.rejected / "p.jsonl.why.txt").read_text()
    assert "line 4" in why and "Field 'chosen' is empty after stripping" in why


def test_a_recipe_beside_pairs_waits_and_says_why(toy: Toy) -> None:
    toy.drop("preference/p.jsonl.meta.yaml", "recipe: sft/small\n")
    toy.drop("preference/p.jsonl", pairs(3))
    toy.settle()
    assert toy.drops() == [] and (toy.home.inbox / "preference" / "p.jsonl").exists()


@pytest.fixture(name="old")
def _old(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A home with a file that was admitted under the first rules: its row with thinking was no example then."""
    text = chat_of(40).splitlines(keepends=True)
    thinking = json.loads(text[5])
    thinking["messages"][1]["thinking"] = "Hm."
    with monkeypatch.context() as patch:
        patch.setattr("guard.checks.identify.PLAIN", Reading())
        toy.drop("old.jsonl", "".join([*text[:20], json.dumps(thinking) + "\n", *text[20:]]))
        toy.settle()
    return toy


def test_a_file_of_the_first_rules_is_read_by_them_for_ever(old: Toy) -> None:
    file = find_file(old.keeper.ledger, "old.jsonl")
    assert file.examples == 40 and file.record["reading"] == {} and len(old.versions()) == 2
    record = orjson.loads(old.keeper.ledger.value("SELECT record FROM versions WHERE id = 2"))
    dataset = open_dataset(old.home.shards / record["dataset"]["id"])
    assert dataset.metadata["versions"]["rules"] == 1 and "reading" not in dataset.files[0]
    bits = bitmap_bits(old.keeper.ledger.value("SELECT bitmap FROM learnt WHERE sha256 = ?", (file.sha256,)))
    assert len(bits) == 40 and verify(old.keeper, everything=True).damage == ()
    content = (old.home.files / file.sha256 / "old.jsonl").read_text()
    for name in ("same.jsonl", "sft/forced.jsonl"):
        old.drop(name, content)
        old.settle()
        assert old.drops()[-1][1] == "duplicate" and "trained in v002_old" in old.drops()[-1][2]
    old.drop("grown.jsonl", content + "\n")
    old.settle()
    grown = find_file(old.keeper.ledger, "grown.jsonl")
    assert grown.examples == 41 and grown.record["reading"] == {"rules": 2}
