"""The public data sets pairs come from: their ids on the hub, their splits, and how one row of each becomes pairs.

    hh-rlhf                     Anthropic/hh-rlhf: two transcripts a row (MIT)
    ultrafeedback-binarized     HuggingFaceH4/ultrafeedback_binarized: two lists of turns a row (MIT)
    stack-exchange-preferences  HuggingFaceH4/stack-exchange-preferences: a question and its scored answers (CC BY-SA 4.0)

Pure: a row in, pairs or a reason out. Where rows come from is `hub.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from guard.checks.rows import validate
from guard.errors import UsageError
from trainer.pairs.html_text import html_to_text

__all__ = ["PAIRS_PER_QUESTION", "RULES_VERSION", "SOURCES", "Source", "find_sources"]

RULES_VERSION = 1
"""Raised when the same row would become other pairs: a download that was begun under another version starts anew."""
PAIRS_PER_QUESTION = 3
"""Popular questions have hundreds of answers: without a bound a few of them would fill the budget."""

Found = list[dict[str, Any]] | str
"""The pairs of a row, or why there is none."""


@dataclass(frozen=True)
class Source:
    """One data set: its name here, its id on the hub, its splits by ours, and what its rows mean."""

    name: str
    repository: str
    splits: Mapping[str, tuple[str, ...]]
    """`train` or `test` -> the names it may have, the usual one first."""
    pairs_of: Callable[[Mapping[str, Any]], Found]


def _one_pair(row: Mapping[str, Any]) -> Found:
    fields = validate("preference", row)
    return [fields] if isinstance(fields, dict) else fields[0].reason


def _from_hh(row: Mapping[str, Any]) -> Found:
    """A row of hh-rlhf: the transcripts `chosen` and `rejected`, equal up to the last answer."""
    texts = _sides(row)
    if any(not isinstance(text, str) or not text.startswith("\n\nHuman:") for text in texts.values()):
        return r"is no transcript that begins with \n\nHuman:"
    return _one_pair(texts)


def _sides(row: Mapping[str, Any]) -> dict[str, Any]:
    """The two sides of a row without what else may stand in it; a column without a value is a missing one."""
    return {name: row[name] for name in ("chosen", "rejected") if row.get(name) is not None}


def _from_ultrafeedback(row: Mapping[str, Any]) -> Found:
    """A row of ultrafeedback: `chosen` and `rejected` are conversations; a rejected answer of the higher score is none."""
    high, low = row.get("score_chosen"), row.get("score_rejected")
    if isinstance(high, int | float) and isinstance(low, int | float) and high < low:
        return "score_chosen is below score_rejected"
    return _one_pair(_sides(row))


def _from_stack_exchange(row: Mapping[str, Any]) -> Found:
    """A question with answers: the best answer against each with a strictly lower `pm_score`, the lowest first.

    `pm_score` is log2(1 + votes), rounded, plus 1 for the accepted answer, -1 below zero votes (Askell et al. 2021, 4.1).
    Among equals the accepted one comes first, then the smaller `answer_id`; at most PAIRS_PER_QUESTION pairs.
    """
    question, answers = row.get("question"), row.get("answers")
    if not isinstance(question, str) or not isinstance(answers, list):
        return "Missing required field 'question' or 'answers'"
    scored = [item for item in answers if isinstance(item, Mapping) and isinstance(item.get("pm_score"), int)
              and isinstance(item.get("text"), str)]  # fmt: skip
    scored.sort(key=lambda item: (-item["pm_score"], not (item.get("selected") or item.get("is_selected")),
                                  item.get("answer_id") or 0))  # fmt: skip
    lower = [item for item in scored if item["pm_score"] < scored[0]["pm_score"]]
    if not lower:
        return "no two answers with different scores"
    lower.sort(key=lambda item: (item["pm_score"], item.get("answer_id") or 0))
    prompt, chosen = html_to_text(question), html_to_text(scored[0]["text"])
    prefix = {"messages": [{"role": "user", "content": prompt}]}
    found = [_one_pair({"prefix": prefix, "chosen": chosen, "rejected": html_to_text(item["text"])})
             for item in lower[:PAIRS_PER_QUESTION]]  # fmt: skip
    pairs = [pair for item in found if isinstance(item, list) for pair in item]
    return pairs or next(item for item in found if isinstance(item, str))


SOURCES = {source.name: source for source in (
    Source("hh-rlhf", "Anthropic/hh-rlhf", {"train": ("train",), "test": ("test",)}, _from_hh),
    Source("ultrafeedback-binarized", "HuggingFaceH4/ultrafeedback_binarized",
           {"train": ("train_prefs", "train"), "test": ("test_prefs", "test")}, _from_ultrafeedback),
    Source("stack-exchange-preferences", "HuggingFaceH4/stack-exchange-preferences", {"train": ("train",), "test": ()},
           _from_stack_exchange),
)}  # fmt: skip
"""By name, in the order in which they stand in the output."""


def find_sources(names: list[str]) -> list[Source]:
    """The sources of these names (`a,b` is two), each once and in the order of SOURCES. Raises UsageError."""
    wanted = {part.strip() for name in names for part in name.split(",") if part.strip()}
    unknown = sorted(wanted - set(SOURCES))
    if unknown:
        raise UsageError(f"unknown source {unknown[0]!r}", hint=f"--source {','.join(SOURCES)}")
    return [source for name, source in SOURCES.items() if name in wanted or not wanted]
