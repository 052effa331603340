"""`heirloom seen` says what it could not ask, answers many rows row by row, and knows documents and untouchable rows."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_help import Watched, chat, jsonl
from test_daemon_near import changed, passage, rows, sha_of
from toy import Toy

from daemon.cli.main import main
from daemon.doctor import examine
from guard.steps import drain
from guard.store.glance import lost_things
from guard.store.known import keep_index_steps, open_index
from guard.store.near import near_folder, near_hits, signature_folder
from guard.store.near_keep import keep_near_steps

Ask = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "home", backup__auto=False)


@pytest.fixture
def ask(toy: Toy, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Ask:
    def run(text: str, *words: str) -> tuple[int, dict[str, Any], str]:
        told = []
        for more in ((*words, "--json"), words):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            code = main(["--home", str(toy.home.root), "seen", "-", *more])
            told.append(capfdbinary.readouterr().out.decode())
        return code, json.loads(told[0]), told[1]

    return run


def fill(toy: Toy) -> None:
    for name, start in (("a.jsonl", 0), ("b.jsonl", 50)):
        toy.drop(name, rows([passage(start + seed) for seed in range(5)]))
    toy.settle()


def test_a_text_is_never_called_unseen_while_files_cannot_be_asked(toy: Toy, ask: Ask) -> None:
    fill(toy)
    assert ask(passage(99), "--near")[0] == 4 and ask(passage(99), "--near")[1]["unasked"] == 0
    (signature_folder(toy.home) / f"{sha_of(toy, 'a.jsonl')}.mh").unlink()
    code, found, out = ask(changed(passage(3)), "--near")
    assert (code, found["unasked"], found["unasked_lost"]) == (8, 1, 1)
    assert "Never seen" not in out and "1 file could not be asked" in out and "heirloom run" in out
    shutil.rmtree(near_folder(toy.home))
    code, found, out = ask(passage(99), "--near")
    assert (code, found["unasked"]) == (8, 2) and "2 files could not be asked" in out
    # What is stored as it is, is found all the same, with the same remark.
    code, found, out = ask(passage(3), "--near")
    assert code == 0 and found["exact"] and "2 files could not be asked" in out
    assert ask(passage(99))[0] == 4  # without --near nobody was to be asked


def test_damaged_signatures_and_a_covered_file_count_as_unasked(toy: Toy, ask: Ask) -> None:
    fill(toy)
    drain(keep_near_steps(toy.keeper, all_of_it=True))
    path = signature_folder(toy.home) / f"{sha_of(toy, 'a.jsonl')}.mh"
    path.write_bytes(path.read_bytes()[:-1])
    code, found, _out = ask(changed(passage(3)), "--near")
    assert (code, found["unasked"], found["unasked_lost"]) == (8, 1, 1)
    assert ask(passage(99), "--near")[0] == 4  # its sketches were asked: there is no doubt


def test_files_that_nobody_looked_at_yet_are_told_as_such(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    toy = Toy(tmp_path / "home", backup__auto=False, near__policy="off")
    fill(toy)
    assert main(["--home", str(toy.home.root), "seen", changed(passage(3)), "--near"]) == 3
    assert "not looked at for near-duplicates yet" in capfdbinary.readouterr().out.decode()


@pytest.mark.parametrize("place", ["near", "near/signatures", "known"])
def test_a_file_in_the_place_of_derived_data_is_told_moved_aside_and_made_good(toy: Toy, ask: Ask, place: str) -> None:
    fill(toy)
    drain(keep_index_steps(toy.keeper))
    path = toy.home.data / place
    shutil.rmtree(path)
    path.write_text("mine")
    assert any(place in lost.what and not lost.damage for lost in lost_things(toy.keeper))
    [check] = [check for check in examine(toy.home) if check.name == "Indexes of examples"]
    assert check.ok is False and place in check.detail and "heirloom run" in check.remedy
    code = ask(passage(99), "--near")[0]
    assert code == (4 if place == "known" else 8) and ask(passage(3))[0] == 0
    toy.again().settle()
    assert path.is_dir() and path.with_name(f"{path.name}.damaged-1").read_text() == "mine"
    assert lost_things(toy.keeper) == [] and ask(passage(99), "--near")[0] == 4
    assert [hit["file"] for hit in near_hits(toy.keeper, [changed(passage(3))], 0.8)] == ["a.jsonl"]
    drain(keep_index_steps(toy.keeper))
    assert len(open_index(toy.keeper).covered) == 2
    toy.again().settle()
    assert path.with_name(f"{path.name}.damaged-1").read_text() == "mine"  # and it stays there


def test_a_folder_in_the_place_of_a_file_is_moved_aside_too(toy: Toy) -> None:
    fill(toy)
    drain(keep_near_steps(toy.keeper, all_of_it=True))
    for path in (near_folder(toy.home) / "index.json", signature_folder(toy.home) / f"{sha_of(toy, 'a.jsonl')}.mh"):
        path.unlink()
        (path / "mine").mkdir(parents=True)
        toy.again().settle()
        drain(keep_near_steps(toy.keeper, all_of_it=True))
        assert path.is_file() and (path.with_name(f"{path.name}.damaged-1") / "mine").is_dir()
    assert [hit["file"] for hit in near_hits(toy.keeper, [changed(passage(3))], 0.8)] == ["a.jsonl"]


def test_damage_at_rest_is_found_at_the_start_and_made_again(toy: Toy) -> None:
    fill(toy)
    drain(keep_near_steps(toy.keeper, all_of_it=True))
    path = signature_folder(toy.home) / f"{sha_of(toy, 'a.jsonl')}.mh"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"?" + whole[101:])
    [folder] = (item for item in near_folder(toy.home).iterdir() if item.name.isdigit())
    column = folder / "columns.bin"
    column.write_bytes(b"?" * 8 + column.read_bytes()[8:])
    toy.again().settle()
    assert path.read_bytes() == whole
    told = toy.keeper.ledger.row("SELECT payload FROM events WHERE verb = 'near.damaged'")
    assert told is not None and json.loads(told[0]) == {"files": 1, "folders": [folder.name]}


def test_many_rows_are_answered_row_by_row(toy: Toy, ask: Ask) -> None:
    fill(toy)
    asked = rows([passage(1), passage(777), changed(passage(2))]) + "\n{broken\n" + '{"text": 3}\n' + rows([passage(51)])
    code, found, out = ask(asked, "--near")
    told = found["rows"]
    assert (code, found["taken_as"], told["total"], told["seen"], told["unseen"], told["unusable"]) == (0, "rows", 6, 2, 2, 2)
    assert told["unseen_lines"] == [2, 3] and [item["line"] for item in told["unusable_lines"]] == [5, 6]
    assert [(item["asked_line"], item["file"], item["line"]) for item in found["exact"]] == [(1, "a.jsonl", 2), (7, "b.jsonl", 2)]
    assert [(item["asked_line"], item["number"]) for item in found["near"]] == [(3, 3)] and told["resembling"] == 1
    assert "2 of 6 rows are stored, 2 never seen, 2 could not be trained on." in out and "Never seen: lines 2, 3" in out
    assert "1 row in a.jsonl" in out and "Line 5: it begins with { and is not JSON" in out
    assert ask(rows([passage(800), passage(801)]))[0] == 4


def test_a_broken_row_is_said_to_be_asked_as_text(toy: Toy, ask: Ask) -> None:
    toy.drop("braces.jsonl", rows(['{"text": "half of a row']))
    toy.settle()
    code, found, out = ask('{"text": "half of a row')
    assert (code, found["taken_as"]) == (0, "text") and "is not JSON" in found["notes"][0] and "line 1, column" in out
    assert "without text or messages" in ask('{"other": 1}')[2] and ask("plain")[1]["notes"] == []


def test_places_are_counted_from_one_and_lines_as_they_stand_in_the_file(toy: Toy, ask: Ask) -> None:
    toy.drop("gaps.jsonl", "\n" + rows([passage(1)]) + "\n\n" + rows([passage(2)]))
    toy.drop("pretrain/tale.txt", "\n\n".join(passage(seed, 200) for seed in range(10, 20)))
    toy.settle()
    _code, found, out = ask(passage(2))
    assert [(hit["ordinal"], hit["number"], hit["line"]) for hit in found["exact"]] == [(1, 2, 5)]
    assert "gaps.jsonl" in out and "example 2, line 5" in out
    stored = (toy.home.files / sha_of(toy, "tale.txt") / "tale.txt").read_text()
    _code, found, _out = ask(stored)
    first, second = found["exact"][:2]
    assert (first["number"], first["line"], second["number"]) == (1, 1, 2) and second["line"] > 1


def test_a_stored_document_is_seen_whole_and_by_a_passage(toy: Toy, ask: Ask) -> None:
    text = "A title\n\nThe lighthouse keeper counts his eggs before dawn.\r\nEvery day.\n"
    toy.drop("guide.md", text)
    toy.settle()
    for asked in (text, text.rstrip("\n")):
        code, found, out = ask(asked)
        [item] = found["documents"]
        assert (code, item["file"], item["whole"], item["line"], item["current"]) == (0, "guide.md", True, 1, True)
        assert "the document guide.md" in out and "searched, not learnt" in out
    code, found, out = ask("The lighthouse keeper counts his eggs before dawn.\nEvery day.")
    assert (code, found["documents"][0]["line"], found["documents"][0]["whole"]) == (0, 3, False) and "holds it, line 3" in out
    assert ask("A title")[0] == 4 and ask("The lighthouse keeper counts his hens before dawn.")[0] == 4


def test_an_untouchable_row_names_its_set(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    home = Watched(tmp_path)
    home.register("exam.jsonl", [chat(number) for number in range(5)])

    def run(row: str) -> tuple[int, dict[str, Any]]:
        code = main(["--home", str(home.toy.home.root), "seen", row, "--json"])
        return code, json.loads(capfdbinary.readouterr().out)

    assert [item["name"] for item in run(json.dumps(chat(1)))[1]["untouchable"]] == ["exam.jsonl"]
    # Another answer to the same question stands nowhere, and is kept out all the same.
    code, found = run(json.dumps(chat(1, "Another answer.")))
    assert (code, found["found"], [item["name"] for item in found["untouchable"]]) == (4, False, ["exam.jsonl"])
    assert run(json.dumps(chat(9)))[1]["untouchable"] == []
    assert main(["--home", str(home.toy.home.root), "seen", json.dumps(chat(1))]) == 0
    assert "in the evaluation set exam.jsonl: never trained" in capfdbinary.readouterr().out.decode()
    assert "exam.jsonl" in [item["name"] for item in run(jsonl([chat(1), chat(50)]))[1]["untouchable"]]
