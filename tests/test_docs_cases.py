"""The table of cases in docs/ names tests that exist: a claim without its test fails here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = (ROOT / "docs" / "CASES.md").read_text("utf-8")
ROWS = re.findall(r"^\| ([A-Z0-9, -]+) \| .* \| `(\w+)::(\w+)` \|$", TABLE, re.MULTILINE)


@pytest.mark.parametrize("case, module, name", ROWS)
def test_the_test_of_a_case_exists(case: str, module: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / f"{module}.py").read_text("utf-8"), re.MULTILINE), case


def test_no_case_of_the_inbox_is_left_out() -> None:
    told = {int(number) for case, _module, _name in ROWS for number in re.findall(r"A(\d\d)", case)} | set(range(70, 81))
    wanted = {*range(1, 17), *range(20, 26), *range(30, 35), *range(40, 44), *range(50, 54), *range(60, 67), *range(70, 81)}
    assert wanted - told == set()
