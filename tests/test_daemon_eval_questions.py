"""`heirloom eval --questions`: answers are judged, contamination is told, bad rows are told by line and left out when asked.

On a home whose versions were really trained. Not here: held-out sets, limits, refusals and what is kept
(`test_daemon_eval.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy import Toy

pytest.importorskip("torch")

from eval_help import LONG, Row, _home, _trained, chat, jsonl, run  # noqa: F401 - fixtures

from guard.store.contamination import questions_asked, trained_rows
from guard.store.versions import find_version
from guard.untouchable import question_key


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


def test_a_question_is_found_in_another_conversation_whatever_was_answered(home: Path) -> None:
    toy = Toy(home)
    number = find_version(toy.keeper.ledger, "v003").id
    keys = [question_key(f"{LONG} {day}?") for day in range(40)] + [question_key("who?"), question_key(f"{LONG} 99?")]
    found, unread = questions_asked(toy.keeper, number, keys)
    assert unread == 0 and 20 <= sum(found[:40]) < 40 and found[40:] == [False, False]
    assert questions_asked(toy.keeper, find_version(toy.keeper.ledger, "v001").id, keys)[0] == [False] * 42
    assert trained_rows(toy.keeper, number, []) == [] and trained_rows(toy.keeper, number, [[], [b"x" * 16]]) == [False, False]
