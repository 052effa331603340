"""`heirloom seen`: which files hold an example and which versions learnt it, for plain texts, rows and what resembles them."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation_help import Watched, chat, text
from test_daemon_near import changed, passage

from daemon.cli.main import main
from daemon.operations import perform
from guard.errors import UsageError
from guard.fingerprint import example_fingerprint
from guard.steps import drain
from guard.store.known import keep_index_steps
from guard.store.near_keep import keep_near_steps
from guard.store.seen import examples_meant, seen

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    made = Watched(tmp_path_factory.mktemp("seen"))
    made.drop("tales.jsonl", [{"text": passage(seed)} for seed in range(20)])
    made.drop("chats.jsonl", [chat(number) for number in range(20)])
    yield made


@pytest.fixture
def ask(home: Watched, capfdbinary: pytest.CaptureFixture[bytes]) -> Ask:
    def run(*words: str) -> tuple[int, dict[str, Any]]:
        code = main(["--home", str(home.toy.home.root), "seen", *words, "--json"])
        out = capfdbinary.readouterr().out
        return code, json.loads(out) if out else {}

    return run


def trained(home: Watched, rows: list[dict[str, Any]]) -> int:
    """The place of a row that is not held out."""
    return next(number for number, row in enumerate(rows) if not home.held_out(example_fingerprint(row)))


def test_a_text_names_file_place_and_the_versions_that_learnt_it(home: Watched, ask: Ask) -> None:
    place = trained(home, [{"text": passage(seed)} for seed in range(20)])
    code, found = ask(f"  {passage(place)}\n")
    [hit] = found["exact"]
    assert (code, hit["file"], hit["ordinal"], found["near"]) == (0, "tales.jsonl", place, [])
    [version] = hit["versions"]
    assert version["objective"] == "pretrain" and version["active_in"] == ["policy"] and version["state"] == "sealed"


def test_a_row_is_taken_by_what_it_holds_and_a_changed_one_is_never_seen(home: Watched, ask: Ask) -> None:
    place = trained(home, [chat(number) for number in range(20)])
    code, found = ask(json.dumps({**chat(place), "id": "not trained"}))
    assert (code, found["exact"][0]["file"], found["exact"][0]["ordinal"]) == (0, "chats.jsonl", place)
    code, found = ask(json.dumps(chat(place, "Another answer.")))
    assert (code, found["found"]) == (4, False)
    assert ask(json.dumps(text(1)))[0] == 4


def test_a_held_out_row_is_stored_and_learnt_by_nobody(home: Watched, ask: Ask) -> None:
    place = next(number for number in range(20) if home.held_out(example_fingerprint({"text": passage(number)})))
    [hit] = ask(passage(place))[1]["exact"]
    assert hit["versions"] == []


def test_near_finds_a_changed_text_and_says_how_alike_it_is(home: Watched, ask: Ask) -> None:
    assert ask(changed(passage(3)))[0] == 4
    code, found = ask(changed(passage(3)), "--near")
    [hit] = found["near"]
    assert (code, hit["ordinal"], found["exact"]) == (0, 3, []) and 0.8 <= hit["similarity"] < 1
    # What is the very same is told once, as such.
    found = ask(passage(3), "--near")[1]
    assert [item["ordinal"] for item in found["exact"]] == [3] and found["near"] == []


def test_the_answer_is_the_same_with_and_without_the_index(home: Watched) -> None:
    asked = [examples_meant(passage(seed)) for seed in (2, 5)] + [examples_meant(changed(passage(4)))]
    before = [seen(home.toy.keeper, examples, least=0.8) for examples in asked]
    drain(keep_index_steps(home.toy.keeper))
    drain(keep_near_steps(home.toy.keeper, all_of_it=True))
    assert [seen(home.toy.keeper, examples, least=0.8) for examples in asked] == before
    assert any(item["near"] for item in before)
    home.toy.keeper.memory.clear()  # the home lives on, the maps of its indexes do not


def test_a_rolled_back_version_is_named_and_active_nowhere(tmp_path: Path) -> None:
    home = Watched(tmp_path)
    home.drop("a.jsonl", [text(number) for number in range(30)])
    perform(home.toy.engine, "rollback", {"version": "v001", "line": "policy", "reason": "a try"})
    place = trained(home, [text(number) for number in range(30)])
    [hit] = seen(home.toy.keeper, examples_meant(text(place)["text"]))["exact"]
    assert [version["active_in"] for version in hit["versions"]] == [[]]


def test_what_was_typed_becomes_examples() -> None:
    assert examples_meant('{"other": 1}') == [{"text": '{"other": 1}'}] and examples_meant("[1]") == [{"text": "[1]"}]
    both = examples_meant(json.dumps({"text": "a tale", **chat(1)}))
    assert sorted(sorted(fields) for fields in both) == [["messages"], ["text"]]
    for wrong in (" \n", '{"text": 3}', '{"messages": []}'):
        with pytest.raises(UsageError):
            examples_meant(wrong)
    paragraphs = "\n\n".join(passage(seed, 300) for seed in range(30))
    assert len(examples_meant(paragraphs)) > 2


def test_standard_input_is_read_and_must_be_text(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, code in ((passage(3).encode(), 0), (b"\xff\xfe", 2), (b"", 2)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert ask("-")[0] == code


def test_a_person_reads_the_same(home: Watched, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["--home", str(home.toy.home.root), "seen", changed(passage(3)), "--near"]) == 0
    out = capfdbinary.readouterr().out.decode()
    assert "Resembling: tales.jsonl" in out and "alike" in out
    assert main(["--home", str(home.toy.home.root), "seen", "never"]) == 4
    assert "Never seen" in capfdbinary.readouterr().out.decode()


def test_an_untouchable_set_that_is_resembled_is_told(tmp_path: Path) -> None:
    from daemon.story import tell_story

    home = Watched(tmp_path)
    home.register("exam.jsonl", [{"text": passage(seed)} for seed in range(5)])
    home.drop("data.jsonl", [{"text": changed(passage(seed))} for seed in range(5)])
    [report] = tell_story(home.toy.keeper, "data.jsonl", Path(os.sep))["near"]
    assert (report["alike"], report["resembles"][0]["name"], report["resembles"][0]["evaluation"]) == (5, "exam.jsonl", True)
    assert len(home.all_fed) >= 3
