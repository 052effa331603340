"""`heirloom eval`: what a version is worth on held-out rows, on files and on questions, alone or beside another version.

It works in the foreground on the CPU, with or without a daemon, and keeps its results in the ledger (`heirloom show VERSION`).
Here are the words and the exit codes; the work is in `daemon/evaluating.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import human_tokens, moment, plural, table, visible
from guard.errors import CheckFailed, HeirloomError, UsageError

__all__ = ["add_to", "evaluation_lines", "failed_limits", "recorded_lines"]

_NICE = 10
_MATCHES = "exact|contains|numeric"
_SHOWN_TEXT = 400
_COLDEST, _HOTTEST = 0.01, 100.0


def add_to(app: typer.Typer) -> None:
    """Put the command on the command line."""
    app.command("eval", epilog=EPILOGUE)(evaluate)


def evaluate(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="The active one otherwise.")] = None,
    vs: Annotated[str | None, typer.Option("--vs", metavar="OTHER", help="Another version to compare it with.")] = None,
    set: Annotated[list[str] | None, typer.Option("--set", metavar="FILE...", help="Text or conversations to judge by.")] = None,
    questions: Annotated[
        list[str] | None, typer.Option("--questions", metavar="FILE...", help="Rows with question and answer.")
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="The held-out rows too, where --set or --questions are given.")
    ] = False,
    kind: Annotated[str | None, typer.Option("--kind", help="What --set files are, instead of detecting it.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=0, help="Most tokens of each set; 0: all.")] = 200_000,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N questions.")] = None,
    match: Annotated[str | None, typer.Option("--match", metavar=_MATCHES, help="For rows that say none.")] = None,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", help="For exact and contains.")] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31, help="For a temperature above 0.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Ask the plain text, without any chat template.")] = False,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave rows out that are no questions.")] = False,
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="Show the first N wrong answers.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Measure again what the ledger knows.")] = False,
    min_accuracy: Annotated[float | None, typer.Option("--min-accuracy", min=0.0, max=1.0, help="Exit 3 below it.")] = None,
    max_perplexity: Annotated[float | None, typer.Option("--max-perplexity", min=1.0, help="Exit 3 above it.")] = None,
    max_bits_per_byte: Annotated[float | None, typer.Option("--max-bits-per-byte", min=0.0, help="Exit 3 above it.")] = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: all this process may use.")] = 0,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Judge a version: loss, perplexity and bits per byte on held-out rows or files, right answers to questions."""
    from daemon.eval_plan import Asked, plan_of
    from daemon.evaluating import evaluate as run
    from guard.checks.answers import MATCHES

    caller: Caller = context.obj
    if match is not None and match not in MATCHES:
        raise UsageError(f"--match {match}: there is no such way to compare", hint=f"one of {', '.join(MATCHES)}")
    _require_finite(temperature, min_accuracy, max_perplexity, max_bits_per_byte)
    given = bool(set or questions)
    if min_accuracy is not None and not questions:
        raise UsageError("--min-accuracy asks for a share of right answers, and no question is asked", hint="--questions FILE")
    if (max_perplexity is not None or max_bits_per_byte is not None) and questions and not (set or held_out):
        raise UsageError("--max-perplexity and --max-bits-per-byte are about sets, and none is judged by", hint="--set FILE")
    asked = Asked(version, vs, tuple(set or ()), held_out or not given, tuple(questions or ()), kind, max_tokens, limit, match,
                  ignore_case, max_new_tokens, temperature, seed, raw, skip_bad_rows, again, show, threads)  # fmt: skip
    home = caller.home()
    plan = plan_of(home, caller.folder, asked)
    if dry_run:
        _rehearse(caller, plan)
        return
    _step_back(caller, home)
    found = run(plan, asked, lambda results: caller.call("evaluation.record", {"results": results}), caller.console.progress)
    found["failed"] = failed_limits(found, min_accuracy, max_perplexity, max_bits_per_byte)
    found["ok"] = not found["failed"]
    caller.console.emit(found)
    caller.console.say(*evaluation_lines(found))
    _end(found)


def _rehearse(caller: Caller, plan: Any) -> None:
    items = [{"name": item.name, "kind": item.kind, "set_id": item.set_id, **item.about, "known": item.created is not None,
              "questions": len(item.questions.questions) if item.questions else None} for item in plan.items]  # fmt: skip
    caller.console.emit({"dry_run": True, "version": plan.versions[0].name,
                         "vs": plan.versions[1].name if len(plan.versions) > 1 else None, "items": items})  # fmt: skip
    caller.console.say(f"{' and '.join(visible(version.name) for version in plan.versions)} would be judged by:")
    caller.console.say(*(table([(item["name"], item["origin"], plural(item["questions"], "question") if item["questions"] else
                                 item["stage"], "known already" if item["known"] else "") for item in items], "   ")
                         if items else ["   nothing: no held-out rows; --set FILE or --questions FILE"]))  # fmt: skip


def _step_back(caller: Caller, home: Any) -> None:
    """Work behind a training job when there is one; results do not depend on it."""
    from daemon.report import status

    training = status(home).get("training")
    if training:
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        caller.console.progress(f"   job {training['job']} is training: this runs beside it on the CPU, at low priority")


def _require_finite(temperature: float, *limits: float | None) -> None:
    """`nan` is within every bound, and no figure is ever beyond it."""
    if not 0.0 <= temperature <= _HOTTEST or 0.0 < temperature < _COLDEST:
        raise UsageError(f"--temperature {temperature:g}: a number from {_COLDEST:g} to {_HOTTEST:g} is needed, or 0 for the"
                         " likeliest token", hint="--temperature 0.8")  # fmt: skip
    if wrong := [value for value in limits if value is not None and not math.isfinite(value)]:
        raise UsageError(f"a limit of {wrong[0]} is none: --min-accuracy, --max-perplexity and --max-bits-per-byte take numbers",
                         hint="--max-perplexity 20")  # fmt: skip


def failed_limits(
    found: Mapping[str, Any], min_accuracy: float | None, max_perplexity: float | None, max_bits_per_byte: float | None
) -> list[str]:
    """Every limit that is not kept, in words. What could not be measured keeps no limit (law 5)."""
    wanted = [("sets", "perplexity", max_perplexity, 1), ("sets", "bits_per_byte", max_bits_per_byte, 1),
              ("questions", "accuracy", min_accuracy, -1)]  # fmt: skip
    failed = []
    for group, name, limit, sign in wanted:
        if limit is None:
            continue
        if not found[group]:
            failed.append(f"{name.replace('_', ' ')}: nothing was measured")
        for item in found[group]:
            value = (item["figures"] or {}).get(name)
            if value is None or not math.isfinite(value) or sign * (value - limit) > 0:
                told = "not measured" if value is None else f"{value:.5g}"
                asked_for = f"at {'most' if sign > 0 else 'least'} {limit:g}"
                failed.append(f"{item['name']}: {name.replace('_', ' ')} {told}, asked for {asked_for}")
    return failed


def _end(found: Mapping[str, Any]) -> None:
    """The exit code of what was told: a result that could not be kept weighs more than a limit that was not."""
    if found["problem"]:
        raise typer.Exit(int(found["problem"]["exit_code"]) or HeirloomError.exit_code)
    if not found["ok"] or not any(item["figures"] for item in (*found["sets"], *found["questions"])):
        raise typer.Exit(CheckFailed.exit_code)


# --- words ---------------------------------------------------------------------------------------------------------


def evaluation_lines(found: Mapping[str, Any]) -> list[str]:
    """What a person reads."""
    lines = [visible(found["version"]) + (f" against {visible(found['vs'])}" if found["vs"] else "")]
    if not found["sets"] and not found["questions"]:
        lines.append("   Nothing to judge by: no held-out rows in its ancestry; --set FILE or --questions FILE")
    for item in (*found["sets"], *found["questions"]):
        lines += ["", f"  {visible(item['name'])}{' (' + visible(item['origin']) + ')' if item['origin'] != 'held out' else ''}"]
        lines += [f"    {text}" for text in _item_lines(item, found)]
    lines += [""] * bool(found["notes"]) + [f"  Note: {visible(note)}" for note in found["notes"]]
    lines += [f"❌ {visible(text)}" for text in found["failed"]]
    if found["problem"]:
        lines += [f"❌ The results were not kept: {visible(found['problem']['message'])}",
                  f"   try: {visible(found['problem']['hint'] or 'run it again')}"]  # fmt: skip
    return lines


def _item_lines(item: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    if item["problem"]:
        yield f"not judged: {visible(item['problem'])}"
    else:
        words = _loss_words if item["kind"] == "loss" else _share_words
        if item["vs"]:
            for name, figures in ((found["version"], item["figures"]), (found["vs"], item["vs"])):
                yield f"{visible(name)}: {words(figures)}"
            yield _comparison_words(item["kind"], item["comparison"], found["vs"])
        else:
            yield words(item["figures"])
        for name, figures in ((found["version"], item["figures"]), (found["vs"], item["vs"])):
            yield from _warnings(name, figures) if figures else ()
        yield from _wrong_lines(item.get("wrong") or ())
    for note in item["notes"]:
        yield f"Note: {visible(note)}"
    if item["recorded_before"]:
        yield f"(from the ledger, measured {moment(item['recorded_before'])}; --again measures anew)"


def _span(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.4g}" + (f" ({interval[0]:.4g} to {interval[1]:.4g})" if interval else "")


def _loss_words(figures: Mapping[str, Any]) -> str:
    if figures["loss"] is None:
        return "the loss is not a finite number"
    told = [f"loss {_span(figures['loss'], figures['loss_interval'])} nats per token"]
    told.append(f"perplexity {figures['perplexity']:.4g}" if figures["perplexity"] is not None else "perplexity beyond measure")
    if figures["bits_per_byte"] is not None:
        told.append(f"{_span(figures['bits_per_byte'], figures['bits_per_byte_interval'])} bits per byte")
    size = f"{plural(figures['examples'], 'example')}, {human_tokens(figures['loss_tokens'])} tokens that bear loss"
    part = f" of {figures['set_examples']:,}" if figures["set_examples"] > figures["examples"] else ""
    return f"{', '.join(told)} ({size}{part and f'; a part{part}'})"


def _share_words(figures: Mapping[str, Any]) -> str:
    low, high = figures["accuracy_interval"]
    return (f"{figures['right']:,} of {plural(figures['questions'], 'question')} right: {figures['accuracy']:.1%}"
            f" ({low:.1%} to {high:.1%})")  # fmt: skip


def _comparison_words(kind: str, compared: Mapping[str, Any], other: object) -> str:
    verdict = {"better": f"better than {visible(other)}", "worse": f"worse than {visible(other)}"}
    word = verdict.get(compared["verdict"], compared["verdict"])
    if kind == "questions":
        return (f"{word}: {compared['only_first']:,} right here alone, {compared['only_second']:,} there alone"
                f" (p = {compared['p']:.2g})")  # fmt: skip
    by = compared["by"]
    if compared[by] is None:
        return str(word)
    interval = compared[f"{by}_interval"]
    span = f" ({interval[0]:+.3g} to {interval[1]:+.3g})" if interval else ""
    return f"{word}: {by.replace('_', ' ')} {compared[by]:+.4g}{span}, example by example"


def _warnings(name: object, figures: Mapping[str, Any]) -> Iterator[str]:
    who = visible(name)
    if figures.get("trained_examples"):
        yield f"⚠️ {figures['trained_examples']:,} of {plural(figures['examples'], 'example')} were trained by {who}: contaminated"
    if figures.get("trained_questions"):
        rest = figures["untrained"]
        yield (f"⚠️ {figures['trained_questions']:,} of {plural(figures['questions'], 'question')} were trained by {who}:"
               f" contaminated (of the others {rest['right']:,} of {rest['questions']:,} right)")  # fmt: skip
    if figures.get("unread_files"):
        yield f"⚠️ {plural(figures['unread_files'], 'file')} of its conversations were too large to be searched for the questions"
    if figures.get("unanswered"):
        yield f"⚠️ {plural(figures['unanswered'], 'question')} could not be put to {who} and count as wrong (--show N tells why)"
    if figures.get("cut"):
        yield f"{plural(figures['cut'], 'answer')} of {who} ended at the limit (--max-new-tokens, or the model's window)"
    if figures.get("inexpressible"):
        yield f"{plural(figures['inexpressible'], 'conversation')} left out: {who}'s template has no words for them"


def _wrong_lines(wrong: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for item in wrong:
        yield f"✗ line {item['line']}: {_short(item['question'])}"
        yield f"    expected ({item['match']}): {_short(' | '.join(item['expected']))}"
        yield f"    answered: {_short(item['answer']) if not item['problem'] else '(' + visible(item['problem']) + ')'}"


def _short(text: str) -> str:
    return visible(text[:_SHOWN_TEXT]) + ("..." if len(text) > _SHOWN_TEXT else "")


def recorded_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the ledger knows of a version, the newest result of each set, for `heirloom show`."""
    newest = {(item["kind"], item["set_id"], item["options"].get("vs")): item for item in results}
    rows = []
    for item in newest.values():
        if item["kind"] == "comparison":
            told = _comparison_words(item["options"]["of"], item["figures"], item["options"]["vs"])
        else:
            told = (_loss_words if item["kind"] == "loss" else _share_words)(item["figures"])
        rows.append((item["set_name"], moment(item["created"])[:10], told))
    return ["", "  Evaluations (95 % intervals)", *table(rows, "    ")] if rows else []
