"""`heirloom eval` on a home whose versions were really trained: figures, questions, what is kept and told, refusals."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from homes import copy_home
from toy import RECIPE, Toy, ToyServer, chat_of

torch = pytest.importorskip("torch")

from daemon import evaluating  # noqa: E402
from daemon.cli.main import main  # noqa: E402
from daemon.operations import perform  # noqa: E402
from guard.durable import remove_tree  # noqa: E402
from guard.errors import Busy, CheckFailed, NotFound, UsageError  # noqa: E402
from guard.store.contamination import questions_asked, trained_rows  # noqa: E402
from guard.store.evaluations import evaluations_of, record_all  # noqa: E402
from guard.store.jobs import add_job  # noqa: E402
from guard.store.rebuild import rebuild  # noqa: E402
from guard.store.versions import find_version  # noqa: E402
from guard.untouchable import question_key  # noqa: E402
from trainer.hardware import set_environment  # noqa: E402
from trainer.train_job import run_base, run_train  # noqa: E402

set_environment()
LONG = "How many eggs does the keeper of the old orchard collect on day"
Row = dict[str, Any]


def chat(number: int, answer: str = "") -> Row:
    return {"messages": [{"role": "user", "content": f"{LONG} {number}?"},
                         {"role": "assistant", "content": answer or f"It is {number * 7}."}]}  # fmt: skip


def jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


class _Real(ToyServer):
    """Trains with the real trainer, in place."""

    def _base(self, job: dict[str, Any]) -> None:
        run_base(job)

    def _train(self, job: dict[str, Any]) -> None:
        run_train(job)


@pytest.fixture(scope="module")
def trained(shared_scratch: Path) -> Path:
    """v001 (base), v002 (40 conversations, 100 short sums), v003 (text): each really trained, 16 wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEIRLOOM_VALIDATION__FRACTION", "0.2")
        toy = Toy(shared_scratch / "trained", backup__auto=False, validation__fraction=0.2, gate="off")
    toy.server = toy.engine.runner.server = _Real(toy.engine.runner._exited)  # type: ignore[assignment]
    with toy.keeper.ledger.transaction():
        recipe = {**RECIPE, "model": {**RECIPE["model"], "block_size": 256}}  # type: ignore[dict-item]
        add_job(toy.keeper.ledger, kind="base", stage="base", line="policy", slug="baseline",
                request={"recipe": recipe, "tokenization": "char", "origin": "init"})  # fmt: skip
    toy.settle()
    toy.drop("eggs.jsonl", "".join(json.dumps(chat(number)) + "\n" for number in range(40)) + chat_of(100))
    toy.settle()
    toy.drop("pretrain/tale.jsonl", "".join(json.dumps({"text": f"line {n} of a tale"}) + "\n" for n in range(80)))
    toy.settle()
    assert list(toy.versions()) == ["v001_baseline", "v002_eggs", "v003_tale"], toy.jobs()
    toy.die()
    return shared_scratch / "trained"


@pytest.fixture
def home(trained: Path, scratch: Path) -> Path:
    return copy_home(trained, scratch / "home")


def run(home: Path, capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Row:
    capsys.readouterr()
    found = main(["eval", *map(str, words), "--home", str(home), "--json", "--threads", "1"])
    told = json.loads(capsys.readouterr().out)
    assert found == code, told
    return told


def rows_of(home: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{home}/data/ledger.db?mode=ro", uri=True) as database:
        found = database.execute("SELECT kind, set_name, figures FROM evaluations ORDER BY id").fetchall()
    database.close()
    return found


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


# --- questions ------------------------------------------------------------------------------------------------------


def test_questions_are_answered_judged_and_contamination_is_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [chat(number) for number in range(10)]
    rows += [{"question": f"{LONG} {number}?", "answer": "never said"} for number in range(10, 20)]
    rows += [{"prompt": f"is {number} prime?", "answer": "yes", "match": "contains", "max_tokens": 3} for number in range(5)]
    path = jsonl(tmp_path / "quiz.jsonl", rows)
    found = run(home, capsys, "--questions", path, "--max-new-tokens", 8, "--show", 30)
    assert not found["sets"]
    quiz = found["questions"][0]
    figures = quiz["figures"]
    assert figures["questions"] == 25 and figures["right"] == 25 - len(quiz["wrong"])
    held = sum(1 for row in run(home, capsys, "v003")["sets"] if row["name"].startswith("eggs"))
    assert held == 1 and 10 <= figures["trained_questions"] <= 20  # a fifth of the conversations was held out
    assert figures["untrained"]["questions"] == 25 - figures["trained_questions"]
    assert quiz["wrong"][0]["line"] == 1 and quiz["wrong"][0]["expected"] == ["It is 0."]
    base = run(home, capsys, "v001", "--questions", path, "--max-new-tokens", 2)["questions"][0]
    assert base["figures"]["trained_questions"] == 0
    kept = run(home, capsys, "--questions", path, "--max-new-tokens", 8)["questions"][0]
    assert kept["recorded_before"] and kept["figures"] == figures


def test_a_model_that_knows_the_answer_is_right(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from trainer import answering

    def knows(_model: Any, _tokenizer: Any, _template: Any, prompts: Any, *_more: Any, **_words: Any) -> list[Any]:
        return [answering.Answer("so it is\n#### 1,000", 5) if "even" in prompt["messages"][-1]["content"] else
                answering.Answer("#### 7", 5) for prompt in prompts]  # fmt: skip

    monkeypatch.setattr(answering, "answer_all", knows)
    rows = [{"question": f"even {n}?" if n % 2 == 0 else f"odd {n}?", "answer": "#### 1000"} for n in range(20)]
    path = jsonl(tmp_path / "quiz.jsonl", rows)
    found = run(home, capsys, "--questions", path, "--min-accuracy", "0.5")
    assert found["questions"][0]["figures"]["accuracy"] == 0.5 and found["ok"]
    found = run(home, capsys, "--questions", path, "--min-accuracy", "0.51", code=3)
    assert not found["ok"] and "accuracy 0.5" in found["failed"][0]
    both = run(home, capsys, "--vs", "v001", "--questions", path)["questions"][0]["comparison"]
    assert (both["only_first"], both["p"], both["verdict"]) == (0, 1.0, "no difference seen")


def test_bad_rows_are_told_by_line_and_left_out_only_when_asked(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "quiz.csv"
    path.write_text("question,answer,match\n2+2?,4,exact\n3+3?,,exact\n4+4?,eight,numeric\n")
    refused = run(home, capsys, "--questions", path, code=3)
    assert refused["error"] == "DataFault" and "line 3: answer" in refused["message"] and "line 4: answer" in refused["message"]
    found = run(home, capsys, "--questions", path, "--skip-bad-rows", "--max-new-tokens", 2)["questions"][0]
    assert found["figures"]["questions"] == 1 and found["figures"]["bad_rows"] == 2 and len(found["notes"]) == 2
    first = run(home, capsys, "--questions", path, "--limit", 1, "--max-new-tokens", 2)["questions"][0]
    assert first["figures"]["questions"] == 1 and not first["figures"]["bad_rows"]


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


def test_a_question_is_found_in_another_conversation_whatever_was_answered(home: Path) -> None:
    toy = Toy(home)
    number = find_version(toy.keeper.ledger, "v003").id
    keys = [question_key(f"{LONG} {day}?") for day in range(40)] + [question_key("who?"), question_key(f"{LONG} 99?")]
    found, unread = questions_asked(toy.keeper, number, keys)
    assert unread == 0 and 20 <= sum(found[:40]) < 40 and found[40:] == [False, False]
    assert questions_asked(toy.keeper, find_version(toy.keeper.ledger, "v001").id, keys)[0] == [False] * 42
    assert trained_rows(toy.keeper, number, []) == [] and trained_rows(toy.keeper, number, [[], [b"x" * 16]]) == [False, False]
