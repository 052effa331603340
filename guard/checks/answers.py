"""Whether an answer is the expected one: exactly, as a part, or as a number. Pure; knows no models and no files.

    exact     equal after NFC, CRLF as LF and without outer white space (as an example's identity has it)
    contains  the expected text, made canonical in the same way, stands somewhere in the answer
    numeric   equal numbers; of a text the one behind the first "####", else the last one it holds

The numeric rule is that of GSM8K (Cobbe et al. 2021, arXiv 2110.14168: the final answer stands behind "#### ", commas left
away), with the last number taken where a model leaves the marks out. Not here: the questions (`questions.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from guard.fingerprint import canonical_text

__all__ = ["MATCHES", "is_right", "number_in"]

MATCHES = ("exact", "contains", "numeric")
# A sign counts only at the number itself and behind no word or bracket: in "5-3" and "9 - 3" the last number is 3.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\].])[-+\u2212])?(?:[$€£][ \t]?)?(?P<inner>(?<=[$€£])[-\u2212])?"
    r"(?P<digits>\d{1,3}(?:,\d{3}){1,133}+(?!,?\d)|\d+)?(?P<point>\.\d+)?(?P<power>(?<=\d)[eE][-+]?\d{1,3}(?!\w))?"
)  # fmt: skip
_MARK = "####"
_MOST_DIGITS = 400
"""A longer number is none that anybody means."""


def number_in(text: str) -> Decimal | None:
    """The number a text means: the first one behind its first "####" that has one, else its last one; None without any.

    Read are `-5`, `$1,234.50`, `-$5`, `$-5`, `.5`, `3e2` and the minus sign U+2212; a dot that ends a sentence is not part of it.
    """
    for piece in text.split(_MARK)[1:]:
        behind = _numbers(piece.split("\n", 1)[0])
        if behind:
            return behind[0]
    found = _numbers(text)
    return found[-1] if found else None


def _numbers(text: str) -> list[Decimal]:
    found = []
    for match in _NUMBER.finditer(text):
        digits, point = match["digits"] or "", match["point"] or ""
        if not (digits or point) or len(digits) + len(point) > _MOST_DIGITS:
            continue
        sign = "-" if (match["sign"] or match["inner"]) in ("-", "\u2212") else ""
        found.append(Decimal(f"{sign}{digits.replace(',', '') or '0'}{point}{match['power'] or ''}"))
    return found


def is_right(answer: str, expected: Sequence[str], match: str, *, ignore_case: bool = False) -> bool:
    """Whether an answer is one of those expected, by one of MATCHES. `ignore_case` folds both sides (not of numbers)."""
    if match == "numeric":
        number = number_in(answer)
        return number is not None and any(number == number_in(item) for item in expected)
    fold = str.casefold if ignore_case else str
    given = fold(canonical_text(answer))
    wanted = [fold(canonical_text(item)) for item in expected]
    return any(item in given for item in wanted) if match == "contains" else given in wanted
