"""`heirloom eval` by held-out sets, on a home whose versions were really trained: figures, limits, refusals, what is kept.

Not here: questions and their answers (`test_daemon_eval_questions.py`).
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from toy import Toy

pytest.importorskip("torch")

from eval_help import Row, _home, _trained, chat, jsonl, rows_of, run  # noqa: F401 - fixtures

from daemon import evaluating
from daemon.cli.main import main
from daemon.operations import perform
from guard.durable import remove_tree
from guard.errors import Busy, CheckFailed, NotFound, UsageError
from guard.store.evaluations import evaluations_of, record_all
from guard.store.rebuild import rebuild
from guard.store.versions import find_version

# --- figures --------------------------------------------------------------------------------------------------------


def test_held_out_rows_of_the_whole_ancestry_are_judged_kept_and_shown(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(home, capsys)
    assert found["version"] == "v003_tale" and found["ok"] and found["recorded"]
    assert [item["name"].split()[0] for item in found["sets"]] == ["tale.jsonl", "eggs.jsonl"]
    for item in found["sets"]:
        figures = item["figures"]
        assert 0 < figures["loss"] < 7 and figures["examples"] > 5 and figures["trained_examples"] == 0
        low, high = figures["loss_interval"]
        assert low < figures["loss"] < high and item["recorded_before"] is None
    again = run(home, capsys, "v003")
    assert [item["figures"] for item in again["sets"]] == [item["figures"] for item in found["sets"]]
    assert all(item["recorded_before"] for item in again["sets"]) and len(rows_of(home)) == 2
    main(["show", "v003", "--home", str(home), "--json"])
    assert [item["figures"] for item in json.loads(capsys.readouterr().out)["evaluations"]] == [
        item["figures"] for item in found["sets"]]  # fmt: skip
    main(["show", "v003", "--home", str(home)])
    assert "bits per byte" in capsys.readouterr().out


def test_pruned_shards_are_read_from_the_originals_and_give_the_same_figures(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(home, capsys)
    for folder in (home / "data" / "shards").iterdir():
        remove_tree(folder)
    again = run(home, capsys, "--again")
    for before, after in zip(found["sets"], again["sets"], strict=True):
        assert after["figures"]["loss"] == pytest.approx(before["figures"]["loss"], rel=1e-5)
        assert after["figures"]["examples"] == before["figures"]["examples"]


def test_what_cannot_be_read_again_is_told_and_the_others_are_judged(home: Path, capsys: pytest.CaptureFixture[str],
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from daemon import eval_sets

    real = eval_sets._from_originals
    monkeypatch.setattr(eval_sets, "_from_originals",
                        lambda keeper, files, *more: None if files[0].name == "eggs.jsonl" else real(keeper, files, *more))
    for folder in (home / "data" / "shards").iterdir():
        remove_tree(folder)
    tale, eggs = run(home, capsys)["sets"]
    assert tale["figures"] and eggs["figures"] is None and "shards are gone" in eggs["problem"]


def test_a_file_by_hand_is_judged_and_rows_that_were_trained_are_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [chat(number) for number in range(5)] + [chat(number) for number in range(900, 910)]
    found = run(home, capsys, "--set", jsonl(tmp_path / "mixed.jsonl", rows))["sets"]
    assert [item["name"] for item in found] == ["mixed.jsonl"]
    figures = found[0]["figures"]
    assert figures["examples"] == 15 and 1 <= figures["trained_examples"] <= 5
    base = run(home, capsys, "v001", "--set", tmp_path / "mixed.jsonl")["sets"][0]["figures"]
    assert base["trained_examples"] == 0 and base["loss"] != figures["loss"]
    (tmp_path / "words.txt").write_text("a tale of lines\n" * 50)
    assert run(home, capsys, "--set", tmp_path / "words.txt")["sets"][0]["figures"]["text_bytes"] == 16 * 50 - 1
    stored = run(home, capsys, "v001", "--set", "tale.jsonl")["sets"][0]
    assert stored["origin"] == "stored file" and stored["figures"]["examples"] == 80


def test_two_versions_are_compared_example_by_example(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(home, capsys, "v003", "--vs", "v001")
    tale = found["sets"][0]
    assert tale["comparison"]["loss"] == pytest.approx(tale["figures"]["loss"] - tale["vs"]["loss"])
    low, high = tale["comparison"]["loss_interval"]
    wanted = "better" if high < 0 else "worse" if low > 0 else "no difference seen"
    assert tale["comparison"]["verdict"] == wanted == "better"
    assert [row[0] for row in rows_of(home)] == ["loss", "loss", "comparison"] * 2
    kept = run(home, capsys, "v003", "--vs", "v001")
    assert kept["sets"][0]["comparison"] == tale["comparison"] and kept["sets"][0]["recorded_before"]
    other = run(home, capsys, "v001", "--vs", "v003", "--set", "tale.jsonl")["sets"][0]
    assert other["comparison"]["verdict"] == "worse"


def test_a_registered_evaluation_set_is_judged_by_unasked(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exam = jsonl(tmp_path / "exam.jsonl", [chat(number) for number in range(500, 520)])
    assert main(["register", str(exam), "--untouchable", "--home", str(home), "-q"]) == 0
    found = [item for item in run(home, capsys)["sets"] if item["origin"] == "evaluation set"]
    assert [item["name"] for item in found] == ["exam.jsonl"] and found[0]["figures"]["examples"] == 20


# --- limits and refusals --------------------------------------------------------------------------------------------


def test_limits_end_with_three_and_what_was_not_measured_keeps_none(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, capsys, "--max-perplexity", "1e6", "--max-bits-per-byte", "50")["ok"]
    found = run(home, capsys, "--max-perplexity", "1.01", code=3)
    assert len(found["failed"]) == 2 and len(rows_of(home)) == 2
    found = run(home, capsys, "v001", "--max-perplexity", "1e6", code=3)
    assert found["failed"] == ["perplexity: nothing was measured"] and not found["sets"]


@pytest.mark.parametrize(("words", "code"), [
    (["v009"], 4), (["--set", "nothing.txt"], 4), (["--questions", "nothing.jsonl"], 4), (["v003", "--vs", "v003"], 2),
    (["--min-accuracy", "0.5"], 2), (["--max-perplexity", "nan"], 2), (["--min-accuracy", "nan"], 2),
    (["--temperature", "nan"], 2), (["--temperature", "inf"], 2), (["--temperature", "1e-320"], 2),
    (["--match", "fuzzy"], 2), (["--set", "."], 2),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused_with_its_code(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int
) -> None:
    told = run(home, capsys, *words, code=code)
    assert told["exit_code"] == code and told["hint"] and rows_of(home) == []


def test_odd_files_are_refused_and_nothing_is_left(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "noise.jsonl").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1") * 99)
    (tmp_path / "bad.txt.gz").write_bytes(b"\x1f\x8bnot really")
    jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a?", "chosen": "b", "rejected": "c"}] * 3)
    jsonl(tmp_path / "ids.jsonl", [{"input_ids": [1, 2, 3]}])
    for name, code in (("empty.jsonl", 2), ("noise.jsonl", 3), ("latin.txt", 3), ("bad.txt.gz", 3), ("pairs.jsonl", 2),
                       ("ids.jsonl", 3)):  # fmt: skip
        run(home, capsys, "--set", tmp_path / name, code=code)
    run(home, capsys, "--questions", tmp_path / "noise.jsonl", code=3)
    run(home, capsys, "--questions", tmp_path / "latin.txt", code=2)
    assert rows_of(home) == []


def test_a_damaged_version_and_another_tokenizer_or_template_are_not_judged(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from daemon import loaded

    base = home / "models" / "v001_baseline"
    hashes = {"tokenizer_hash": json.loads((base / "tokenizer_state.json").read_text())["content_hash"]}
    assert loaded.load_sealed(base, hashes)  # one of an earlier release says no template
    for wrong in ({**hashes, "template_hash": "ab" * 32}, {"tokenizer_hash": "ab" * 32}, {}):
        with pytest.raises(CheckFailed, match="template" if "template_hash" in wrong else "tokenizer"):
            loaded.load_sealed(base, wrong)
    path = home / "models" / "v003_tale" / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    assert run(home, capsys, code=8)["error"] == "Damage"


def test_a_dry_run_says_what_it_would_judge_by_and_changes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(home, capsys, "--dry-run")
    assert found["dry_run"] and [item["kind"] for item in found["items"]] == ["loss", "loss"] and rows_of(home) == []


def test_a_file_that_changes_meanwhile_gives_no_result(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl(tmp_path / "mine.jsonl", [chat(number) for number in range(3)])
    real = evaluating.finish
    monkeypatch.setattr(evaluating, "_measure_version", lambda *_: (path.write_text("{}"), "x")[1])
    monkeypatch.setattr(evaluating, "finish", lambda *_more, **_words: pytest.fail(f"{real} was reached"))
    assert "changed while it was read" in run(home, capsys, "--set", path, code=3)["message"]
    assert rows_of(home) == []


def test_figures_are_told_even_when_they_cannot_be_kept(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from daemon.cli.caller import Caller

    def busy(*_: object) -> None:
        raise Busy("somebody holds the lock", hint="wait")

    monkeypatch.setattr(Caller, "call", busy)
    found = run(home, capsys, code=11)
    assert found["sets"][0]["figures"]["loss"] and not found["recorded"] and found["problem"]["error"] == "Busy"
    assert rows_of(home) == []


# --- the ledger -----------------------------------------------------------------------------------------------------


def _result(home: Path, **changes: Any) -> Row:
    with sqlite3.connect(f"file:{home}/data/ledger.db?mode=ro", uri=True) as database:
        sums = database.execute("SELECT sums_sha256 FROM versions WHERE name = 'v003_tale'").fetchone()[0]
    database.close()
    return {"version": "v003_tale", "kind": "loss", "set_name": "a.txt", "set_id": "ab" * 32, "options": {"max_tokens": 5},
            "figures": {"loss": 1.5}, "made_with": {"threads": 1}, "sums_sha256": sums, **changes}  # fmt: skip


def test_a_result_is_kept_once_with_its_event_and_comes_back_with_a_rebuilt_ledger(home: Path) -> None:
    toy = Toy(home)
    item = _result(home)
    first = perform(toy.engine, "evaluation.record", {"results": [item]})["ids"]
    assert perform(toy.engine, "evaluation.record", {"results": [item]})["ids"] == first
    second = perform(toy.engine, "evaluation.record", {"results": [{**item, "figures": {"loss": 1.25}}]})["ids"]
    assert second != first
    assert toy.keeper.ledger.value("SELECT count(*) FROM events WHERE verb = 'evaluation.measured'") == 2
    number = find_version(toy.keeper.ledger, "v003").id
    before = evaluations_of(toy.keeper.ledger, number)
    assert [row["figures"]["loss"] for row in before] == [1.5, 1.25]
    toy.die()
    (home / "data" / "ledger.db").write_bytes(b"gone")
    assert rebuild(toy.home, clock=toy.clock, actor="test")["rebuilt"]
    toy.begin()
    assert evaluations_of(toy.keeper.ledger, number) == before and not toy.keeper.ledger.changed_tables()


@pytest.mark.parametrize("changes", [
    {"figures": {"loss": float("nan")}}, {"kind": "wish"}, {"set_id": ""}, {"options": []}, {"figures": {"text": "x" * 300_000}},
])  # fmt: skip
def test_what_is_no_result_is_not_kept(home: Path, changes: Row) -> None:
    toy = Toy(home)
    with pytest.raises(UsageError):
        perform(toy.engine, "evaluation.record", {"results": [_result(home), _result(home, **changes)]})
    assert rows_of(home) == []


def test_results_of_other_weights_or_of_nobody_are_refused(home: Path) -> None:
    toy = Toy(home)
    with pytest.raises(CheckFailed, match="not the version"):
        record_all(toy.keeper, [_result(home, sums_sha256="cd" * 32)])
    with pytest.raises(NotFound):
        record_all(toy.keeper, [_result(home, version="v044_none")])
    assert record_all(toy.keeper, [_result(home)], dry_run=True) == [] == rows_of(home)


def test_a_ledger_older_than_results_is_read_as_one_without_any(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from guard.store.schema import SCHEMA_VERSION, STEPS

    number = next(place for place, step in enumerate(STEPS) if "CREATE TABLE evaluations" in step)
    with sqlite3.connect(home / "data" / "ledger.db") as database:
        database.executescript(f"DROP TABLE evaluations; DROP TABLE held_out_losses; PRAGMA user_version = {number}")
        database.execute("DELETE FROM meta WHERE key IN ('digest:evaluations', 'digest:held_out_losses')")
    database.close()
    (home / "data" / "ledger.db.closed").unlink(missing_ok=True)
    main(["show", "v003", "--home", str(home), "--json"])
    assert json.loads(capsys.readouterr().out)["evaluations"] == []
    assert run(home, capsys, "--dry-run")["items"], "planning an evaluation only reads, and meets no damage"
    toy = Toy(home)
    assert toy.keeper.ledger.value("PRAGMA user_version") == SCHEMA_VERSION
    record_all(toy.keeper, [_result(home)])
    assert len(rows_of(home)) == 1
