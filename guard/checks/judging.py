"""The verdict on a file whose content was counted: sound, to be waited for, ignored or refused, with the reason and a hint.

Pure: an identity and a tally in, an identity with its verdict out. The first reason that holds is the one told.
Not here: reading and counting (`identify.py`, `scan.py`), and the words of a whole refusal (`why.py`).
"""

from __future__ import annotations

import dataclasses
import re

from guard.checks import kinds
from guard.checks.forms import columns_hint
from guard.checks.identity import Identity, Limits
from guard.checks.jsonl import FOREIGN
from guard.checks.made_with import other_tokenizer
from guard.checks.scan import RowFault, Tally
from guard.checks.why import printable
from guard.containers.faults import CutShort

__all__ = ["counted", "cut_short", "ignore", "judged", "wait", "zero_filled"]

_SHOWN = 40
_SPEAKER = re.compile(r"unknown (role|speaker) '([A-Za-z][\w-]*)'", re.ASCII)
_SHARED = ("columns: {conversations: messages, conversations.from: messages.role, conversations.value: messages.content} and, "
           "in a line of its own, ")  # fmt: skip
BYTES_PER_TOKEN = 4  # GPT-2 on English prose; the exact count is made when the file is prepared
_RENAMED = {"gzip": ".gz, such as data.jsonl.gz", "zstandard": ".zst, such as data.jsonl.zst", "parquet": ".parquet",
            "Arrow": ".arrow", "NumPy": ".npy"}  # fmt: skip


def counted(base: Identity, tally: Tally) -> Identity:
    return dataclasses.replace(
        base, rows=tally.rows, examples=tally.examples, tokens_approx=tally.bytes_trained // BYTES_PER_TOKEN,
        bad_rows_count=tally.bad, unusable_rows_count=tally.unusable, duplicates=tally.duplicates,
        duplicates_exact=tally.duplicates_exact, truncated_line=tally.truncated_line,
        max_token_id=tally.max_token_id, evaluation_only=tally.evaluation_only,
        bad_rows=tuple(tally.bad_rows), unusable_rows=tuple(tally.unusable_rows),
    )  # fmt: skip


def judged(base: Identity, tally: Tally, columns: list[str], limits: Limits) -> Identity:
    """The identity with its verdict, `base` being counted; what was said of a tokenizer stays only where there are ids."""
    base = _judge(dataclasses.replace(base, tokenizer=base.tokenizer if tally.max_token_id >= 0 else {}), tally, columns, limits)
    limits = limits.of_line(str(base.settings.get("line") or ""))
    return _within(_of_the_model(base, limits), tally, limits) if base.verdict == "ok" else base


def _of_the_model(base: Identity, limits: Limits) -> Identity:
    problem = other_tokenizer(base.tokenizer, {"tokenization": limits.tokenization, "content_hash": limits.content_hash})
    if not problem:
        return base
    hint = f"pack the text again with the model's tokenizer (heirloom prepare pack --tokenization {limits.tokenization})"
    return dataclasses.replace(base, verdict="reject", reason=problem, hint=hint)


def _judge(base: Identity, tally: Tally, columns: list[str], limits: Limits) -> Identity:
    """The verdict on a file of rows; the first reason that holds is the one told."""
    if tally.truncated_line:
        reason = f"truncated at {tally.truncated_in + ':' if tally.truncated_in else 'line '}{tally.truncated_line}"
        hint = "the last row stops in the middle; copy the file again, or remove that line"
        if limits.final:
            return dataclasses.replace(base, verdict="reject", reason=reason, hint=hint)
        return wait(base, "truncated_tail", reason, "perhaps it is still being written; " + hint)
    reason, hint = _reject_reason(base, tally, columns, limits)
    return dataclasses.replace(base, verdict="reject", reason=reason, hint=hint) if reason else base


def _reject_reason(base: Identity, tally: Tally, columns: list[str], limits: Limits) -> tuple[str, str]:
    if not tally.rows:
        lines = kinds.unpacked_container(base.container) == "jsonl"
        return f"no usable example: {'the file is only white space' if lines else 'there is no row in it'}", ""
    if tally.bad_rows and tally.bad_rows[0].reason.startswith(FOREIGN):  # A70: the encoding, or the format, by its name
        return tally.bad_rows[0].reason, _foreign_hint(tally.bad_rows[0].reason)
    for count, limit, what in ((tally.bad, limits.max_bad_rows, "cannot be read"),
                               (0 if not base.kind else tally.unusable, limits.max_unusable_rows,
                                "cannot be trained on")):  # fmt: skip
        if count > limit * tally.rows + 1e-9:
            hint = _read_hint(base, tally) if what == "cannot be read" else _rows_hint(base, tally, columns)
            return f"{count} of {tally.rows} rows {what}; at most {limit:.2%} may be", hint
    if not base.kind:
        named = ", ".join(printable(column[:40]) for column in columns[:8]) or "none"
        return f"no kind of data has these columns: {named}", columns_hint(columns) or _any_hint(columns)
    return ("no usable example", _shape_hint(base, tally)) if not tally.examples else ("", "")


def _any_hint(columns: list[str]) -> str:
    """What to do with rows of which nothing is known."""
    key = next((column if column.isidentifier() else ascii(column) for column in columns if len(column) <= _SHOWN), "KEY")
    return (f"say in FILE.meta.yaml beside it which key is what, such as columns: {{{key}: text}} (docs/FORMATS.md, Side files); "
            f"supported without: {kinds.SUPPORTED}")  # fmt: skip


def _read_hint(base: Identity, tally: Tally) -> str:
    """What to do about too many rows that cannot be read, from the first of them."""
    reason = tally.bad_rows[0].reason
    if reason.startswith("invalid UTF-8"):
        excel = " (in Excel: Save as, CSV UTF-8)" if kinds.unpacked_container(base.container) == "csv" else ""
        return f"save it as UTF-8 text: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW{excel}"
    if reason.endswith("is not a JSON number"):
        return "write null in its place: JSON has no NaN and no Infinity"
    return _shape_hint(base, tally)


def _rows_hint(base: Identity, tally: Tally, columns: list[str]) -> str:
    """What to do about too many rows that cannot be trained on, from the first of them."""
    if tally.unusable_rows[0].field == "prefix" and base.kind == "preference" and not base.reading.get("columns"):
        return columns_hint(columns)
    speaker = _SPEAKER.fullmatch(tally.unusable_rows[0].reason)
    if speaker and base.kind == "sft" and not (base.reading.get("columns") or base.reading.get("roles")):
        shared, names = (_SHARED, "human: user, gpt: assistant, ") if speaker[1] == "speaker" else ("", "")
        return (f"if {speaker[2]} is the assistant, write beside it in FILE.meta.yaml: {shared}"
                f"roles: {{{names}{speaker[2]}: assistant}}")  # fmt: skip
    some = "" if tally.examples == 0 else ", or raise intake.max_unusable_rows in configs/heirloom.yaml: they are left out then"
    return f"heirloom prepare validate FILE --all lists every row at fault: mend or remove them{some}"


def _within(base: Identity, tally: Tally, limits: Limits) -> Identity:
    """The identity, unless rows hold ids that the vocabulary has not: then all of its ids mean something else.

    Such rows are not left out as unusable ones are: what is usable would then depend on the model of the day, and ordinals
    with it.
    """
    if base.verdict != "ok" or not limits.vocab_size or tally.max_token_id < limits.vocab_size:
        return base
    fault = RowFault(tally.max_token_line, "input_ids", f"Token ID {tally.max_token_id} out of vocabulary range",
                     f"ids from 0 to {limits.vocab_size - 1}", tally.max_token_in)  # fmt: skip
    return dataclasses.replace(
        base, verdict="reject", reason=f"{fault.place}: {fault.reason}", unusable_rows=(fault,), unusable_rows_count=1,
        hint=f"it was made with another tokenizer; the model's has the ids 0 to {limits.vocab_size - 1}")  # fmt: skip


def _foreign_hint(reason: str) -> str:
    """What to do with a file that is something else than its name says."""
    suffix = next((suffix for word, suffix in _RENAMED.items() if f"a {word} file" in reason), "")
    return f"rename it: it must end in {suffix}" if suffix else "save it as UTF-8 text, one JSON object per line"


def _shape_hint(base: Identity, tally: Tally) -> str:
    """A guess, from the first row, at what a file of lines was meant to be."""
    first = tally.first_raw.lstrip()
    if not tally.bad_rows or kinds.unpacked_container(base.container) != "jsonl":
        return ""
    if first.startswith(b"["):
        return "this looks like one JSON array: rename it to end in .json, or write one per line (jq -c '.[]' OLD > NEW.jsonl)"
    if first.startswith(b"{") and tally.bad_rows[0].line == 1:
        return "if one object spans several lines: rename it to end in .json, or write one per line (jq -c . OLD > NEW.jsonl)"
    if not first.startswith(b"{") and (b"," in first or b"\t" in first):
        return "this looks like CSV: rename it to end in .csv, or write one JSON object per line"
    return ""


def cut_short(base: Identity, fault: CutShort, limits: Limits) -> Identity:
    reason = f"truncated at line {fault.line}: {fault.message}" if fault.line else f"truncated: {fault.message}"
    base = dataclasses.replace(base, truncated_line=fault.line)
    if limits.final:
        return dataclasses.replace(base, verdict="reject", reason=reason, hint=fault.hint)
    return wait(base, "truncated_tail", reason, "perhaps it is still being written; " + fault.hint)


def zero_filled(base: Identity, zeros: str, limits: Limits) -> Identity:
    reason = "zero-filled: every byte is NUL" if zeros == "all" else "zero-filled at its end"
    hint = "space was reserved and never written; copy the file again"
    if limits.final:
        return dataclasses.replace(base, verdict="reject", reason=reason, hint=hint)
    return wait(base, "zero_filled", reason, "perhaps it is still being copied")


def ignore(base: Identity, reason: str) -> Identity:
    return dataclasses.replace(base, verdict="ignore", reason=reason)


def wait(base: Identity, wait_for: str, reason: str, hint: str) -> Identity:
    return dataclasses.replace(base, verdict="wait", wait_for=wait_for, reason=reason, hint=hint)
