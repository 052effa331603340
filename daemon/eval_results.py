"""From what was measured to results: shares of right answers, what was trained, how two versions compare, rows for the ledger.

Not here: measuring (`evaluating.py`) and the formulas (`trainer/comparing.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daemon.eval_plan import EvalItem, EvalPlan, against
from daemon.eval_questions import QuestionFile
from guard.checks.answers import is_right
from guard.store.contamination import questions_asked, trained_rows
from guard.store.keeper import open_reader
from guard.store.versions import Version
from guard.untouchable import evaluation_keys, question_key

__all__ = ["finish", "result_rows", "told_of"]

P_SURE = 0.05
"""So unlikely a split must be for a verdict."""


# --- results -------------------------------------------------------------------------------------------------------


def finish(plan: EvalPlan, items: Sequence[EvalItem], *, same_tokenizer: bool) -> None:
    """Turn answers into figures, tell what was trained, and compare two versions."""
    with open_reader(plan.home) as keeper:
        for item in items:
            if item.problem:
                item.raw, item.figures = [], []
                continue
            for number, version in enumerate(plan.versions):
                if item.questions is not None:
                    item.figures.append(_accuracy(keeper, version, item.questions, item))
                else:
                    trained = trained_rows(keeper, version.id, [[key] for key in item.raw[number].keys])
                    item.figures[number]["trained_examples"] = sum(trained)
            if len(plan.versions) == 2:
                item.comparison = _compare(item, same_tokenizer=same_tokenizer)


def _accuracy(keeper: Any, version: Version, file: QuestionFile, item: EvalItem) -> dict[str, Any]:
    from trainer.comparing import wilson

    answers = item.raw[len(item.figures)]
    right = _right(file, answers, item)
    trained, unread = _trained(keeper, version, file)
    clean = [hit for hit, known in zip(right, trained, strict=True) if not known]
    count = len(file.questions)
    return {"questions": count, "right": sum(right), "accuracy": sum(right) / count,
            "accuracy_interval": list(wilson(sum(right), count)), "unanswered": sum(bool(answer.problem) for answer in answers),
            "cut": sum(answer.cut for answer in answers), "bad_rows": file.bad_rows, "trained_questions": sum(trained),
            "unread_files": unread, "untrained": {"questions": len(clean), "right": sum(clean)},
            "tokens": sum(answer.tokens for answer in answers)}  # fmt: skip


def _right(file: QuestionFile, answers: Sequence[Any], item: EvalItem) -> list[bool]:
    return [not answer.problem and is_right(answer.text, question.expected, question.match,
                                            ignore_case=bool(item.options["ignore_case"]))
            for question, answer in zip(file.questions, answers, strict=True)]  # fmt: skip


def _trained(keeper: Any, version: Version, file: QuestionFile) -> tuple[list[bool], int]:
    """Which questions were learnt, as they stand, as text, or with another answer; and how many files were not looked into."""
    rows = [list(evaluation_keys(question.fields)) for question in file.questions]
    known = trained_rows(keeper, version.id, rows)
    asked, unread = questions_asked(keeper, version.id, [question_key(question.asked) for question in file.questions])
    return [a or b for a, b in zip(known, asked, strict=True)], unread


def _compare(item: EvalItem, *, same_tokenizer: bool) -> dict[str, Any]:
    if item.questions is None:
        from trainer.measuring import compare

        return compare(item.raw[0], item.raw[1], same_tokenizer=same_tokenizer)
    from trainer.comparing import sign_test

    first, second = (_right(item.questions, answers, item) for answers in item.raw)
    only_first, only_second, chance = sign_test(first, second)
    verdict = "no difference seen" if chance >= P_SURE else "better" if only_first > only_second else "worse"
    return {"questions": len(first), "only_first": only_first, "only_second": only_second, "p": chance,
            "difference": (sum(first) - sum(second)) / len(first), "verdict": verdict}  # fmt: skip


def result_rows(plan: EvalPlan, item: EvalItem, made_with: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the ledger is given of one set."""
    def row(version: Version, kind: str, options: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
        return {"version": version.name, "kind": kind, "set_name": item.name, "set_id": item.set_id, "options": dict(options),
                "figures": dict(figures), "made_with": dict(made_with), "sums_sha256": version.sums_sha256}  # fmt: skip

    found = [row(version, item.kind, item.options, figures)
             for version, figures in zip(plan.versions, item.figures, strict=True)]  # fmt: skip
    if item.comparison is not None:
        found.append(row(plan.versions[0], "comparison", against(item, plan.versions), item.comparison))
    return found


def told_of(item: EvalItem, versions: Sequence[Version], show: int) -> dict[str, Any]:
    empty: dict[str, Any] = {}
    figures = item.figures or [empty] * len(versions)
    told = {"name": item.name, "kind": item.kind, "set_id": item.set_id, **item.about, "options": item.options,
            "figures": figures[0] or None, "vs": (figures[1] or None) if len(versions) > 1 else None,
            "comparison": item.comparison, "recorded_before": item.created, "problem": item.problem,
            "notes": item.notes}  # fmt: skip
    if item.questions is not None and show and item.raw:
        told["wrong"] = _wrong(item, item.questions, show)
    return told


def _wrong(item: EvalItem, file: QuestionFile, show: int) -> list[dict[str, Any]]:
    """The first wrong answers of the version itself."""
    right = _right(file, item.raw[0], item)
    return [{"line": question.line, "id": question.name, "question": question.asked, "expected": list(question.expected),
             "match": question.match, "answer": answer.text, "problem": answer.problem, "cut": answer.cut}
            for question, answer, hit in zip(file.questions, item.raw[0], right, strict=True) if not hit][:show]  # fmt: skip
