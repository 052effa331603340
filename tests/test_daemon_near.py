"""Near-duplicates in a whole toy home: told of each new file in the background, never in the way, derived throughout."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from toy import Toy

from guard import failpoints
from guard.failpoints import Crash
from guard.minhash import BINS
from guard.near_file import SignatureFile
from guard.near_task import run_near
from guard.steps import drain
from guard.store.near import near_hits, open_near, signature_folder
from guard.store.near_keep import keep_near_steps

WORDS = [f"word{number}" for number in range(900)]


def passage(seed: int, words: int = 80) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(text: str) -> str:
    """The same but for two words."""
    parts = text.split()
    return " ".join(["altered" if place in (10, 40) else word for place, word in enumerate(parts)])


def rows(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def report(toy: Toy, name: str) -> dict[str, Any]:
    text = toy.keeper.ledger.value("SELECT json_extract(record, '$.near') FROM files WHERE name = ?", (name,))
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def sha_of(toy: Toy, name: str) -> str:
    return str(toy.keeper.ledger.value("SELECT sha256 FROM files WHERE name = ?", (name,)))


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "home", backup__auto=False)


def test_a_new_file_is_told_what_it_resembles_and_trains_as_ever(toy: Toy) -> None:
    toy.make_base()
    toy.drop("old.jsonl", rows([passage(seed) for seed in range(40)]))
    toy.settle()
    toy.drop("new.jsonl", rows([*(changed(passage(seed)) for seed in range(12)), *(passage(seed) for seed in range(100, 120)),
                                "too short"]))  # fmt: skip
    toy.settle()
    told = report(toy, "new.jsonl")
    assert (told["examples"], told["alike"], told["short"]) == (33, 12, 1) and 0.8 <= told["similarity"] < 1
    assert told["resembles"] == [{"sha256": sha_of(toy, "old.jsonl"), "examples": 12}]
    assert report(toy, "old.jsonl")["alike"] == 0
    # It only tells: both became versions, and every example that is not held out was learnt.
    learnt = toy.keeper.ledger.value("SELECT count FROM learnt WHERE sha256 = ?", (sha_of(toy, "new.jsonl"),))
    assert len(toy.versions()) == 3 and learnt >= 28


def test_files_that_came_together_meet_those_before_them(toy: Toy) -> None:
    toy.drop("a.jsonl", rows([passage(seed) for seed in range(20)]))
    toy.drop("b.jsonl", rows([changed(passage(seed)) for seed in range(20)]))
    toy.settle()
    counts = sorted(report(toy, name)["alike"] for name in ("a.jsonl", "b.jsonl"))
    assert counts == [0, 20]


def test_a_home_that_does_not_want_it_is_left_alone(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "home", near__policy="off", backup__auto=False)
    toy.drop("a.jsonl", rows([passage(1)]))
    toy.settle()
    assert report(toy, "a.jsonl") == {} and not signature_folder(toy.home).exists()


def test_a_text_finds_what_resembles_it_through_index_and_loose_files(toy: Toy) -> None:
    toy.drop("a.jsonl", rows([passage(seed) for seed in range(30)]))
    toy.settle()
    drain(keep_near_steps(toy.keeper, all_of_it=True))
    toy.drop("b.jsonl", rows([passage(50), changed(passage(3))]))
    toy.settle()
    index = open_near(toy.keeper)
    assert index.covered == {sha_of(toy, "a.jsonl")} and index.loose() == [sha_of(toy, "b.jsonl")]
    found = near_hits(toy.keeper, [passage(3)], 0.8)
    assert [(item["file"], item["ordinal"]) for item in found] == [("a.jsonl", 3), ("b.jsonl", 1)]
    assert found[0]["similarity"] == 1.0 > found[1]["similarity"] >= 0.8
    assert near_hits(toy.keeper, ["short"], 0.1) == [] and near_hits(toy.keeper, [passage(999)], 0.5) == []


def test_what_is_lost_or_damaged_is_made_again(toy: Toy) -> None:
    toy.drop("a.jsonl", rows([passage(seed) for seed in range(3000)]))
    toy.settle()
    drain(keep_near_steps(toy.keeper, all_of_it=True))
    before = near_hits(toy.keeper, [passage(7)], 0.8)
    [name] = open_near(toy.keeper).parts
    column = toy.home.data / "near" / name / "columns.bin"
    bits = bytearray(column.read_bytes())
    bits[-(3000 - 7) * 4] ^= 1  # an ordinal: the last of the columns
    column.write_bytes(bits)
    # The folder is believed no more: its file is asked itself, and tells the same.
    toy.again()
    assert near_hits(toy.keeper, [passage(7)], 0.8) == before and open_near(toy.keeper).damaged
    path = signature_folder(toy.home) / f"{sha_of(toy, 'a.jsonl')}.mh"
    whole = path.read_bytes()
    for bad in (whole[:-1], b"x" + whole[1:], whole[:100] + b"?" + whole[101:], b""):
        path.write_bytes(bad)
        assert near_hits(toy.keeper, [passage(0)], 0.8) == []
    path.unlink()
    toy.again().settle()
    assert path.read_bytes() == whole and report(toy, "a.jsonl")["alike"] == 0
    assert near_hits(toy.keeper, [passage(7)], 0.8) == before


def test_damaged_signatures_of_a_covered_file_are_made_again_when_a_new_file_meets_them(toy: Toy) -> None:
    toy.drop("a.jsonl", rows([passage(seed) for seed in range(30)]))
    toy.settle()
    drain(keep_near_steps(toy.keeper, all_of_it=True))
    path = signature_folder(toy.home) / f"{sha_of(toy, 'a.jsonl')}.mh"
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + b"?" + whole[201:])
    toy.drop("b.jsonl", rows([changed(passage(seed)) for seed in range(30)]))
    toy.settle()
    assert path.read_bytes() == whole and open_near(toy.keeper).covered == {sha_of(toy, "a.jsonl")}


def test_small_folders_are_joined_and_still_tell_the_same(toy: Toy) -> None:
    for number in range(9):
        toy.drop(f"f{number}.jsonl", rows([passage(100 * number + row) for row in range(3)]))
        toy.settle()
        drain(keep_near_steps(toy.keeper, all_of_it=True))
    index = open_near(toy.keeper)
    assert len(index.parts) == 2 and len(index.covered) == 9 and index.loose() == []
    for number in (0, 4, 8):
        [hit] = near_hits(toy.keeper, [passage(100 * number + 2)], 0.9)
        assert (hit["file"], hit["ordinal"]) == (f"f{number}.jsonl", 2)


@pytest.mark.parametrize("point", ["near.recorded", "near.written", "near.published"])
@pytest.mark.parametrize("action", ["crash", "enospc"])
def test_a_death_on_the_way_loses_and_repeats_nothing(toy: Toy, point: str, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.store.near_keep.FLUSH_FILES", 1)
    toy.drop("a.jsonl", rows([passage(seed) for seed in range(10)]))
    failpoints.arm(point, action)
    if action == "crash":
        with pytest.raises(Crash):
            toy.settle()
    else:
        toy.settle()
        assert "no space left" in toy.engine.near.problem
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    toy.again().settle()
    assert report(toy, "a.jsonl")["alike"] == 0
    drain(keep_near_steps(toy.keeper, all_of_it=True))
    assert open_near(toy.keeper).covered == {sha_of(toy, "a.jsonl")}
    [hit] = near_hits(toy.keeper, [passage(4)], 0.9)
    assert hit["ordinal"] == 4


def test_a_file_that_cannot_be_read_holds_up_no_other(toy: Toy) -> None:
    toy.drop("a.jsonl", rows([passage(1)]))
    toy.settle()
    folder = toy.home.data / "near"
    request = {"files": [{"sha256": "ab" * 32, "path": str(toy.home.root / "absent.txt"), "kind": "pretrain"}],
               "signatures": str(signature_folder(toy.home)), "index": [str(folder / "00000009")], "loose": ["cd" * 32],
               "threshold": 0.8}  # fmt: skip
    binary = toy.home.root / "bad.txt"
    binary.write_bytes(b"\xff\xfe\x00" * 20)
    request["files"].append({"sha256": "ef" * 32, "path": str(binary), "kind": "pretrain"})  # type: ignore[attr-defined]
    answer = run_near(request)
    assert {item["sha256"][:2] for item in answer["near"] if item.get("fault")} == {"ab", "ef"}
    assert set(answer["unused"]) == {str(folder / "00000009"), "cd" * 32}
    good = SignatureFile(signature_folder(toy.home) / f"{sha_of(toy, 'a.jsonl')}.mh", sha_of(toy, "a.jsonl"))
    assert good.all().shape == (1, BINS)


def test_rows_of_one_template_are_told_in_bounded_time(toy: Toy) -> None:
    form = passage(5, 60)
    toy.drop("a.jsonl", rows([f"{form} number {number}" for number in range(2000)]))
    toy.settle()
    toy.drop("b.jsonl", rows([f"{form} count {number}" for number in range(2000)]))
    toy.settle()
    assert report(toy, "b.jsonl")["alike"] == 2000
