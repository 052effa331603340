"""One outcome of `cargo mutants` as a row: the code with the bug, what the tests said, the sound code.

Only a mutant that builds and makes a test fail is a row: of the others there is no message, or no bug. The code is the whole
function where the source is there and fits, else the lines of the difference. Pure: texts in, a row or a reason out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["REASONS", "failure_of", "mutant_of", "row_of"]

REASONS = {"MissedMutant": "no test noticed it", "Unviable": "it does not build", "Timeout": "its tests did not end"}
_MOST_CHARACTERS = 4000
_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@")
_MARK = re.compile(r"\s*/\* ~ changed by cargo-mutants ~ \*/")
_SECTION = re.compile(r"^\*\*\* ", re.MULTILINE)
_FAILURES = re.compile(r"^---- .*? stdout ----$.*?(?=^failures:$|^test result:|\Z)", re.MULTILINE | re.DOTALL)
# What differs between two runs of the same test: times, thread numbers, the scratch copy of the tree.
_NOISE = ((re.compile(r"(?:; )?finished in [\d.]+s"), ""), (re.compile(r"(thread '[^']*') \(\d+\)"), r"\1"),
          (re.compile(r"/\S*?cargo-mutants-[^/\s]+/"), ""))  # fmt: skip


def mutant_of(outcome: Any) -> Mapping[str, Any] | None:
    """The mutant an outcome is about; None for the baseline, which is not one."""
    scenario = outcome.get("scenario") if isinstance(outcome, Mapping) else None
    mutant = scenario.get("Mutant") if isinstance(scenario, Mapping) else None
    return mutant if isinstance(mutant, Mapping) and isinstance(mutant.get("file"), str) else None


def failure_of(log: str) -> str:
    """What the failing tests said: the part of each, at most 4,000 characters; "" when no test phase failed."""
    for section in reversed(_SECTION.split(log)):
        command = section.partition("\n")[0]
        if not re.search(r" (?:test|nextest) ", f"{command} ") or "--no-run" in command:
            continue
        found = _FAILURES.findall(section)
        text = "\n".join(part.strip() for part in found) if found else section.partition("\n")[2].strip()
        for pattern, put in _NOISE:
            text = pattern.sub(put, text)
        return text if len(text) <= _MOST_CHARACTERS else text[-_MOST_CHARACTERS:].partition("\n")[2]
    return ""


def row_of(mutant: Mapping[str, Any], diff: str, log: str, source: str | None, repo: str) -> dict[str, str] | str:
    """The row {buggy_code, error_message, fixed_code, repo, file}, or why there is none."""
    message = failure_of(log)
    if not message:
        return "its log shows no failing test"
    start, fixed, buggy = _sides(diff)
    if not fixed or fixed == buggy:
        return "its difference cannot be read"
    fixed, buggy = _whole_function(mutant, source, start, fixed, buggy) or (fixed, buggy)
    return {"buggy_code": "\n".join(buggy), "error_message": message, "fixed_code": "\n".join(fixed), "repo": repo,
            "file": str(mutant["file"])}  # fmt: skip


def _sides(diff: str) -> tuple[int, list[str], list[str]]:
    """The line a difference of one hunk begins at, and the lines before and after; nothing for any other."""
    hunks = list(_HUNK.finditer(diff))
    if len(hunks) != 1:
        return 0, [], []
    lines = diff[hunks[0].end() :].partition("\n")[2].split("\n")
    if lines and not lines[-1]:
        lines.pop()
    fixed = [line[1:] for line in lines if line[:1] in (" ", "-", "")]
    buggy = [_MARK.sub("", line[1:]) for line in lines if line[:1] in (" ", "+", "")]
    return int(hunks[0][1]), fixed, buggy


def _whole_function(mutant: Mapping[str, Any], source: str | None, start: int, fixed: list[str],
                    buggy: list[str]) -> tuple[list[str], list[str]] | None:  # fmt: skip
    """The function around a change, before and after; None where the source is not the one that was changed."""
    try:
        span = mutant["function"]["span"]
        first, last = int(span["start"]["line"]), int(span["end"]["line"])
    except (KeyError, TypeError, ValueError):
        return None
    lines = source.split("\n") if source is not None else []
    before = start - 1
    if lines[before : before + len(fixed)] != fixed or not 1 <= first <= last <= len(lines):
        return None
    changed = lines[:before] + buggy + lines[before + len(fixed) :]
    sound, broken = lines[first - 1 : last], changed[first - 1 : last + len(buggy) - len(fixed)]
    return (sound, broken) if sound != broken else None
