"""A user's question file, read and judged row by row, in the command's own process; the daemon never comes here.

Every bad row is told by line, field and what was expected, and none is left out unasked: a set that lacks questions gives
another share. What a row means is decided in `guard/checks/questions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daemon.eval_sets import stamp_of
from guard.checks.kinds import container_of, holds_rows
from guard.checks.questions import Question, read_question
from guard.checks.rows import iter_rows
from guard.durable import sha256_file
from guard.errors import DataFault, NotFound, UsageError

__all__ = ["QuestionFile", "read_questions"]

MOST_QUESTIONS = 100_000
_TOLD_ROWS = 20


@dataclass(frozen=True)
class QuestionFile:
    """A question file as it was read."""

    name: str
    path: Path
    sha256: str
    stamp: tuple[int, ...]
    questions: tuple[Question, ...]
    bad_rows: int
    """Left out, because that was asked for."""
    listed: tuple[str, ...]
    """The first of them, in words."""


def read_questions(path: Path, *, limit: int | None, match: str | None, skip_bad: bool) -> QuestionFile:
    """The questions of a file of rows (.jsonl, .json, .csv, .parquet, .gz and .zst of those), at most the first `limit`.

    Raises NotFound, UsageError for what holds no rows or too many, DataFault naming the bad rows unless `skip_bad`.
    """
    if not path.is_file():
        raise NotFound(f"there is no file {path}", subject=str(path), hint="--questions FILE")
    if not holds_rows(container_of(path.name)):
        raise UsageError(f"{path.name} holds no rows", subject=str(path), hint="questions stand in .jsonl, .json or .csv files")
    real = path.resolve()
    stamp, sha256 = stamp_of(real), sha256_file(real)
    questions: list[Question] = []
    bad, listed = 0, list[str]()
    for row in iter_rows(real, name=path.name):
        if limit is not None and len(questions) >= limit:
            break
        if len(questions) >= MOST_QUESTIONS:
            raise UsageError(f"{path.name} has more than {MOST_QUESTIONS:,} questions", subject=str(path), hint="--limit N")
        faults = [row.fault] if row.fault else read_question(row.value or {}, row.line_number, match)
        if isinstance(faults, Question):
            questions.append(faults)
            continue
        bad += 1
        listed += [f"line {row.line_number}: {fault.field + ': ' if fault.field else ''}{fault.reason}"
                   f"{f' (expected: {fault.expected})' if fault.expected else ''}" for fault in faults]  # fmt: skip
    listed = listed[:_TOLD_ROWS]
    if bad and not skip_bad:
        raise DataFault(f"{path.name} has {bad:,} rows that are no questions:\n" + "\n".join(listed), subject=str(path),
                        hint="mend them, or --skip-bad-rows leaves them out")  # fmt: skip
    if not questions:
        raise DataFault(f"{path.name} holds no question", subject=str(path),
                        hint='rows such as {"question": "2+2?", "answer": "4"}')  # fmt: skip
    return QuestionFile(path.name, real, sha256, stamp, tuple(questions), bad, tuple(listed))
