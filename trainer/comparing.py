"""Figures of an evaluation with how sure they are: ratios over examples, shares, and paired differences. numpy alone.

The unit that is drawn is the example (a conversation, a row, a segment), not the token: tokens of one example depend on one
another, and an interval over tokens would be far too narrow (Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640).
Intervals are for 95 %. Everything is a pure function of its numbers: no resampling, no seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ratio", "difference_of_ratios", "ratio", "sign_test", "student95", "verdict_of", "wilson"]

Z95 = 1.959963984540054
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A figure over `examples` examples, its standard error (None: too few examples to tell) and its 95 % interval."""

    value: float
    error: float | None
    examples: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """[value - t * error, value + t * error], t of Student's distribution with examples - 1; None without an error."""
        if self.error is None:
            return None
        half = student95(self.examples - 1) * self.error
        return self.value - half, self.value + half


def student95(freedom: int) -> float:
    """The two-sided 95 % point of Student's t, by its expansion around the normal's (Abramowitz and Stegun 1964, 26.7.5).

    Right to 1 % for two degrees of freedom, to 0.1 % from three on; of one degree it is the tabled 12.71.
    """
    if freedom < 2:
        return 12.706
    z = Z95
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
             (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160)  # fmt: skip
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def ratio(above: Floats, below: Floats) -> Ratio | None:
    """sum(above [n]) / sum(below [n]), such as nats per token, with the standard error of a ratio estimator.

    se^2 = n / (n - 1) * sum((above_i - r * below_i)^2) / sum(below)^2 (Cochran 1977, "Sampling Techniques", 6.3; of a mean
    over equal parts it is the usual one). None when the whole below is 0 or the value is not finite.
    """
    whole = float(below.sum())
    if not whole > 0 or not math.isfinite(value := float(above.sum()) / whole):
        return None
    return Ratio(value, _error((above - value * below) / whole), len(above))


def difference_of_ratios(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> Ratio | None:
    """The ratio of `first` less that of `second`, each (above [n], below [n]) over the same n examples in the same order.

    Paired: the error is that of the examples' own differences, linearised as in `ratio`, so that what makes an example
    hard for both cancels. With equal `below` it is the paired difference of means. None when either ratio is none.
    """
    one, two = ratio(*first), ratio(*second)
    if one is None or two is None:
        return None
    residuals = ((first[0] - one.value * first[1]) / float(first[1].sum())
                 - (second[0] - two.value * second[1]) / float(second[1].sum()))  # fmt: skip
    return Ratio(one.value - two.value, _error(residuals), len(residuals))


def _error(residuals: Floats) -> float | None:
    count = len(residuals)
    if count < 2:
        return None
    found = math.sqrt(count / (count - 1) * float((residuals**2).sum()))
    return found if math.isfinite(found) else None


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927, JASA 22:209): sound at 0, at 1 and for few. `count` >= 1."""
    share, square = right / count, Z95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def sign_test(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """(questions only the first got right, only the second, two-sided p of so uneven a split by chance).

    McNemar's test in its exact form: a binomial with 1/2 over the questions on which the two differ (1947, Psychometrika
    12:153). p is 1.0 when they differ nowhere.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    count, fewer = only_first + only_second, min(only_first, only_second)
    if not count:
        return 0, 0, 1.0
    log_half = count * math.log(0.5)
    tail = sum(math.exp(_log_choose(count, k) + log_half) for k in range(fewer + 1))
    return only_first, only_second, min(1.0, 2 * tail)


def _log_choose(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def verdict_of(difference: Ratio | None) -> str:
    """What a difference of losses says of the first side: `better` (lower), `worse`, `no difference seen`, `not judged`."""
    if difference is None or difference.interval is None:
        return "not judged"
    low, high = difference.interval
    return "better" if high < 0 else "worse" if low > 0 else "no difference seen"
