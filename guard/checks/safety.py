"""The safety filter of preference pairs: rules a home may set, and which of them a pair breaks. Off unless it is switched on.

A rule is a name and a regular expression, and may say in which parts of a pair it looks. Expressions are those of RE2, which
needs time in proportion to the text whatever stands in either; look-around and back-references do not exist in it.
Pure: nothing is dropped here. Whoever prepares pairs leaves out what breaks a rule and lists it by line and rule. Intake
does not filter, since which rows of a file are examples may not depend on a home's settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from guard.errors import UsageError
from guard.settings import Settings
from guard.trained import texts_of

__all__ = ["PARTS", "Rule", "broken_rules", "load_rules"]

PARTS = ("prefix", "chosen", "rejected")
_HINT = 'configs/heirloom.yaml: safety: {rules: [{name: "no keys", pattern: "(?i)api[_ ]key", fields: [chosen]}]}'
_AT_ONCE = 1024


class Rule(NamedTuple):
    """What must not stand in a pair."""

    name: str
    pattern: str
    fields: tuple[str, ...] = PARTS


def load_rules(settings: Settings) -> list[Rule]:
    """The rules of a home, in their order; none while the filter is switched off. Raises UsageError for a wrong one."""
    if not settings.safety.enabled:
        return []
    if not settings.safety.rules:
        raise UsageError("safety.enabled is true and there is no rule: nothing would be kept out", subject="safety.rules",
                         hint=_HINT)  # fmt: skip
    rules = [_rule(item) for item in settings.safety.rules]
    names = [rule.name for rule in rules]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"safety.rules: two rules are called {twice!r}", subject="safety.rules", hint="a name for each")
    for rule in rules:
        _find(rule, [""])
    return rules


def _rule(item: Any) -> Rule:
    if not isinstance(item, Mapping) or not {"name", "pattern"} <= item.keys() <= {"name", "pattern", "fields"}:
        raise UsageError("safety.rules: a rule has a name, a pattern and perhaps fields", subject="safety.rules", hint=_HINT)
    fields = item.get("fields", list(PARTS))
    if not all(isinstance(item[key], str) and item[key] for key in ("name", "pattern")):
        raise UsageError("safety.rules: name and pattern must be text", subject="safety.rules", hint=_HINT)
    if not isinstance(fields, list) or not fields or any(name not in PARTS for name in fields):
        raise UsageError(f"safety.rules: {item['name']!r} looks in {fields!r}", subject="safety.rules",
                         hint=f"the fields are {', '.join(PARTS)}")  # fmt: skip
    return Rule(item["name"], item["pattern"], tuple(fields))


def broken_rules(rules: Sequence[Rule], pairs: Iterable[Mapping[str, Any]]) -> list[str]:
    """For each of the pairs the name of the first rule that it breaks, "" for none; many at once are much faster."""
    whole = list(pairs)
    return [name for start in range(0, len(whole), _AT_ONCE) for name in _judge(rules, whole[start : start + _AT_ONCE])]


def _judge(rules: Sequence[Rule], pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [""] * len(pairs)
    for rule in rules:
        texts = ["\n".join(text for part in rule.fields if part in fields for text in texts_of({part: fields[part]}))
                 for fields in pairs]  # fmt: skip
        for place, hit in enumerate(_find(rule, texts)):
            if hit and not found[place]:
                found[place] = rule.name
    return found


def _find(rule: Rule, texts: Sequence[str]) -> list[bool]:
    """Which of the texts a rule's pattern is found in. Raises UsageError for a pattern that is none."""
    import pyarrow as pa  # for those who switched the filter on
    import pyarrow.compute as pc

    try:
        hits: list[bool] = pc.match_substring_regex(pa.array(texts, pa.large_string()), rule.pattern).to_pylist()
    except pa.ArrowInvalid as error:
        raise UsageError(f"safety.rules: the pattern of {rule.name!r} is no regular expression of RE2: {error}",
                         subject="safety.rules",
                         hint="look-around and back-references do not exist in it") from error  # fmt: skip
    return hits
