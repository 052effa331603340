"""The gate (DESIGN 6): may this child become the line's tip? It judges losses and samples; it moves nothing.

The new data's loss must fall against the parent's. A set of the ancestry may rise over the line's best by at most
max(0.3 nat, 15 %) and warns at 2 %. Weights finite (see `proof.py`), generation not degenerate. Too few held-out
tokens to judge is "not applicable"; a missing or non-finite figure is a refusal (law 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from guard.checks.verdict import Check, Verdict, verdict_of

__all__ = ["MANY_LOSS_TOKENS", "MIN_EXAMPLES", "MIN_LOSS_TOKENS", "LossPair", "judge", "loss_pairs"]

RISE_NATS = 0.3
RISE_SHARE = 0.15
WARN_SHARE = 0.02
MIN_EXAMPLES = 3
MIN_LOSS_TOKENS = 256
MANY_LOSS_TOKENS = 2048
"""So many say what became of earlier knowledge however few the texts: a set of one book is one example."""
MIN_DISTINCT_RATIO = 0.02


@dataclass(frozen=True)
class LossPair:
    """Losses in nats per token of child and parent on one set. `role`: new_held_out, new_trained or ancestry."""

    name: str
    role: str
    child: float | None
    parent: float | None
    best: float | None
    """The lowest loss that any version of this ancestry reached on the set; None: only the parent is known."""
    examples: int
    loss_tokens: int


def loss_pairs(evaluation: Sequence[Mapping[str, Any]], best: Mapping[str, float]) -> list[LossPair]:
    """The child's evaluation rows as pairs; `best` maps a set's name to the line's best loss so far."""
    return [
        LossPair(row["name"], row["role"], row.get("child_loss"), row.get("parent_loss"), best.get(row["name"]),
                 int(row["examples"]), int(row["loss_tokens"]))
        for row in evaluation
    ]  # fmt: skip


def judge(
    pairs: Sequence[LossPair], generations: Sequence[Mapping[str, Any]], *, unjudged: Mapping[str, str] | None = None
) -> Verdict:
    """Every set and the samples. At least one figure on the new data must have been there to judge.

    `unjudged`: sets of the ancestry that were not measured, with the reason; each is told, never silently left out.
    """
    return verdict_of([
        *((pair.name, partial(_judge_pair, pair)) for pair in pairs),
        *((name, partial(Check, name, None, f"not judged: {why}")) for name, why in (unjudged or {}).items()),
        ("new data judged", partial(_something_judged, pairs)),
        ("generation", partial(_generation, generations)),
    ])  # fmt: skip


def _too_few(pair: LossPair) -> bool:
    if pair.role == "new_trained":
        return False
    long_texts = pair.role == "ancestry" and pair.loss_tokens >= MANY_LOSS_TOKENS
    return pair.loss_tokens < MIN_LOSS_TOKENS or (pair.examples < MIN_EXAMPLES and not long_texts)


def _judge_pair(pair: LossPair) -> Check:
    if _too_few(pair):
        told = f"{pair.examples} with {pair.loss_tokens:,} tokens to judge by"
        return Check(pair.name, None, f"too few held-out examples to judge ({told})")
    if pair.child is None or pair.parent is None:
        return Check(pair.name, False, "a loss is missing", "the child is kept as quarantined")
    if not (math.isfinite(pair.child) and math.isfinite(pair.parent)):
        return Check(pair.name, False, f"a loss is not finite ({pair.parent} -> {pair.child})",
                     "lower the learning rate; the child is kept as quarantined")  # fmt: skip
    return _fell(pair) if pair.role != "ancestry" else _held(pair)


def _fell(pair: LossPair) -> Check:
    assert pair.child is not None and pair.parent is not None
    text = f"{pair.parent:.4f} -> {pair.child:.4f} nat per token"
    if pair.child < pair.parent:
        return Check(pair.name, True, text)
    return Check(pair.name, False, f"the loss on the new data did not fall: {text}",
                 "check the recipe and the data; the child is kept as quarantined")  # fmt: skip


def _held(pair: LossPair) -> Check:
    assert pair.child is not None and pair.parent is not None
    best = min(pair.parent, pair.best) if pair.best is not None else pair.parent
    rise = pair.child - best
    text = f"{best:.4f} -> {pair.child:.4f} nat per token ({rise / best:+.1%})" if best > 0 else f"{rise:+.4f} nat"
    if rise > max(RISE_NATS, RISE_SHARE * best):
        return Check(pair.name, False, f"earlier knowledge was lost: {text}",
                     "more replay (replay.fraction) or a lower learning rate; the child is quarantined")  # fmt: skip
    return Check(pair.name, True, text, warning=rise > WARN_SHARE * best)


def _something_judged(pairs: Sequence[LossPair]) -> Check:
    judged = [pair for pair in pairs if pair.role.startswith("new") and not _too_few(pair)]
    if not judged:
        return Check("new data judged", False, "no loss on the new data was measured", "report this")
    return Check("new data judged", True, ", ".join(pair.name for pair in judged))


def _generation(generations: Sequence[Mapping[str, Any]]) -> Check:
    if not generations:
        return Check("generation", False, "no sample was generated", "report this")
    ratios = [float(item["distinct_ratio"]) for item in generations]
    worst = min(ratios)
    if not all(map(math.isfinite, ratios)):
        return Check("generation", False, "a sample has no ratio of distinct tokens", "report this")
    if worst < MIN_DISTINCT_RATIO:
        return Check("generation", False, f"it repeats itself without end (distinct tokens {worst:.1%})",
                     "the child is kept as quarantined")  # fmt: skip
    return Check("generation", True, f"distinct tokens at least {worst:.1%}")
