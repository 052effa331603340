"""One `heirloom eval` from a plan to results: what is not known yet is measured, told and recorded.

It runs in the foreground, in the caller's own process and on its CPU, beside a daemon that may be training. Only the
results go to the home's one writer at the end (law 13), so that a death on the way leaves nothing. One model is in memory at a
time. Not here: which sets there are (`eval_sets.py`), a single figure (`trainer/measuring.py`), words (`cli/evaluate.py`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

from daemon.eval_plan import Asked, EvalItem, EvalPlan
from daemon.eval_questions import QuestionFile
from daemon.eval_results import finish, result_rows, told_of
from daemon.eval_sets import RULES, stamp_of
from daemon.loaded import load_sealed
from guard.errors import Busy, CheckFailed, HeirloomError
from guard.store.versions import Version

__all__ = ["evaluate"]

_RECORD_TRIES = 12

Say = Callable[[str], None]


def evaluate(plan: EvalPlan, asked: Asked, record: Callable[[list[dict[str, Any]]], Any], say: Say) -> dict[str, Any]:
    """Measure what is not known yet, record it, and tell everything as plain values (docs/CLI.md).

    `record` hands results to the home's writer and raises what that raises; figures are told even when it fails.
    Raises CheckFailed when a file changed while it was read or tokenizers do not fit, Damage, DataFault.
    """
    open_ = [item for item in plan.items if item.created is None]
    made_with: dict[str, Any] = {}
    hashes: list[str] = []
    if open_:
        made_with = _get_ready(asked)
        for version in plan.versions:
            hashes.append(_measure_version(plan, version, open_, asked, say))
        _require_unchanged(open_)
        finish(plan, open_, same_tokenizer=len(set(hashes)) == 1)
    results = [row for item in open_ if not item.problem for row in result_rows(plan, item, made_with)]
    problem = _recorded(record, results) if results else None
    told = [told_of(item, plan.versions, asked.show) for item in plan.items]
    return {
        "version": plan.versions[0].name, "vs": plan.versions[1].name if len(plan.versions) > 1 else None,
        "sets": [item for item in told if item["kind"] == "loss"],
        "questions": [item for item in told if item["kind"] == "questions"], "notes": list(plan.notes),
        "recorded": problem is None, "problem": problem.as_dict() if problem else None,
    }  # fmt: skip


def _get_ready(asked: Asked) -> dict[str, Any]:
    from trainer.hardware import library_versions, set_environment, usable_cores

    set_environment()
    import torch

    threads = asked.threads or usable_cores()
    # Not torch's deterministic mode: nothing here accumulates out of order, and asking for it imports its compiler, which
    # takes longer than judging a small model (4 s of a processor, 16 s beside other work).
    torch.set_num_threads(threads)
    return {"libraries": library_versions(), "threads": threads, "device": "cpu", "rules": RULES}


def _measure_version(plan: EvalPlan, version: Version, items: Sequence[EvalItem], asked: Asked, say: Say) -> str:
    """Everything that is open, of one version; returns its tokenizer's hash. The model is let go at the end."""
    from trainer.token_lengths import byte_lengths, control_ids

    model, tokenizer, template = load_sealed(plan.home.models / version.name, version.record)
    tables = byte_lengths(tokenizer), control_ids(tokenizer)
    for number, item in enumerate(items, 1):
        if item.problem:
            continue
        say(f"   {version.name}: {item.name} ({number} of {len(items)})")
        if item.judging is not None:
            _measure_set(item, model, tokenizer, template, tables, asked)
        elif item.questions is not None:
            _ask(item, item.questions, model, tokenizer, template, asked, say)
    del model
    gc.collect()
    return str(tokenizer.content_hash)


def _measure_set(item: EvalItem, model: Any, tokenizer: Any, template: Any, tables: Any, asked: Asked) -> None:
    from trainer.measuring import measure
    from trainer.samples import Counted, choose, samples_of

    assert item.judging is not None
    counted = Counted()
    only = set(item.raw[0].keys) if item.raw else None
    try:
        source = item.judging.source(tokenizer, template)
        samples = samples_of(source, tokenizer, template, counted)
        found = measure(model, choose(samples, asked.max_tokens, only), *tables)
    except CheckFailed as error:
        if item.judging.origin in ("file", "stored file"):
            raise
        item.problem = f"{error.message} ({error.hint})"  # one set of an old ancestor must not keep the others from being judged
        return
    if not found.keys:
        item.problem = "it holds no example that bears loss"
        return
    item.raw.append(found)
    item.figures.append({**found.figures(), "set_examples": counted.examples, "set_tokens": counted.tokens,
                         "inexpressible": counted.unsaid})  # fmt: skip


def _ask(item: EvalItem, file: QuestionFile, model: Any, tokenizer: Any, template: Any, asked: Asked, say: Say) -> None:
    from trainer.answering import Asking, answer_all

    how = Asking(asked.max_new_tokens, asked.temperature, asked.seed, asked.raw)
    told = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > 5:
            told = time.monotonic()
            say(f"   {done:,} of {len(file.questions):,} questions")

    item.raw.append(answer_all(model, tokenizer, template, [question.prompt for question in file.questions],
                               [question.max_tokens for question in file.questions], how, progress=progress))  # fmt: skip


def _require_unchanged(items: Sequence[EvalItem]) -> None:
    for item in items:
        if item.path is not None and stamp_of(item.path[0]) != item.path[1]:
            raise CheckFailed(f"{item.name} was changed while it was read", subject=item.name, hint="run it again")


def _recorded(record: Callable[[list[dict[str, Any]]], Any], results: list[dict[str, Any]]) -> HeirloomError | None:
    """Hand the results over; somebody who holds the lock for a while is waited for. What failed is returned, not raised: hours of
    work are told first."""
    for _attempt in range(_RECORD_TRIES):
        try:
            record(results)
            return None
        except Busy as busy:
            problem: HeirloomError = busy
        except HeirloomError as error:
            return error
    return problem
