"""The rules of tasks and of mutations, and the conversation that a mutation becomes.

task: {"description", "tests", "starter_code"?}; without starter code it is for evaluation only and never trained.
mutation: {"buggy_code", "error_message", "fixed_code", "repo"?, "file"?}; trained as the conversation in which the broken
code and what its tests say are the question and the mended code is the answer. Its wording belongs to the rules of rows:
other words need a new version of them. Not here: running anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from guard.checks.field_faults import below, optional_texts, text_fault
from guard.checks.jsonl import Fault
from guard.fingerprint import canonical_text

__all__ = ["is_evaluation_task", "mutation_conversation", "validate_mutation", "validate_task"]

Fields = dict[str, Any]
_TESTS = "the code of the tests, as text or as a list of texts"
_TICKS = re.compile(r"`+")


def validate_task(value: Mapping[str, Any]) -> Fields | list[Fault]:
    """A coding task. Several tests in a list are joined by line feeds."""
    fault = text_fault(value, "description", "what is to be written")
    tests = _tests(value)
    extra, faults = optional_texts(value, ("starter_code",))
    faults = [item for item in (fault, tests if isinstance(tests, Fault) else None) if item] + faults
    return faults or {"description": value["description"], "tests": tests, **extra}


def _tests(value: Mapping[str, Any]) -> str | Fault:
    tests = value.get("tests")
    if not isinstance(tests, list):
        return text_fault(value, "tests", _TESTS) or str(tests)
    if not tests:
        return Fault("tests", "Field 'tests' is empty", _TESTS)
    for place, test in enumerate(tests):
        fault = text_fault({"": test}, "", _TESTS)
        if fault:
            return below(f"tests[{place}]", [fault._replace(reason=fault.reason.replace("Field ''", "a test"))])[0]
    return "\n".join(tests)


def is_evaluation_task(fields: Mapping[str, Any]) -> bool:
    """Whether these are the fields of a task without starter code: it judges models and never trains one."""
    return "tests" in fields and "starter_code" not in fields


def validate_mutation(value: Mapping[str, Any]) -> Fields | list[Fault]:
    """Broken code, what its tests say, and the code as it should be."""
    needed = {"buggy_code": "the code with the fault", "error_message": "what the tests or the compiler say",
              "fixed_code": "the code without the fault"}  # fmt: skip
    faults = [fault for key, what in needed.items() if (fault := text_fault(value, key, what))]
    extra, more = optional_texts(value, ("repo", "file"))
    faults += more
    if not faults and canonical_text(value["buggy_code"]) == canonical_text(value["fixed_code"]):
        faults = [Fault("fixed_code", "Field 'fixed_code' is the same as 'buggy_code'", "the mended code")]
    return faults or {**{key: value[key] for key in needed}, **extra}


def mutation_conversation(fields: Mapping[str, Any]) -> Fields:
    """The fields of the conversation that the fields of a mutation are trained as."""
    place = " of ".join(str(fields[key]) for key in ("file", "repo") if key in fields)
    asked = (f"The code below{f', from {place},' if place else ''} has a fault.\n\n{_fenced(fields['buggy_code'])}\n\n"
             f"Its tests say:\n\n{_fenced(fields['error_message'])}\n\nMend the code.")  # fmt: skip
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": _fenced(fields["fixed_code"])}]}


def _fenced(code: str) -> str:
    """Code between fences that are longer than any in it."""
    longest = max((len(run) for run in _TICKS.findall(code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{code.strip(chr(10))}\n{fence}"
